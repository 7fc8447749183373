// Kinds of tissue, found without a label: looked through by example tiles, and given names to teach from.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get, type KindOfTissue, ofSlide, pictureOf, post } from "./api";
import { cellsOf, css } from "./heat";
import type { Reading } from "./reading";
import { trying, worklist } from "./state";

export function Kinds({ reading }: { reading: Reading }) {
  const page = reading.page.value!;
  const open = useSignal(false);
  const kinds = reading.kinds.value;
  const load = () =>
    trying(async () => {
      reading.kinds.value = await get<KindOfTissue[]>(ofSlide(reading.key, "/kinds"));
    });
  useEffect(() => {
    if (open.value && !reading.kinds.value) void load();
  }, [open.value]);
  if (!page.grid || !page.first_done) return null;
  const total = kinds?.reduce((sum, kind) => sum + kind.tiles, 0) ?? 0;
  return (
    <details class="about kinds-of-tissue" open={open.value} onToggle={(event) => (open.value = event.currentTarget.open)}>
      <summary>Kinds of tissue</summary>
      {kinds && !kinds.length && <p class="quiet">No tissue map was drawn of this slide. <code>pathovit tissue</code> draws one.</p>}
      {kinds && kinds.length > 0 && (
        <>
          <div class="line">
            <button type="button" class="toggle" aria-pressed={reading.kindsShown.value} onClick={() => (reading.kindsShown.value = !reading.kindsShown.value)}>
              On the slide
            </button>
            {worklist.value?.reader.may_settle && (
              <label>
                <input type="checkbox" checked={reading.withKinds.value} onChange={(event) => (reading.withKinds.value = event.currentTarget.checked)} /> teach from these names, instead of paint
              </label>
            )}
          </div>
          <ul>
            {kinds.map((kind) => (
              <li key={kind.letter} class="kind">
                <span class="swatch" style={{ background: css(kind.colour) }} aria-hidden="true" />
                <b>{kind.letter}</b>
                <input
                  aria-label={`Name of kind ${kind.letter}`} placeholder="name" maxLength={80} value={kind.name} disabled={!worklist.value?.reader.may_settle}
                  onChange={(event) => void trying(async () => {
                    await post("/api/kinds", { letter: kind.letter, name: event.currentTarget.value });
                    await load();
                  })}
                />
                <span class="quiet">{Math.round((100 * kind.tiles) / total)} %</span>
                <div class="pictures">
                  {kind.examples.map((index) => (
                    <button type="button" key={index} onClick={() => reading.goToIndex(index)}>
                      <img src={pictureOf(reading.key, index)} alt={`A tile of kind ${kind.letter}`} loading="lazy" width={72} height={72} />
                    </button>
                  ))}
                </div>
              </li>
            ))}
          </ul>
        </>
      )}
    </details>
  );
}

// A pixel for each cell, in the colour of its kind.
export function paintKinds(canvas: HTMLCanvasElement, rows: number, columns: number, kinds: KindOfTissue[]): void {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (const kind of kinds) {
    const [r, g, b] = kind.colour;
    for (const cell of cellsOf(columns, kind.runs)) pixels[cell] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  context.putImageData(image, 0, 0);
}
