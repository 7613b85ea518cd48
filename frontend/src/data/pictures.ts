// Pictures that the page draws of a result beside the one that comes with it, from its own columns.

import { numberText } from "../draw/format";
import { valuesOf } from "./table";
import type { CurveData, PictureData, ScatterData, TableTwin } from "./types";

export interface Drawn {
  picture: PictureData;
  about: string;
}

export interface Bar {
  name: string;
  value: number;
  low: number | null;
  high: number | null;
}

type Numbers = (number | null)[];
const numbers = (table: TableTwin, name: string): Numbers => valuesOf(table, name).map((v) => (typeof v === "number" ? v : null));
const taken = (all: Numbers, rows: number[]): Numbers => rows.map((i) => all[i]);

/** What this page draws of a result besides its own picture. */
export function drawnBeside(table: TableTwin): Drawn | null {
  if (table.meta.analysis === "predict") return predicted(table);
  if (table.meta.analysis === "steer") return steered(table);
  return null;
}

interface Agreement {
  slope: number | null;
  r2: number | null;
  rank: number | null;
}

function predicted(table: TableTwin): Drawn {
  const beside = (table.meta.beside as { name: string; over_places: Agreement }[] | undefined)?.find((b) => b.name === "train");
  const told = beside?.over_places;
  const picture: ScatterData = {
    kind: "scatter",
    x: numbers(table, "train"),
    y: numbers(table, "effect"),
    x_name: "predicted from other names",
    y_name: "measured",
    x_unit: "logits",
    y_unit: "logits",
    labels: valuesOf(table, "head") as string[],
    groups: null,
    interval: [numbers(table, "low"), numbers(table, "high")],
    diagonal: true,
    band: null,
    band_name: "",
  };
  const fit = told ? `: slope ${numberText(told.slope, 2)}, r² ${numberText(told.r2, 2)}, rank correlation ${numberText(told.rank, 2)}` : "";
  return { picture, about: `The effect of patching each head, measured against predicted${fit}; dashed: y = x` };
}

/** Measured change against the predicted one, over the random vectors of equal length. */
function steered(table: TableTwin): Drawn | null {
  const [vectors, observables, doses] = [valuesOf(table, "vector"), valuesOf(table, "observable"), valuesOf(table, "dose")];
  const of = (vector: string) => vectors.flatMap((v, i) => (v === vector && observables[i] === observables[0] ? [i] : []));
  const own = of("vector");
  if (own.length < 2) return null;
  const random = own.map((i) => of("random").find((j) => doses[j] === doses[i]) ?? -1);
  const [low, high] = ["low", "high"].map((name) => random.map((i) => (i < 0 ? null : numbers(table, name)[i])));
  const at = own.map((_, k) => k).sort((a, b) => x(a) - x(b));
  function x(k: number): number {
    return numbers(table, "predicted")[own[k]] ?? 0;
  }
  const picture: CurveData = {
    kind: "curve",
    x: at.map(x),
    ys: [taken(numbers(table, "effect"), at.map((k) => own[k])), at.map(x), taken(numbers(table, "low"), at.map((k) => own[k])), taken(numbers(table, "high"), at.map((k) => own[k]))],
    names: ["measured", "predicted", "95 % over names, lower", "95 % over names, upper"],
    x_name: "dose: predicted change",
    y_name: `change of ${String(observables[0])}`,
    x_unit: "logits",
    y_unit: "logits",
    log_y: false,
    band: [at.map((k) => low[k]), at.map((k) => high[k])],
    band_name: "95 % of random vectors",
    shades: [null, null, 0, 0],
  };
  return { picture, about: "Dose–response on held-out names, over random vectors of equal length" };
}

/** Means with intervals, where a result has one a row that is worth seeing at once: the returns of an agent's arms. */
export function barsOf(table: TableTwin): { bars: Bar[]; name: string } | null {
  if (table.meta.analysis !== "rollout" || table.key.join() !== "arm") return null;
  const [names, mean, low, high] = [valuesOf(table, "arm"), numbers(table, "return"), numbers(table, "low"), numbers(table, "high")];
  const bars = names.map((n, i) => ({ name: String(n), value: mean[i] ?? NaN, low: low[i], high: high[i] })).filter((b) => Number.isFinite(b.value));
  const asked = (table.meta.played_targets as number[] | undefined)?.[0];
  return { bars, name: `return${asked === undefined ? "" : `, ${asked} asked for`}; 95 % interval over episodes` };
}

const LAYER = /L(\d+)$/;
const HEAD = /H(\d+)$/;

/** The place that a cell of a layers × heads map stands for, such as ``L2H3.ov``; none of another map's. */
export function placeOfCell(row: string, column: string): string | null {
  const [layer, head] = [LAYER.exec(row), HEAD.exec(column)];
  return layer && head ? `L${layer[1]}H${head[1]}.ov` : null;
}

/** The place that a row of a result is about, where it names one. */
export function placeOfRow(table: TableTwin, row: number): { site: string; dyad: string } | null {
  const [head, site, dyad] = ["head", "site", "dyad"].map((n) => valuesOf(table, n)[row]);
  if (typeof site === "string" && /^[LW]/.test(site)) return { site, dyad: typeof dyad === "number" ? String(dyad) : "" };
  if (typeof head === "string" && /^L\d+H\d+$/.test(head)) return { site: `${head}.ov`, dyad: "" };
  return null;
}
