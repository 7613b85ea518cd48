"""Scores of an embedding's directions by index."""

import numpy as np
import pytest
from scipy import stats

from covector.analyses.studies.index import index
from covector.errors import BadRequest
from synthetic_atlas import synthetic


def falling(at: int, by: float):
    def change(columns, rng):
        early = (columns["kind"] == "embed") & (columns["dyad"] < at)
        z = rng.standard_normal(len(early)) + by * early
        columns["p_coherence"] = stats.norm.sf(z)

    return change


def test_a_level_that_falls_is_found_with_its_place_and_size(tmp_path):
    table = index(synthetic(tmp_path / "a", falling(40, 2.0), d=128, kinds=("embed",)))
    found = table.meta["changepoints"]["embed write"]
    assert found["p"] < 0.001
    assert found["low"] <= 40 <= found["high"]
    assert found["before"] == pytest.approx(2, abs=4 / np.sqrt(40))
    assert found["after"] == pytest.approx(0, abs=4 / np.sqrt(88))
    assert "embed: coherence falls at index" in table.says
    scores = [r["score"] for r in table.rows]
    assert min(scores[:2]) > 1 > max(scores[3:])


def test_windows_share_out_every_index_and_their_band_is_that_of_normal_means(tmp_path):
    table = index(synthetic(tmp_path / "a", d=64, kinds=("embed",)), windows=5)
    assert [(r["first"], r["last"]) for r in table.rows] == [(0, 12), (13, 25), (26, 38), (39, 51), (52, 63)]
    assert [r["score_null"] for r in table.rows] == pytest.approx([1.96 / np.sqrt(n) for n in (13, 13, 13, 13, 12)])


def test_without_structure_windows_stay_in_their_band_and_p_is_nominal(tmp_path):
    inside, p = [], []
    for seed in range(60):
        table = index(synthetic(tmp_path / str(seed), seed=seed, d=48, kinds=("embed",)))
        inside += [abs(r["score"]) <= r["score_null"] for r in table.rows]
        p.append(table.meta["changepoints"]["embed write"]["p"])
    assert np.mean(inside) == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / len(inside)))
    assert np.mean(np.array(p) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_other_places_may_be_named_and_missing_ones_are_refused(tmp_path):
    atlas = synthetic(tmp_path / "a", kinds=("mlp.in",))
    assert {r["site"] for r in index(atlas, sites="L0.mlp.in,L2.mlp.in").rows} == {"L0.mlp.in", "L2.mlp.in"}
    with pytest.raises(BadRequest, match="expected embeddings in the atlas"):
        index(atlas)
    with pytest.raises(BadRequest, match=r"expected places of this atlas, got 'L9\.mlp\.in'"):
        index(atlas, sites="L9.mlp.in")
    with pytest.raises(BadRequest, match="expected windows >= 2"):
        index(atlas, sites="L0.mlp.in", windows=1)
