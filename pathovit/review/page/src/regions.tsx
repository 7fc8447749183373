// Hot regions, as a list: the text form of the map. Beside the strongest tiles some at random, so that one is not led.
import { useEffect, useRef } from "preact/hooks";
import { pictureOf, type Run } from "./api";
import { toValue } from "./heat";
import { Key, number } from "./parts";
import type { Reading } from "./reading";

export function Regions({ reading }: { reading: Reading }) {
  const page = reading.page.value!, info = reading.info.value;
  const list = useRef<HTMLOListElement>(null);
  const note = reading.regionNote;
  const selected = reading.region.value;
  useEffect(() => {
    list.current?.querySelector("[aria-current=true]")?.scrollIntoView({ block: "nearest" });
  }, [selected]);
  if (!page.may_see || info?.kind !== "score") return null;
  const all = reading.regions.value, listed = reading.listed.value;
  const judged = new Map(page.opinion.regions.map((one) => [`${one.label} ${one.runs[0]![0]} ${one.runs[0]![1]} ${size(one.runs)}`, one.judgement]));
  return (
    <section class="regions" aria-labelledby="regions-title">
      <h2 id="regions-title">
        Regions <span class="count">{all.length.toLocaleString("en")}</span>
        <span class="hint">
          <Key>n</Key> <Key>p</Key>
        </span>
      </h2>
      {!all.length && <p class="quiet">No tile of {info.name} at or above {number(reading.threshold.value)}.</p>}
      <ol ref={list} aria-busy={reading.searching.value}>
        {listed.map((region, i) => {
          const columns = reading.columns.value;
          const tiles = reading.viewer?.tilesUnder(region.cells) ?? region.cells;
          const first = tiles === region.cells ? region.first : tiles.reduce((least, cell) => Math.min(least, cell), Infinity);
          const verdict = judged.get(`${info.name} ${Math.floor(first / columns)} ${first % columns} ${tiles.length}`);
          return (
            <li key={region.peakCell}>
              <button
                type="button" class="region" aria-current={i === selected} disabled={reading.searching.value}
                onClick={() => ((reading.region.value = i), reading.goToCell(region.peakCell, reading.grid.value!.origin))}
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
          {(["agree", "disagree", "unsure"] as const).map((one) => (
            <button type="button" key={one} onClick={() => void reading.judgeRegion(one)}>
              {one[0]!.toUpperCase() + one.slice(1)} <Key>{one[0]}</Key>
            </button>
          ))}
          <input aria-label="Note on the region" placeholder="Note" maxLength={4000} value={note.value} onInput={(event) => (note.value = event.currentTarget.value)} />
        </div>
      )}
      <Strip reading={reading} title="Strongest tiles" cells={reading.strip.value} />
      <Strip reading={reading} title="Four at random, to compare" cells={reading.controls.value} />
    </section>
  );
}

const size = (runs: Run[]) => runs.reduce((sum, [, , length]) => sum + length, 0);

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
  const gone = !reading.page.value?.levels; // the slide is not there: nothing to ask for
  return index === null || gone ? <span class="no-picture">{where}</span> : <img src={pictureOf(reading.key, index)} alt={where} loading="lazy" width={76} height={76} />;
}
