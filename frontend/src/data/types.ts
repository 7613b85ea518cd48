// What the server says, and what a report holds; the Python side is `covector/web/app.py` and `bundle.py`.

export interface ColumnTwin {
  name: string;
  unit: string;
  digits: number | null;
  about: string;
  chance: number | string | null;
  numbers: boolean;
  values: unknown[];
}

export interface GridData {
  kind: "grid";
  values: (number | null)[][];
  row_labels: string[];
  column_labels: string[];
  cell_text: string[][] | null;
  value_name: string;
  unit: string;
  centre: number | null;
  chance: number | null;
  digits: number | null;
  row_name: string;
  column_name: string;
  outlined: boolean;
  limits: [number, number];
}

export interface CurveData {
  kind: "curve";
  x: number[];
  ys: (number | null)[][];
  names: string[];
  x_name: string;
  y_name: string;
  x_unit: string;
  y_unit: string;
  log_y: boolean;
  band: [number | (number | null)[], number | (number | null)[]] | null;
  band_name: string;
  shades: (number | null)[] | null;
}

export interface ScatterData {
  kind: "scatter";
  x: (number | null)[];
  y: (number | null)[];
  x_name: string;
  y_name: string;
  x_unit: string;
  y_unit: string;
  labels: string[] | null;
  groups: string[] | null;
  interval: [(number | null)[], (number | null)[]] | null;
  diagonal: boolean;
  band: [number, number] | null;
  band_name: string;
}

export interface GraphData {
  kind: "graph";
  names: string[];
  x: number[];
  y: number[];
  edges: [number, number, number | null][];
  columns: string[];
  rows: string[];
  value_name: string;
  unit: string;
}

export type PictureData = GridData | CurveData | ScatterData | GraphData;

export interface TableTwin {
  title: string;
  says: string;
  not_says: string;
  next: string;
  key: string[];
  meta: Record<string, unknown>;
  columns: ColumnTwin[];
  picture: PictureData | null;
  command?: string;
  python?: string;
}

export interface SiteRecord {
  site: string;
  layer: number | null;
  head: number | null;
  kind: string;
  n: number;
  m: number;
  inner: number | null;
}

/** What a view says, and what it does not. */
export interface Sentences {
  says: string;
  not_says: string;
}

export interface Overview {
  meta: { model: string; family: string; frame: string; dtype: string; [more: string]: unknown };
  options: Record<string, unknown>;
  reference: string;
  d_model: number;
  directions: number;
  judged: boolean;
  rule: string;
  glance: TableTwin;
  /** q below which a direction is said to be near a label. */
  level: number;
  /** Where to look first: directions, the strongest first. */
  first: TableTwin;
  sites: SiteRecord[];
  /** How commands name what is shown and its atlas, and how Python names the folder and opens the model. */
  words: { shown: string; atlas: string; folder: string; model: string };
  shown: string;
  other: string | null;
  /** How many results a report keeps for each view. */
  kept?: Record<string, number>;
  /** Of a report: the two sentences of each view of kept results. */
  openings?: Record<string, Sentences>;
}

/** A dyad of a place and its nearest in the other atlas. */
export interface Beside {
  row: number;
  cos: number;
  dyad: number;
  sigma: number;
  top: string[];
  bottom: string[];
}

export interface FieldForm {
  name: string;
  label: string;
  kind: "text" | "lines" | "number" | "choice" | "flag" | "document";
  default: string;
  about: string;
  choices: string[];
  needed: boolean;
  /** Values to choose from, that fit the model. */
  offers: string[];
}

export interface QuestionForm {
  name: string;
  view: string;
  title: string;
  about: string;
  fields: FieldForm[];
  /** Why this model cannot be asked it; empty where it can. */
  refused: string;
  /** A question that is run with the same values first; its answer comes soon. */
  beside: string;
}

export interface Job {
  id: number;
  question: string;
  command: string;
  python: string;
  state: "queued" | "running" | "done" | "failed" | "cancelled";
  progress: string;
  error: string;
  results: TableTwin[];
  films: number;
}

export interface ServerState {
  shown: string;
  built: boolean;
  building: Job | null;
  other: string | null;
}

/** A result kept in a report: which view it stands on, and its films as data addresses. */
export interface Stored {
  view: string;
  result: TableTwin;
  films: string[];
}
