"""Nulls of list scores: calibrated for the directions they describe, the same for any sharing of the work."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.chance import haar_directions, haar_frame
from covector.linalg.chance.haar import draw_frames
from covector.linalg.chance.lists import basis_lists, each_basis_lists, haar_lists, joined, matched_lists
from covector.linalg.chance.streams import generator
from covector.linalg.detection import heldout, intruder, matched
from covector.linalg.dictionary import Dictionary, dictionary
from covector.linalg.list_scores import list_scores

DRAWS = 1500


def clustered(n: int = 900, d: int = 24, seed: int = 0) -> Dictionary:
    """Vectors with a common mean, unequal variances and clusters, as vocabularies have them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n // 15, d))
    vectors = np.repeat(centres, 15, axis=0) + rng.standard_normal((n, d))
    return dictionary(vectors * np.geomspace(2, 0.3, d) + 0.5)


@pytest.fixture(scope="module")
def words() -> Dictionary:
    return clustered()


def uniform(p: np.ndarray, null_draws: int) -> float:
    """KS p of uniformity; the null is a sample too, so the effective number is that of a two-sample test."""
    distance = stats.kstest(p, "uniform").statistic
    number = len(p) * null_draws / (len(p) + null_draws)
    return float(stats.kstwobign.sf(distance * np.sqrt(number)))


@pytest.mark.identity("SV-30")
@pytest.mark.parametrize("score", ["coherence", "whole", "auc"])
def test_p_dir_of_haar_directions_is_uniform(words: Dictionary, score: str) -> None:
    null = haar_lists(words, draws=DRAWS, seed=0)
    directions = haar_directions(1500, 24, seed=9)
    found = list_scores(directions, words.lists(directions), words, seed=0)
    observed = found.auc if score == "auc" else getattr(found, score)
    p = np.asarray(null.p(score, observed))
    assert uniform(p, DRAWS) > 0.01
    assert abs(np.mean(p < 0.05) - 0.05) < 4 * np.sqrt(0.05 * 0.95 * (1 / 1500 + 1 / DRAWS))


def test_p_cov_of_directions_of_the_dictionarys_covariance_is_uniform_and_of_haar_ones_is_not(
    words: Dictionary,
) -> None:
    null = matched_lists(words, draws=DRAWS, seed=0)
    gram = words.units.T @ words.units / len(words.units)
    rng = np.random.default_rng(4)
    directions = rng.multivariate_normal(np.zeros(24), gram, 1000)
    found = list_scores(directions, words.lists(directions), words, seed=0)
    assert uniform(np.asarray(null.p("whole", found.whole)), DRAWS) > 0.01
    haar = haar_directions(1000, 24, seed=9)
    assert uniform(np.asarray(null.p("whole", list_scores(haar, words.lists(haar), words).whole)), DRAWS) < 1e-6


def test_p_svd_of_rotated_bases_is_uniform(words: Dictionary) -> None:
    basis = haar_frame(24, 6, seed=1)
    null = basis_lists(words, basis, draws=DRAWS, seed=0)
    assert null is not None
    turned = (draw_frames(np.random.default_rng(5), 200, 6, 6) @ basis).reshape(-1, 24)
    found = list_scores(turned, words.lists(turned), words, seed=0)
    # Rows of one basis are dependent; every sixth is not.
    p = np.asarray(null.p("coherence", found.coherence)).reshape(200, 6)
    assert all(uniform(p[:, i], DRAWS) > 1e-3 for i in range(6))
    whole = [null.p_of_mean("coherence", row) for row in found.coherence.reshape(200, 6)]
    assert uniform(np.array(whole), 250) > 0.01


def test_every_null_basis_spans_the_subspace_and_is_orthonormal(words: Dictionary) -> None:
    """The lists of the null are those of directions of the subspace: found again from its generator."""
    basis = haar_frame(24, 5, seed=2)
    null = basis_lists(words, basis, draws=20, seed=3)
    assert null is not None
    assert null.groups.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    rows = draw_frames(generator(3, "bases"), 51, 5, 5)[:4].reshape(-1, 5) @ basis
    found = list_scores(rows, words.lists(rows), words, seed=3)
    np.testing.assert_array_equal(found.members, null.scores.members)
    np.testing.assert_allclose(found.coherence, null.scores.coherence, atol=1e-12)


def test_one_random_basis_of_each_of_several_spans_is_what_each_alone_gives(words: Dictionary) -> None:
    sizes = (5, 1, 3, 24, 5)
    bases = [haar_frame(24, r, seed=i) for i, r in enumerate(sizes)]
    found = each_basis_lists(words, bases, seed=3)
    for basis, together in zip(bases, found, strict=True):
        alone = basis_lists(words, basis, draws=len(basis), seed=3)
        assert (alone is None) == (together is None) == (len(basis) in (1, 24))
        if alone is not None and together is not None:
            assert together.groups.tolist() == [0] * len(basis)
            np.testing.assert_array_equal(together.scores.members, alone.scores.members)
            np.testing.assert_allclose(together.scores.coherence, alone.scores.coherence, atol=1e-12)
    assert each_basis_lists(words, [], seed=3) == []
    with pytest.raises(BadRequest, match="orthonormal rows"):
        each_basis_lists(words, [bases[0], 2 * bases[2]])


@pytest.mark.identity("SV-33")
def test_draws_are_the_same_for_one_worker_and_for_three(words: Dictionary) -> None:
    whole = haar_lists(words, draws=600, seed=7, intruders=True)
    shares = ((0, 256), (256, 256), (512, 88))
    shared = joined([haar_lists(words, draws=n, seed=7, first=first, intruders=True) for first, n in shares])
    for name in ("members", "coherence", "whole", "auc", "intruder"):
        np.testing.assert_array_equal(getattr(shared.scores, name), getattr(whole.scores, name))
    assert (haar_lists(words, draws=256, seed=8).scores.coherence != whole.scores.coherence[:256]).any()
    assert np.asarray(whole.p("coherence", whole.scores.coherence.max())) >= 1 / 601


def test_the_stronger_pole_is_selected_in_the_null_too(words: Dictionary) -> None:
    """Against a null of one pole the best of two would be significant at 5 % in nearly 10 % of random directions."""
    null = haar_lists(words, draws=DRAWS, seed=0).scores
    directions = haar_directions(1500, 24, seed=9)
    found = list_scores(directions, words.lists(directions), words, seed=0)
    level = np.quantile(null.by_pole.ravel(), 0.95)
    assert np.mean(found.coherence > level) > 0.08
    np.testing.assert_array_equal(null.coherence, null.by_pole.max(axis=1))


def test_p_of_intruders_is_counted_and_goes_no_lower_than_the_draws(words: Dictionary) -> None:
    """Between five sixths and one there is nothing that a fitted tail could be of."""
    null = haar_lists(words, draws=512, seed=0, intruders=True)
    reached = [np.sum(null.scores.intruder >= share) for share in (0.4, 0.6, 1.2)]
    np.testing.assert_array_equal(null.p("intruder", np.array([0.4, 0.6, 1.2])), (1 + np.array(reached)) / 513)
    assert null.p("coherence", 2.0) < 1 / 513 == null.p("intruder", 1.2)


def test_strangers_are_looked_for_in_the_list_of_the_stronger_pole_of_a_null_too(words: Dictionary) -> None:
    """By hand from the lists that a null keeps; which of the two poles it is moves most of them."""
    rows = haar_directions(300, 24, seed=9)
    lists = words.lists(rows)
    found = list_scores(rows, lists, words, seed=3, intruders=True)
    bottom = replace(lists, top=lists.bottom)
    for one in (found, list_scores(rows, bottom, words, seed=3, intruders=True)):
        members = one.members[:, : words.scored]
        others = matched(members[:, :5], one.members, words.covariate, words.keep, seed=(3, 1))
        by_hand = intruder(words.seen(rows), members, others, words.judged, seed=3)
        np.testing.assert_array_equal(one.intruder, by_hand.accuracy)
        assert by_hand.chance == words.guessed == 1 / 5
    assert np.isnan(list_scores(rows, lists, words, seed=3).intruder).all()
    # Which of the two lists: bottoms alone find other strangers wherever the top is the stronger pole.
    assert np.mean(one.intruder[found.pole == 0] != found.intruder[found.pole == 0]) > 0.3
    np.testing.assert_array_equal(one.intruder[found.pole == 1], found.intruder[found.pole == 1])


def test_later_ranks_are_told_by_the_first_ones_and_do_not_overlap_them(words: Dictionary) -> None:
    directions = haar_directions(40, 24, seed=9)
    found = list_scores(directions, words.lists(directions), words, seed=0)
    first, later = found.members[:, : words.first], found.members[:, words.first : words.first + words.later]
    assert (words.scored, words.first, words.later) == (20, 7, 15)  # of 900 vectors
    others = matched(later, found.members, words.covariate, words.keep, seed=0)
    by_hand = heldout(words.seen(directions), first, later, others, words.judged)
    np.testing.assert_array_equal(found.auc, by_hand.auc)
    np.testing.assert_array_equal(found.low, by_hand.low)


def test_effect_size_counts_standard_deviations_of_the_null(words: Dictionary) -> None:
    null = haar_lists(words, draws=512, seed=0)
    values = null.scores.coherence
    assert null.z("coherence", values.mean() + 2 * values.std(ddof=1)) == pytest.approx(2)
    with pytest.raises(BadRequest, match="coherence, whole, auc and intruder, came 'npmi'"):
        null.z("npmi", 0.1)
    with pytest.raises(BadRequest, match="draw it with intruders=True"):
        null.p("intruder", 0.6)


def test_p_svd_is_not_defined_for_the_whole_space_or_one_direction(words: Dictionary) -> None:
    assert basis_lists(words, np.eye(24), draws=10) is None
    assert basis_lists(words, np.eye(24)[:1], draws=10) is None
    with pytest.raises(BadRequest, match="orthonormal rows"):
        basis_lists(words, 2 * np.eye(24)[:3], draws=10)
    with pytest.raises(SpaceMismatch, match="lives in 7"):
        basis_lists(words, np.eye(7)[:3], draws=10)
    with pytest.raises(BadRequest, match="multiple of 256"):
        haar_lists(words, draws=10, first=3)
