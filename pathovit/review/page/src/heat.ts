// The map: colours of values, and regions of the lattice. Bytes: 0 nothing read, 1 to 255 from the lowest to the highest.
import type { Grid, LayerInfo, Run } from "./api";

export type RGB = [number, number, number];

// Above the threshold one ramp, the light half of viridis: over the pink and violet of H&E it stands out, also for colour-blind people.
const RAMPS: Record<LayerInfo["kind"], RGB[]> = {
  score: [[33, 145, 140], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37]],
  attention: [[198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]],
  novelty: [[254, 230, 206], [253, 174, 107], [230, 85, 13], [127, 39, 4]],
  unread: [[90, 90, 90], [90, 90, 90]],
};
// Okabe and Ito's colours, for classes that are painted.
const CLASSES: RGB[] = [[213, 94, 0], [0, 114, 178], [0, 158, 115], [204, 121, 167], [240, 228, 66], [86, 180, 233], [230, 159, 0]];
const NOTHING_SAID: RGB = [120, 120, 120];

export const toValue = (layer: LayerInfo, byte: number) => layer.low + ((byte - 1) / 254) * (layer.high - layer.low);
export const toByte = (layer: LayerInfo, value: number) =>
  Math.max(1, Math.min(255, 1 + Math.ceil((254 * (value - layer.low)) / (layer.high - layer.low) - 1e-9)));

export function rampColour(kind: LayerInfo["kind"], share: number): RGB {
  const stops = RAMPS[kind];
  const place = Math.max(0, Math.min(1, share)) * (stops.length - 1);
  const low = Math.min(stops.length - 2, Math.floor(place));
  const part = place - low;
  return stops[low]!.map((value, i) => Math.round(value + part * (stops[low + 1]![i]! - value))) as RGB;
}

export function css([r, g, b]: RGB, alpha = 1): string {
  return alpha === 1 ? `rgb(${r} ${g} ${b})` : `rgb(${r} ${g} ${b} / ${alpha})`;
}

export function grey([r, g, b]: RGB): RGB {
  const value = Math.round(0.3 * r + 0.6 * g + 0.1 * b);
  return [value, value, value];
}

export function classColour(classes: string[], label: string): RGB {
  if (label === "ignore") return NOTHING_SAID;
  const place = classes.indexOf(label.replace(/^not /, ""));
  const colour = CLASSES[(place < 0 ? classes.length : place) % CLASSES.length]!;
  return label.startsWith("not ") ? (colour.map((value) => Math.round(value * 0.45 + 255 * 0.55)) as RGB) : colour;
}

// A colour for each of 256 bytes, as pixels of a canvas; below the threshold nothing.
export function table(kind: LayerInfo["kind"], lowest: number, desaturated: boolean): Uint32Array {
  const found = new Uint32Array(256);
  for (let byte = Math.max(1, lowest); byte < 256; byte++) {
    const share = (byte - lowest) / Math.max(1, 255 - lowest);
    const [r, g, b] = desaturated ? grey(rampColour(kind, share)) : rampColour(kind, share);
    found[byte] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return found;
}

export function paintCells(canvas: HTMLCanvasElement, grid: Grid, cells: Uint8Array, colours: Uint32Array): void {
  if (canvas.width !== grid.columns || canvas.height !== grid.rows) {
    canvas.width = grid.columns;
    canvas.height = grid.rows;
  }
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(grid.columns, grid.rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < cells.length; i++) pixels[i] = colours[cells[i]!]!;
  context.putImageData(image, 0, 0);
}

export interface Region {
  cells: Int32Array; // row * columns + column
  first: number; // the lowest of them
  mean: number;
  peak: number;
  peakCell: number;
  mm2: number;
}

// Hot cells that touch side by side, as outlines for QuPath have them; the largest first.
export function findRegions(grid: Grid, cells: Uint8Array, layer: LayerInfo, lowest: number, cellMm2: number): Region[] {
  const { rows, columns } = grid;
  const seen = new Uint8Array(cells.length);
  const stack = new Int32Array(cells.length);
  const found: Region[] = [];
  for (let start = 0; start < cells.length; start++) {
    if (seen[start] || cells[start]! < lowest) continue;
    let height = 0;
    const inside: number[] = [];
    let sum = 0;
    let peakCell = start;
    stack[height++] = start;
    seen[start] = 1;
    while (height) {
      const cell = stack[--height]!;
      inside.push(cell);
      sum += cells[cell]!;
      if (cells[cell]! > cells[peakCell]!) peakCell = cell;
      const row = Math.floor(cell / columns);
      const column = cell - row * columns;
      const reach = (next: number, there: boolean) => {
        if (!there || seen[next] || cells[next]! < lowest) return;
        seen[next] = 1;
        stack[height++] = next;
      };
      reach(cell - columns, row > 0);
      reach(cell + columns, row < rows - 1);
      reach(cell - 1, column > 0);
      reach(cell + 1, column < columns - 1);
    }
    found.push({
      cells: Int32Array.from(inside),
      first: start,
      mean: toValue(layer, sum / inside.length),
      peak: toValue(layer, cells[peakCell]!),
      peakCell,
      mm2: inside.length * cellMm2,
    });
  }
  return found.sort((a, b) => b.mm2 - a.mm2 || a.peakCell - b.peakCell);
}

export function runsOf(columns: number, cells: Iterable<number>): Run[] {
  const found: Run[] = [];
  for (const cell of [...cells].sort((a, b) => a - b)) {
    const row = Math.floor(cell / columns);
    const column = cell - row * columns;
    const last = found.at(-1);
    if (last && last[0] === row && last[1] + last[2] === column) last[2]++;
    else found.push([row, column, 1]);
  }
  return found;
}

export function* cellsOf(columns: number, runs: Run[]): Generator<number> {
  for (const [row, column, length] of runs) for (let step = 0; step < length; step++) yield row * columns + column + step;
}

// The strongest cells, and some at random (always the same), for the strips.
export function strongest(cells: Uint8Array, count: number): number[] {
  const order = [...cells.keys()].filter((cell) => cells[cell]! > 0).sort((a, b) => cells[b]! - cells[a]! || a - b);
  return order.slice(0, count);
}

export function atRandom(tissue: Uint8Array, count: number, seed: number): number[] {
  const there = [...tissue.keys()].filter((cell) => tissue[cell] === 1);
  const found: number[] = [];
  let state = seed >>> 0 || 1;
  while (found.length < Math.min(count, there.length)) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const cell = there[Math.floor((state / 2 ** 32) * there.length)]!;
    if (!found.includes(cell)) found.push(cell);
  }
  return found;
}

// The byte that so large a share of the tiles is below.
export function quantile(cells: Uint8Array, share: number): number {
  const known = cells.filter((byte) => byte > 0).sort();
  return known.length ? known[Math.min(known.length - 1, Math.floor(share * known.length))]! : 255;
}

export function histogram(cells: Uint8Array, bins: number): number[] {
  const found = new Array<number>(bins).fill(0);
  for (const byte of cells) if (byte) found[Math.min(bins - 1, Math.floor(((byte - 1) / 255) * bins))]!++;
  return found;
}
