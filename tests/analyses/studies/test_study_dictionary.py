"""Several factorings, on toys and on maps."""

import numpy as np
import pytest

import covector
from covector.analyses.studies.dictionary import dictionary, toys
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.errors import BadRequest
from synthetic_atlas import built

pytest.importorskip("sklearn")

OV = Options(("ov",), rank=2, draws=20, scores=False)


def row(table, *key):
    return next(r for r in table.rows if tuple(r[name] for name in table.key) == key)


@pytest.fixture(scope="module")
def toy():
    return toys(d=12, ratios=(1.0, 3.0), rows=900, repeats=3)


def test_chance_is_what_as_many_random_directions_recover(toy):
    """12 directions for 12 features and for 36: the second leaves 24 with nothing, about a third of the first."""
    one, three = row(toy, 1.0, "SVD"), row(toy, 3.0, "SVD")
    assert three["atoms"] == 12
    assert one["chance"] / 4 < three["chance"] < one["chance"] / 2
    assert row(toy, 3.0, "sparse coding")["atoms"] == 36
    assert row(toy, 3.0, "sparse coding")["chance"] > three["chance"] * 2


def test_beyond_as_many_features_as_dimensions_sparse_coding_recovers_what_svd_cannot(toy):
    svd, sparse = row(toy, 3.0, "SVD"), row(toy, 3.0, "sparse coding")
    assert svd["high"] < 1.2 * svd["chance"]
    assert svd["recovery"] < 12 / 36
    assert sparse["low"] > sparse["examples"] > sparse["chance"]
    assert sparse["found"] > 0.3
    assert "SVD recovers no more than random directions" in toy.says
    assert "At 1: ICA" in toy.says


def test_independent_components_recover_as_many_features_as_there_are_dimensions(toy):
    assert row(toy, 1.0, "ICA")["recovery"] > 0.9
    assert row(toy, 1.0, "ICA")["low"] > row(toy, 1.0, "SVD")["high"]


def test_rows_of_noise_recover_nothing():
    """Features that are there in every row, all alike, are one direction: no method beats chance by much."""
    table = toys(d=10, ratios=(2.0,), rows=400, active=20.0, noise=2.0, repeats=3)
    for r in table.rows:
        assert r["recovery"] < r["chance"] + 0.1


@pytest.mark.slow
def test_on_random_weights_no_factoring_is_more_coherent_than_another(tmp_path):
    model = covector.open(random_model(seed=1, n_layers=2, d_model=32, d_head=8, d_mlp=0, n_vocab=300))
    table = dictionary(built(model, tmp_path / "a", OV), model, draws=500)
    for r in table.rows:
        assert r["kind"] == "ov"
        assert r["method"] == "SVD" or r["q"] > 0.01
        # 8 sites of 8 directions.
        assert r["coherent"] == pytest.approx(0.05, abs=3.5 * np.sqrt(0.05 * 0.95 / 64))
        assert r["atoms"] == 8
        if r["method"] not in ("NMF",):
            assert r["explained"] == pytest.approx(1, abs=1e-6)
    assert "No factoring's lists are more or less coherent" in table.says


@pytest.mark.slow
def test_topics_that_neurons_write_one_by_one_are_seen_by_sparse_coding_more_than_by_the_svd(tmp_path):
    """64 topics in 32 dimensions, five neurons each with a little noise: rows are topics, singular vectors mixtures."""
    weights = random_model(seed=2, n_layers=8, n_heads=0, d_model=32, d_mlp=320, n_vocab=640, norm=None)
    rng = np.random.default_rng(2)
    topics = rng.standard_normal((64, 32)) / np.sqrt(32)
    arrays = dict(weights.arrays)
    arrays["W_U"] = (topics[np.arange(640) % 64] + 0.7 * rng.standard_normal((640, 32)) / np.sqrt(32)).T
    for layer in range(8):
        near = 0.4 * rng.standard_normal((320, 32)) / np.sqrt(32)
        arrays[f"L{layer}.W_out"] = topics[np.arange(320) % 64] + near
    model = covector.open(type(weights)(weights.spec, arrays))
    options = Options(("mlp",), rank=2, draws=20, scores=False)
    table = dictionary(built(model, tmp_path / "a", options), model, draws=500)
    sparse, rotated = row(table, "mlp.out", "sparse coding"), row(table, "mlp.out", "rotated SVD")
    assert sparse["low"] > 0
    assert rotated["difference"] < sparse["difference"] / 2  # turning them sees no more than they do
    assert sparse["explained_null"] == 8 / 32
    assert sparse["explained"] < row(table, "mlp.out", "SVD")["explained"] + 0.02


def test_wrong_requests_are_refused(tmp_path):
    model = covector.open(random_model(seed=1, n_layers=1, n_vocab=200))
    with pytest.raises(BadRequest, match="expected number >= 2"):
        dictionary(built(model, tmp_path / "a", OV), model, number=1)
    with pytest.raises(BadRequest, match="expected repeats >= 2"):
        toys(repeats=1)
    with pytest.raises(BadRequest, match="two features or more"):
        toys(ratios=(0.05,))
