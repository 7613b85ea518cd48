import { describe, expect, it } from "vitest";
import { byDose, promptsOf, tokensAt } from "./doses";
import type { TableTwin } from "./types";

const rows = [
  ["A b", "clean", " x", -1, 0.1, 0.3, 2],
  ["A b", "clean", " y", -1, 0.9, 0.7, 1],
  ["A b", "clean", " x", 1, 0.6, 0.3, 1],
  ["A b", "clean", " y", 1, 0.4, 0.7, 2],
  ["A b", "corrupt", " x", 1, 0.2, 0.2, 1],
] as const;
const names = ["prompt", "side", "token", "dose", "p", "before", "rank"];
const table = {
  columns: [...names, "kl"].map((name, c) => ({ name, values: rows.map((r) => (name === "kl" ? 0.5 : r[c])) })),
} as unknown as TableTwin;

describe("an edit by dose", () => {
  it("knows the doses that any result was measured at, in order and once", () => {
    const other = { columns: [{ name: "dose", values: [1, 0.25, 0] }] } as unknown as TableTwin;
    expect(byDose(table, undefined, other)).toEqual([-1, 0, 0.25, 1]);
  });
  it("tells one text on two sides apart", () => {
    expect(promptsOf(table).map((p) => p.side)).toEqual(["clean", "corrupt"]);
  });
  it("lists the tokens of that prompt and dose alone, likeliest first", () => {
    const [clean, corrupt] = promptsOf(table);
    expect(tokensAt(table, clean, 1).map((t) => t.token)).toEqual([" x", " y"]);
    expect(tokensAt(table, clean, -1).map((t) => t.token)).toEqual([" y", " x"]);
    expect(tokensAt(table, corrupt, 1).map((t) => t.p)).toEqual([0.2]);
  });
  it("makes nothing up between doses", () => {
    expect(tokensAt(table, promptsOf(table)[0], 0.5)).toEqual([]);
  });
});
