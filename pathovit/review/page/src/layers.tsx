// The map's controls: which layer, from which value on, how strong; and a legend that always tells the truth.
import { useEffect, useRef } from "preact/hooks";
import { css, grey, histogram, rampColour } from "./heat";
import { Key, number, scarce } from "./parts";
import type { Reading } from "./reading";

const BINS = 64;
const NAMES = { score: "score", attention: "attention (where it looked, no probability)", novelty: "novelty (unlike what the model knows)", unread: "could not be read" };

export function Layers({ reading }: { reading: Reading }) {
  const page = reading.page.value!, info = reading.info.value;
  if (!page.may_see || !info || !page.layers || page.layers.every((layer) => layer.kind === "unread")) return null;
  return (
    <section class="layers" aria-labelledby="layers-title">
      <h2 id="layers-title">Map</h2>
      <div class="line">
        <label>
          <span class="sr">Layer</span>
          <select value={reading.layer.value} onChange={(event) => void reading.showLayer(Number(event.currentTarget.value))}>
            {page.layers.map((layer, i) => (
              <option key={layer.name} value={i}>
                {layer.kind === "score" ? `${layer.name}: score` : NAMES[layer.kind]}
              </option>
            ))}
          </select>
        </label>
        <button type="button" class="toggle" aria-pressed={reading.heat.value} onClick={() => (reading.heat.value = !reading.heat.value)}>
          Shown <Key>h</Key>
        </button>
      </div>
      {info.kind !== "unread" && <Threshold reading={reading} />}
      <Legend reading={reading} />
      <div class="line">
        <label class="range">
          <span>Opacity</span>
          <input
            type="range" min="0.1" max="1" step="0.05" value={reading.opacity.value}
            onInput={(event) => (reading.opacity.value = Number(event.currentTarget.value))}
          />
        </label>
        <button type="button" class="toggle" aria-pressed={reading.outlines.value} onClick={() => (reading.outlines.value = !reading.outlines.value)}>
          Outlines <Key>o</Key>
        </button>
      </div>
    </section>
  );
}

function Threshold({ reading }: { reading: Reading }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const info = reading.info.value!, cells = reading.cells.value, value = reading.threshold.value;
  const low = info.low, high = info.high, desaturated = reading.page.value!.doubtful;
  useEffect(() => {
    const element = canvas.current;
    if (!element || !cells) return;
    const found = histogram(cells, BINS), top = Math.max(...found.map(Math.sqrt), 1);
    const context = element.getContext("2d")!;
    const style = getComputedStyle(element);
    context.clearRect(0, 0, element.width, element.height);
    const wide = element.width / BINS;
    found.forEach((count, i) => {
      const tall = (Math.sqrt(count) / top) * (element.height - 4);
      const middle = low + ((i + 0.5) / BINS) * (high - low);
      const colour = rampColour(info.kind, (middle - value) / Math.max(1e-9, high - value));
      context.fillStyle = middle >= value ? css(desaturated ? grey(colour) : colour) : style.color;
      context.globalAlpha = middle >= value ? 1 : 0.3;
      context.fillRect(i * wide, element.height - tall, wide - 1, tall);
    });
    context.globalAlpha = 1;
    if (info.kind === "score") {
      context.strokeStyle = style.color;
      context.setLineDash([3, 3]);
      context.beginPath();
      context.moveTo(element.width / 2, 0);
      context.lineTo(element.width / 2, element.height);
      context.stroke();
      context.setLineDash([]);
    }
  }, [cells, value, info]);
  const snap = (wanted: number) => (info.kind === "score" && Math.abs(wanted - 0.5) < 0.012 ? 0.5 : wanted);
  return (
    <div class="threshold">
      <canvas ref={canvas} width={320} height={56} role="img" aria-label={`How many tiles have which ${info.kind}; the mark is at 0.5`} />
      <input
        type="range" min={low} max={high} step={(high - low) / 200} value={value} aria-label="Threshold"
        aria-valuetext={info.kind === "attention" ? scarce(value) : number(value)}
        onInput={(event) => (reading.threshold.value = snap(Number(event.currentTarget.value)))}
      />
    </div>
  );
}

function Legend({ reading }: { reading: Reading }) {
  const info = reading.info.value!, value = reading.threshold.value;
  const desaturated = reading.page.value!.doubtful;
  const told = info.kind === "attention" ? scarce : number;
  const stops = Array.from({ length: 6 }, (_, i) => rampColour(info.kind, i / 5)).map((colour) => css(desaturated ? grey(colour) : colour));
  if (info.kind === "unread") return <p class="legend">Hatched: tissue that could not be read.</p>;
  return (
    <div class="legend">
      <span>{told(value)}</span>
      <span class="ramp" style={{ background: `linear-gradient(to right, ${stops.join(", ")})` }} role="img" aria-label="colours from the threshold to the highest value" />
      <span>{info.kind === "novelty" ? "≥ " : ""}{told(info.high)}</span>
      <small>
        {info.kind === "score" ? `${info.name}: score of each tile` : NAMES[info.kind]}; nothing is drawn below {told(value)}
        {desaturated ? "; without colour, because the model is not sure here" : ""}
      </small>
    </div>
  );
}
