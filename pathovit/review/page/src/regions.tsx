// Hot regions, as a list: the text form of the map. Beside the strongest tiles some at random, so that one is not led.
import { useEffect, useRef } from "preact/hooks";
import { pictureOf } from "./api";
import { toValue } from "./heat";
import { Key, number } from "./parts";
import type { Reading } from "./reading";

export function Regions({ reading }: { reading: Reading }) {
  const page = reading.page.value!, info = reading.info.value;
  const list = useRef<HTMLOListElement>(null);
  const selected = reading.region.value;
  useEffect(() => {
    list.current?.querySelector("[aria-current=true]")?.scrollIntoView({ block: "nearest" });
  }, [selected]);
  if (!page.may_see || info?.kind !== "score") return null;
  const all = reading.regions.value, listed = reading.listed.value;
  const judged = new Map(page.opinion.regions.map((one) => [JSON.stringify(one.runs[0]), one.judgement]));
  return (
    <section class="regions" aria-labelledby="regions-title">
      <h2 id="regions-title">
        Regions <span class="count">{all.length.toLocaleString("en")}</span>
        <span class="hint">
          <Key>n</Key> <Key>p</Key>
        </span>
      </h2>
      {!all.length && <p class="quiet">No tile of {info.name} at or above {number(reading.threshold.value)}.</p>}
      <ol ref={list}>
        {listed.map((region, i) => {
          const first = Math.min(...region.cells);
          const verdict = judged.get(JSON.stringify([Math.floor(first / reading.columns.value), first % reading.columns.value, runLength(region.cells, first)]));
          return (
            <li key={region.peakCell}>
              <button
                type="button" class="region" aria-current={i === selected}
                onClick={() => ((reading.region.value = i), reading.goToCell(region.peakCell))}
              >
                <b>{i + 1}</b>
                <span>{number(region.mm2)} mm²</span>
                <span>mean {number(region.mean)}</span>
                <span>peak {number(region.peak)}</span>
                {verdict && <span class={`verdict ${verdict}`}>{verdict}</span>}
              </button>
            </li>
          );
        })}
      </ol>
      {all.length > listed.length && <p class="quiet">The largest {listed.length} are listed; all are drawn.</p>}
      {selected >= 0 && listed[selected] && (
        <div class="line judge" role="group" aria-label={`Region ${selected + 1}`}>
          <span>Region {selected + 1}</span>
          <button type="button" onClick={() => void reading.judgeRegion("agree")}>Agree</button>
          <button type="button" onClick={() => void reading.judgeRegion("disagree")}>Disagree</button>
          <button type="button" onClick={() => void reading.judgeRegion("unsure")}>Unsure</button>
        </div>
      )}
      <Strip reading={reading} title="Strongest tiles" cells={reading.strip.value} />
      <Strip reading={reading} title="Four at random, to compare" cells={reading.controls.value} />
    </section>
  );
}

function runLength(cells: Int32Array, first: number): number {
  const inside = new Set(cells);
  let length = 1;
  while (inside.has(first + length)) length++;
  return length;
}

export function Strip({ reading, title, cells }: { reading: Reading; title: string; cells: number[] }) {
  if (!cells.length) return null;
  const info = reading.info.value, bytes = reading.cells.value;
  return (
    <div class="strip">
      <h3>{title}</h3>
      <div class="pictures">
        {cells.map((cell) => (
          <button
            type="button" key={cell} onClick={() => (reading.goToCell(cell), void reading.lookAt(cell))}
          >
            <CellPicture reading={reading} cell={cell} />
            {info?.kind === "score" && bytes?.[cell] ? <span class="value">{number(toValue(info, bytes[cell]!))}</span> : null}
          </button>
        ))}
      </div>
    </div>
  );
}

// Pictures go by tile, cells by place: the order of tiles is row by row.
export function CellPicture({ reading, cell }: { reading: Reading; cell: number }) {
  const index = reading.indexOf(cell);
  const where = `Tile in row ${Math.floor(cell / reading.columns.value)}, column ${cell % reading.columns.value}`;
  return index === null ? <span class="no-picture">{where}</span> : <img src={pictureOf(reading.key, index)} alt={where} loading="lazy" width={76} height={76} />;
}
