"""Power of the written rules on planted topics, beside what they call where nothing was planted.

A dyad that is the centre of its topic shares everything with its list (`aligned`); one beside the centre leaves its
list something beyond it (`interpretable`). At strength 0 the same atlas has no topic in it.
"""

import dataclasses

import numpy as np
import pytest
from scipy import stats

import covector
from covector.atlas.judge import p_within
from covector.atlas.verdict import adjusted
from covector.linalg.chance.lists import ListNull, left_out
from covector.linalg.list_scores import ListScores
from known_truths import D_HEAD, WIDE, atlas_of, planted_model, rotated_internals, verdicts

LEVEL = 0.05
SCORED = {"kinds": ("ov",), "scores": True, "draws": 1000}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory):
    """(strength, tilt) → the verdicts on one model."""
    folder, made = tmp_path_factory.mktemp("verdicts"), {}

    def of(strength: float, tilt: float):
        if (strength, tilt) not in made:
            model, plants = planted_model(strength, 0, dataclasses.replace(WIDE, tilt=tilt))
            made[strength, tilt] = verdicts(atlas_of(model, folder / f"{strength}-{tilt}", **SCORED), plants)
        return made[strength, tilt]

    return of


def test_a_dominant_dyad_at_the_centre_of_its_topic_is_aligned_and_not_interpretable(judged) -> None:
    found = judged(4.0, 0.0)
    assert found.topics == WIDE.layers  # every second layer, both sides of its head
    assert (found.aligned, found.interpretable) == (found.topics, 0)


def test_a_dominant_dyad_beside_the_centre_of_its_topic_is_interpretable(judged) -> None:
    found = judged(4.0, WIDE.tilt)
    # Some lie so near the centre after noise that the direction still carries half of what the list shares.
    assert found.interpretable >= found.topics / 2
    assert found.interpretable + found.aligned >= 0.95 * found.topics


@pytest.mark.slow
@pytest.mark.parametrize("tilt", [0.0, WIDE.tilt])
def test_verdicts_grow_with_strength_from_nothing(judged, tilt: float) -> None:
    counts = [judged(s, tilt).interpretable + judged(s, tilt).aligned for s in (0.0, 0.5, 4.0)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert 0 < counts[1] < WIDE.layers


@pytest.mark.parametrize("case", [(0.0, 0.0), (4.0, 0.0), (4.0, WIDE.tilt)], ids=str)
def test_directions_that_were_not_planted_are_called_no_more_often_than_the_level(judged, case: tuple) -> None:
    found = judged(*case)
    # False calls of q are at most the level of all calls in the mean; 10⁻³ beyond that, with one for the fraction.
    calls = found.interpretable + found.aligned + found.others_called
    assert found.others_called <= stats.binom.isf(1e-3, calls, LEVEL) + 1
    assert found.others == WIDE.layers * 2 * D_HEAD - 2 * found.topics


def test_no_topic_is_called_once_the_blocks_are_rotated_against_the_embeddings(tmp_path, judged) -> None:
    """The same weights up to a rotation of the stream, the same spectra, the same rule."""
    weights, plants = planted_model(4.0, 0, WIDE)
    turned = rotated_internals(covector.open(weights), seed=1)
    atlas = atlas_of(turned, tmp_path / "turned", **SCORED)
    found = verdicts(atlas, plants)
    assert judged(4.0, WIDE.tilt).interpretable > 0
    assert found.interpretable + found.aligned + found.others_called == 0
    told = atlas.column("p_coherence")
    assert (told < LEVEL).mean() <= LEVEL + 4 * np.sqrt(LEVEL * (1 - LEVEL) / len(told))


@pytest.mark.parametrize("rotations", [1, 2])
def test_a_heads_own_random_bases_could_never_call_a_direction_and_those_of_all_heads_can(
    tmp_path, rotations: int
) -> None:
    """Own: p >= 1/(rotations·d_head + 1), and q = N·p/rank over N directions needs rank > N·p/level."""
    model, _ = planted_model(4.0, 0, dataclasses.replace(WIDE, layers=2))
    atlas = atlas_of(model, tmp_path / "a", **(SCORED | {"rotations": rotations}))
    own, pool = atlas.column("p_coherence_svd"), atlas.column("p_coherence_pooled")
    least = 1 / (rotations * D_HEAD + 1)
    assert np.nanmin(own) >= least - 1e-12
    assert (own <= least + 1e-12).sum() < len(atlas) * least / LEVEL
    assert np.isfinite(pool).all()
    assert np.isfinite(atlas.column("q_coherence_svd")).all()
    z = atlas.column("z_coherence_svd")
    draws = rotations * len(atlas)
    # Each stands beside its own head's draws, of which another one is left out for each.
    assert stats.spearmanr(pool, -z).statistic > 0.97
    # So many draws are in the pool: p of a z that most of them reach is a whole number of (draws + 1)-ths.
    np.testing.assert_allclose(pool[z < 0] * (draws + 1) % 1 % (1 - 1e-6), 0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rotations", [1, 4])
def test_pooled_p_of_heads_with_nothing_planted_is_uniform(tmp_path, rotations: int) -> None:
    model, _ = planted_model(0.0, 0, WIDE)
    p = atlas_of(model, tmp_path / "a", **(SCORED | {"rotations": rotations})).column("p_coherence_pooled")
    # Draws and directions are both samples: their effective number is that of a two-sample test.
    number = len(p) * rotations / (1 + rotations)
    assert stats.kstwobign.sf(stats.kstest(p, "uniform").statistic * np.sqrt(number)) > 0.001
    assert adjusted(p).min() > LEVEL


def null_of(coherence: np.ndarray) -> ListNull:
    """A null of which nothing but the coherence is known."""
    n, nothing = len(coherence), np.zeros(len(coherence))
    scores = ListScores(
        np.zeros(n, int), np.zeros((n, 1), int), coherence, np.zeros((n, 2)), nothing, nothing, nothing,
        np.zeros(n, int), nothing, nothing, nothing,
    )  # fmt: skip
    return ListNull("p_svd", scores, np.zeros(n, int))


def heads(effect: np.ndarray, d_head: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Own p, z and pooled p of heads whose coherence has a level and a spread of its own; `effect` [heads, d_head]."""
    rng, own, z, draws = np.random.default_rng(1), [], [], []
    for planted in effect:
        spread, level = rng.uniform(0.5, 3), 5 * rng.standard_normal()
        null = null_of(level + spread * rng.standard_normal(d_head))
        told = level + spread * (rng.standard_normal(d_head) + planted)
        own.append(null.p("coherence", told))
        z.append(left_out(null.scores.coherence, told))
        draws.append(left_out(null.scores.coherence))
    return np.concatenate(own), np.concatenate(z), p_within("coherence", np.concatenate(z), np.concatenate(draws))


def test_the_pool_calls_what_no_head_by_itself_can_and_nothing_where_nothing_is() -> None:
    """100 heads of 32; in every fourth one direction stands eight deviations above its rotated bases."""
    planted = np.zeros((100, 32))
    planted[::4, 0] = 8
    own, _, p = heads(planted)
    called = adjusted(p) < LEVEL
    assert adjusted(own).min() > LEVEL
    assert called[planted.ravel() > 0].mean() > 0.8
    assert called[planted.ravel() == 0].sum() <= stats.binom.isf(1e-3, int(called.sum()), LEVEL)
    _, _, nothing = heads(np.zeros((100, 32)))
    assert adjusted(nothing).min() > LEVEL
    assert stats.kstwobign.sf(stats.kstest(nothing, "uniform").statistic * np.sqrt(1600)) > 0.001


def test_a_draw_that_is_left_out_is_measured_by_the_others() -> None:
    values = np.random.default_rng(0).exponential(size=9)
    told = left_out(np.append(values, np.nan))
    for i, value in enumerate(values):
        others = np.delete(values, i)
        z = (value - others.mean()) / others.std(ddof=1)
        # A prediction from n others errs by (1 + 1/n) in variance.
        assert told[i] == pytest.approx(z / np.sqrt(1 + 1 / 8), rel=1e-8, abs=1e-9)
        beside = left_out(values, np.r_[np.zeros(i), 5.0])[i]
        assert beside == pytest.approx((5 - others.mean()) / others.std(ddof=1) / np.sqrt(1 + 1 / 8), rel=1e-8)
    assert np.isnan(left_out(np.ones(9))).all()
    assert np.isnan(left_out(values[:3])).all()
    one = np.r_[np.zeros(8), 1.0]
    np.testing.assert_array_equal(np.isnan(left_out(one)), np.arange(9) == 8)
    assert len(np.unique(np.r_[left_out(one)[:8], left_out(one, np.zeros(8))])) == 1, "what is alike is a tie"


@pytest.mark.parametrize("score", ["intruder", "lexical"])
@pytest.mark.parametrize("found", [0.005, 0.02, 0.2])
@pytest.mark.parametrize("d_head", [8, 32, 64])
def test_scores_that_are_mostly_one_value_earn_no_small_pooled_p(d_head: int, found: float, score: str) -> None:
    """Of 200 heads whose directions are draws of their own null; in most of them no draw or one differs."""
    rng, beside, pool = np.random.default_rng(3), [], []
    for _ in range(200):
        own, null = (rng.random(d_head) * (rng.random(d_head) < found) for _ in range(2))
        beside.append(left_out(null, own))
        pool.append(left_out(null))
    p = p_within(score, np.concatenate(beside), np.concatenate(pool))
    told = p[np.isfinite(p)]
    for level in (0.01, 0.05):
        error = np.sqrt(level * (1 - level) * 2 / max(len(told), 1))
        assert np.mean(told <= level) < level + 4 * error
    assert adjusted(p)[np.isfinite(p)].min() > LEVEL
    assert np.isnan(p_within("coherence", np.array([1.0, np.nan]), np.zeros(0))).all()
    np.testing.assert_array_equal(np.isnan(p_within("intruder", np.array([1.0, np.nan]), np.zeros(3))), [False, True])
