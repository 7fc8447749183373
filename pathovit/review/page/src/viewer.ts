// The slide on the screen: OpenSeadragon for its pixels, and one canvas over it for the map, the paint and the measure.
import OpenSeadragon from "openseadragon";
import type { Grid, SlidePage } from "./api";
import { ofSlide } from "./api";
import { classColour, css } from "./heat";
import { needsToken } from "./state";

export interface Overlay {
  map: HTMLCanvasElement | null; // a pixel for each cell, coloured
  hot: Uint8Array | null; // the same layer's bytes; none of colours that are kinds
  lowest: number;
  opacity: number;
  outlines: boolean; // instead of fills
  desaturated: boolean;
  unread: Uint8Array | null; // 2 where tissue could not be read
  painted: Map<number, string>;
  classes: string[];
  selected: Int32Array | null; // cells of the region that is looked at
  cursor: number | null; // cell under the keyboard's brush
  brush: number; // its radius in cells
}

export interface At {
  x: number; // level-0 pixels
  y: number;
  cell: number | null;
}

type Affine = [number, number, number, number, number, number];
const UM_AT_10X = 1.1; // 1 µm a pixel, as scanners state it

export class SlideViewer {
  readonly osd: OpenSeadragon.Viewer;
  readonly overlay: Overlay = {
    map: null, hot: null, lowest: 128, opacity: 0.55, outlines: false, desaturated: false, unread: null, painted: new Map(),
    classes: [], selected: null, cursor: null, brush: 0,
  };
  measure: [x: number, y: number][] = [];
  onView: () => void = () => {};
  private readonly canvas = document.createElement("canvas");
  grid: Grid | null;
  private readonly size: [number, number];
  readonly mpp: [number, number];
  private readonly bounds: [number, number, number, number];
  private frame = 0;

  constructor(
    readonly element: HTMLElement,
    readonly page: SlidePage,
    drawer: "auto" | "canvas" | "webgl" = "auto",
  ) {
    this.grid = page.grid ?? null;
    this.size = page.size!;
    this.mpp = page.mpp!;
    this.bounds = page.bounds!;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.osd = OpenSeadragon({
      element,
      drawer: drawer === "webgl" || (drawer === "auto" && hasGraphicsCard()) ? ["webgl", "canvas"] : "canvas", // canvas where a context is lost for good
      prefixUrl: "",
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "BOTTOM_LEFT",
      navigatorSizeRatio: 0.16,
      navigatorAutoFade: false,
      navigatorRotate: false,
      animationTime: calm ? 0 : 0.35,
      springStiffness: 9,
      maxZoomPixelRatio: 4,
      minZoomImageRatio: 0.6,
      visibilityRatio: 0.3,
      imageLoaderLimit: 24, // the browser asks for six at a time; the others wait there and not for the next frame
      maxTilesPerFrame: 24,
      navigatorDrawer: "canvas",
      tileRetryMax: page.overview_ready ? 20 : 1000, // a server that is too busy says so, and is asked again
      tileRetryDelay: 1000,
      timeout: 60000,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsPen: { clickToZoom: false },
      keyboardNavEnabled: false,
      silenceMultiImageWarnings: true,
    } as OpenSeadragon.Options);
    this.canvas.className = "map";
    this.canvas.setAttribute("aria-hidden", "true");
    this.osd.canvas.appendChild(this.canvas);
    for (const event of ["canvas-press", "canvas-scroll"] as const) this.osd.addHandler(event, () => (this.touched = performance.now()));
    for (const event of ["update-viewport", "resize", "rotate", "open"] as const) this.osd.addHandler(event, () => this.draw());
    this.osd.addHandler("open", () => this.fit(true));
    this.osd.addHandler("tile-load-failed", (event) => void this.ask(event.tile.getUrl()));
    this.osd.addHandler("tile-loaded", (event) => {
      if (this.unseen.delete(event.tile.getUrl()) && !this.unseen.size) this.onUnseen("");
    });
    this.osd.open(tileSource(page) as never);
  }

  destroy(): void {
    cancelAnimationFrame(this.frame);
    this.osd.destroy();
  }

  onUnseen: (why: string) => void = () => {};
  private readonly unseen = new Set<string>(); // tiles that did not come

  // Why a tile did not come: coarser pixels that are stretched over its place look like tissue.
  private async ask(url: string): Promise<void> {
    if (this.unseen.has(url)) return; // it is tried again and again
    this.unseen.add(url);
    const answer = await fetch(url).catch(() => null);
    if (answer?.ok || answer?.status === 429 || answer?.status === 503 || answer?.status === 401) this.unseen.delete(url); // it comes, or is waited for
    if (answer?.status === 401) needsToken.value = true;
    if (!this.unseen.has(url)) return;
    const why = answer ? ((await answer.json().catch(() => ({}))) as { error?: string }).error : "The server does not answer.";
    this.onUnseen(`Part of this slide cannot be shown: what you see there is a coarser picture. ${why ?? ""}`);
  }

  private get image(): OpenSeadragon.TiledImage | undefined {
    return this.osd.world.getItemAt(0);
  }

  get ready(): boolean {
    return this.image !== undefined;
  }

  // Where things lie

  private affine(): Affine | null {
    const image = this.image;
    if (!image) return null;
    const at = (x: number, y: number) => this.osd.viewport.pixelFromPoint(image.imageToViewportCoordinates(x, y, true), true);
    const [width, height] = this.size;
    const o = at(0, 0), right = at(width, 0), down = at(0, height);
    return [(right.x - o.x) / width, (right.y - o.y) / width, (down.x - o.x) / height, (down.y - o.y) / height, o.x, o.y];
  }

  at(pixel: OpenSeadragon.Point): At | null {
    const image = this.image;
    if (!image) return null;
    const point = image.viewportToImageCoordinates(this.osd.viewport.pointFromPixel(pixel, true), true as never);
    return { x: point.x, y: point.y, cell: this.cellAt(point.x, point.y) };
  }

  cellAt(x: number, y: number): number | null {
    if (!this.grid) return null;
    const column = Math.floor((x - this.grid.tile_origin[0]) / this.grid.cell[0]);
    const row = Math.floor((y - this.grid.tile_origin[1]) / this.grid.cell[1]);
    const inside = column >= 0 && row >= 0 && column < this.grid.columns && row < this.grid.rows;
    return inside ? row * this.grid.columns + column : null;
  }

  centreOf(cell: number, origin = this.grid!.tile_origin): [number, number] {
    const grid = this.grid!;
    const row = Math.floor(cell / grid.columns);
    const column = cell - row * grid.columns;
    return [origin[0] + (column + 0.5) * grid.cell[0], origin[1] + (row + 0.5) * grid.cell[1]];
  }

  // Cells of the tiles that lie under cells of the map.
  tilesUnder(cells: Int32Array): Int32Array {
    const grid = this.grid!;
    if (grid.origin.every((at, axis) => at === grid.tile_origin[axis])) return cells;
    const [right, down] = grid.cell.map((side, axis) => Math.floor((Math.max(1, Math.round(grid.tile[axis]! / side)) - 1) / 2));
    const found = new Set<number>(); // of the tiles over a cell the one whose centre is nearest
    for (const cell of cells) {
      const row = Math.floor(cell / grid.columns), column = cell - row * grid.columns;
      found.add(Math.max(0, row - down!) * grid.columns + Math.max(0, column - right!));
    }
    return Int32Array.from(found);
  }

  screenOf(x: number, y: number): [number, number] | null {
    const found = this.affine();
    return found && [found[0] * x + found[2] * y + found[4], found[1] * x + found[3] * y + found[5]];
  }

  // Screen pixels per level-0 pixel.
  get zoom(): number {
    const image = this.image;
    return image ? image.viewportToImageZoom(this.osd.viewport.getZoom(true)) : 0;
  }

  // Micrometres under a screen pixel.
  get umPerPixel(): number {
    return this.zoom ? this.mpp[0] / this.zoom : 0;
  }

  centre(): [number, number] {
    const image = this.image!;
    const point = image.viewportToImageCoordinates(this.osd.viewport.getCenter(true), true as never);
    return [point.x, point.y];
  }

  // Centre of the view as a share of the scanned part: what two slides have in common.
  fraction(): [number, number] {
    const [x, y] = this.centre(), [left, top, width, height] = this.bounds;
    return [(x - left) / width, (y - top) / height];
  }

  touched = 0; // when a person moved it last

  goToFraction(x: number, y: number, umPerPixel: number): void {
    const [left, top, width, height] = this.bounds;
    this.goTo(left + x * width, top + y * height, umPerPixel, true);
  }

  // Moves

  fit(immediately = false): void {
    const image = this.image;
    if (!image) return;
    const [x, y, width, height] = this.bounds;
    this.osd.viewport.fitBounds(image.imageToViewportRectangle(x, y, width, height), immediately);
  }

  goTo(x: number, y: number, umPerPixel: number, immediately = false): void {
    const image = this.image;
    if (!image) return;
    const zoom = image.imageToViewportZoom(this.mpp[0] / umPerPixel);
    const point = image.imageToViewportCoordinates(x, y);
    this.osd.viewport.zoomTo(zoom, undefined, immediately);
    this.osd.viewport.panTo(point, immediately);
  }

  inSight(x: number, y: number, margin = 0): boolean {
    const at = this.screenOf(x, y), box = this.osd.viewport.getContainerSize();
    return !!at && at[0] >= margin && at[1] >= margin && at[0] <= box.x - margin && at[1] <= box.y - margin;
  }

  keepInSight(x: number, y: number): void {
    if (!this.inSight(x, y, 40)) this.osd.viewport.panTo(this.image!.imageToViewportCoordinates(x, y));
  }

  zoomBy(factor: number): void {
    this.touched = performance.now();
    this.osd.viewport.zoomBy(factor);
    this.osd.viewport.applyConstraints();
  }

  panBy(dx: number, dy: number): void {
    this.touched = performance.now();
    const size = this.osd.viewport.getContainerSize();
    this.osd.viewport.panBy(this.osd.viewport.deltaPointsFromPixels(new OpenSeadragon.Point(dx * size.x, dy * size.y)));
    this.osd.viewport.applyConstraints();
  }

  rotateBy(degrees: number): void {
    this.osd.viewport.setRotation(this.osd.viewport.getRotation() + degrees);
  }

  // The canvas

  draw(): void {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.drawNow();
    });
  }

  drawNow(): void {
    const found = this.affine();
    const box = this.osd.viewport?.getContainerSize();
    if (!found || !box) return;
    const ratio = devicePixelRatio || 1;
    const width = Math.round(box.x * ratio), height = Math.round(box.y * ratio);
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.canvas.style.width = `${box.x}px`;
      this.canvas.style.height = `${box.y}px`;
    }
    const context = this.canvas.getContext("2d")!;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    context.setTransform(...(found.map((value) => value * ratio) as Affine));
    if (this.grid) this.drawGrid(context, this.grid, found, ratio);
    this.drawMeasure(context, found, ratio);
    this.onView();
  }

  private drawGrid(context: CanvasRenderingContext2D, grid: Grid, affine: Affine, ratio: number): void {
    const { overlay } = this;
    const from = (origin: [number, number]) => {
      context.setTransform(...(affine.map((value) => value * ratio) as Affine));
      context.translate(...origin);
      context.scale(...grid.cell);
    };
    from(grid.tile_origin);
    context.imageSmoothingEnabled = false;
    const perCell = Math.hypot(affine[0], affine[1]) * grid.cell[0] * ratio; // device pixels
    const shown = this.visible(grid);
    if (overlay.unread) this.hatch(context, grid, overlay.unread, shown, perCell);
    from(grid.origin);
    if (overlay.map) {
      const hot = overlay.hot;
      if (!hot || !(overlay.outlines || this.umPerPixel <= UM_AT_10X)) {
        context.globalAlpha = overlay.opacity;
        context.drawImage(overlay.map, 0, 0);
        context.globalAlpha = 1;
      } else {
        const lowest = overlay.lowest;
        const path = outline(grid, shown, (cell) => hot[cell]! >= lowest);
        stroke(context, path, perCell, ratio, overlay.desaturated ? "#555" : "#00707a");
      }
    }
    if (overlay.selected) {
      const inside = new Set(overlay.selected);
      stroke(context, outline(grid, shown, (cell) => inside.has(cell)), perCell, ratio, "#111", 2.5);
    }
    from(grid.tile_origin);
    if (overlay.painted.size) this.drawPaint(context, grid, shown, perCell, ratio);
    if (overlay.cursor !== null) {
      const row = Math.floor(overlay.cursor / grid.columns), column = overlay.cursor - row * grid.columns, r = overlay.brush;
      const path = new Path2D();
      path.rect(column - r, row - r, 2 * r + 1, 2 * r + 1);
      stroke(context, path, perCell, ratio, "#111", 2);
    }
    context.setTransform(...(affine.map((value) => value * ratio) as Affine));
  }

  private drawPaint(context: CanvasRenderingContext2D, grid: Grid, shown: Shown, perCell: number, ratio: number): void {
    const byLabel = new Map<string, Set<number>>();
    for (const [cell, label] of this.overlay.painted) {
      if (!byLabel.has(label)) byLabel.set(label, new Set());
      byLabel.get(label)!.add(cell);
    }
    for (const [label, cells] of byLabel) {
      const colour = classColour(this.overlay.classes, label);
      const fill = new Path2D();
      for (const cell of cells) fill.rect(cell % grid.columns, Math.floor(cell / grid.columns), 1, 1);
      context.fillStyle = css(colour, 0.28);
      context.fill(fill);
      stroke(context, outline(grid, shown, (cell) => cells.has(cell)), perCell, ratio, css(colour), 2.2);
    }
  }

  private hatch(context: CanvasRenderingContext2D, grid: Grid, unread: Uint8Array, shown: Shown, perCell: number): void {
    const path = new Path2D();
    for (let row = shown.top; row < shown.bottom; row++) {
      for (let column = shown.left; column < shown.right; column++) {
        if (unread[row * grid.columns + column] !== 2) continue;
        path.moveTo(column, row + 1);
        path.lineTo(column + 1, row);
      }
    }
    context.lineWidth = 2 / perCell;
    context.strokeStyle = "#7a1f5c";
    context.stroke(path);
  }

  private visible(grid: Grid): Shown {
    const box = this.osd.viewport.getContainerSize();
    const corners = [[0, 0], [box.x, 0], [0, box.y], [box.x, box.y]].map(([x, y]) => this.at(new OpenSeadragon.Point(x!, y!))!);
    const columns = corners.map((corner) => (corner.x - grid.origin[0]) / grid.cell[0]);
    const rows = corners.map((corner) => (corner.y - grid.origin[1]) / grid.cell[1]);
    return {
      left: Math.max(0, Math.floor(Math.min(...columns)) - 2), // tiles that overlap begin before their cells
      right: Math.min(grid.columns, Math.ceil(Math.max(...columns)) + 1),
      top: Math.max(0, Math.floor(Math.min(...rows)) - 2),
      bottom: Math.min(grid.rows, Math.ceil(Math.max(...rows)) + 1),
    };
  }

  private drawMeasure(context: CanvasRenderingContext2D, affine: Affine, ratio: number): void {
    if (!this.measure.length) return;
    const scale = Math.hypot(affine[0], affine[1]) * ratio;
    const path = new Path2D();
    const [first, last] = [this.measure[0]!, this.measure[1] ?? this.centre()];
    path.moveTo(...first);
    path.lineTo(...last);
    for (const [colour, width] of [["#fff", 5], ["#111", 2]] as const) {
      context.lineWidth = (width * ratio) / scale;
      context.strokeStyle = colour;
      context.stroke(path);
    }
  }

  measured(): number | null {
    if (!this.measure.length) return null;
    const [a, b] = [this.measure[0]!, this.measure[1] ?? this.centre()];
    return Math.hypot((a[0] - b[0]) * this.mpp[0], (a[1] - b[1]) * this.mpp[1]);
  }
}

// WebGL in software takes a fifth of a second for a frame where a plain canvas takes a hundredth: on remote desktops, and on
// machines without a graphics card. Browsers do not all call that a caveat, so the name of what draws is looked at, too.
const IN_SOFTWARE = /swiftshader|llvmpipe|softpipe|software|basic render/i;
let graphicsCard: boolean | null = null; // asked once: it takes a moment
export function hasGraphicsCard(): boolean {
  if (graphicsCard === null) {
    const context = document.createElement("canvas").getContext("webgl2", { failIfMajorPerformanceCaveat: true });
    const named = context?.getExtension("WEBGL_debug_renderer_info")?.UNMASKED_RENDERER_WEBGL ?? context?.RENDERER;
    graphicsCard = !!context && !IN_SOFTWARE.test(String(context.getParameter(named!)));
    context?.getExtension("WEBGL_lose_context")?.loseContext();
  }
  return graphicsCard;
}

interface Shown {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

// The border of a set of cells, of those that are visible.
function outline(grid: Grid, shown: Shown, inside: (cell: number) => boolean): Path2D {
  const path = new Path2D();
  const { columns, rows } = grid;
  for (let row = shown.top; row < shown.bottom; row++) {
    for (let column = shown.left; column < shown.right; column++) {
      const cell = row * columns + column;
      if (!inside(cell)) continue;
      if (row === 0 || !inside(cell - columns)) path.moveTo(column, row), path.lineTo(column + 1, row);
      if (row === rows - 1 || !inside(cell + columns)) path.moveTo(column, row + 1), path.lineTo(column + 1, row + 1);
      if (column === 0 || !inside(cell - 1)) path.moveTo(column, row), path.lineTo(column, row + 1);
      if (column === columns - 1 || !inside(cell + 1)) path.moveTo(column + 1, row), path.lineTo(column + 1, row + 1);
    }
  }
  return path;
}

function stroke(context: CanvasRenderingContext2D, path: Path2D, perCell: number, ratio: number, colour: string, width = 1.8): void {
  context.lineCap = "round";
  for (const [style, more] of [["rgb(255 255 255 / 0.85)", 1.8], [colour, 0]] as const) {
    context.lineWidth = ((width + more) * ratio) / perCell;
    context.strokeStyle = style;
    context.stroke(path);
  }
}

// The slide's own levels, whatever their factors: nothing is resampled on the server.
function tileSource(page: SlidePage): object {
  const levels = [...page.levels!].sort((a, b) => b.downsample - a.downsample); // OpenSeadragon counts from the coarsest
  const [width, height] = page.size!;
  return {
    width,
    height,
    minLevel: 0,
    maxLevel: levels.length - 1,
    tileOverlap: 0,
    getLevelScale: (level: number) => (levels[level] ? 1 / levels[level]!.downsample : 0),
    getTileWidth: (level: number) => levels[level]!.tile[0],
    getTileHeight: (level: number) => levels[level]!.tile[1],
    getNumTiles: (level: number) => {
      const { size, tile } = levels[level]!;
      return new OpenSeadragon.Point(Math.ceil(size[0] / tile[0]), Math.ceil(size[1] / tile[1]));
    },
    getTileAtPoint: (level: number, point: OpenSeadragon.Point) => {
      const { size, tile, downsample } = levels[level]!;
      const place = (value: number, axis: 0 | 1) =>
        Math.max(0, Math.min(Math.ceil(size[axis] / tile[axis]) - 1, Math.floor((value * width) / downsample / tile[axis])));
      return new OpenSeadragon.Point(place(point.x, 0), place(point.y, 1));
    },
    getTileBounds: (level: number, column: number, row: number, isSource?: boolean) => {
      const { size, tile, downsample } = levels[level]!;
      const [x, y] = [column * tile[0], row * tile[1]];
      const [wide, high] = [Math.min(tile[0], size[0] - x), Math.min(tile[1], size[1] - y)];
      const scale = downsample / width;
      return isSource ? new OpenSeadragon.Rect(0, 0, wide, high) : new OpenSeadragon.Rect(x * scale, y * scale, wide * scale, high * scale);
    },
    getTileUrl: (level: number, column: number, row: number) => ofSlide(page.key, `/tile/${levels[level]!.index}/${column}/${row}`),
    getTileHashKey: (level: number, column: number, row: number) => `${page.key}/${level}/${column}/${row}`,
  };
}
