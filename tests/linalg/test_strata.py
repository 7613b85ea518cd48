"""Lists exchanged for others of equal frequency and length."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.coherence import coherence
from covector.linalg.strata import LEAST, matched_coherence, ranks, strata


def test_ranks_run_from_0_to_1_among_the_kept_and_ties_share() -> None:
    keep = np.array([True, True, False, True, True])
    found = ranks(np.array([5.0, 1.0, 9.0, 5.0, 7.0]), keep)
    assert np.isnan(found[2])
    assert found[keep].tolist() == [0.5, 0.0, 0.5, 1.0]


def test_strata_hold_neighbours_in_frequency_and_then_in_length() -> None:
    rng = np.random.default_rng(0)
    often, long, keep = rng.random(400), rng.random(400), rng.random(400) < 0.9
    found = strata(often, long, keep)
    assert (found[~keep] == -1).all()
    assert np.bincount(found[keep]).min() >= LEAST
    outer = found // 3
    for i in range(outer.max()):
        assert often[outer == i].max() < often[outer == i + 1].min()
        assert long[found == 3 * i].max() < long[found == 3 * i + 1].min()


def test_few_labels_are_one_stratum_and_fewer_are_refused() -> None:
    assert set(strata(np.arange(20.0), np.ones(20), np.ones(20, bool))) == {0}
    with pytest.raises(BadRequest, match="expected 12 labels or more"):
        strata(np.arange(5.0), np.ones(5), np.ones(5, bool))


def test_lists_of_strata_without_spread_keep_their_coherence() -> None:
    """Every member of a stratum is the same vector, so exchanging them changes nothing."""
    rng = np.random.default_rng(1)
    kinds = rng.standard_normal((4, 8))
    stratum = np.repeat(np.arange(4), 15)
    units, directions = kinds[stratum], rng.standard_normal((3, 8))
    lists = np.stack([rng.permutation(60)[:6] for _ in range(3)])
    found = matched_coherence(directions, lists, units, stratum, draws=5, seed=0)
    np.testing.assert_allclose(found, coherence(directions, lists, units), rtol=1e-12)


@pytest.mark.slow
def test_the_mean_over_exchanged_lists_is_that_of_all_pairs_of_their_strata() -> None:
    """With replacement, a pair of members of strata a and b has the mean cosine over all a × b: a sum by hand."""
    rng = np.random.default_rng(2)
    stratum = np.arange(40) % 2
    units = rng.standard_normal((40, 6)) + np.where(stratum[:, None] == 0, 1.0, -0.3)
    v = rng.standard_normal(6)
    v /= np.linalg.norm(v)
    rest = units - np.outer(units @ v, v)
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    cosines = rest @ rest.T
    members = np.array([0, 2, 4, 1])
    pairs = [(stratum[a], stratum[b]) for i, a in enumerate(members) for b in members[:i]]
    wanted = np.mean([cosines[np.ix_(stratum == a, stratum == b)].mean() for a, b in pairs])
    found = matched_coherence(v[None], members[None], units, stratum, draws=4000, seed=3)
    # One draw spreads by about .3, so the mean of 4000 has a standard error of .005.
    assert found[0] == pytest.approx(wanted, abs=0.02)
    assert abs(found[0] - coherence(v[None], members[None], units)[0]) > 0.04


def test_what_a_row_gets_does_not_depend_on_how_many_follow() -> None:
    rng = np.random.default_rng(4)
    units, directions = rng.standard_normal((50, 5)), rng.standard_normal((4, 5))
    lists, stratum = rng.integers(0, 50, (4, 6)), np.arange(50) // 10
    every = matched_coherence(directions, lists, units, stratum, draws=3, seed=1)
    first = matched_coherence(directions[:1], lists[:1], units, stratum, draws=3, seed=1)
    assert every[0] == first[0]


def test_no_draws_are_refused() -> None:
    with pytest.raises(BadRequest, match="expected draws >= 1"):
        matched_coherence(np.ones((1, 2)), np.zeros((1, 2), int), np.ones((3, 2)), np.zeros(3, int), draws=0, seed=0)
