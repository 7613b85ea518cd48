// The directions of an atlas in memory: columns, labels of both poles, filters, orders and a search in the lists.

import type { Packed } from "./packing";
import type { Overview } from "./types";

export interface Pole {
  words: string[];
  cos: number[];
}

export interface Filter {
  kinds: Set<string> | null;
  side: string;
  site: string;
  layers: [number, number] | null;
  most_q: number;
  flag: string;
  words: string;
}

export const NO_FILTER: Filter = { kinds: null, side: "", site: "", layers: null, most_q: 1, flag: "", words: "" };

const FOLD = /\p{M}/gu;

/**
 * Rows in order of their values, NaN last, ties as they stand. One whole number a row, made of the bits of its value and
 * its place: a typed array of numbers sorts ten times as fast as one with a function that compares.
 */
export function ordered(values: Float32Array, falling: boolean): Uint32Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const keys = new Float64Array(values.length);
  for (let i = 0; i < keys.length; i++) {
    let key = bits[i] >>> 31 ? ~bits[i] >>> 0 : (bits[i] | 0x80000000) >>> 0;
    if (falling) key = ~key >>> 0;
    if (Number.isNaN(values[i])) key = 0xffffffff;
    keys[i] = key * 0x200000 + i;
  }
  keys.sort();
  return Uint32Array.from(keys, (k) => k % 0x200000);
}

/** The letters of a text that a search compares: no case, no accents. */
export function folded(text: string): string {
  return text.normalize("NFKD").replace(FOLD, "").toLowerCase();
}

/** A label without the mark of a space in front of it. */
const bare = (label: string): string => label.replace(/^[ ▁Ġ·]/, "");

export class Directions {
  readonly rows: number;
  readonly site: Uint16Array;
  readonly dyad: Uint16Array;
  readonly layer: Int16Array;
  readonly flags: Uint8Array;
  readonly numbers: Record<string, Float32Array> = {};
  readonly texts: Record<string, string[]>;
  readonly flagNames: string[];
  private readonly codes: Record<string, Uint8Array | Uint32Array> = {};
  private readonly orders = new Map<string, Uint32Array>();
  private labels: Packed | null = null;
  private foldedWords: string[] | null = null;
  private readonly rowsOfSite: number[][];

  constructor(
    private readonly packed: Packed,
    readonly overview: Overview,
  ) {
    const { arrays, about } = packed;
    this.rows = about.rows as number;
    this.texts = about.texts as Record<string, string[]>;
    this.flagNames = about.flags as string[];
    this.site = arrays.site as Uint16Array;
    this.dyad = arrays.dyad as Uint16Array;
    this.flags = arrays.flags as Uint8Array;
    for (const [name, array] of Object.entries(arrays)) {
      if (array instanceof Float32Array) this.numbers[name] = array;
      else if (name in this.texts) this.codes[name] = array as Uint8Array;
    }
    const zeta = this.numbers.zeta;
    this.numbers.strength = zeta.map(Math.abs);
    this.layer = Int16Array.from(this.site, (s) => overview.sites[s].layer ?? -1);
    this.numbers.layer = Float32Array.from(this.layer);
    this.rowsOfSite = overview.sites.map(() => []);
    for (let i = 0; i < this.rows; i++) this.rowsOfSite[this.site[i]].push(i);
  }

  get hasLabels(): boolean {
    return this.labels !== null;
  }

  /** Give the lists of labels, which come after the first drawing. */
  take(labels: Packed): void {
    this.labels = labels;
  }

  siteName(i: number): string {
    return this.overview.sites[this.site[i]].site;
  }

  text(name: string, i: number): string {
    return this.texts[name]?.[this.codes[name][i]] ?? "";
  }

  /** ``L22H10.ov:3`` and the side: how every command names it. */
  place(i: number): string {
    return `${this.siteName(i)}:${this.dyad[i]}`;
  }

  has(flag: string, i: number): boolean {
    const bit = this.flagNames.indexOf(flag);
    return bit >= 0 && (this.flags[i] & (1 << bit)) !== 0;
  }

  /** The dyads that one cannot tell apart from this one (singular values closer than storage allows). */
  block(i: number): [number, number] {
    return [this.packed.arrays.block_first[i], this.packed.arrays.block_last[i]];
  }

  /** Rows of one place, in the order of the atlas. */
  of(site: string): number[] {
    const at = this.overview.sites.findIndex((s) => s.site === site);
    return at < 0 ? [] : this.rowsOfSite[at];
  }

  /** The labels of one pole, nearest first; empty before they are there. */
  pole(i: number, which: "top" | "bottom"): Pole {
    if (!this.labels) return { words: [], cos: [] };
    const width = this.labels.about.pole as number;
    const words = this.labels.about.words as string[];
    const codes = this.labels.arrays[which];
    const cos = this.labels.arrays[`${which}_cos`];
    const steps = this.labels.about.steps as number;
    const found: Pole = { words: [], cos: [] };
    for (let k = i * width; k < (i + 1) * width && codes[k] < words.length; k++) {
      found.words.push(words[codes[k]]);
      found.cos.push(cos[k] / steps);
    }
    return found;
  }

  /** All rows ordered by a column; the order is kept, so that a filter costs one pass. */
  order(name: string, falling: boolean): Uint32Array {
    const key = `${name} ${falling}`;
    const known = this.orders.get(key);
    if (known) return known;
    const order = ordered(this.sortable(name), falling);
    this.orders.set(key, order);
    return order;
  }

  private sortable(name: string): Float32Array {
    // Rows of an atlas stand by place already; a float32 holds 2²⁴ of them, `ordered` 2²¹.
    if (name === "place") return Float32Array.from(this.site, (_, i) => i);
    if (name in this.numbers) return this.numbers[name];
    const texts = this.texts[name] ?? [];
    const rank = new Float32Array(texts.length);
    [...texts.keys()].sort((a, b) => texts[a].localeCompare(texts[b])).forEach((t, r) => (rank[t] = r));
    return Float32Array.from(this.codes[name] ?? [], (c) => rank[c]);
  }

  /** Rows that a filter keeps, in the given order. */
  kept(filter: Filter, order: Uint32Array): Uint32Array {
    const { overview, numbers, site } = this;
    const wanted = new Uint8Array(overview.sites.length).fill(1);
    const typed = folded(filter.site).replace(/:\d+$/, "");
    // As addresses are typed elsewhere: * for any layer or head; a part of a name is enough.
    const address = new RegExp(typed.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replaceAll("*", "\\d+"));
    overview.sites.forEach((s, i) => {
      const inLayers = !filter.layers || (s.layer !== null && s.layer >= filter.layers[0] && s.layer <= filter.layers[1]);
      const named = !typed || address.test(folded(s.site));
      if (!inLayers || !named || (filter.kinds && !filter.kinds.has(s.kind))) wanted[i] = 0;
    });
    const side = this.texts.side.indexOf(filter.side);
    const sides = this.codes.side;
    const bit = filter.flag ? 1 << this.flagNames.indexOf(filter.flag) : 0;
    const q = filter.most_q < 1 ? numbers.q_dir : null;
    const listed = filter.words ? this.listing(filter.words) : null;
    const found = new Uint32Array(this.rows);
    let n = 0;
    for (let k = 0; k < order.length; k++) {
      const i = order[k];
      if (!wanted[site[i]]) continue;
      if (side >= 0 && sides[i] !== side) continue;
      if (bit && !(this.flags[i] & bit)) continue;
      if (q && !(q[i] <= filter.most_q)) continue;
      if (listed && !listed[i]) continue;
      found[n++] = i;
    }
    return found.slice(0, n);
  }

  /** Which rows list a label that contains every one of the typed words. */
  private listing(typed: string): Uint8Array {
    const found = new Uint8Array(this.rows);
    if (!this.labels) return found.fill(1);
    const words = this.labels.about.words as string[];
    const width = this.labels.about.pole as number;
    const exact = /^['"](.*)['"]$/.exec(typed);
    const match = new Uint8Array(words.length + 1);
    const sought = folded(typed.trim());
    this.foldedWords ??= words.map(folded);
    for (let w = 0; w < words.length; w++) {
      match[w] = Number(exact ? bare(words[w]) === bare(exact[1]) : this.foldedWords[w].includes(sought));
    }
    for (const pole of ["top", "bottom"] as const) {
      const codes = this.labels.arrays[pole];
      for (let k = 0, i = 0; i < this.rows; i++) {
        for (let j = 0; j < width; j++, k++) if (match[codes[k]]) found[i] = 1;
      }
    }
    return found;
  }

  /** Words of the lists, for a search that has no vectors. */
  listedWords(): string[] {
    return (this.labels?.about.words as string[]) ?? [];
  }

  /** Rows by how many of the given words stand on one of their poles: (row, pole, words found, mean |cos|). */
  listings(words: string[]): { row: number; pole: "top" | "bottom"; found: string[]; cos: number }[] {
    if (!this.labels) return [];
    const all = this.labels.about.words as string[];
    const width = this.labels.about.pole as number;
    const wanted = new Set(words);
    const match = new Uint8Array(all.length + 1);
    all.forEach((w, i) => (match[i] = wanted.has(w) ? 1 : 0));
    const hits: { row: number; pole: "top" | "bottom"; found: string[]; cos: number }[] = [];
    for (const pole of ["top", "bottom"] as const) {
      const codes = this.labels.arrays[pole];
      const cos = this.labels.arrays[`${pole}_cos`];
      const steps = this.labels.about.steps as number;
      for (let i = 0; i < this.rows; i++) {
        let sum = 0;
        let found: string[] | null = null;
        for (let k = i * width; k < (i + 1) * width; k++) {
          if (!match[codes[k]]) continue;
          (found ??= []).push(all[codes[k]]);
          sum += Math.abs(cos[k]) / steps;
        }
        if (found) hits.push({ row: i, pole, found, cos: sum / found.length });
      }
    }
    return hits.sort((a, b) => b.found.length - a.found.length || b.cos - a.cos || a.row - b.row);
  }
}
