"""Power of paired tests: closed forms against simulation, published sample sizes, and back."""

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.trials.paired import paired_shares, sign_flip_p
from covector.linalg.trials.power import (
    detectable_difference,
    detectable_shares,
    least_p_of_rank,
    power_of_difference,
    power_of_shares,
)


def test_published_sample_sizes_are_found() -> None:
    """Paired t, two-sided 5 %, 80 %: 34 pairs for half an sd, 199 for a fifth (Cohen's tables)."""
    for effect, pairs in ((0.5, 34), (0.2, 199), (0.8, 15)):
        enough = [float(power_of_difference(np.array(effect), 1.0, n)) >= 0.8 for n in (pairs - 1, pairs)]
        assert enough == [False, True]


@pytest.mark.parametrize(("n", "difference"), [(20, 0.7), (40, 0.3), (12, 0.0)])
def test_the_power_is_what_simulated_sign_flips_reach(n: int, difference: float) -> None:
    """3000 normal samples in calls of 100 rows with 999 draws each: 4 errors are .04; terms of order 1/n within."""
    rng = np.random.default_rng(n)
    p = [sign_flip_p(difference + rng.standard_normal((100, n)), draws=999, seed=i).value for i in range(30)]
    wanted = float(power_of_difference(np.array(difference), 1.0, n))
    assert abs(np.mean(np.concatenate(p) <= 0.05 + 1e-12) - wanted) < 0.04


@pytest.mark.parametrize("n", [2, 3, 10, 300])
def test_the_power_is_that_of_the_noncentral_law(n: int) -> None:
    """Of scipy's, at arguments at which it is a number; n = 2 has a law of the sd with a corner at 0."""
    size, cut = 1.5, stats.t.isf(0.025, n - 1)
    wanted = stats.nct.sf(cut, n - 1, size) + stats.nct.cdf(-cut, n - 1, size)
    assert float(power_of_difference(np.array(size / np.sqrt(n)), 1.0, n)) == pytest.approx(wanted, rel=1e-9)


def test_power_is_the_level_without_a_difference_and_one_far_out() -> None:
    found = power_of_difference(np.array([0.0, 0.1, -0.1, 0.3, 50.0]), 0.5, 300, alpha=0.01)
    assert found[0] == pytest.approx(0.01, rel=1e-9)
    assert found[1] == found[2] < found[3] < found[4] == pytest.approx(1.0, rel=1e-12)


def test_the_detectable_difference_has_its_power_and_scales() -> None:
    size = detectable_difference(0.5, 300)
    assert float(power_of_difference(np.array(size), 0.5, 300)) == pytest.approx(0.8, abs=1e-8)
    assert detectable_difference(5.0, 300) == pytest.approx(10 * size)
    # In the limit (1.960 + 0.8416) sd/√n; Student's law adds 0.3 % at 300.
    assert size == pytest.approx(2.8016 * 0.5 / np.sqrt(300), rel=0.005)


def test_the_power_for_shares_is_summed_over_all_outcomes() -> None:
    """8 seeds, every outcome with its p from the test itself."""
    n, lost, gained, alpha = 8, 0.6, 0.1, 0.1
    total = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            seeds = np.arange(n)
            first, second = (seeds < c) | (seeds >= b + c), seeds >= c
            if paired_shares(first, second).p <= alpha:
                total += stats.multinomial.pmf([b, c, n - b - c], n, [gained, lost, 1 - gained - lost])
    assert 0.2 < total < 1
    assert power_of_shares(lost, gained, n, alpha) == pytest.approx(total, rel=1e-9)


def test_simulated_experiments_find_a_change_of_shares_as_often() -> None:
    rng, n, lost, gained = np.random.default_rng(1), 150, 0.12, 0.04
    b, c = rng.multinomial(n, [gained, lost, 1 - gained - lost], size=20_000)[:, :2].T
    p = np.minimum(1, 2 * stats.binom.cdf(np.minimum(b, c), b + c, 0.5))
    wanted = power_of_shares(lost, gained, n)
    assert abs(np.mean(p <= 0.05) - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 20_000)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5])
def test_the_size_for_shares_keeps_below_the_level(share: float) -> None:
    assert 0 <= power_of_shares(share, share, 100) <= 0.05
    assert power_of_shares(0.0, 0.0, 100) == 0


def test_the_detectable_fall_has_its_power_and_grows_with_what_changes_back() -> None:
    falls = [detectable_shares(300, gained) for gained in (0.0, 0.02, 0.1)]
    assert falls == sorted(falls)
    assert falls[0] > 0
    assert power_of_shares(falls[1] + 0.02, 0.02, 300) == pytest.approx(0.8, abs=1e-6)
    # Six lost and none gained is the least that 5 % can see (2/2⁶ = .031): at 300 seeds P(Bin(300, x) ≥ 6) = .8.
    assert stats.binom.sf(5, 300, falls[0]) == pytest.approx(0.8, abs=1e-6)
    assert np.isnan(detectable_shares(5))


def test_controls_limit_the_p_of_a_rank() -> None:
    assert least_p_of_rank(99) == pytest.approx(0.01)


def test_nonsense_is_refused() -> None:
    with pytest.raises(BadRequest, match="take it from a control"):
        power_of_difference(np.array(1.0), 0.0, 10)
    with pytest.raises(BadRequest, match="two or more seeds"):
        power_of_difference(np.array(1.0), 1.0, 1)
    with pytest.raises(BadRequest, match="at most 1 together"):
        power_of_shares(0.8, 0.4, 10)
    with pytest.raises(BadRequest, match="a power between"):
        detectable_difference(1.0, 10, power=0.01)
