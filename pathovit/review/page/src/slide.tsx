// The page of one slide: pixels, map and paint on the left, the reading on the right.
import { useSignal } from "@preact/signals";
import OpenSeadragon from "openseadragon";
import { useEffect, useRef } from "preact/hooks";
import { pictureOf } from "./api";
import { Kinds } from "./kinds";
import { Layers } from "./layers";
import { signedAs, Steps } from "./panel";
import { length, magnification, number, scarce } from "./parts";
import { Reading } from "./reading";
import { Regions } from "./regions";
import { go, message, needsToken, showKeys, trying, typing } from "./state";
import { Teach } from "./teach";
import { type At, SlideViewer } from "./viewer";
import { order } from "./worklist";

export function SlidePageView({ slideKey }: { slideKey: string }) {
  const reading = useSignal<Reading | null>(null);
  useEffect(() => {
    const opened = new Reading(slideKey, order.value);
    reading.value = null;
    void trying(async () => {
      await opened.load();
      reading.value = opened; // the slide is on its way while the rest is asked for
      await opened.begin();
    });
    return () => opened.close();
  }, [slideKey]);
  const current = reading.value;
  if (!current?.page.value)
    return (
      <p class="empty">
        {message.value ? <a href="#/">Back to the worklist</a> : "Opening the slide…"}
      </p>
    );
  return (
    <main class="slide" key={slideKey}>
      <Stage reading={current} />
      <aside class="panel" aria-label="Reading">
        <Title reading={current} />
        <Steps reading={current} />
        <Layers reading={current} />
        <Regions reading={current} />
        <Teach reading={current} />
        <Kinds reading={current} />
        <About reading={current} />
      </aside>
      <Keyboard reading={current} />
    </main>
  );
}

function Title({ reading }: { reading: Reading }) {
  const page = reading.page.value!;
  const at = order.value.indexOf(page.key);
  return (
    <header class="title">
      <h1 title={page.file}>{page.file}</h1>
      <p class="quiet">
        {page.patient && (
          <>
            patient {page.patient}
            {page.same_patient && page.same_patient.length > 0 && <a href={`#/patient/${page.key}`}> {page.same_patient.length + 1} slides</a>} ·{" "}
          </>
        )}
        {at >= 0 && `${at + 1} of ${order.value.length.toLocaleString("en")}`}
        {page.overview_ready === false && " · its overview is being made, once"}
        {page.opinion.elsewhere > 0 && ` · ${page.opinion.elsewhere} tiles were painted on another tiling and do not count`}
        {reading.saving.value > 0 && " · keeping…"}
        {reading.takenBack.value && ` · ${reading.takenBack.value}`}
      </p>
    </header>
  );
}

function About({ reading }: { reading: Reading }) {
  const page = reading.page.value!;
  const short = (text: string | null | undefined) => (text ? text.slice(0, 12) : "none");
  return (
    <details class="about">
      <summary>Slide and model</summary>
      <table>
        <tbody>
          {page.mpp && <tr><th scope="row">pixel size</th><td>{page.mpp.map((value) => number(value, 4)).join(" × ")} µm, {page.mpp_source}</td></tr>}
          {page.size && <tr><th scope="row">size</th><td>{page.size.map((side) => side.toLocaleString("en")).join(" × ")}</td></tr>}
          {page.tissue_mm2 !== undefined && <tr><th scope="row">tissue</th><td>{number(page.tissue_mm2, 1)} mm²</td></tr>}
          {Object.entries(page.left_out_mm2 ?? {}).map(([what, mm2]) => <tr key={what}><th scope="row">left out</th><td>{number(mm2)} mm² {what}</td></tr>)}
          <tr><th scope="row">model</th><td>{page.about.model ?? "none"} <code>{short(page.about.model_sha256)}</code></td></tr>
          <tr><th scope="row">encoder</th><td>{page.about.encoder} <code>{short(page.about.encoder_sha256)}</code></td></tr>
          <tr><th scope="row">slide</th><td><code>{short(page.about.slide_sha256)}</code></td></tr>
          <tr><th scope="row">pathovit</th><td>{page.about.pathovit} <code>{short(page.about.code_sha256)}</code></td></tr>
        </tbody>
      </table>
    </details>
  );
}

function Stage({ reading }: { reading: Reading }) {
  const box = useRef<HTMLDivElement>(null);
  const page = reading.page.value!;
  const there = !!page.levels;
  useEffect(() => {
    if (!there) return;
    const drawer = new URLSearchParams(location.search).get("drawer") as "canvas" | "webgl" | null;
    const viewer = new SlideViewer(box.current!, page, drawer ?? "auto");
    reading.attach(viewer);
    listen(viewer, reading);
    Object.assign(globalThis, { pathovit: { viewer, reading } }); // for tests, and for whoever opens the console
  }, [there]);
  if (!there)
    return (
      <div class="stage gone">
        <p class="empty">{page.missing || "There is nothing to see of this slide."}</p>
      </div>
    );
  return (
    <div class={`stage ${reading.mode.value}`}>
      <div
        class="osd" ref={box} tabIndex={0} role="application"
        aria-label={`Slide ${page.file}. Arrow keys move, plus and minus zoom; the list of regions is the text form of the map.`}
      />
      {reading.unseen.value && <p class="unseen" role="alert">{reading.unseen.value}</p>}
      <ScaleBar reading={reading} />
      <TileCard reading={reading} />
      <Tools reading={reading} />
      <div class="ruo" role="note">
        Research use only · {page.about.model ? `model ${page.about.model} ${page.about.model_sha256?.slice(0, 8) ?? ""}` : "no model"} · {page.is_map ? "a map, no answer" : page.group}
        {page.opinion.signed ? " · signed" : ""}
      </div>
    </div>
  );
}

// Mouse and pen on the slide: OpenSeadragon moves it, unless one paints or measures.
function listen(viewer: SlideViewer, reading: Reading): void {
  const { osd } = viewer;
  const at = (event: { position: OpenSeadragon.Point }): At | null => viewer.at(event.position);
  osd.addHandler("canvas-press", (event) => {
    if (reading.mode.value === "look" || (event.originalEvent as MouseEvent).shiftKey) return;
    const place = at(event);
    if (!place) return;
    if (reading.mode.value === "paint") {
      reading.beginStroke();
      reading.strokeTo(place.cell);
    } else viewer.measure = [[place.x, place.y]];
  });
  osd.addHandler("canvas-drag", (event) => {
    if (reading.mode.value === "look" || (event.originalEvent as MouseEvent).shiftKey) return; // with Shift one moves the slide while painting
    event.preventDefaultAction = true;
    const place = at(event);
    if (!place) return;
    if (reading.mode.value === "paint") reading.strokeTo(place.cell);
    else {
      viewer.measure = [viewer.measure[0] ?? [place.x, place.y], [place.x, place.y]];
      viewer.drawNow();
    }
  });
  osd.addHandler("canvas-drag-end", (event) => {
    if (reading.mode.value !== "look") event.preventDefaultAction = true;
  });
  osd.addHandler("canvas-release", () => void reading.endStroke()); // whatever was pressed meanwhile
  osd.canvas.addEventListener("pointercancel", () => void reading.endStroke());
  osd.addHandler("canvas-click", (event) => {
    if (reading.mode.value !== "look" || !event.quick) return;
    const place = at(event);
    if (place) void reading.look(place);
  });
  new OpenSeadragon.MouseTracker({
    element: osd.canvas,
    moveHandler: (event: object) => {
      if (reading.mode.value === "paint") reading.cursor.value = at(event as { position: OpenSeadragon.Point })?.cell ?? null;
    },
  });
}

function Tools({ reading }: { reading: Reading }) {
  const mode = (wanted: "paint" | "measure") => (reading.mode.value = reading.mode.value === wanted ? "look" : wanted);
  return (
    <div class="tools-on" role="toolbar" aria-label="Slide">
      <button type="button" title="Closer ( + )" aria-label="Closer" onClick={() => reading.viewer?.zoomBy(1.6)}>+</button>
      <button type="button" title="Further ( - )" aria-label="Further away" onClick={() => reading.viewer?.zoomBy(1 / 1.6)}>−</button>
      <button type="button" title="Whole slide ( f )" aria-label="Whole slide" onClick={() => reading.viewer?.fit()}>⤢</button>
      <button type="button" title="Turn ( r )" aria-label="Turn by 90 degrees" onClick={() => reading.viewer?.rotateBy(90)}>⟳</button>
      <button type="button" title="Measure ( m )" aria-label="Measure" aria-pressed={reading.mode.value === "measure"} onClick={() => mode("measure")}>⟷</button>
      <button type="button" title="Paint ( b )" aria-label="Paint" aria-pressed={reading.mode.value === "paint"} onClick={() => mode("paint")}>✎</button>
      <button type="button" title="Keys ( ? )" aria-label="Keys" onClick={() => (showKeys.value = true)}>?</button>
    </div>
  );
}

const BARS_UM = [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];

function ScaleBar({ reading }: { reading: Reading }) {
  const um = reading.umPerPixel.value;
  if (!um) return null;
  const bar = BARS_UM.findLast((length) => length / um <= 160) ?? BARS_UM[0]!;
  return (
    <div class="scale">
      <span class="bar" style={{ width: `${bar / um}px` }} />
      <span>{length(bar)}</span>
      <span class="quiet">{magnification(um)}</span>
      {reading.measured.value !== null && <b>{length(reading.measured.value)}</b>}
    </div>
  );
}

function TileCard({ reading }: { reading: Reading }) {
  const tile = reading.tile.value;
  if (!tile) return null;
  const alike = reading.alike.value;
  return (
    <div class="card" role="dialog" aria-label="Tile">
      <header>
        <h2>Tile</h2>
        <button type="button" class="plain" aria-label="Close" onClick={() => (reading.tile.value = null)}>✕</button>
      </header>
      <table>
        <tbody>
          {tile.verdict !== "ok" && <tr><th scope="row">not read</th><td>{tile.verdict}</td></tr>}
          {Object.entries(tile.layers ?? {}).map(([name, found]) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              <td>
                {name === "attention" ? scarce(found.value) : number(found.value)} <span class="quiet">above {found.percentile} % of the slide's tiles</span>
              </td>
            </tr>
          ))}
          <tr><th scope="row">place</th><td>{length(tile.x_um)}, {length(tile.y_um)}</td></tr>
          <tr><th scope="row">tissue</th><td>{Math.round(100 * tile.coverage)} % of it</td></tr>
        </tbody>
      </table>
      {alike && (
        <>
          <h3>Most alike here</h3>
          <div class="pictures">
            {alike.here.map((one) => (
              <button type="button" key={one.index} onClick={() => reading.goToIndex(one.index)}>
                <img src={pictureOf(one.key, one.index)} alt="Similar tile" width={72} height={72} />
                <span class="value">{number(one.cosine)}</span>
              </button>
            ))}
          </div>
          {alike.elsewhere.length > 0 && (
            <>
              <h3>Most alike on other slides</h3>
              <div class="pictures">
                {alike.elsewhere.map((one) => (
                  <a key={one.key} href={`#/slide/${one.key}`} title={one.file}>
                    <img src={pictureOf(one.key, one.index)} alt={`Tile of ${one.file}`} width={72} height={72} />
                    <span class="value">{number(one.cosine)}</span>
                  </a>
                ))}
              </div>
            </>
          )}
        </>
      )}
    </div>
  );
}

// The slide before or after: where this one has left the list meanwhile, as they were when it was opened.
function neighbour(reading: Reading, step: number): void {
  if (!reading.mayLeave()) return;
  const now = order.value.includes(reading.key) ? order.value : reading.siblings;
  const next = now[now.indexOf(reading.key) + step];
  if (next) go({ name: "slide", key: next });
}

function press(selector: string): void {
  (document.querySelector(selector) as HTMLElement | null)?.click();
}

// Every action by keyboard. The letters do not change what OpenSeadragon does: its own keys are off.
function Keyboard({ reading }: { reading: Reading }) {
  useEffect(() => {
    const down = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey || needsToken.value || document.querySelector("dialog[open]")) return;
      if (typing(event)) {
        if (event.key === "Escape") (event.target as HTMLElement).blur();
        return;
      }
      const range = (event.target as HTMLElement).matches("input[type=range]");
      if (range && event.key.startsWith("Arrow")) return;
      const onButton = (event.target as HTMLElement).closest("button, a, summary");
      if (onButton && (event.key === "Enter" || event.key === " ")) return;
      if (event.key === " " && (event.target as HTMLElement).matches("input")) return; // a check box
      if (event.repeat && !/^(Arrow.*|[-+=,.\[\]])$/.test(event.key)) return; // a key that is held says one thing
      if (act(reading, event)) event.preventDefault();
    };
    const up = (event: KeyboardEvent) => {
      if (event.key === " ") reading.peek.value = false;
    };
    const away = () => (reading.peek.value = false); // the key comes up elsewhere
    addEventListener("keydown", down);
    addEventListener("keyup", up);
    addEventListener("blur", away);
    return () => {
      removeEventListener("blur", away);
      removeEventListener("keydown", down);
      removeEventListener("keyup", up);
    };
  }, [reading]);
  return null;
}

const ARROWS: Record<string, [number, number]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function act(reading: Reading, event: KeyboardEvent): boolean {
  const page = reading.page.value!, viewer = reading.viewer, key = event.key;
  const classes = reading.classes.value;
  if (!/^(j|k|q|Escape)$/.test(key)) reading.changed();
  const arrow = ARROWS[key];
  if (arrow) {
    if (reading.mode.value === "paint") reading.moveCursor(...arrow);
    else viewer?.panBy(0.2 * arrow[0], 0.2 * arrow[1]);
    return true;
  }
  if (/^[0-9]$/.test(key)) {
    const label = key === "0" ? "ignore" : classes[Number(key) - 1];
    if (label === undefined) return false;
    if (reading.asking) void reading.answerAsked(label);
    else if (!page.first_done) void reading.firstImpression(key === "0" ? null : label);
    else {
      reading.askedTile.value = null;
      reading.brushLabel.value = label;
      reading.mode.value = "paint";
    }
    return true;
  }
  switch (key) {
    case "Escape":
      if (reading.tile.value) reading.tile.value = null;
      else if (reading.region.value >= 0) reading.region.value = -1;
      else if (reading.askedAt.value >= 0) reading.askedTile.value = null;
      else if (reading.mode.value !== "look") {
        reading.mode.value = "look";
        if (viewer) viewer.measure = [];
        viewer?.drawNow();
      } else if (reading.mayLeave()) go({ name: "worklist" });
      return true;
    case "Enter":
      if (reading.drafting.value && reading.mode.value === "look") (document.querySelector("#decision") as HTMLFormElement | null)?.requestSubmit();
      else if (reading.mode.value === "paint" && reading.cursor.value !== null) {
        reading.beginStroke();
        reading.strokeTo(reading.cursor.value);
        void reading.endStroke();
      } else if (reading.mode.value === "measure" && viewer?.ready) {
        viewer.measure = viewer.measure.length === 1 ? [...viewer.measure, viewer.centre()] : [viewer.centre()];
        viewer.drawNow();
      } else if (reading.cellInMiddle() !== null) void reading.lookAt(reading.cellInMiddle()!);
      return true;
    case " ": reading.peek.value = true; return true;
    case "h": reading.heat.value = !reading.heat.value; return true;
    case "o": reading.outlines.value = !reading.outlines.value; return true;
    case "l": if (page.layers?.length) void reading.showLayer((reading.layer.value + 1) % page.layers.length); return true;
    case "[": case "]": {
      const info = reading.info.value;
      if (info) reading.threshold.value = Math.max(info.low, Math.min(info.high, reading.threshold.value + (key === "]" ? 0.05 : -0.05) * (info.high - info.low)));
      return true;
    }
    case "n": reading.goToRegion(1); return true;
    case "p": reading.goToRegion(-1); return true;
    case "j": neighbour(reading, 1); return true;
    case "k": neighbour(reading, -1); return true;
    case "+": case "=": viewer?.zoomBy(1.6); return true;
    case "-": viewer?.zoomBy(1 / 1.6); return true;
    case "f": viewer?.fit(); return true;
    case "r": viewer?.rotateBy(90); return true;
    case "m": reading.mode.value = reading.mode.value === "measure" ? "look" : "measure"; return true;
    case "b":
      reading.mode.value = reading.mode.value === "paint" ? "look" : "paint";
      if (reading.mode.value === "paint" && reading.cursor.value === null) reading.cursor.value = reading.cellInMiddle();
      return true;
    case "e": reading.brushLabel.value = ""; reading.mode.value = "paint"; return true;
    case ",": reading.brush.value = Math.max(0, reading.brush.value - 1); return true;
    case ".": reading.brush.value = Math.min(6, reading.brush.value + 1); return true;
    case "z": void reading.undo(); return true;
    case "L": press("#learn"); return true;
    case "q": reading.askNext(); return true;
    case "x": if (page.first_done && !page.may_see) void reading.showAnyway(); return true;
    case "a": case "d": case "u":
      if (reading.region.value >= 0) void reading.judgeRegion(key === "a" ? "agree" : key === "d" ? "disagree" : "unsure");
      else press(`[data-judgement=${key === "a" ? "agree" : key === "d" ? "disagree" : "unsure"}]`);
      return true;
    case "s":
      if (reading.drafting.value) reading.notKept("Then s signs.");
      else if (page.opinion.label === null) message.value = "Decide first, then sign.";
      else if (!page.opinion.signed) void reading.sign(signedAs(page.opinion));
      return true;
    case "?": showKeys.value = true; return true;
    default: return false;
  }
}
