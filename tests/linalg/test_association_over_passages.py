"""Correlation over passages: r is Pearson's, intervals cover, shuffles keep what they must; planted and by chance."""

import itertools

import numpy as np
import pytest

from covector.linalg.passages import association, each_r2


def world(rng: np.random.Generator, k: int, n: int, rho: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k passages of n places; half of the variance is the passage's own, both halves correlated by rho."""
    own, place = rng.standard_normal((2, k, 1)), rng.standard_normal((2, k, n))
    y = [rho * part[0] + np.sqrt(1 - rho**2) * part[1] for part in (own, place)]
    return (own[0] + place[0]).ravel(), (y[0] + y[1]).ravel(), np.repeat(np.arange(k), n)


def test_r_is_pearsons_and_r2_its_square() -> None:
    x, y, passage = world(np.random.default_rng(0), 6, 30, 0.5)
    found = association(x, y, passage, draws=99, seed=0)
    assert found.r == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
    assert found.r2 == pytest.approx(found.r**2, rel=1e-12)
    assert (found.n, found.passages) == (180, 6)
    turned = association(-3 * x + 7, y, passage, draws=99, seed=0)
    assert turned.r == pytest.approx(-found.r, rel=1e-9)
    assert (turned.low, turned.high, turned.p) == pytest.approx((found.low, found.high, found.p), rel=1e-9)
    np.testing.assert_allclose(each_r2(np.stack([x, -x, 0 * x], axis=1), y), [found.r2, found.r2, 0.0], rtol=1e-12)


@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_the_interval_covers_where_one_that_counts_places_does_not(rho: float) -> None:
    """A passage's own part makes 40 places worth few: an interval of single places covers half the time."""
    trials, covered, narrow, small = 300, 0, 0, 0
    for trial in range(trials):
        x, y, passage = world(np.random.default_rng((1, trial)), 13, 40, rho)
        found = association(x, y, passage, draws=99, seed=trial)
        covered += found.low <= rho**2 <= found.high
        narrow += abs(np.arctanh(found.r) - np.arctanh(rho)) < 1.96 / np.sqrt(len(x) - 3)
        small += found.p <= 0.05
    # Four binomial standard errors of 300 trials are .05.
    assert covered / trials > 0.90
    assert narrow / trials < 0.7
    assert small / trials < 0.10 if rho == 0 else small / trials > 0.6


def test_p_is_how_often_shuffled_passages_say_as_much() -> None:
    """All 24 orders of four passages, by hand; a passage of a length of its own stays where it is."""
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((2, 4 * 6 + 3))
    y = y + 0.4 * x
    passage = np.r_[np.repeat(np.arange(4), 6), [4, 4, 4]]
    places = np.arange(24).reshape(4, 6)
    every = [
        np.corrcoef(x[np.r_[places[list(order)].ravel(), 24, 25, 26]], y)[0, 1] ** 2
        for order in itertools.permutations(range(4))
    ]
    share = np.mean(np.array(every) >= every[0] - 1e-12)
    found = association(x, y, passage, draws=4000, seed=0)
    assert found.p == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 4000) + 1 / 4001)


def test_what_a_place_in_a_passage_does_by_itself_is_no_evidence() -> None:
    """Both fall along every passage: r is large, and shuffled passages say as much."""
    rng, fall = np.random.default_rng(6), np.tile(np.linspace(3, -3, 20), 12)
    x, y = (fall + rng.standard_normal(240) for _ in range(2))
    found = association(x, y, np.repeat(np.arange(12), 20), draws=199, seed=0)
    assert found.r2 > 0.4
    assert found.p > 0.02


def test_where_nothing_varies_or_passages_are_few_there_is_no_number() -> None:
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((2, 20))
    assert np.isnan(association(np.ones(20), y, np.repeat([0, 1], 10), draws=19, seed=0).r)
    one = association(x, y, np.zeros(20, int), draws=19, seed=0)
    assert np.isnan([one.low, one.high, one.p]).all()
    assert one.r == pytest.approx(np.corrcoef(x, y)[0, 1])
    two = association(x, y, np.repeat([0, 1], 10), draws=19, seed=0)
    assert np.isnan(two.low)
    assert 0 < two.p <= 1
