"""Untrained models: the calls of q(p_dir) keep their level, in the same atlases in which planted dyads are found.

Weights and embeddings are independent Gaussians, so every direction is Haar and the expected share is exact.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from covector.arch.toy import random_model
from covector.model.weights import ArrayWeights
from known_truths import LEVEL, atlas_of

pytestmark = pytest.mark.slow

MODELS, D, N_VOCAB, LAYERS = 12, 48, 150, 3
# How many times its largest random gain a planted dyad has.
DOMINANT = 3.0


@dataclass(frozen=True)
class Outcome:
    """One model: p and p_svd of directions that mean nothing, how many of them q calls, and which plants it calls."""

    p: np.ndarray
    p_svd: np.ndarray
    false: int
    found: int
    plants: int


def untrained(seed: int, dyads: int) -> tuple[ArrayWeights, dict[str, int]]:
    """A random model; the last map of the first `dyads` layers writes one token each, on top."""
    weights = random_model(
        seed=seed, n_layers=LAYERS, d_model=D, n_heads=4, d_head=12, d_mlp=96, n_vocab=N_VOCAB, norm=None, biases=False
    )
    rng, arrays, plants = np.random.default_rng([seed, 5]), dict(weights.arrays), {}
    for layer in range(dyads):
        token, neurons = int(rng.integers(N_VOCAB)), rng.standard_normal(96)
        wanted = arrays["W_U"][:, token] / np.linalg.norm(arrays["W_U"][:, token])
        out = arrays[f"L{layer}.W_out"]
        gain = DOMINANT * np.linalg.norm(out, 2)
        arrays[f"L{layer}.W_out"] = out + gain * np.outer(neurons / np.linalg.norm(neurons), wanted)
        plants[f"L{layer}.mlp.out"] = token
    return ArrayWeights(weights.spec, arrays), plants


@pytest.fixture(scope="module")
def outcomes() -> Iterator[list[Outcome]]:
    """Half of the models have nothing planted, the others two dyads."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(MODELS):
            model, plants = untrained(seed, dyads=2 * (seed % 2))
            atlas = atlas_of(model, Path(folder) / str(seed), kinds=("ov", "qk", "mlp", "embed"))
            told = atlas.columns("site", "dyad", "p_dir", "q_dir", "p_svd", "top_id", "bottom_id")
            first = np.isin(told["site"], list(plants)) & (told["dyad"] == 0)
            called = told["q_dir"] < LEVEL
            poles = zip(told["top_id"][first], told["bottom_id"][first], strict=True)
            named = [plants[site] in (top[0], bottom[0]) for site, (top, bottom) in zip(plants, poles, strict=True)]
            right = np.array(named, dtype=bool)
            rest = ~np.isin(told["site"], list(plants))
            made.append(
                Outcome(told["p_dir"][rest], told["p_svd"][rest & np.isfinite(told["p_svd"])],
                        int((called & ~first).sum()), int((called[first] & right).sum()), len(plants))
            )  # fmt: skip
        yield made


@pytest.mark.identity("SV-30")
def test_p_dir_of_untrained_directions_is_below_the_level_as_often_as_the_level_says(outcomes: list[Outcome]) -> None:
    p = np.concatenate([outcome.p for outcome in outcomes])
    for level in (0.01, LEVEL, 0.2):
        # n tokens drawn independently: P(n·tail < level) = 1 − (1 − level/n)ⁿ, a little below the level.
        expected = -np.expm1(N_VOCAB * np.log1p(-level / N_VOCAB))
        shares = np.array([(outcome.p < level).mean() for outcome in outcomes])
        # Directions of one model share its vocabulary: the spread between models counts, if it is the larger.
        binomial = np.sqrt(expected * (1 - expected) / len(p))
        error = max(binomial, shares.std(ddof=1) / np.sqrt(MODELS))
        assert abs((p < level).mean() - expected) < 4 * error
        assert error < 0.15 * level  # else the line above says little


def test_p_svd_of_untrained_heads_is_below_the_level_no_more_often(outcomes: list[Outcome]) -> None:
    p = np.concatenate([outcome.p_svd for outcome in outcomes])
    assert (p < LEVEL).mean() <= LEVEL + 4 * np.sqrt(LEVEL * (1 - LEVEL) / len(p))
    # A union of tails exceeds the chance of the best by at most half its square, of correlated vectors a little more.
    assert (p < LEVEL).mean() >= 0.7 * LEVEL


def test_models_in_which_q_calls_something_are_no_more_than_the_level_says(outcomes: list[Outcome]) -> None:
    nothing = [outcome for outcome in outcomes if not outcome.plants]
    assert sum(outcome.false > 0 for outcome in nothing) <= stats.binom.isf(1e-3, len(nothing), LEVEL)


def test_false_calls_are_at_most_the_level_of_all_calls_and_every_dominant_dyad_is_called(
    outcomes: list[Outcome],
) -> None:
    with_plants = [outcome for outcome in outcomes if outcome.plants]
    planted = sum(outcome.plants for outcome in with_plants)
    assert sum(outcome.found for outcome in with_plants) >= 0.95 * planted
    share = [outcome.false / max(1, outcome.false + outcome.found) for outcome in with_plants]
    # The false share of one atlas lies in [0, 1]: with K dyads and m models its mean errs by √(level/K/m) or so.
    assert np.mean(share) <= LEVEL + 4 * np.sqrt(LEVEL / 2 / len(with_plants))
