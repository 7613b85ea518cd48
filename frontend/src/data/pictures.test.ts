import { describe, expect, it } from "vitest";
import { barsOf, drawnBeside, placeOfCell, placeOfRow } from "./pictures";
import type { CurveData, ScatterData, TableTwin } from "./types";

function table(analysis: string, columns: Record<string, unknown[]>, meta: object = {}, key: string[] = []): TableTwin {
  return { meta: { analysis, ...meta }, key, columns: Object.entries(columns).map(([name, values]) => ({ name, values })) } as unknown as TableTwin;
}

describe("pictures that the page makes", () => {
  it("draws measurement over prediction with y = x and tells slope and r²", () => {
    const meta = { beside: [{ name: "free", over_places: { slope: 9 } }, { name: "train", over_places: { slope: 1.01, r2: 0.99, rank: 0.9 } }] };
    const drawn = drawnBeside(table("predict", { head: ["L0H1"], train: [2], effect: [3], low: [1], high: [5] }, meta))!;
    const picture = drawn.picture as ScatterData;
    expect([picture.x, picture.y, picture.diagonal]).toEqual([[2], [3], true]);
    expect(drawn.about).toContain("slope 1.01, r² 0.99");
  });
  it("puts the band of random vectors under the dose that they are as long as, in order of prediction", () => {
    const drawn = drawnBeside(
      table("steer", {
        vector: ["vector", "vector", "random", "random"],
        observable: ["a", "a", "a", "a"],
        dose: [5, -5, -5, 5],
        predicted: [2, -2, null, null],
        effect: [1.5, -1, 0, 0],
        low: [1, -2, -0.1, -0.4],
        high: [2, 0, 0.1, 0.4],
      }),
    )!;
    const picture = drawn.picture as CurveData;
    expect(picture.x).toEqual([-2, 2]);
    expect(picture.ys[0]).toEqual([-1, 1.5]);
    expect(picture.band).toEqual([[-0.1, -0.4], [0.1, 0.4]]);
  });
  it("shows returns by arm, and not where a row is an episode", () => {
    const columns = { arm: ["clean", "edit"], return: [0.9, 0.1], low: [0.8, null], high: [1, null] };
    expect(barsOf(table("rollout", columns, { played_targets: [0.9] }, ["arm"]))!.bars.map((b) => b.value)).toEqual([0.9, 0.1]);
    expect(barsOf(table("rollout", columns, {}, ["arm", "seed"]))).toBeNull();
  });
  it("knows which place a cell and a row are about", () => {
    expect(placeOfCell("L12", "H3")).toBe("L12H3.ov");
    expect(placeOfCell("L1", "effect H0")).toBe("L1H0.ov");
    expect(placeOfCell("y0", "x3")).toBeNull();
    expect(placeOfRow(table("head_norms", { head: ["L1H2"] }), 0)).toEqual({ site: "L1H2.ov", dyad: "" });
    expect(placeOfRow(table("agent_map", { site: ["L2.mlp.out"], dyad: [4] }), 0)).toEqual({ site: "L2.mlp.out", dyad: "4" });
    expect(placeOfRow(table("paths", { path: ["embed>out"] }), 0)).toBeNull();
  });
});
