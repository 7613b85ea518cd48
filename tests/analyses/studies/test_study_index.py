"""Scores of an embedding's directions by index."""

import sys

import numpy as np
import pytest
from scipy import stats

import covector
from covector.analyses.studies.independent import compared
from covector.analyses.studies.index import index
from covector.analyses.studies.judges import judge
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.errors import BadRequest, MissingExtra
from covector.linalg.chance.laws import Matched
from covector.linalg.factorings import STEPS
from covector.linalg.principal import principal
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
    rows = [r for r in table.rows if (r["site"], r["axes"]) == ("embed", "PCA")]
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
    assert {r["axes"] for r in alone.rows} == {"PCA"}
    assert alone.meta["independent"] == {}
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


def embedded(seed: int, labels: np.ndarray):
    """A model whose embeddings, in and out, have these labels, and random weights otherwise."""
    n, d = labels.shape
    weights = random_model(seed=seed, n_layers=1, d_model=d, n_vocab=n, norm=None)
    return covector.open(type(weights)(weights.spec, weights.arrays | {"W_E": labels, "W_U": labels.T}))


def of(table, site: str, axes: str) -> dict:
    return next(r for r in table.rows if (r["site"], r["axes"]) == (site, axes))


def test_ica_beats_its_span_where_topics_are_independent_and_equally_strong(tmp_path):
    """12 axes with two poles; labels far out on one have a direction of their own in common, outside the span.

    So a list along an axis agrees beyond it; lists of directions between axes, as PCA has them, mix several.
    """
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(4)
    frame = np.linalg.qr(rng.standard_normal((24, 24)))[0]
    codes = np.zeros((720, 12))
    codes[np.arange(720), np.arange(720) % 12] = rng.choice([-1, 1], 720) * rng.uniform(0.5, 1.5, 720)
    labels = codes @ frame[:12] + 0.7 * np.abs(codes) @ frame[12:] + 0.25 * rng.standard_normal((720, 24))
    model = embedded(4, labels)
    atlas = built(model, tmp_path / "a", Options(("embed",), draws=300))
    table = index(atlas, model, sites="embed", number=12, draws=300)
    told = table.meta["independent"]["embed write"]
    ica, leading, random = (of(table, "embed", axes) for axes in ("ICA", "leading", "random"))
    assert told["axes"] == 12
    assert told["converged"]
    assert "did not converge" not in table.says
    assert ica["p_turned"] == told["p_turned"] == 1 / 50
    assert leading["p_turned"] == told["p_turned_leading"] > 0.02
    assert ica["score"] > max(leading["score"], random["score"], told["score_turned_range"][1]) + 0.5
    assert ica["coherent"] > random["high"]
    assert "12 ICA axes in the span of the first 12 components" in table.says
    assert "are more coherent than random axes of that span (p = .020)" in table.says
    assert [ica["first"], ica["last"], leading["first"], leading["last"]] == [None, None, 0, 11]


def test_of_labels_that_are_normal_in_the_span_ica_is_one_random_basis_of_it():
    """So p is uniform, whatever the span scores (its first axis is coherent): mean .525, standard error .053."""
    pytest.importorskip("sklearn")
    p, spread = [], np.geomspace(4, 0.5, 10)
    for seed in range(30):
        normal = np.random.default_rng((seed, 1)).standard_normal((200, 10))
        normal[:, 9] += 2 * np.abs(normal[:, 0])  # outside the span of the first five, and told by the first
        model = embedded(seed, normal * spread)
        own = model.bases["token_in"]
        found = principal(own.vectors, own.usable)
        among = judge(model, "token_in", draws=100)
        cov = judge(model, "token_in", law=Matched(found.axes * np.sqrt(found.variances)[:, None]), draws=100)
        one = compared(own, found, among, cov, number=5, turns=19, seed=seed)
        assert one is not None
        p.append(one.p(one.ica))
    assert np.mean(p) == pytest.approx(0.525, abs=3.5 * 0.053)
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 30)


def test_the_rows_of_a_whole_are_means_over_its_axes_and_the_first_ones_are_the_windows(tmp_path):
    pytest.importorskip("sklearn")
    model = leaning()
    table = index(built(model, tmp_path / "a", Options(("embed",), draws=300)), model, windows=24, number=9, draws=300)
    windows = [r for r in table.rows if (r["site"], r["axes"]) == ("embed", "PCA")]
    leading = of(table, "embed", "leading")
    for name in ("score", "coherent", "beyond_cov"):
        assert leading[name] == pytest.approx(np.mean([r[name] for r in windows[:9]]), abs=1e-12)
    assert leading["score_null"] == of(table, "embed", "ICA")["score_null"] == pytest.approx(1.96 / 3)
    labels = np.asarray(model.stored["W_E"], np.float64)
    power = np.linalg.svd(labels - labels.mean(axis=0))[1] ** 2
    assert table.meta["independent"]["embed write"]["variance"] == pytest.approx(power[:9].sum() / power.sum())
    assert table.meta["independent"].keys() == {"embed write", "unembed read"}


def test_an_ica_that_does_not_come_to_an_end_is_told_all_the_same(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setitem(STEPS, "ica", 2)
    model = leaning()
    table = index(built(model, tmp_path / "a", Options(("embed",), draws=300)), model, sites="embed", draws=300)
    told = table.meta["independent"]["embed write"]
    assert (told["converged"], told["steps"], told["axes"]) == (False, 2, 24)
    assert table.says.endswith("ICA did not converge in 2 steps.")


def test_without_the_library_the_index_is_told_without_ica_unless_axes_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    model = leaning()
    atlas = built(model, tmp_path / "a", Options(("embed",), draws=300))
    table = index(atlas, model, sites="embed", draws=300)
    assert {r["axes"] for r in table.rows} == {"PCA"}
    assert "Independent components are not tried (embed): expected scikit-learn" in table.not_says
    with pytest.raises(MissingExtra, match="pip install"):
        index(atlas, model, number=5)
    with pytest.raises(BadRequest, match="expected number >= 2 axes, got 1"):
        index(atlas, model, number=1)
