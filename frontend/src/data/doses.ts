// An edit's results by dose: the doses that were measured, and what comes next at each of them. Nothing in between.

import { valuesOf } from "./table";
import type { TableTwin } from "./types";

export interface Prompt {
  key: string;
  prompt: string;
  side: string;
}

export interface Next {
  token: string;
  p: number;
  before: number;
  rank: number;
  kl: number;
}

/** Every dose that one of the results was measured at, in order. */
export function byDose(...tables: (TableTwin | undefined)[]): number[] {
  const found = tables.flatMap((t) => (t ? (valuesOf(t, "dose") as number[]) : []));
  return [...new Set(found)].sort((a, b) => a - b);
}

/** The prompts of a result, as they come. */
export function promptsOf(table: TableTwin): Prompt[] {
  const sides = valuesOf(table, "side") as string[];
  const found = (valuesOf(table, "prompt") as string[]).map((prompt, i) => ({ key: `${sides[i]}\n${prompt}`, prompt, side: sides[i] }));
  return [...new Map(found.map((p) => [p.key, p])).values()];
}

/** The tokens that may come after a prompt at a dose, likeliest first; none where that dose was not measured. */
export function tokensAt(table: TableTwin, prompt: Prompt, dose: number): Next[] {
  const [texts, sides, doses] = [valuesOf(table, "prompt"), valuesOf(table, "side"), valuesOf(table, "dose")];
  const of = (name: string, i: number) => valuesOf(table, name)[i];
  const rows = texts.flatMap((t, i) => (t === prompt.prompt && sides[i] === prompt.side && doses[i] === dose ? [i] : []));
  return rows
    .map((i) => ({
      token: of("token", i) as string,
      p: of("p", i) as number,
      before: of("before", i) as number,
      rank: of("rank", i) as number,
      kl: of("kl", i) as number,
    }))
    .sort((a, b) => b.p - a.p);
}
