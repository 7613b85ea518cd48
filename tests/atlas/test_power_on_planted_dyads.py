"""Power: dyads of graded strength planted in random maps are found as random-matrix theory and the exact law say.

A dyad is found when a direction of its site has q_dir < .05 and names what was planted. Expected shares come from dense
algebra on matrices drawn here, the Beta law of SciPy and the threshold of Benjamini–Hochberg worked out by hand.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from covector.analyses.query import vector_query
from covector.analyses.search import score
from known_truths import D_HEAD, D_MLP, MEMBERS, N_VOCAB, WORLD, World, atlas_of, planted_model, recovered

pytestmark = pytest.mark.slow

SEEDS, STRENGTHS = (0, 1), (0.0, 0.25, 0.5, 0.75, 4.0)
PLANTS = 4 * WORLD.layers
DIRECTIONS = WORLD.layers * (2 * D_HEAD + 2 * WORLD.d)
LEVEL = 0.05
TRIALS = 200
# Kind of map, and whether a token or a topic was planted. W_V and W_O have noise of different size, so that what a head
# writes is harder to find than what it reads; both MLP maps have the same law on the side of the stream.
KINDS = {"read by a head": ("ov", "read"), "written by a head": ("ov", "write"), "mlp": ("mlp.in", "mlp.out")}
GROUPS = [(kind, group) for kind in KINDS for group in (False, True)]


@dataclass(frozen=True)
class Seen:
    """The plants of one kind at one strength: shares found and |cos| of the nearest direction; p of all directions."""

    found: np.ndarray
    cos: np.ndarray


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[tuple[float, str, bool], Seen]]:
    """Two models per strength. The same seed plants the same dyads at every strength, so that curves are paired."""
    made: dict[tuple[float, str, bool], Seen] = {}
    with tempfile.TemporaryDirectory() as folder:
        for strength in STRENGTHS:
            every = []
            for seed in SEEDS:
                model, plants = planted_model(strength, seed)
                every += recovered(atlas_of(model, Path(folder) / f"{strength}-{seed}", kinds=("ov", "mlp")), plants)
            for kind, group in GROUPS:
                here = [r for r in every if r.plant.group == group and _is(r.plant.kind, r.plant.side, kind)]
                made[strength, kind, group] = Seen(np.array([r.called for r in here]), np.array([r.cos for r in here]))
        yield made


def _is(kind: str, side: str, named: str) -> bool:
    return kind in KINDS[named] and (kind != "ov" or side in KINDS[named])


def expected_best(kind: str, group: bool, strength: float, rng: np.random.Generator) -> tuple[float, float]:
    """(|cos| of the best direction of one map with any planted token, with the planted direction), drawn anew."""
    d = WORLD.d
    shared, own = rng.standard_normal(d), rng.standard_normal((MEMBERS if group else 1, d))
    tokens = np.sqrt(WORLD.alike) * shared + np.sqrt(1 - WORLD.alike) * own if group else own
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    truth = tokens.sum(axis=0) / np.linalg.norm(tokens.sum(axis=0))
    if kind != "mlp":
        other, inner = rng.standard_normal(d), rng.standard_normal(D_HEAD)
        other, inner = other / np.linalg.norm(other), inner / np.linalg.norm(inner)
        A, B = rng.standard_normal((d, D_HEAD)) / np.sqrt(d), rng.standard_normal((D_HEAD, d)) / np.sqrt(D_HEAD)
        root = np.sqrt(strength * np.linalg.norm(A @ B, 2))
        reads = kind == "read by a head"
        a, b = (truth, other) if reads else (other, truth)
        U, _, Vh = np.linalg.svd((A + root * np.outer(a, inner)) @ (B + root * np.outer(inner, b)))
        directions = U[:, :D_HEAD] if reads else Vh[:D_HEAD].T
    else:
        M, neurons = rng.standard_normal((d, D_MLP)), rng.standard_normal(D_MLP)
        M += strength * np.linalg.norm(M, 2) * np.outer(truth, neurons / np.linalg.norm(neurons))
        directions = np.linalg.eigh(M @ M.T)[1]
    return np.abs(tokens @ directions).max(), np.abs(truth @ directions).max()


@pytest.fixture(scope="module")
def expected() -> dict[tuple[float, str, bool], tuple[float, float]]:
    """(share found, mean |cos| of the nearest direction) by strength, kind and target."""
    rng = np.random.default_rng(20)
    best = {
        (strength, *key): np.array([expected_best(*key, strength, rng) for _ in range(TRIALS)])
        for strength in STRENGTHS
        for key in GROUPS
    }
    made = {}
    for strength in STRENGTHS:
        # Benjamini–Hochberg with K found: p <= K/N·level, p = tokens · P(|cos| >= τ). The step-up K is the largest.
        k = float(PLANTS)
        for _ in range(30):
            p = LEVEL * max(k, 1.0) / DIRECTIONS / N_VOCAB
            tau = np.sqrt(stats.beta.isf(p, 0.5, (WORLD.d - 1) / 2))
            shares = {key: (best[strength, *key][:, 0] >= tau).mean() for key in GROUPS}
            k = PLANTS * sum(share / 4 if key[0] == "mlp" else share / 8 for key, share in shares.items())
        made |= {(strength, *key): (shares[key], best[strength, *key][:, 1].mean()) for key in GROUPS}
    return made


@pytest.mark.parametrize(("kind", "group"), GROUPS)
def test_recovery_and_nearness_grow_with_strength(seen: dict, kind: str, group: bool) -> None:
    curve = [seen[strength, kind, group] for strength in STRENGTHS]
    assert all(np.diff([c.found.mean() for c in curve]) >= 0)
    # At the weak end nothing has changed but which of many random directions is nearest: within its noise.
    noise = 2 * curve[0].cos.std() / np.sqrt(len(curve[0].cos))
    assert all(np.diff([c.cos.mean() for c in curve]) > -noise)


@pytest.mark.parametrize(("kind", "group"), GROUPS)
def test_nothing_is_found_at_strength_zero_and_nearly_all_at_the_strong_end(seen: dict, kind: str, group: bool) -> None:
    n = len(seen[0.0, kind, group].found)
    assert seen[0.0, kind, group].found.sum() <= stats.binom.isf(1e-3, n, LEVEL)
    assert seen[4.0, kind, group].found.mean() >= 0.95


@pytest.mark.parametrize(("kind", "group"), GROUPS)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_share_found_is_that_of_dense_algebra_and_the_exact_law(
    seen: dict, expected: dict, strength: float, kind: str, group: bool
) -> None:
    found = seen[strength, kind, group].found
    share, cos = expected[strength, kind, group]
    # Binomial errors of both samples; that an expected share is 0 or 1 is known to 3/TRIALS.
    spread = max(share * (1 - share), 3 / TRIALS)
    assert abs(found.mean() - share) < 4 * np.sqrt(spread * (1 / len(found) + 1 / TRIALS))
    # One |cos| has a standard deviation below .13 at any strength.
    assert abs(seen[strength, kind, group].cos.mean() - cos) < 4 * 0.13 * np.sqrt(1 / len(found) + 1 / TRIALS)


def test_the_half_way_point_of_an_mlp_lies_between_the_spike_threshold_and_where_the_overlap_passes_tau(
    seen: dict,
) -> None:
    """Benaych-Georges and Nadakuditi (2012), Theorem 2.9: noise of entries 1/√m, c = d/m, edge 1 + √c.

    Below θ = c^¼ no direction turns to the dyad; above, cos² = 1 − c(1 + θ²)/(θ²(θ² + c)) on the side of d.
    """
    c = WORLD.d / D_MLP
    p = LEVEL * PLANTS / DIRECTIONS / N_VOCAB
    tau = np.sqrt(stats.beta.isf(p, 0.5, (WORLD.d - 1) / 2))

    def overlap(theta: float) -> float:
        x = theta**2
        return 1 - c * (1 + x) / (x * (x + c)) if x > np.sqrt(c) else 0.0

    theta = {strength: strength * (1 + np.sqrt(c)) for strength in STRENGTHS}
    below = [s for s in STRENGTHS if theta[s] < 0.9 * c**0.25]
    above = [s for s in STRENGTHS if overlap(theta[s]) > 1.5 * tau**2]
    assert below == [0.0, 0.25]
    assert above == [0.75, 4.0]  # the threshold is passed between .5 and .75
    for group in (False, True):
        assert all(seen[s, "mlp", group].found.mean() <= LEVEL for s in below)
        assert all(seen[s, "mlp", group].found.mean() >= 0.95 for s in above)
        for s in above:
            # Fluctuations of cos² are O(1/√d) per map; the mean over 24 maps is within a hundredth or two.
            assert np.mean(seen[s, "mlp", group].cos ** 2) == pytest.approx(overlap(theta[s]), abs=0.04)


def test_tokens_with_nothing_in_common_are_found_by_a_search_and_not_by_their_nearest_token(tmp_path: Path) -> None:
    """Twenty independent tokens: their sum has cosine 1/√20 with each, far below τ, however strong the dyad."""
    world = World(alike=0.0, layers=6)
    model, plants = planted_model(4.0, 3, world)
    atlas = atlas_of(model, tmp_path / "a", kinds=("ov", "mlp"))
    groups = [plant for plant in plants if plant.group]
    found = recovered(atlas, plants)
    tau = np.sqrt(stats.beta.isf(LEVEL * len(plants) / len(atlas) / N_VOCAB, 0.5, (world.d - 1) / 2))
    assert 1.5 / np.sqrt(MEMBERS) < tau
    assert not any(r.called for r in found if r.plant.group)
    assert all(r.called for r in found if not r.plant.group)
    told = atlas.columns("site", "side")
    for plant in groups:
        searched = score(atlas, vector_query(plant.truth, atlas, "planted"), sides=(plant.side,))
        here = told["site"][searched.at] == plant.site
        assert searched.q[here].min() < LEVEL
        # Others that it finds were given the same tokens.
        same = {other.site for other in groups if other.members == plant.members and other.side == plant.side}
        assert set(told["site"][searched.at[searched.q < LEVEL / 50]]) <= same
