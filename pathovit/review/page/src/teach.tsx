// Correct and teach: paint tiles, let the model learn, look at the new map, answer what it asks.
import { useComputed, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { get, type LessonState, pictureOf, post, type Taught } from "./api";
import { classColour } from "./heat";
import { Key, number, Swatch } from "./parts";
import type { Reading } from "./reading";
import { go, refresh, trying, worklist } from "./state";

const POLL_MS = 400;

export function Teach({ reading }: { reading: Reading }) {
  const page = reading.page.value!;
  const newClass = useSignal("");
  const counts = useComputed(() => {
    const found = new Map<string, number>();
    for (const label of reading.painted.value.values()) found.set(label, (found.get(label) ?? 0) + 1);
    return found;
  });
  const painting = reading.mode.value === "paint";
  const classes = reading.classes.value;
  const brushes = [...classes, ...classes.map((name) => `not ${name}`), "ignore", ""];
  const pick = (label: string) => {
    reading.brushLabel.value = label;
    reading.mode.value = "paint";
  };
  if (!page.grid) return null;
  return (
    <section class="teach" aria-labelledby="teach-title">
      <h2 id="teach-title">
        Correct and teach
        <span class="hint"><Key>b</Key></span>
      </h2>
      <p class="quiet">Paint a few short strokes of each class, in different places. Five of each are a good beginning.</p>
      <div class="brushes" role="group" aria-label="Brush">
        {brushes.map((label) => (
          <button type="button" key={label} aria-pressed={painting && reading.brushLabel.value === label} onClick={() => pick(label)}>
            {label ? <Swatch colour={classColour(classes, label)} /> : <span class="swatch none" aria-hidden="true" />}
            {label === "ignore" ? "unsure" : label || "erase"}
            {counts.value.get(label) ? <span class="count">{counts.value.get(label)}</span> : null}
            {brushKey(classes, label) && <Key>{brushKey(classes, label)}</Key>}
          </button>
        ))}
      </div>
      <form
        class="line"
        onSubmit={(event) => {
          event.preventDefault();
          const name = newClass.value.trim();
          if (!name) return;
          reading.extraClasses.value = [...reading.extraClasses.value, name];
          newClass.value = "";
          pick(name);
        }}
      >
        <input aria-label="Another class" placeholder="Another class" maxLength={80} value={newClass.value} onInput={(event) => (newClass.value = event.currentTarget.value)} />
        <button type="submit">Add</button>
      </form>
      <div class="line">
        <label class="range">
          <span>Brush</span>
          <input type="range" min="0" max="6" step="1" value={reading.brush.value} onInput={(event) => (reading.brush.value = Number(event.currentTarget.value))} />
          <output>{2 * reading.brush.value + 1} × {2 * reading.brush.value + 1}</output>
        </label>
        <button type="button" disabled={page.opinion.can_undo === null} onClick={() => void reading.undo()}>
          Undo <Key>z</Key>
        </button>
      </div>
      {worklist.value?.reader.may_settle ? <Learn reading={reading} /> : <p class="quiet">Whoever settles disagreements teaches the model.</p>}
      <AskedTiles reading={reading} />
    </section>
  );
}

export function brushKey(classes: string[], label: string): string {
  if (label === "") return "e";
  if (label === "ignore") return "0";
  const place = classes.indexOf(label);
  return place >= 0 && place < 9 ? String(place + 1) : "";
}

function Learn({ reading }: { reading: Reading }) {
  const page = reading.page.value!;
  const state = useSignal<LessonState | null>(worklist.value?.lesson ?? null);
  const lessons = useSignal<Taught[]>([]);
  const positive = useSignal("");
  const gone = useRef(false);
  const ask = async () => {
    const found = await get<LessonState & { lessons: Taught[] }>("/api/teach");
    state.value = found;
    lessons.value = found.lessons;
    return found;
  };
  const watch = () =>
    trying(async () => {
      while ((await ask()).running && !gone.current) {
        await new Promise((resolve) => setTimeout(resolve, POLL_MS));
        await reading.loadAnew().catch(() => {}); // painted slides are drawn first; while one is drawn it may not be there
      }
      if (state.value?.code === 0 || state.value?.code === 3) {
        await reading.loadAnew();
        await reading.loadAsked(true);
        void refresh();
      }
    });
  const learn = () =>
    trying(async () => {
      await reading.kept(); // what is painted is learned from
      state.value = await post<LessonState>("/api/teach", { positive: positive.value || null, with_kinds: reading.withKinds.value });
      await watch();
    });
  useEffect(() => {
    void trying(async () => {
      if ((await ask()).running) await watch();
    });
    return () => {
      gone.current = true;
    };
  }, []);
  const running = state.value?.running ?? false;
  return (
    <div class="learn">
      <div class="line">
        <button type="button" id="learn" class="primary" disabled={running} onClick={() => void learn()}>
          {running ? "Learning…" : "Learn now"} <Key>L</Key>
        </button>
        <label>
          Map of{" "}
          <select value={positive.value} onChange={(event) => (positive.value = event.currentTarget.value)}>
            <option value="">the last class</option>
            {reading.classes.value.map((name) => <option key={name}>{name}</option>)}
          </select>
        </label>
      </div>
      {!running && page.answer && !page.is_map && <p class="quiet">The answers of {page.about.model} give way to maps of what you teach; `pathovit heatmap` brings them back.</p>}
      {running && <p class="quiet" role="status">{state.value!.seconds.toFixed(0)} s · {state.value!.lines.at(-1) ?? "reading features"}</p>}
      {!running && state.value?.code !== null && state.value?.code !== undefined && state.value.code !== 0 && state.value.code !== 3 && (
        <p class="warning" role="alert">{state.value.lines.at(-1) ?? "It ended without a word."}</p>
      )}
      {lessons.value.length > 0 && <Curve lessons={lessons.value} />}
    </div>
  );
}

// How good each lesson's model was on painted tiles that it had not seen.
function Curve({ lessons }: { lessons: Taught[] }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const values = lessons.map(worth);
  const last = values.at(-1);
  useEffect(() => {
    const element = canvas.current!;
    const context = element.getContext("2d")!;
    const { width, height } = element;
    const colour = getComputedStyle(element).color;
    context.clearRect(0, 0, width, height);
    context.strokeStyle = context.fillStyle = colour;
    context.globalAlpha = 0.3;
    for (const level of [0.5, 0.75, 1]) {
      const y = height - 6 - ((level - 0.5) / 0.5) * (height - 12);
      context.beginPath();
      context.moveTo(0, y);
      context.lineTo(width, y);
      context.stroke();
    }
    context.globalAlpha = 1;
    context.lineWidth = 2;
    context.beginPath();
    values.forEach((value, i) => {
      if (value === null) return;
      const x = values.length === 1 ? width / 2 : 8 + (i / (values.length - 1)) * (width - 16);
      const y = height - 6 - ((Math.max(0.5, value) - 0.5) / 0.5) * (height - 12);
      context.lineTo(x, y);
      context.fillRect(x - 2.5, y - 2.5, 5, 5);
    });
    context.stroke();
  }, [lessons.length]);
  const tiles = Object.values(lessons.at(-1)!.tiles ?? {}).reduce((sum, count) => sum + count, 0);
  return (
    <figure class="curve">
      <canvas ref={canvas} width={300} height={64} role="img" aria-label={`AUROC of ${lessons.length} lessons`} />
      <figcaption>
        {last === null || last === undefined
          ? "Paint at least two strokes of each class, and it can be said how good the model is."
          : `AUROC ${number(last)} on painted tiles that it had not seen (${tiles} tiles). Lines at 0.5, 0.75 and 1.`}
      </figcaption>
    </figure>
  );
}

function worth(lesson: Taught): number | null {
  const known = (lesson.left_out ?? []).map((one) => one.auroc).filter((value): value is number => value !== null && value !== undefined);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

function AskedTiles({ reading }: { reading: Reading }) {
  const asked = reading.askedHere.value;
  if (!asked.length) return null;
  const current = reading.askedAt.value;
  return (
    <div class="strip asked">
      <h3>
        It would like to know <span class="hint"><Key>q</Key></span>
      </h3>
      <div class="pictures">
        {asked.map((tile, i) => (
          <button
            type="button" key={`${tile.key}-${tile.index}`} aria-current={i === current}
            onClick={() => (tile.key === reading.key ? reading.ask(i) : go({ name: "slide", key: tile.key }))}
          >
            <img src={pictureOf(tile.key, tile.index)} alt={`Asked tile${tile.key === reading.key ? "" : ` of ${tile.file}`}`} loading="lazy" width={76} height={76} />
            <span class="value">{tile.key === reading.key ? i + 1 : "other slide"}</span>
          </button>
        ))}
      </div>
      {current >= 0 && (
        <p class="quiet" role="status">
          Tile {current + 1}: what is it? {reading.classes.value.map((name, i) => <span key={name}><Key>{i + 1}</Key> {name} </span>)}
          <Key>0</Key> unsure
        </p>
      )}
    </div>
  );
}
