"""Packing of significant directions."""

import numpy as np
import pytest

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
    assert "2 of 16 heads have one" in table.says
    assert table.says.endswith("concentrated in few.")
    spread = {r["set"]: r for r in packing(synthetic(tmp_path / "b", some(), kinds=("ov", "mlp.out"))).rows}
    assert spread["all"]["heads"] >= spread["all"]["heads_null"]
    assert spread["mlp.out write"]["heads"] is None


def test_other_rules_and_too_few_directions(tmp_path):
    def change(columns, rng):
        columns["interpretable"] = columns["dyad"] == 0

    atlas = synthetic(tmp_path / "a", change, kinds=("ov",))
    assert packing(atlas, rule="interpretable").rows[0]["n"] == 32
    with pytest.raises(BadRequest, match="expected two directions closer to a token than random directions"):
        packing(atlas)
    with pytest.raises(BadRequest, match=r"expected a rule \(near, coherent, interpretable\)"):
        packing(atlas, rule="pretty")
