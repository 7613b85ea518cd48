"""Singular bases on activations."""

import numpy as np
import pytest

import covector
from covector.analyses.studies.activations import GAUSSIAN, activations
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.errors import BadRequest
from covector.linalg.svd import svd
from covector.run.along import along
from synthetic_atlas import built

N = 1500


def small(seed: int = 0, **other):
    return covector.open(random_model(seed=seed, n_layers=3, d_model=24, d_head=6, n_vocab=200, norm=None, **other))


def atlas_of(model, folder):
    return built(model, folder, Options(("ov",), rank=2, draws=20, scores=False))


def row(table, side, score, kind="ov"):
    return next(r for r in table.rows if (r["kind"], r["side"], r["score"]) == (kind, side, score))


def isotropic(model, seed=0):
    """Gaussian activations that know nothing of the weights."""
    rng, spec = np.random.default_rng(seed), model.spec

    def passed(hooks):
        made = {}
        for name in hooks:
            shape = (N, spec.d_model) if name.endswith("normed") else (N, spec.n_heads, 6)
            made[name] = rng.standard_normal(shape)
        return made

    return passed


def test_activations_that_know_nothing_of_the_weights_prefer_no_basis_of_what_is_read(tmp_path):
    """Superior is uniform over 1/40 … for random bases: over 12 heads its mean has a standard error of .083."""
    model = small()
    table = activations(atlas_of(model, tmp_path / "a"), model, isotropic(model), draws=300)
    for kind, side in (("ov", "read"), ("qk", "query"), ("qk", "key")):
        for score in ("fills", "sparse", "aligned"):
            found = row(table, side, score, kind)
            assert found["q"] > 0.01
            assert found["superior"] == pytest.approx(0.5, abs=4 * 0.083)
        assert row(table, side, "sparse", kind)["svd"] == pytest.approx(GAUSSIAN, abs=0.01)
        assert row(table, side, "fills", kind)["svd"] > 0.98
        assert row(table, side, "coherent", kind)["q"] > 0.01


@pytest.mark.slow
def test_intervals_of_what_is_read_miss_one_half_at_the_nominal_rate(tmp_path):
    """6 models, 9 rows each, by the intervals over heads. 54 rows: ± 3 standard errors of .05."""
    misses = []
    for seed in range(6):
        model = small(seed, d_mlp=0)
        table = activations(atlas_of(model, tmp_path / str(seed)), model, isotropic(model, seed), draws=60, seed=seed)
        at = [r for r in table.rows if r["side"] != "write" and r["score"] != "coherent"]
        misses += [not r["low"] <= 0.5 <= r["high"] for r in at]
    assert len(misses) == 54
    assert np.mean(misses) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 54)


def test_what_isotropic_activations_make_heads_write_is_said_as_white(tmp_path):
    """z isotropic: y = z W_O; the column `white` is of x isotropic, so variances go with the squared gains of OV."""
    model = small()
    heads = [svd(model.map(f"L{layer}H{h}.ov")).S for layer in range(3) for h in range(4)]
    wanted = np.mean([np.sum(s**2) ** 2 / (6 * np.sum(s**4)) for s in heads])
    table = activations(atlas_of(model, tmp_path / "a"), model, isotropic(model), draws=60)
    assert row(table, "write", "fills")["white"] == pytest.approx(wanted, rel=1e-6)
    assert row(table, "read", "fills")["white"] == 1.0


def test_activations_made_of_singular_directions_one_at_a_time_prefer_their_basis(tmp_path):
    """Heads read x = Σ c·u over their own read directions, seldom and with unequal strengths: three scores tell so."""
    model = covector.open(random_model(seed=4, n_layers=8, n_heads=1, d_model=24, d_head=6, n_vocab=200, norm=None))

    def passed(hooks):
        rng = np.random.default_rng(len(hooks[0]) + int(hooks[0][1]))
        dyads = svd(model.map(f"L{hooks[0][1]}H0.ov"))
        codes = rng.standard_normal((N, 6)) * (rng.random((N, 6)) < 0.2) * np.array([3, 2.5, 2, 1.5, 1, 0.5])
        return {hooks[0]: codes @ dyads.U.T, hooks[1]: rng.standard_normal((N, 1, 6))}

    table = activations(atlas_of(model, tmp_path / "a"), model, passed, draws=100)
    for score in ("fills", "sparse", "aligned"):
        assert row(table, "read", score)["superior"] > 0.95
        assert row(table, "read", score)["q"] < 0.05
    found = row(table, "read", "sparse")
    assert found["svd"] == pytest.approx(np.sqrt(0.2 * 2 / np.pi), abs=0.03)
    assert found["svd"] < found["random"] - 0.1
    assert row(table, "read", "aligned")["svd"] > 0.98
    assert "Sparse coefficients: singular bases beat ov read" in table.says


def test_no_basis_concentrates_variance_more_than_principal_components(tmp_path):
    model = small(2)
    table = activations(atlas_of(model, tmp_path / "a"), model, isotropic(model), draws=60)
    for r in table.rows:
        if r["score"] == "fills":
            assert r["pca"] <= min(r["svd"], r["random"]) + 1e-12
        if r["score"] == "aligned":
            assert r["pca"] == pytest.approx(1, abs=1e-9)


@pytest.mark.slow
def test_a_text_runs_through_the_bundled_model(tmp_path):
    model = covector.open("demo-lm")
    atlas = built(model, tmp_path / "a", Options(("ov",), rank=2, draws=20, scores=False))
    text = " ".join(["the king had a red hat and the queen a blue one"] * 30)
    table = activations(atlas, model, lambda hooks: along(model, text, hooks), draws=200)
    assert len(table) == 16
    assert table.meta["positions"] > 200
    # z W_O is what the head writes: no part of it lies outside the written subspace, and dims are what they are.
    assert row(table, "write", "fills")["svd"] < row(table, "write", "fills")["random"]


def test_wrong_requests_are_refused(tmp_path):
    model = small()
    atlas = atlas_of(model, tmp_path / "a")
    with pytest.raises(BadRequest, match="expected rotations >= 19"):
        activations(atlas, model, isotropic(model), rotations=5)
    with pytest.raises(BadRequest, match="expected a text of 12 tokens or more, got 8"):
        activations(atlas, model, lambda hooks: {name: rows[:8] for name, rows in isotropic(model)(hooks).items()})
    square = covector.open(random_model(n_heads=1, n_vocab=200))
    with pytest.raises(BadRequest, match="expected heads that read or write a smaller space"):
        activations(atlas, square, isotropic(square))
