// All slides of a patient as one unit: two side by side, which move together when asked to.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { bytes, get, ofSlide, type SlidePage } from "./api";
import { paintCells, table, toByte } from "./heat";
import { Key } from "./parts";
import { go, trying, typing } from "./state";
import { SlideViewer } from "./viewer";

const FOLLOW_MS = 800;
const ARROWS: Record<string, [number, number]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function PatientPage({ slideKey }: { slideKey: string }) {
  const first = useSignal<SlidePage | null>(null);
  const left = useSignal(slideKey), right = useSignal("");
  const synced = useSignal(true);
  const viewers = useRef<(SlideViewer | null)[]>([null, null]);
  useEffect(() => {
    void trying(async () => {
      first.value = await get<SlidePage>(ofSlide(slideKey));
      left.value = slideKey;
      right.value = first.value.same_patient?.[0]?.key ?? "";
    });
  }, [slideKey]);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (typing(event) || event.ctrlKey || event.metaKey || document.querySelector("dialog[open]")) return;
      if (event.key === "y") synced.value = !synced.value;
      else if (event.key === "Escape") go({ name: "slide", key: slideKey });
      else if (ARROWS[event.key]) viewers.current[0]?.panBy(0.2 * ARROWS[event.key]![0], 0.2 * ARROWS[event.key]![1]);
      else if (event.key === "+" || event.key === "-") viewers.current[0]?.zoomBy(event.key === "+" ? 1.6 : 1 / 1.6);
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [slideKey]);
  if (!first.value) return <p class="empty">Opening the slides…</p>;
  const all = [{ key: first.value.key, file: first.value.file }, ...(first.value.same_patient ?? [])];
  Object.assign(globalThis, { pathovit: { viewers: viewers.current } }); // for tests, and for whoever opens the console
  const moved = (from: 0 | 1) => {
    const a = viewers.current[from], b = viewers.current[1 - from];
    if (!synced.value || !a?.ready || !b?.ready) return;
    const [ax, ay] = a.fraction(), [bx, by] = b.fraction();
    if (Math.abs(ax - bx) + Math.abs(ay - by) < 1e-4 && Math.abs(a.umPerPixel / b.umPerPixel - 1) < 1e-3) return; // it has followed
    if (performance.now() - b.touched < FOLLOW_MS && b.touched > a.touched) return; // the other one leads
    b.goToFraction(ax, ay, a.umPerPixel);
  };
  return (
    <main class="patient-page">
      <div class="tools">
        <h1>Patient {first.value.patient}</h1>
        <button type="button" class="toggle" aria-pressed={synced.value} onClick={() => (synced.value = !synced.value)}>
          Move together <Key>y</Key>
        </button>
        <a href={`#/slide/${slideKey}`}>Back to the slide</a>
      </div>
      <div class="side-by-side">
        {([left, right] as const).map((side, i) => (
          <section key={i} aria-label={i ? "Right slide" : "Left slide"}>
            <select aria-label={i ? "Slide on the right" : "Slide on the left"} value={side.value} onChange={(event) => (side.value = event.currentTarget.value)}>
              {all.map((one) => <option key={one.key} value={one.key}>{one.file}</option>)}
            </select>
            {side.value && <Half key={side.value} slideKey={side.value} onViewer={(viewer) => (viewers.current[i] = viewer)} onMove={() => moved(i as 0 | 1)} />}
          </section>
        ))}
      </div>
    </main>
  );
}

function Half({ slideKey, onViewer, onMove }: { slideKey: string; onViewer: (viewer: SlideViewer | null) => void; onMove: () => void }) {
  const box = useRef<HTMLDivElement>(null);
  const missing = useSignal(""), warning = useSignal(""), degraded = useSignal("");
  useEffect(() => {
    let viewer: SlideViewer | null = null;
    let gone = false;
    void trying(async () => {
      const page = await get<SlidePage>(ofSlide(slideKey));
      if (gone) return;
      if (!page.levels) {
        missing.value = page.missing || "There is nothing to see of this slide.";
        return;
      }
      viewer = new SlideViewer(box.current!, page);
      viewer.onView = onMove;
      viewer.onUnseen = (why) => (warning.value = why);
      onViewer(viewer);
      const { overlay } = viewer;
      overlay.desaturated = page.doubtful;
      if (page.verdict === "degraded") degraded.value = `${page.tiles!.unread.toLocaleString("en")} tiles could not be read: hatched on the slide.`;
      if (page.grid) overlay.unread = await bytes(ofSlide(slideKey, "/grid"));
      if (gone) return;
      viewer.draw();
      if (page.may_see && page.layers?.[0]?.kind === "score") {
        const cells = await bytes(ofSlide(slideKey, "/heat/0"));
        overlay.lowest = toByte(page.layers[0], 0.5);
        overlay.hot = cells;
        overlay.map = document.createElement("canvas");
        paintCells(overlay.map, page.grid!, cells, table("score", overlay.lowest, page.doubtful));
        viewer.draw();
      }
    });
    return () => {
      gone = true;
      onViewer(null);
      viewer?.destroy();
    };
  }, [slideKey]);
  return (
    <>
      <div class="osd" ref={box} tabIndex={0} role="application" aria-label="Slide">{missing.value && <p class="empty">{missing.value}</p>}</div>
      {degraded.value && <p class="warning">{degraded.value}</p>}
      {warning.value && <p class="unseen" role="alert">{warning.value}</p>}
    </>
  );
}
