// What the server says and takes. The shapes are those of pathovit/review/worklist.py and events.py.

export type Run = [row: number, column: number, length: number];
export type GroupName = "failed" | "unread" | "strange" | "unsure" | "answered" | "no answer";
export type Judgement = "agree" | "disagree" | "unsure";

export interface Row {
  key: string;
  file: string;
  patient: string;
  group: GroupName;
  reason: string;
  answer: string;
  novelty: number | null;
  mine: boolean;
  state: "new" | "opened" | "decided" | "signed";
  label: string | null;
  disagreement: boolean;
}

export interface LessonState {
  running: boolean;
  code: number | null;
  seconds: number;
  lines: string[];
}

export interface Taught {
  time: string;
  reader: string;
  tiles: Record<string, number>;
  left_out: { name?: string; auroc: number | null }[];
  [more: string]: unknown;
}

export interface Worklist {
  research_use: string;
  folder: string;
  rows: Row[];
  groups: { name: GroupName; count: number; cause: string }[];
  reader: { name: string; role: string; may_settle: boolean };
  readers: number;
  blind: boolean;
  models: string[];
  lesson: LessonState;
}

export interface LayerInfo {
  name: string;
  kind: "score" | "attention" | "novelty" | "unread";
  low: number;
  high: number;
}

export interface Opinion {
  reader: string;
  first: string | null;
  judgement: string;
  label: string | null;
  note: string;
  signed: string;
  painted: Record<string, Run[]>;
  regions: { runs: Run[]; judgement: Judgement; label: string }[];
  judged: string; // digest of the model
  elsewhere: number; // tiles painted on another lattice
  last: number;
  can_undo: number | null;
  undoes: string; // what that is
  decided_before: boolean; // also where it was taken back
}

export interface Grid {
  rows: number;
  columns: number;
  origin: [number, number]; // of the cells of the map
  tile_origin: [number, number]; // of the cells of tiles, each around its tile's centre: another one where tiles overlap
  cell: [number, number];
  tile: [number, number];
}

export interface SlidePage {
  key: string;
  file: string;
  patient: string;
  group: GroupName;
  drawn: string; // digest of its map
  cause: string;
  doubtful: boolean;
  first_done: boolean;
  may_see: boolean;
  missing: string;
  about: Record<string, string | null>;
  opinion: Opinion;
  settled: { label: string; by: string } | null;
  others: { reader: string; label: string; judgement: string; note: string; signed: string }[];
  size?: [number, number];
  mpp?: [number, number];
  mpp_source?: string;
  verdict?: string;
  trial?: string;
  classes?: string[];
  map_classes?: string[];
  is_map?: boolean;
  tiles?: { ok: number; unread: number };
  tissue_mm2?: number;
  left_out_mm2?: Record<string, number>;
  same_patient?: { key: string; file: string }[];
  answer?: { word: string; novelty: number | null; numbers: Record<string, number> };
  levels?: { index: number; size: [number, number]; tile: [number, number]; downsample: number }[];
  bounds?: [number, number, number, number];
  overview_ready?: boolean;
  grid?: Grid;
  layers?: LayerInfo[];
}

export interface TileFacts {
  index: number;
  row: number;
  column: number;
  verdict: string;
  x_um: number;
  y_um: number;
  coverage: number;
  layers?: Record<string, { value: number; percentile: number }>;
}

export interface KindOfTissue {
  letter: string;
  name: string;
  colour: [number, number, number];
  tiles: number;
  runs: Run[];
  examples: number[];
}

export interface LookAlike {
  key: string;
  file: string;
  index: number;
  cosine: number;
}

export interface Asked {
  key: string;
  file: string;
  index: number;
  row: number;
  column: number;
}

export interface Seen {
  answer: boolean;
  layer: string;
  threshold: number | null;
  opacity: number | null;
  zoom: number | null;
  drawn: string; // what the page had when it was said: another map, other tiles, and it is not kept
  tiles: string | null;
  last: number;
  reader: string | null; // whom the page names
}

export type Said =
  | { event: "opened"; blind: boolean }
  | { event: "first_impression"; label: string | null }
  | { event: "shown"; anyway: boolean }
  | { event: "decision"; judgement: Judgement | "none"; label: string | null; note: string; reason: string }
  | { event: "region"; runs: Run[]; judgement: Judgement; label: string; note: string }
  | { event: "painted"; runs: Run[]; label: string; asked: boolean }
  | { event: "note"; note: string }
  | { event: "undo"; of: number }
  | { event: "signed"; meaning: "reviewed" | "agreed" | "corrected" }
  | { event: "settled"; label: string | null; note: string };

export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

async function answered(response: Response): Promise<Response> {
  if (response.ok) return response;
  const told = await response.json().catch(() => ({ error: response.statusText }));
  throw new Refused(response.status, String(told.error));
}

export async function get<T>(path: string): Promise<T> {
  return (await answered(await fetch(path))).json();
}

const TRIES = 5, PAUSE_MS = 800; // of what the server is too busy for

export async function bytes(path: string): Promise<Uint8Array> {
  for (let left = TRIES; ; left--) {
    const response = await fetch(path);
    if (response.status === 429 && left > 1) await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    else return new Uint8Array(await (await answered(response)).arrayBuffer());
  }
}

export async function post<T>(path: string, body: unknown): Promise<T> {
  const headers = { "content-type": "application/json" };
  return (await answered(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }))).json();
}

export const ofSlide = (key: string, rest = "") => `/api/slides/${key}${rest}`;
export const pictureOf = (key: string, index: number) => ofSlide(key, `/picture/${index}`);

export async function say(key: string, said: Said, seen: Seen): Promise<Opinion> {
  return (await post<{ opinion: Opinion }>(ofSlide(key, "/events"), { said, seen })).opinion;
}
