// From values to places on a line and back, with ticks at round numbers.

export interface Scale {
  (value: number): number;
  ticks: number[];
  log: boolean;
  domain: [number, number];
}

/** A scale over `domain` onto `range`, linear or by powers of ten. */
export function scale(domain: [number, number], range: [number, number], log = false, wanted = 6): Scale {
  let [low, high] = domain;
  if (log) low = Math.max(low, Number.MIN_VALUE);
  if (!(high > low)) {
    low -= log ? low / 2 : 0.5;
    high += log ? high : 0.5;
  }
  const to = log ? Math.log10 : (v: number) => v;
  const [a, b] = [to(low), to(high)];
  const place = ((v: number) => range[0] + ((to(v) - a) / (b - a)) * (range[1] - range[0])) as Scale;
  place.ticks = log ? powers(low, high) : round(low, high, wanted);
  place.log = log;
  place.domain = [low, high];
  return place;
}

function round(low: number, high: number, wanted: number): number[] {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough)!;
  const ticks = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) ticks.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return ticks;
}

function powers(low: number, high: number): number[] {
  const from = Math.floor(Math.log10(low));
  const upTo = Math.ceil(Math.log10(high));
  const every = Math.ceil((upTo - from) / 8);
  const multiples = upTo - from <= 2 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let p = from; p <= upTo; p += every) for (const m of multiples) ticks.push(m * 10 ** p);
  return ticks.filter((v) => v >= low && v <= high);
}

/** The least and greatest finite value; [0, 1] where there is none. */
export function extent(values: Iterable<number | null | undefined>, positive = false): [number, number] {
  let low = Infinity;
  let high = -Infinity;
  for (const v of values) {
    if (v === null || v === undefined || !Number.isFinite(v) || (positive && v <= 0)) continue;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return low <= high ? [low, high] : positive ? [0.1, 1] : [0, 1];
}
