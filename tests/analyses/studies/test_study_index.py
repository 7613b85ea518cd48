"""Scores of an embedding's directions by index."""

import numpy as np
import pytest
from scipy import stats

import covector
from covector.analyses.studies.index import index
from covector.analyses.studies.judges import judge
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.errors import BadRequest
from synthetic_atlas import built, synthetic


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


def leaning(tied: bool = False):
    """Random weights whose embedding rows have a common part, which the first singular direction follows."""
    weights = random_model(seed=3, n_layers=1, d_model=24, n_vocab=240, norm=None, tied=tied)
    arrays, rng = dict(weights.arrays), np.random.default_rng(3)
    arrays["W_E"] = arrays["W_E"] * np.linspace(2, 0.5, 24) + 0.7 * rng.standard_normal(24)
    return covector.open(type(weights)(weights.spec, arrays))


def test_with_the_model_directions_are_the_principal_components_of_the_centred_labels(tmp_path):
    model = leaning()
    atlas = built(model, tmp_path / "a", Options(("embed",), draws=500))
    table = index(atlas, model, windows=24, draws=300)
    rows = [r for r in table.rows if r["site"] == "embed"]
    labels = np.asarray(model.stored["W_E"], np.float64)
    axes = np.linalg.svd(labels - labels.mean(axis=0), full_matrices=False)[2]
    against = str(atlas.column("basis")[np.flatnonzero(atlas.column("site") == "embed")[0]])
    p = judge(model, against, draws=300)(axes).p
    assert [r["score"] for r in rows] == pytest.approx(stats.norm.isf(p), abs=1e-9)
    mean, first = labels.mean(axis=0), np.linalg.svd(labels)[2][0]
    cosine = abs(first @ mean) / np.linalg.norm(mean)
    assert cosine > 0.9
    assert rows[0]["cos_mean"] == pytest.approx(cosine, abs=1e-3)  # rows of an atlas are float16
    assert f"has |cos| {rows[0]['cos_mean']:.3f}" in table.says
    assert "Not centred" not in table.not_says
    assert table.meta["centred"] == {"embed write": True, "unembed read": True}


def test_uncentred_directions_are_the_atlas_own_and_are_called_so(tmp_path):
    model = leaning()
    atlas = built(model, tmp_path / "a", Options(("embed",), draws=500))
    alone, uncentred = index(atlas, windows=24), index(atlas, model, centred=False, windows=24)
    assert alone.rows == uncentred.rows
    at = np.flatnonzero(atlas.column("site") == "embed")
    wanted = stats.norm.isf(atlas.column("p_coherence")[at])
    assert [r["score"] for r in alone.rows if r["site"] == "embed"] == pytest.approx(wanted, abs=1e-6)
    assert {r["cos_mean"] for r in alone.rows} == {None}
    assert alone.not_says.startswith("Not centred: singular directions")
    assert alone.meta["centred"] == {"embed write": False, "unembed read": False}


def test_layers_are_read_as_they_are_beside_centred_embeddings(tmp_path):
    model = leaning()
    atlas = built(model, tmp_path / "a", Options(("mlp", "embed"), draws=500))
    table = index(atlas, model, sites="embed,L0.mlp.in,pos", draws=300)
    assert table.meta["centred"] == {"embed write": True, "L0.mlp.in read": False, "pos write": True}
    assert table.not_says.startswith("Not centred (L0.mlp.in): ")
