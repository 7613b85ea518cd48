"""Rays or directions."""

import numpy as np
import pytest

import covector
from covector.analyses.studies.poles import poles
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.errors import BadRequest
from synthetic_atlas import built, reading_topics

OV = Options(("ov",), draws=50, scores=False)


@pytest.fixture(scope="module")
def random_one(tmp_path_factory):
    model = covector.open(random_model(seed=9, n_layers=3, d_model=32, d_head=8, n_vocab=300))
    return built(model, tmp_path_factory.mktemp("poles") / "a", OV), model


def test_on_random_weights_directions_are_as_one_sided_as_random_ones(random_one):
    table = poles(*random_one, draws=3000)
    assert [r["side"] for r in table.rows] == ["read", "write"]
    for r in table.rows:
        assert r["p"] > 0.01
        assert r["beyond"] == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 96) + 0.01)
    assert "as one-sided as random ones, in every kind" in table.says


def test_kappa_is_that_of_the_mean_reach_of_both_poles_by_brute_force(random_one):
    atlas, model = random_one
    table = poles(atlas, model, k=4, draws=500)
    at = atlas.column("side") == "read"
    tokens = model.bases["token_in"].vectors
    units = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    units = units - units.mean(axis=0)
    cosines = np.sort(np.asarray(atlas.vectors[at], float) @ (units / np.linalg.norm(units, axis=1, keepdims=True)).T)
    plus, minus = cosines[:, -4:].mean(axis=1), -cosines[:, :4].mean(axis=1)
    kappa = np.abs(plus - minus) / (plus + minus)
    row = table.rows[0]
    assert row["kappa"] == pytest.approx(np.median(kappa), abs=1e-6)
    place = np.flatnonzero(at)[kappa.argmax()]
    assert row["foremost"] == f"{atlas.column('site')[place]}:{atlas.column('dyad')[place]}"


def test_directions_at_topics_are_rays(tmp_path):
    """A topic's tokens lie at one pole of what reads it; nothing lies at the other."""
    weights = reading_topics()
    arrays = dict(weights.arrays) | {"W_E": np.ascontiguousarray(weights.arrays["W_U"].T)}
    model = covector.open(type(weights)(weights.spec, arrays))
    read, write = poles(built(model, tmp_path / "a", OV), model, draws=2000).rows
    assert read["q"] < 0.001
    assert read["beyond"] > 0.3
    assert read["kappa"] > read["kappa_null"]
    assert write["p"] > 0.01


def test_a_basis_too_small_for_both_poles_is_refused(random_one):
    with pytest.raises(BadRequest, match="expected 400 labels or more for k = 200"):
        poles(*random_one, k=200)
    with pytest.raises(BadRequest, match="expected k >= 1"):
        poles(*random_one, k=0)
