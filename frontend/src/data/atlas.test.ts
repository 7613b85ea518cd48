import { expect, test } from "vitest";
import { folded, ordered } from "./atlas";

test("rows are ordered by value, NaN last both ways, ties as they stand", () => {
  const values = Float32Array.of(2, -1, NaN, 0, 2, -3.5, Infinity);
  expect([...ordered(values, false)]).toEqual([5, 1, 3, 0, 4, 6, 2]);
  expect([...ordered(values, true)]).toEqual([6, 0, 4, 3, 1, 5, 2]);
});

test("an order agrees with a comparing sort on many values", () => {
  const values = Float32Array.from({ length: 100_000 }, (_, i) => Math.sin(i * 12.9898) * 43758.5453);
  const compared = [...values.keys()].sort((a, b) => values[a] - values[b] || a - b);
  expect([...ordered(values, false)]).toEqual(compared);
});

test("a search folds case and accents", () => {
  expect(folded(" Éclair")).toBe(" eclair");
});
