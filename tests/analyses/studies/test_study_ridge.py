"""The path from the pseudo-inverse of the embedding to its transpose."""

import numpy as np
import pytest

import covector
from covector.analyses.studies.ridge import factors, ridge
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.errors import BadRequest
from covector.model.bases import dual
from synthetic_atlas import built


@pytest.fixture(scope="module")
def steep(tmp_path_factory):
    """Random weights whose embedding has a condition number of about 30: half of its dimensions are weak."""
    weights = random_model(seed=4, n_layers=3, d_model=32, d_head=8, n_vocab=300)
    table = weights.arrays["W_E"] * np.geomspace(1, 0.03, 32)
    model = covector.open(type(weights)(weights.spec, dict(weights.arrays) | {"W_E": table}))
    folder = tmp_path_factory.mktemp("ridge") / "a"
    return built(model, folder, Options(("ov",), draws=500)), model


@pytest.mark.parametrize("weight", [0.0, 0.01, 1.0, 100.0])
def test_dual_vectors_score_a_direction_as_the_embedding_scores_the_moved_one(weight):
    rng = np.random.default_rng(0)
    tokens, u = rng.standard_normal((40, 6)) * np.geomspace(1, 0.1, 6), rng.standard_normal(6)
    values, axes = np.linalg.eigh(tokens.T @ tokens)
    moved = u @ (axes * factors(values, weight)) @ axes.T
    theirs, ours = dual(tokens, weight) @ u, tokens @ moved
    np.testing.assert_allclose(ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs), atol=1e-12)


def test_conditions_run_from_the_square_of_the_embeddings_to_one(steep):
    atlas, model = steep
    table = ridge(atlas, model, draws=200)
    dictionary = model.bases.dictionary("token_in")
    wanted = np.linalg.cond(dictionary.units[dictionary.keep])
    conditions = np.asarray(table["condition"])
    assert f"Condition number of E: {wanted:.3g} (squared, {conditions[0]:.3g}: the column at λ = 0)" in table.says
    assert table.meta["condition"] == pytest.approx(wanted, rel=1e-6)
    assert conditions[0] == pytest.approx(wanted**2, rel=1e-6)
    assert conditions[-1] == 1
    assert (np.diff(conditions) < 0).all()
    assert (np.diff(np.asarray(table["weak"])) < 0).all()
    assert table["weak"][0] > 0.8


def test_the_transpose_scores_as_the_atlas_does(steep):
    atlas, model = steep
    last = ridge(atlas, model, path=[float("inf")], draws=2000).rows[0]
    told = atlas.columns("coherence", "p_coherence", "side")
    read = told["side"] == "read"
    assert last["coherence"] == pytest.approx(np.mean(told["coherence"][read]), abs=2e-3)
    assert last["coherent"] == pytest.approx(np.mean(told["p_coherence"][read] < 0.05), abs=0.05)
    assert last["difference"] is None


def test_on_random_weights_no_step_is_better_than_directions_moved_alike(steep):
    """z of 96 directions in 12 heads: 4 standard errors of a mean, .41; without the moved null pinv is far off."""
    table = ridge(*steep, draws=1000)
    assert np.abs(np.asarray(table["z"])).max() < 4 / np.sqrt(96)
    assert (np.asarray(table["coherent"]) < 0.16).all()
    assert "no λ is other than the transpose beyond chance" in table.says


def test_requests_that_cannot_be_met_are_refused(steep):
    with pytest.raises(BadRequest, match="expected λ >= 0"):
        ridge(*steep, path=[-1.0])
    with pytest.raises(BadRequest, match="expected qk directions with a query side"):
        ridge(*steep, kind="qk")
