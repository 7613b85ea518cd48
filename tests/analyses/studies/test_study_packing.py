"""Packing of significant directions."""

import numpy as np
import pytest
from scipy import stats

from covector.analyses.studies.packing import packing
from covector.errors import BadRequest
from covector.linalg.packing import welch_bound
from synthetic_atlas import synthetic


def some(share: float = 0.3):
    def change(columns, rng):
        columns["q_dir"] = np.where(rng.random(len(columns["q_dir"])) < share, 0.01, 0.9)

    return change


def test_random_significant_directions_are_packed_as_random_ones(tmp_path):
    table = packing(synthetic(tmp_path / "a", some(), kinds=("ov", "mlp.out")))
    whole = table.rows[0]
    assert whole["of"] == 16 * 2 * 8 + 4 * 32
    assert whole["rms"] == pytest.approx(np.sqrt(1 / 32), rel=0.1)
    assert whole["rms"] <= whole["rms_null"] * 1.02
    assert whole["per_dimension"] == pytest.approx(whole["n"] / 32)
    assert whole["welch"] == pytest.approx(welch_bound(whole["n"], 32))


def test_directions_that_share_features_are_closer_than_chance(tmp_path):
    def change(columns, rng):
        some()(columns, rng)
        feature = rng.standard_normal((3, 32))
        at = np.flatnonzero(columns["q_dir"] < 0.05)
        rows = columns["vectors"][at] + 0.5 * feature[rng.integers(0, 3, len(at))]
        columns["vectors"][at] = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    table = packing(synthetic(tmp_path / "a", change))
    whole = table.rows[0]
    assert whole["rms"] > whole["rms_null"]
    assert whole["dimensions"] < whole["dimensions_null"]
    assert "closer together than random ones" in table.says


def test_only_significant_directions_count_and_copies_count_once(tmp_path):
    def change(columns, rng):
        columns["q_dir"] = np.where((columns["site"] == "L0H0.ov") | (columns["site"] == "L0H1.ov"), 0.01, 0.9)
        first, second = columns["site"] == "L0H0.ov", columns["site"] == "L0H1.ov"
        read = columns["side"] == "read"
        columns["vectors"][second & read] = columns["vectors"][first & read]

    rows = {r["set"]: r for r in packing(synthetic(tmp_path / "a", change, kinds=("ov",))).rows}
    assert (rows["ov read"]["n"], rows["ov write"]["n"], rows["all"]["n"]) == (8, 16, 24)
    assert rows["ov read"]["largest"] == 0
    assert rows["ov write"]["largest"] > 0.2


def test_heads_with_a_significant_direction_are_counted_per_layer_and_against_a_random_spread(tmp_path):
    """All sixteen significant ones in two of sixteen heads; at random they would be in ten or so."""

    def change(columns, rng):
        columns["q_dir"] = np.where((columns["site"] == "L1H0.ov") | (columns["site"] == "L1H2.ov"), 0.01, 0.9)

    table = packing(synthetic(tmp_path / "a", change, kinds=("ov", "mlp.out")))
    rows = {r["set"]: r for r in table.rows}
    assert (rows["all"]["heads"], rows["all"]["of_heads"]) == (2, 16)
    assert 10 <= rows["all"]["heads_null"] <= 16
    assert (rows["L1 heads"]["heads"], rows["L1 heads"]["of_heads"]) == (2, 4)
    assert rows["L1 heads"]["n"] == rows["all"]["n"] == 2 * 2 * 8
    assert "L0 heads" not in rows  # it has none
    assert (rows["all"]["semantic"], rows["L1 heads"]["semantic"]) == (2, 2)
    assert table.meta["semantic_heads"] == {"L1H0": [16, 16], "L1H2": [16, 16]}
    assert "2 of 16 heads are semantic" in table.says
    assert "L0 0 of 4, L1 2 of 4, L2 0 of 4, L3 0 of 4" in table.says
    assert table.says.endswith("Fewer than three layers have a packing: too few for a correlation over layers.")
    spread = {r["set"]: r for r in packing(synthetic(tmp_path / "b", some(), kinds=("ov", "mlp.out"))).rows}
    assert spread["all"]["heads"] >= spread["all"]["heads_null"]
    assert spread["mlp.out write"]["heads"] is spread["mlp.out write"]["semantic"] is None


def test_other_rules_and_too_few_directions(tmp_path):
    def change(columns, rng):
        columns["interpretable"] = columns["dyad"] == 0

    atlas = synthetic(tmp_path / "a", change, kinds=("ov",))
    assert packing(atlas, rule="interpretable").rows[0]["n"] == 32
    with pytest.raises(BadRequest, match="expected two directions closer to a token than random directions"):
        packing(atlas)
    with pytest.raises(BadRequest, match=r"expected a rule \(near, coherent, interpretable\)"):
        packing(atlas, rule="pretty")


def test_layers_with_more_semantic_heads_are_held_against_how_closely_they_are_packed(tmp_path):
    """In layer l the first l heads have all their directions near a label, the others one in four; packing follows."""

    def change(columns, rng):
        layer, head = (np.array([-1 if v is None else v for v in columns[name]]) for name in ("layer", "head"))
        near = (columns["dyad"] % 4 == 0) | (head < layer)
        columns["q_dir"] = np.where(near & (head >= 0), 0.01, 0.9)
        rows = columns["vectors"] + 0.12 * np.maximum(layer, 0)[:, None] * np.eye(32)[0]
        columns["vectors"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    atlas = synthetic(tmp_path / "a", change, layers=6, heads=6, d_head=8, kinds=("ov", "mlp.out"))
    table = packing(atlas)
    rows = [r for r in table.rows if r["set"].endswith(" heads")]
    assert [r["semantic"] for r in rows] == [0, 1, 2, 3, 4, 5]
    assert [r["share"] for r in rows] == pytest.approx([(2 * (6 - n) + 8 * n) / 48 for n in range(6)])
    chosen = atlas.column("q_dir") < 0.05
    for n, row in enumerate(rows):
        at = chosen & np.array([str(site).startswith(f"L{n}H") for site in atlas.column("site")])
        vectors = atlas.units(at, np.float64)
        gram = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
        side = np.array([f"{a} {b}" for a, b in zip(atlas.column("site")[at], atlas.column("side")[at], strict=True)])
        other = (side[:, None] != side)[np.triu_indices(len(vectors), 1)]
        # Random directions are orthogonal within a side and have E cos² = 1/d between sides.
        assert row["closer"] == pytest.approx(np.sqrt(np.mean(gram**2) * 32 / np.mean(other)), rel=0.03)
    found = table.meta["over_layers"]["semantic closer"]
    assert found["rank"] == pytest.approx(np.corrcoef(np.arange(6), stats.rankdata([r["closer"] for r in rows]))[0, 1])
    assert found["rank"] > 0.9
    assert found["p"] < 0.05
    assert table.says.endswith("layers with more semantic heads are packed closer.")
    four = packing(synthetic(tmp_path / "b", change, layers=4, heads=6, kinds=("ov",)))
    assert four.meta["over_layers"]["semantic closer"]["least"] == pytest.approx(2 / 24)
    assert four.says.endswith("So few layers cannot tell: no p of theirs can be below 0.083.")
