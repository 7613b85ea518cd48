"""Boundaries of looks: published values, size and power by simulation, p and intervals after stopping."""

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from covector.errors import BadRequest
from covector.linalg.trials.sequential import KINDS, exit_probabilities, looks, spending, stopped

FIVE = np.arange(1, 6) / 5


def paths(n: int, fractions: np.ndarray, rng: np.random.Generator, drift: float = 0.0) -> np.ndarray:
    steps = np.diff(fractions, prepend=0.0)
    scores = np.cumsum(np.sqrt(steps) * rng.standard_normal((n, len(steps))) + drift * steps, axis=1)
    return scores / np.sqrt(fractions)


@pytest.mark.parametrize(
    ("kind", "published"),
    [
        (KINDS[0], [4.877, 3.357, 2.680, 2.290, 2.031]),
        (KINDS[1], [2.438, 2.427, 2.410, 2.397, 2.386]),
    ],
)
def test_spending_boundaries_are_those_published_for_five_looks(kind: str, published: list[float]) -> None:
    """Lan and DeMets' program, two-sided 5 %; printed to three digits."""
    np.testing.assert_allclose(looks(FIVE, 0.05, kind).bound, published, atol=6e-4)


@pytest.mark.parametrize(
    ("constant", "power", "count"),
    [(2.040, 0.5, 5), (1.977, 0.5, 2), (2.413, 0.0, 5), (2.178, 0.0, 2), (2.555, 0.0, 10), (2.087, 0.5, 10)],
)
def test_classical_boundaries_have_the_size_they_were_tabled_for(constant: float, power: float, count: int) -> None:
    """Jennison and Turnbull, tables 2.1 and 2.3, two-sided 5 %: constants to ±.0005, worth .00008 of size or less."""
    fractions = np.arange(1, count + 1) / count
    up, down = exit_probabilities(constant * fractions**-power, fractions)
    assert up.sum() + down.sum() == pytest.approx(0.05, abs=1e-4)
    np.testing.assert_allclose(up, down, rtol=1e-9)


def test_one_look_is_the_plain_test() -> None:
    for kind in KINDS:
        assert looks(np.array([1.0]), 0.05, kind).bound == pytest.approx(1.959964, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fractions", [FIVE, np.array([0.1, 0.15, 0.6, 0.9]), np.arange(1, 41) / 40])
def test_what_is_spent_is_what_paths_leave_by(kind: str, fractions: np.ndarray) -> None:
    plan = looks(fractions, 0.05, kind)
    up, down = exit_probabilities(plan.bound, fractions)
    # Where the first step is below 1e-19 nothing can be spent (40 looks of O'Brien and Fleming's kind).
    np.testing.assert_allclose(np.cumsum(up + down), plan.spent, atol=1e-9)
    if fractions[-1] == 1:
        assert plan.spent[-1] == pytest.approx(0.05, rel=1e-9)


def test_later_looks_do_not_change_earlier_ones() -> None:
    whole = looks(FIVE)
    np.testing.assert_allclose(looks(FIVE[:3]).bound, whole.bound[:3], rtol=1e-9)
    np.testing.assert_allclose(whole.nominal, 2 * ndtr(-whole.bound), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drift", [0.0, 2.8])
def test_simulated_paths_leave_as_often_at_each_look(kind: str, drift: float) -> None:
    """200,000 paths; 4.5 standard errors, as there are 40 comparisons in all."""
    fractions = np.array([0.15, 0.4, 0.5, 0.8, 1.0])
    plan, n = looks(fractions, 0.05, kind), 200_000
    z = paths(n, fractions, np.random.default_rng(1), drift)
    first = np.where((np.abs(z) >= plan.bound).any(axis=1), (np.abs(z) >= plan.bound).argmax(axis=1), -1)
    for wanted, side in zip(exit_probabilities(plan.bound, fractions, drift), (1, -1), strict=True):
        seen = [np.mean((first == k) & (side * z[:, k] > 0)) for k in range(5)]
        np.testing.assert_allclose(seen, wanted, atol=4.5 * np.sqrt(0.25 / n), rtol=0)
        assert all(abs(s - w) <= 4.5 * np.sqrt(w / n) + 5 / n for s, w in zip(seen, wanted, strict=True))


def test_skewed_episodes_keep_the_size() -> None:
    """Differences −1, 0, 1 and their z at 60, 120 … 300 seeds, 20,000 experiments: 4 errors are .006; sd estimated."""
    rng, plan = np.random.default_rng(2), looks(FIVE)
    d = rng.choice([-1, 0, 0, 0, 1], size=(20_000, 300)).astype(np.int8)
    sums, squares = np.cumsum(d, axis=1, dtype=np.int32)[:, 59::60], np.cumsum(d * d, axis=1, dtype=np.int32)[:, 59::60]
    left = (np.abs(sums / np.sqrt(squares)) >= plan.bound).any(axis=1)
    assert abs(left.mean() - 0.05) < 0.006
    # Looking five times with the plain limit is wrong almost three times as often.
    assert (np.abs(sums / np.sqrt(squares)) >= 1.96).any(axis=1).mean() > 0.12


def reached(estimate: float, error: float, look: int, drift: float, n: int, seed: int) -> float:
    """How often simulated paths end at least as far up as the estimate, in the order of stages."""
    plan, z = looks(FIVE), paths(n, FIVE, np.random.default_rng(seed), drift)
    out = np.abs(z[:, :look]) >= plan.bound[:look]
    early, at = out.any(axis=1), out.argmax(axis=1) if look else np.zeros(n, int)
    above = early & (z[np.arange(n), at] > 0)
    here = z[:, look] >= estimate / error
    if estimate < 0:  # paths that go on inside lie above one that left below
        here = z[:, look] > estimate / error
    return float(np.mean(above | (~early & here)))


@pytest.mark.parametrize(("estimate", "look"), [(0.30, 2), (-0.30, 2), (0.21, 3), (0.05, 4), (0.60, 0), (-0.25, 4)])
def test_ends_are_drifts_at_which_what_was_seen_is_in_the_tail(estimate: float, look: int) -> None:
    """Against 100,000 simulated paths at each end: 4 standard errors of 2.5 % and of a half."""
    plan, error, n = looks(FIVE), 0.1, 100_000
    found = stopped(estimate, error, plan, look)
    to_drift = 1 / (error * np.sqrt(FIVE[look]))
    for i, (end, share) in enumerate(((found.low, 0.025), (found.middle, 0.5), (found.high, 0.975))):
        seen = reached(estimate, error, look, end * to_drift, n, i)
        assert abs(seen - share) < 4 * np.sqrt(share * (1 - share) / n), (end, share)
    tail = reached(estimate, error, look, 0.0, n, 9)
    p = 2 * min(tail, 1 - tail)
    assert abs(found.p - p) < 4 * np.sqrt(2 * max(p, 1e-4) / n) + 1e-5


def test_after_one_look_the_interval_is_the_plain_one() -> None:
    found, z = stopped(0.3, 0.1, looks(np.array([1.0])), 0), ndtri(0.975)
    assert (found.low, found.middle, found.high) == pytest.approx((0.3 - 0.1 * z, 0.3, 0.3 + 0.1 * z), abs=1e-7)
    assert found.p == pytest.approx(2 * ndtr(-3.0), rel=1e-6)


def test_signs_change_the_sides_and_early_stops_are_drawn_towards_zero() -> None:
    plan = looks(FIVE, 0.05, KINDS[1])
    one, other = stopped(0.31, 0.1, plan, 2), stopped(-0.31, 0.1, plan, 2)
    assert (one.p, one.low, one.middle, one.high) == pytest.approx(
        (other.p, -other.high, -other.middle, -other.low), abs=1e-6
    )
    assert 0 < one.middle < 0.31
    with_one = stopped(0.31, 0.1, looks(np.array([1.0])), 0)
    assert one.p > with_one.p
    assert one.low < with_one.low


def test_p_is_at_most_alpha_where_a_boundary_is_met() -> None:
    plan = looks(FIVE)
    for look, bound in enumerate(plan.bound):
        assert stopped(float(bound), 1.0, plan, look).p == pytest.approx(plan.spent[look], abs=1e-8)


def test_plans_that_are_none_are_refused() -> None:
    for wrong in ([0.5, 0.4], [0.5, 1.2], [0.0, 1.0], [0.5, 0.5001], []):
        with pytest.raises(BadRequest, match="rise within"):
            looks(np.array(wrong, dtype=np.float64))
    with pytest.raises(BadRequest, match="o'brien-fleming or pocock"):
        spending(FIVE, kind="haybittle")
    with pytest.raises(BadRequest, match="a look of 0–4"):
        stopped(1.0, 1.0, looks(FIVE), 5)
