"""Rotations: what destroys an alignment and nothing else ends the calls, by the rule that made them.

Blocks rotated against the embeddings keep every spectrum and every relation inside; p_dir must then call nothing more
than its level. A random basis of each head's subspaces keeps the subspaces; then p_dir may call, and p_svd must not.
"""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import covector
from covector.arch.toy import random_model
from covector.io.atlas import Atlas
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from known_truths import LEVEL, atlas_of, haar, rotated_bases, rotated_internals, untrained_blocks

TURNS = 4


def shares(atlas: Atlas, column: str) -> tuple[np.ndarray, int]:
    """p where it is defined, and how many directions its q calls."""
    told = atlas.columns(f"p_{column}", f"q_{column}")
    defined = np.isfinite(told[f"p_{column}"])
    return told[f"p_{column}"][defined], int((told[f"q_{column}"][defined] < LEVEL).sum())


def nominal(p: list[np.ndarray]) -> bool:
    """Whether the mean share below the level is at most it; rotations, whose directions share one Q, are the units."""
    each = np.array([(one < LEVEL).mean() for one in p])
    binomial = np.sqrt(LEVEL * (1 - LEVEL) / sum(map(len, p)))
    between = each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else 0.0
    return bool(each.mean() <= LEVEL + 4 * max(binomial, between))


@pytest.fixture(scope="module")
def demo() -> Model:
    return covector.open("demo-lm")


@pytest.fixture(scope="module")
def trained(demo: Model, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return atlas_of(demo, tmp_path_factory.mktemp("trained") / "a")


@pytest.fixture(scope="module")
def turned(demo: Model, tmp_path_factory: pytest.TempPathFactory) -> list[Atlas]:
    folder = tmp_path_factory.mktemp("turned")
    return [atlas_of(rotated_internals(demo, seed), folder / str(seed)) for seed in range(TURNS)]


def test_the_rotation_keeps_every_gain(trained: Atlas, turned: list[Atlas]) -> None:
    for atlas in turned:
        # float64 SVD of products of float32 maps with a rotation: relative 1e-6 of the largest gain of a site.
        for before, after in zip(trained.sites, atlas.sites, strict=True):
            np.testing.assert_allclose(after["sigma"], before["sigma"], atol=1e-6 * max(before["sigma"]))


def test_p_dir_calls_the_trained_blocks_and_not_their_rotations(trained: Atlas, turned: list[Atlas]) -> None:
    p, called = shares(trained, "dir")
    assert (p < LEVEL).mean() > 3 * LEVEL
    assert called > LEVEL * len(p)
    found = [shares(atlas, "dir") for atlas in turned]
    assert nominal([p for p, _ in found])
    assert sum(n > 0 for _, n in found) <= stats.binom.isf(1e-3, TURNS, LEVEL)
    assert sum(n for _, n in found) <= LEVEL * called


def test_p_dir_calls_no_random_blocks_between_trained_embeddings(demo: Model, tmp_path: Path) -> None:
    p, called = shares(atlas_of(untrained_blocks(demo, 3), tmp_path / "a"), "dir")
    assert nominal([p])
    assert called <= 1  # a family of nulls has none in 19 of 20 cases


def test_p_svd_calls_trained_heads_and_not_random_bases_of_the_same_subspaces(
    trained: Atlas, demo: Model, tmp_path: Path
) -> None:
    _, called = shares(trained, "svd")
    assert called >= 5
    atlases = [atlas_of(rotated_bases(demo, seed), tmp_path / str(seed), kinds=("ov", "qk")) for seed in range(2)]
    found = [shares(atlas, "svd") for atlas in atlases]
    assert nominal([p for p, _ in found])
    assert sum(n for _, n in found) <= 1
    # The subspaces are still those that were trained: p_dir says so, which is why there are two questions.
    assert all((shares(atlas, "dir")[0] < LEVEL).mean() > 2 * LEVEL for atlas in atlases)


D, R, HEADS, N_VOCAB = 64, 16, 6, 400


def heads_of_tokens(seed: int) -> Model:
    """One layer whose heads read and write sixteen tokens each, as nearly as orthonormal directions can."""
    rng = np.random.default_rng(seed)
    weights = random_model(
        seed=seed, n_layers=1, d_model=D, n_heads=HEADS, d_head=R, d_mlp=0, n_vocab=N_VOCAB, norm=None, biases=False
    )
    arrays = dict(weights.arrays)
    into, out = arrays["W_E"], arrays["W_U"].T
    made = []
    for rows in (into, out):
        chosen = [rows[rng.choice(N_VOCAB, R, replace=False)] for _ in range(HEADS)]
        pairs = (np.linalg.svd(one / np.linalg.norm(one, axis=1, keepdims=True), full_matrices=False) for one in chosen)
        made.append(np.stack([U @ Vh for U, _, Vh in pairs]))  # the nearest orthonormal set (polar factor)
    gains = np.linspace(4, 1, R)
    arrays["L0.W_V"] = np.stack([read.T * gains for read in made[0]])
    arrays["L0.W_O"] = made[1]
    return covector.open(ArrayWeights(weights.spec, arrays))


def test_p_svd_has_power_where_the_singular_vectors_are_tokens_and_none_once_the_bases_are_random(
    tmp_path: Path,
) -> None:
    planted = heads_of_tokens(0)
    p, called = shares(atlas_of(planted, tmp_path / "planted", kinds=("ov",)), "svd")
    assert called >= 0.95 * len(p) == 0.95 * 2 * HEADS * R
    rotated = [atlas_of(rotated_bases(planted, seed), tmp_path / str(seed), kinds=("ov",)) for seed in range(6)]
    found = [shares(atlas, "svd") for atlas in rotated]
    assert nominal([p for p, _ in found])
    assert sum(n > 0 for _, n in found) <= stats.binom.isf(1e-3, len(found), LEVEL)
    # Directions of a span of sixteen tokens: p_dir goes on calling what p_svd does not.
    assert np.mean([(shares(atlas, "dir")[0] < LEVEL).mean() for atlas in rotated]) > 2 * LEVEL


@pytest.mark.identity("SV-31")
def test_the_rotations_are_haar_distributed() -> None:
    """E Q = 0 and E Q² = 1/d in every entry; without the signs of R the diagonal would have a mean."""
    rng, d, draws = np.random.default_rng(0), 6, 4000
    Q = np.array([haar(rng, d) for _ in range(draws)])
    np.testing.assert_allclose(Q @ Q.swapaxes(1, 2), np.broadcast_to(np.eye(d), Q.shape), atol=1e-12)
    assert np.abs(Q.mean(axis=0)).max() < 4.5 / np.sqrt(d * draws)
    # Var Q² = 2(d − 1)/(d²(d + 2)).
    assert np.abs((Q**2).mean(axis=0) - 1 / d).max() < 4.5 * np.sqrt(2 * (d - 1) / (d**2 * (d + 2)) / draws)
