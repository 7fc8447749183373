// One slide that is read: what is on the screen, what was said, and what follows from it.
import { batch, computed, effect, signal } from "@preact/signals";
import {
  type Asked, bytes, get, type Judgement, type KindOfTissue, type LayerInfo, type LookAlike, ofSlide, type Opinion, Refused, say, type Said, type Seen, type SlidePage,
  type TileFacts,
} from "./api";
import { atRandom, cellsOf, findRegions, paintCells, quantile, type Region, runsOf, strongest, table, toByte, toValue } from "./heat";
import { paintKinds } from "./kinds";
import { entered, go, guard, leaving, message, needsToken, refresh, spoken, told, trying, worklist } from "./state";
import type { At, SlideViewer } from "./viewer";

export type Mode = "look" | "paint" | "measure";
export const UM_AT_20X = 0.5;
const STRIP = 12, CONTROLS = 4;
const LISTED_REGIONS = 200;
const STILL_MS = 120; // the map follows the threshold at once, the list of regions when it stands still

const UNDONE: Record<string, string> = {
  decision: "your decision", region: "what you said of a region", painted: "a stroke", imported: "a file of regions", signed: "your signature", settled: "the settlement",
};

const answered = new Set<string>(); // tiles of all slides that were asked for
const named: string[] = []; // classes of all slides, in the order in which they came up: keys and colours stay

const sameTile = (a: Asked, b: Asked | null) => b !== null && a.key === b.key && a.index === b.index;

export class Reading {
  readonly page = signal<SlidePage | null>(null);
  readonly layer = signal(0);
  readonly cells = signal<Uint8Array | null>(null); // of the layer that is shown
  readonly threshold = signal(0.5); // value of the layer
  readonly opacity = signal(0.55);
  readonly heat = signal(true);
  readonly peek = signal(false);
  readonly outlines = signal(false);
  readonly mode = signal<Mode>("look");
  readonly brushLabel = signal<string | null>(null); // "" erases
  readonly brush = signal(0);
  readonly cursor = signal<number | null>(null);
  readonly tissue = signal<Uint8Array | null>(null);
  readonly painted = signal<ReadonlyMap<number, string>>(new Map());
  readonly region = signal(-1);
  readonly tile = signal<TileFacts | null>(null);
  readonly alike = signal<{ here: LookAlike[]; elsewhere: LookAlike[] } | null>(null);
  readonly asked = signal<Asked[]>([]);
  readonly saving = signal(0);
  readonly umPerPixel = signal(0);
  readonly measured = signal<number | null>(null);
  readonly kinds = signal<KindOfTissue[] | null>(null);
  readonly kindsShown = signal(false);
  readonly withKinds = signal(false);
  readonly extraClasses = signal<string[]>([]);
  readonly regionNote = signal(""); // on the region that is selected
  readonly drafting = signal(false); // a decision that is not kept yet
  readonly takenBack = signal(""); // what was, by the last key
  readonly unseen = signal(""); // why part of the slide is not shown
  viewer: SlideViewer | null = null;
  private readonly drawnLayers = new Map<number, Uint8Array>();
  private readonly canvas = document.createElement("canvas");
  private readonly stops: (() => void)[] = [];
  private stroke: { cells: Set<number>; label: string } | null = null;
  private queue: Promise<unknown> = Promise.resolve();

  readonly info = computed<LayerInfo | null>(() => this.page.value?.layers?.[this.layer.value] ?? null);
  readonly grid = computed(() => this.page.value?.grid ?? null); // the same, whatever is said of the slide
  readonly mpp = computed(() => this.page.value?.mpp ?? null);
  readonly columns = computed(() => this.grid.value?.columns ?? 1);
  readonly classes = computed(() => {
    const page = this.page.value;
    // Those of the model in order of the alphabet, then those that were added; none ever changes its place.
    const ofModel = [...(page?.map_classes ?? []), ...(page?.classes ?? [])].sort();
    const found = [...ofModel, ...this.extraClasses.value, ...[...new Set(this.painted.value.values())].sort()];
    for (const name of found.map((one) => one.replace(/^not /, ""))) if (name && name !== "ignore" && !named.includes(name)) named.push(name);
    return [...named];
  });
  readonly lowest = computed(() => (this.info.value ? toByte(this.info.value, this.threshold.value) : 256));
  readonly searched = signal(256); // the lowest byte of the regions that are listed
  readonly searching = computed(() => this.searched.value !== this.lowest.value);
  readonly regions = computed<Region[]>(() => {
    const grid = this.grid.value, mpp = this.mpp.value, info = this.info.value, cells = this.cells.value;
    if (!grid || !mpp || !cells || info?.kind !== "score") return [];
    const mm2 = (grid.cell[0] * mpp[0] * grid.cell[1] * mpp[1]) / 1e6;
    return findRegions(grid, cells, info, this.searched.value, mm2);
  });
  readonly listed = computed(() => this.regions.value.slice(0, LISTED_REGIONS));
  readonly strip = computed(() => (this.cells.value && this.info.value?.kind === "score" ? strongest(this.cells.value, STRIP) : []));
  readonly controls = computed(() => {
    const page = this.page.value, tissue = this.tissue.value;
    return page && tissue ? atRandom(tissue, CONTROLS, parseInt(page.key.slice(0, 8), 16)) : [];
  });
  readonly mapShown = computed(() => this.heat.value && !this.peek.value && !!this.page.value?.may_see);

  constructor(readonly key: string, readonly siblings: string[]) {
    this.stops.push(effect(() => {
      const lowest = this.lowest.value;
      const later = setTimeout(() => (this.searched.value = lowest), STILL_MS);
      return () => clearTimeout(later);
    }));
    this.stops.push(effect(() => void (this.region.value, (this.regionNote.value = ""))));
    const unload = (event: BeforeUnloadEvent) => {
      if ((this.saving.value || this.drafting.value) && !leaving.value) event.preventDefault(); // something is not kept yet
    };
    addEventListener("beforeunload", unload);
    const mine = () => this.mayLeave();
    guard.mayLeave = mine;
    this.stops.push(() => {
      if (guard.mayLeave === mine) guard.mayLeave = () => true; // the next slide may be there already
    });
    this.stops.push(() => removeEventListener("beforeunload", unload));
  }

  // The rest of what the page shows, and the record that it was opened.
  async begin(): Promise<void> {
    const page = this.page.value!;
    if (page.group === "failed") return;
    const cells = page.grid ? bytes(ofSlide(this.key, "/grid")) : null;
    await this.say({ event: "opened", blind: !page.first_done });
    this.tissue.value = await cells;
    await this.loadAsked();
  }

  async load(): Promise<void> {
    const page = await get<SlidePage>(ofSlide(this.key));
    const known = this.page.value?.opinion;
    if (known && known.last > page.opinion.last) page.opinion = known; // said while the page was on its way
    batch(() => {
      this.page.value = page;
      this.took(page.opinion);
      if (this.brushLabel.value === null) this.brushLabel.value = this.classes.value.at(-1) ?? "";
    });
    if (page.may_see && page.layers?.length) void this.showLayer(Math.min(this.layer.value, page.layers!.length - 1)).catch(told); // what was said stays
  }

  async loadAsked(afresh = false): Promise<void> {
    if (afresh) answered.clear();
    this.asked.value = await get<Asked[]>("/api/suggested").catch(() => []);
  }

  attach(viewer: SlideViewer): void {
    this.viewer = viewer;
    viewer.onUnseen = (why) => (this.unseen.value = why);
    viewer.onView = () => {
      this.umPerPixel.value = viewer.umPerPixel;
      this.measured.value = viewer.measured();
    };
    this.stops.push(effect(() => this.drawn()));
    this.stops.push(effect(() => void (this.regions.value, this.lowest.value, (this.region.value = -1)))); // numbers mean other regions now
  }

  close(): void {
    for (const stop of this.stops) stop();
    this.viewer?.destroy();
    this.viewer = null;
  }

  private drawn(): void {
    const viewer = this.viewer!, page = this.page.value, info = this.info.value, cells = this.cells.value;
    const { overlay } = viewer;
    viewer.grid = page?.grid ?? null;
    overlay.desaturated = !!page?.doubtful;
    overlay.lowest = this.lowest.value;
    overlay.opacity = this.opacity.value;
    overlay.outlines = this.outlines.value;
    overlay.unread = this.tissue.value;
    overlay.painted = this.painted.value as Map<number, string>;
    overlay.classes = this.classes.value;
    overlay.cursor = this.mode.value === "paint" ? this.cursor.value : null;
    overlay.brush = this.brush.value;
    overlay.selected = this.regions.value[this.region.value]?.cells ?? null;
    if (this.kindsShown.value && this.kinds.value && page?.grid) {
      paintKinds(this.canvas, page.grid.rows, page.grid.columns, this.kinds.value);
      overlay.map = this.canvas;
      overlay.hot = null;
    } else if (this.mapShown.value && cells && info && page?.grid) {
      paintCells(this.canvas, page.grid, cells, table(info.kind, this.lowest.value, overlay.desaturated));
      overlay.map = this.canvas;
      overlay.hot = cells;
    } else overlay.map = overlay.hot = null;
    viewer.drawNow();
  }

  async showLayer(layer: number): Promise<void> {
    const page = this.page.value!;
    const info = page.layers![layer]!;
    if (!this.drawnLayers.has(layer)) this.drawnLayers.set(layer, await bytes(ofSlide(this.key, `/heat/${layer}`)));
    batch(() => {
      if (this.layer.value !== layer || !this.cells.value) {
        const strong = toValue(info, quantile(this.drawnLayers.get(layer)!, 0.95));
        this.threshold.value = info.kind === "novelty" ? 1 : info.kind === "attention" ? strong : 0.5;
      }
      this.layer.value = layer;
      this.cells.value = this.drawnLayers.get(layer)!;
      this.searched.value = this.lowest.value;
    });
  }

  // What is said

  seen(): Seen {
    const kinds = this.kindsShown.value && !!this.kinds.value;
    const shown = this.mapShown.value && !!this.info.value && !kinds;
    return {
      answer: !!this.page.value?.may_see && !!this.page.value.answer,
      layer: kinds ? "kinds of tissue" : shown ? this.info.value!.name : "",
      threshold: shown ? this.threshold.value : null,
      opacity: shown ? this.opacity.value : null,
      zoom: this.viewer?.zoom || null,
      drawn: this.page.value?.drawn ?? "",
      tiles: this.page.value?.about.tiles_sha256 ?? null,
      last: this.page.value?.opinion.last ?? 0,
      reader: this.page.value?.opinion.reader ?? null,
    };
  }

  // One after the other, in the order in which it was done.
  say(said: Said | (() => Said | null)): Promise<void> {
    this.saving.value++;
    this.takenBack.value = "";
    const seen = this.seen(); // as it is said, not when its turn comes
    const done = this.queue.then(async () => {
      const now = typeof said === "function" ? said() : said;
      if (now) this.took(await this.send(now, { ...seen, last: this.page.value?.opinion.last ?? 0 }));
    });
    this.queue = done.catch(() => {}).finally(() => this.saving.value--);
    return done;
  }

  // What is said while nobody is logged in waits until somebody is.
  private async send(said: Said, seen: Seen): Promise<Opinion> {
    for (;;) {
      try {
        return await say(this.key, said, seen);
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        if (error.status === 409) void this.loadAnew().catch(() => {});
        if (error.status !== 401) throw error;
        needsToken.value = true;
        await entered();
      }
    }
  }

  // When all that was said is kept, or refused.
  kept(): Promise<unknown> {
    return this.queue;
  }

  private took(opinion: Opinion): void {
    if (this.page.value && opinion.last < this.page.value.opinion.last) return; // said before what is known already
    const painted = new Map<number, string>();
    for (const [label, runs] of Object.entries(opinion.painted)) for (const cell of cellsOf(this.columns.value, runs)) painted.set(cell, label);
    batch(() => {
      if (this.page.value) this.page.value = { ...this.page.value, opinion };
      this.painted.value = painted;
    });
  }

  firstImpression(label: string | null): Promise<void> {
    return trying(async () => {
      await this.say({ event: "first_impression", label });
      await this.say({ event: "shown", anyway: false });
      await this.load();
      spoken.value = `Answer: ${this.page.value!.answer?.word ?? "none"}`;
      void refresh();
    });
  }

  showAnyway(): Promise<void> {
    return trying(async () => {
      await this.say({ event: "shown", anyway: true });
      await this.load();
    });
  }

  // Whether it was kept.
  async decide(judgement: Judgement | "none", label: string | null, note: string, reason: string): Promise<boolean> {
    let kept = false;
    await trying(async () => {
      await this.say({ event: "decision", judgement, label, note, reason });
      kept = true;
      if (worklist.value?.reader.may_settle && worklist.value.readers) await this.load(); // what others decided may be seen now
      spoken.value = "Decision kept.";
      void refresh();
    });
    return kept;
  }

  sign(meaning: "reviewed" | "agreed" | "corrected"): Promise<void> {
    return trying(async () => {
      await this.say({ event: "signed", meaning });
      spoken.value = "Signed.";
      void refresh();
    });
  }

  settle(label: string | null, note: string): Promise<void> {
    return trying(async () => {
      await this.say({ event: "settled", label, note });
      await this.load();
      void refresh();
    });
  }

  judgeRegion(judgement: Judgement): Promise<void> {
    const at = this.region.value, region = this.regions.value[at], info = this.info.value, note = this.regionNote.value;
    if (!region || !info) return Promise.resolve();
    return trying(async () => {
      await this.say({ event: "region", runs: runsOf(this.columns.value, this.viewer?.tilesUnder(region.cells) ?? region.cells), judgement, label: info.name, note });
      if (this.region.value === at && this.regionNote.value === note) this.regionNote.value = "";
      spoken.value = `Region: ${judgement}.`;
    });
  }

  private warned = false; // the next time one may go
  changed(): void {
    this.warned = false;
  }

  mayLeave(): boolean {
    if (!this.drafting.value || this.warned) return true;
    this.warned = true;
    this.notKept("The same key again leaves without it.");
    return false;
  }

  notKept(more: string): void {
    this.mode.value = "look"; // Enter is for the decision now
    message.value = `Your decision is not kept yet: Enter keeps it. ${more}`;
  }

  undo(): Promise<void> {
    return trying(async () => {
      let what = "";
      await this.say(() => {
        const opinion = this.page.value?.opinion, of = opinion?.can_undo; // when its turn has come
        what = UNDONE[opinion?.undoes ?? ""] ?? "";
        return of === null || of === undefined ? null : { event: "undo", of };
      });
      this.takenBack.value = spoken.value = what ? `Taken back: ${what}.` : "There is nothing of yours to take back.";
      void refresh();
    });
  }

  // Paint

  cellsUnder(cell: number): number[] {
    const { columns, rows } = this.page.value!.grid!;
    const tissue = this.tissue.value;
    const row = Math.floor(cell / columns), column = cell - row * columns, r = this.brush.value;
    const found = [];
    for (let y = Math.max(0, row - r); y <= Math.min(rows - 1, row + r); y++)
      for (let x = Math.max(0, column - r); x <= Math.min(columns - 1, column + r); x++) if (tissue?.[y * columns + x] === 1) found.push(y * columns + x);
    return found;
  }

  beginStroke(): void {
    this.stroke = { cells: new Set(), label: this.brushLabel.value ?? "" }; // another brush that is picked meanwhile is for the next
  }

  strokeTo(cell: number | null): void {
    this.cursor.value = cell;
    if (!this.stroke || cell === null) return;
    const { cells, label } = this.stroke, under = this.cellsUnder(cell).filter((one) => !cells.has(one));
    if (!under.length) return;
    const painted = new Map(this.painted.value);
    for (const one of under) {
      cells.add(one);
      if (label) painted.set(one, label);
      else painted.delete(one);
    }
    this.painted.value = painted;
  }

  async endStroke(): Promise<void> {
    const stroke = this.stroke;
    this.stroke = null;
    if (stroke?.cells.size) await this.paint([...stroke.cells], stroke.label);
  }

  // Whether it was kept.
  async paint(cells: number[], label: string, asked = false): Promise<boolean> {
    let kept = false;
    await trying(async () => {
      try {
        await this.say({ event: "painted", runs: runsOf(this.columns.value, cells), label, asked });
        kept = true;
      } catch (error) {
        this.took(this.page.value!.opinion); // what is on the screen is what was kept
        throw error;
      }
    });
    return kept;
  }

  // Tiles that the model asks for

  readonly askedHere = computed(() =>
    this.asked.value.filter((tile) => !answered.has(`${tile.key} ${tile.index}`) && (tile.key !== this.key || !this.painted.value.has(this.cellOf(tile)))),
  );
  readonly askedTile = signal<Asked | null>(null); // that is in view and waits for an answer
  readonly askedAt = computed(() => this.askedHere.value.findIndex((tile) => sameTile(tile, this.askedTile.value)));
  private answering = false;
  private lookedAt = -1;

  // Whether the tile that waits for an answer is on the screen: a key is meant for what one sees.
  get asking(): boolean {
    const tile = this.askedHere.value[this.askedAt.value];
    return !!tile && tile.key === this.key && !!this.viewer?.inSight(...this.viewer.centreOf(this.cellOf(tile)));
  }

  private cellOf(tile: Asked): number {
    return tile.row * this.columns.value + tile.column;
  }

  // Go to one of those that are asked for, on this slide.
  ask(place: number): void {
    const own = this.askedHere.value[place];
    this.askedTile.value = own ?? null;
    if (own?.key === this.key) this.goToCell(this.cellOf(own));
  }

  // The next one on this slide; where there is none, the slide of the first that is left.
  askNext(): void {
    const here = this.askedHere.value.findIndex((tile) => tile.key === this.key);
    const other = this.askedHere.value[0];
    if (here >= 0 || !other) this.ask(here);
    else if (this.mayLeave()) go({ name: "slide", key: other.key });
  }

  async answerAsked(label: string): Promise<void> {
    const tile = this.askedHere.value[this.askedAt.value];
    if (!tile || tile.key !== this.key || this.answering) return; // one after the other: the next key is for the next tile
    this.answering = true;
    try {
      if (!(await this.paint([this.cellOf(tile)], label, true))) return;
      answered.add(`${tile.key} ${tile.index}`);
      spoken.value = label;
      this.askNext();
    } finally {
      this.answering = false;
    }
  }

  // Its map, if another one was drawn meanwhile.
  async loadAnew(): Promise<void> {
    const page = await get<SlidePage>(ofSlide(this.key)), now = this.page.value, tiles = now?.about.tiles_sha256;
    if (page.opinion.reader !== now?.opinion.reader) return; // another one reads in this browser: what is on the screen stays as it was
    if (page.drawn === now.drawn && page.about.tiles_sha256 === tiles) {
      this.took(page.opinion); // said in another window
      if (page.first_done !== now.first_done || page.may_see !== now.may_see) await this.load();
      return;
    }
    this.drawnLayers.clear();
    this.cells.value = null;
    this.askedTile.value = null;
    if (page.about.tiles_sha256 !== tiles) this.tissue.value = await bytes(ofSlide(this.key, "/grid"));
    await this.load();
    spoken.value = "The map of this slide is drawn anew.";
  }

  // Tiles lie row by row on the lattice, so that the order of cells is theirs.
  private readonly order = computed(() => {
    const found = new Map<number, number>();
    this.tissue.value?.forEach((what, cell) => what && found.set(cell, found.size));
    return found;
  });

  indexOf(cell: number): number | null {
    return this.order.value.get(cell) ?? null;
  }

  // Places

  goToRegion(step: number): void {
    this.searched.value = this.lowest.value;
    const count = this.listed.value.length;
    if (!count) {
      message.value = "No region at or above this threshold.";
      return;
    }
    this.region.value = (this.region.value + step + count) % count;
    const region = this.regions.value[this.region.value]!;
    this.goToCell(region.peakCell, this.grid.value!.origin);
    spoken.value = `Region ${this.region.value + 1} of ${count}: ${region.mm2.toFixed(2)} square millimetres, peak ${region.peak.toFixed(2)}`;
  }

  cellInMiddle(): number | null {
    return this.viewer?.ready ? this.viewer.cellAt(...this.viewer.centre()) : null;
  }

  moveCursor(dx: number, dy: number): void {
    const { columns, rows } = this.page.value!.grid!;
    const from = this.cursor.value ?? this.cellInMiddle() ?? 0;
    const column = Math.max(0, Math.min(columns - 1, (from % columns) + dx)), row = Math.max(0, Math.min(rows - 1, Math.floor(from / columns) + dy));
    this.cursor.value = row * columns + column;
    this.viewer?.keepInSight(...this.viewer.centreOf(this.cursor.value));
  }

  goToIndex(index: number): void {
    for (const [cell, tile] of this.order.value) if (tile === index) this.goToCell(cell);
  }

  // A cell of a tile; of the map, if its origin is given.
  goToCell(cell: number, origin?: [number, number]): void {
    const viewer = this.viewer;
    if (viewer) viewer.goTo(...viewer.centreOf(cell, origin), Math.max(UM_AT_20X, viewer.mpp[0]));
  }

  async look(at: At): Promise<void> {
    if (at.cell === null || !this.tissue.value?.[at.cell]) {
      this.tile.value = null;
      return;
    }
    await this.lookAt(at.cell);
  }

  lookAt(cell: number): Promise<void> {
    return trying(async () => {
      const columns = this.columns.value;
      this.alike.value = null;
      this.lookedAt = cell;
      const tile = await get<TileFacts>(ofSlide(this.key, `/at/${Math.floor(cell / columns)}/${cell % columns}`));
      if (this.lookedAt !== cell) return; // another one was clicked meanwhile
      this.tile.value = tile;
      const alike = await get<{ here: LookAlike[]; elsewhere: LookAlike[] }>(ofSlide(this.key, `/alike/${tile.index}`));
      if (this.lookedAt === cell) this.alike.value = alike;
    });
  }
}
