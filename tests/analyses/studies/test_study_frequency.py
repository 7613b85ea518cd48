"""Coherence and token frequency."""

import numpy as np
import pytest
from scipy import stats

import covector
from covector.analyses.studies.frequency import frequency
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.errors import BadRequest
from synthetic_atlas import built, frame, reading_topics

OV = Options(("ov",), draws=50, scores=False)


def row(table, side):
    return next(r for r in table.rows if (r["kind"], r["side"]) == ("ov", side))


def writing_rare_tokens(seed: int = 3):
    """The last sixth of the tokens share two directions, and no others share any; all heads write near the first."""
    weights = random_model(seed=seed, n_layers=3, d_model=32, d_head=8, n_vocab=300, norm=None)
    rng = np.random.default_rng(seed)
    shared = frame(rng, 32, 2)
    out = rng.standard_normal((300, 32)) / np.sqrt(32)
    out[250:] = shared[0] + shared[1] + 0.4 * out[250:]
    arrays = dict(weights.arrays) | {"W_U": out.T}
    for layer in range(3):
        near = shared[0] + 0.35 * rng.standard_normal((4, 8, 32)) / np.sqrt(32)
        arrays[f"L{layer}.W_V"] = np.stack([frame(rng, 32, 8).T * 3.0 ** -np.arange(8) for _ in range(4)])
        arrays[f"L{layer}.W_O"] = np.stack([np.linalg.qr(one.T)[0].T for one in near])
    return type(weights)(weights.spec, arrays)


def test_lists_that_only_gather_rare_tokens_lose_their_coherence(tmp_path):
    model = covector.open(writing_rare_tokens())
    options = Options(("ov",), rank=1, draws=50, scores=False)
    counts = np.concatenate([np.full(250, 100), np.zeros(50)]).astype(np.int64) + np.arange(300)[::-1] % 7
    table = frequency(built(model, tmp_path / "a", options), model, counts, draws=600)
    found = row(table, "write")
    assert found["before"] > 0.6
    assert found["after"] < 0.25
    assert found["effect"] < -1
    assert found["q"] < 0.05
    assert found["along"] > 0.9
    assert table.says.startswith("Taking frequency out changes coherence: ov write -")
    assert row(table, "read")["q"] > 0.05


def test_topics_that_have_nothing_to_do_with_frequency_keep_theirs(tmp_path):
    """Heads read 30 topics of ten tokens, dealt out in turn, so every topic has tokens of every frequency."""
    weights = reading_topics()
    arrays = dict(weights.arrays) | {"W_E": weights.arrays["W_U"].T.copy()}
    model = covector.open(type(weights)(weights.spec, arrays))
    found = row(frequency(built(model, tmp_path / "a", OV), model, draws=600), "read")
    assert found["before"] > 0.4
    assert found["after"] > 0.9 * found["before"]


@pytest.mark.slow
def test_on_random_weights_nothing_goes_with_frequency_beyond_the_nominal_rate(tmp_path):
    effects, shares, n = [], [], 0
    for seed in range(12):
        model = covector.open(random_model(seed=seed, n_layers=3, d_model=32, d_head=8, d_mlp=0, n_vocab=300))
        for r in frequency(built(model, tmp_path / str(seed), OV), model, draws=400, seed=seed).rows:
            effects.append(r["effect"])
            shares.append((r["before"], r["after"], r["along"]))
            n += r["n"]
            assert r["low"] < r["high"]
    # 24 rows of 12 sites: centres spread around 0; 2304 directions, ± 3 standard errors (draws add as much again).
    assert abs(np.mean(effects)) < 3 * np.std(effects, ddof=1) / np.sqrt(len(effects))
    assert np.abs(np.mean(shares, axis=0) - 0.05).max() < 3 * np.sqrt(2 * 0.05 * 0.95 / n)


@pytest.mark.slow
def test_intervals_of_the_effect_hold_zero_on_random_weights(tmp_path):
    """24 rows with 95 % intervals: 4 or more misses have a probability of .03."""
    misses = 0
    for seed in range(20, 32):
        model = covector.open(random_model(seed=seed, n_layers=3, d_model=32, d_head=8, d_mlp=0, n_vocab=300))
        table = frequency(built(model, tmp_path / str(seed), OV), model, draws=400, seed=seed)
        misses += sum(not r["low"] <= 0 <= r["high"] for r in table.rows)
    assert misses <= stats.binom.ppf(0.99, 24, 0.05)


def test_counts_in_the_order_of_the_ids_are_what_no_counts_stand_for(tmp_path):
    model = covector.open(random_model(seed=1, n_layers=2, d_model=32, d_head=8, n_vocab=200))
    atlas = built(model, tmp_path / "a", OV)
    by_id = frequency(atlas, model, draws=200)
    by_count = frequency(atlas, model, np.arange(200, 0, -1), draws=200)
    assert np.isfinite(by_id["rho"]).all()
    for column in ("rho", "along", "before", "after", "effect"):
        np.testing.assert_array_equal(by_id[column], by_count[column])
    assert "by token id" in by_id.title
    assert "ids stand in" in by_id.not_says
    assert "a text of 20,100 tokens" in by_count.title
    assert "ids stand in" not in by_count.not_says


def test_wrong_requests_are_refused(tmp_path):
    model = covector.open(random_model(seed=1, n_layers=1, d_model=16, n_vocab=200))
    atlas = built(model, tmp_path / "a", OV)
    with pytest.raises(BadRequest, match="expected draws >= 100"):
        frequency(atlas, model, draws=10)
    with pytest.raises(BadRequest, match="expected 200 counts that are not all alike"):
        frequency(atlas, model, np.ones(200, dtype=np.int64))
    with pytest.raises(BadRequest, match="expected 200 counts"):
        frequency(atlas, model, np.arange(30))
