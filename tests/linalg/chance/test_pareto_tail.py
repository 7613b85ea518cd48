"""Generalised Pareto tails: calibrated beyond what was drawn, never bolder than two decades."""

import numpy as np
import pytest
from scipy import stats

from covector.linalg.chance.pareto import fitted_tail, tail_p

DRAWS = 2000


@pytest.mark.parametrize(
    "law",
    [stats.norm(), stats.expon(), stats.beta(3, 40), stats.t(8), stats.gumbel_r(), stats.lognorm(0.5), stats.uniform()],
    ids=lambda law: law.dist.name,
)
def test_p_beyond_the_draws_errs_by_little_on_average_and_rarely_by_much(law: stats.rv_continuous) -> None:
    """P(p̂ <= α), averaged over nulls, is what calibration means: exact from the law's own tail at each p̂ = α."""
    rng = np.random.default_rng(3)
    alphas = (5e-3, 2e-3, 1e-3, 1e-4, 3e-5)
    rates = np.zeros(len(alphas))
    repeats = 200
    grid = law.isf(np.geomspace(5e-2, 1e-8, 1500))  # rising values of x, tails known
    for _ in range(repeats):
        p = np.asarray(tail_p(grid, law.rvs(DRAWS, random_state=rng)))
        assert np.all(np.diff(p) <= 0)
        for i, alpha in enumerate(alphas):
            called = np.flatnonzero(p <= alpha)
            rates[i] += (law.sf(grid[called[0]]) if called.size else 0.0) / repeats
    # 1/(B + 1) = 5e-4: the first level is counted, two are smoothed (right to a tenth, but for a law that ends at once:
    # uniform, 1.6 at two draws), the others are extrapolated. Factor 2.5 of slack below 1/B, where 200 excesses
    # determine a shape to ± 0.1 (heaviest law of these: lognormal).
    over = rates / np.array(alphas)
    assert (over[:3] <= (1.15 if law.dist.name != "uniform" else 1.8)).all(), over
    assert (over[1:3] >= 0.85).all(), over
    assert (over[3:] <= 2.5).all(), over


def test_p_is_the_counted_one_where_ten_draws_reach() -> None:
    null = np.random.default_rng(0).standard_normal(DRAWS)
    x = np.sort(null)[[5, 1000, -300, -10]]
    np.testing.assert_allclose(tail_p(x, null), (1 + np.array([1995, 1000, 300, 10])) / (DRAWS + 1))


@pytest.mark.parametrize("law", [stats.norm(), stats.expon(), stats.t(8)], ids=lambda law: law.dist.name)
def test_p_that_few_draws_reach_varies_less_than_their_count_and_is_as_right(law: stats.rv_continuous) -> None:
    """At a true p of 2/B a count has Poisson's sd of √2 draws; that of the fit to 200 draws is a fifth smaller. Its
    median is the truth to a fifth, the half draw among it (3 standard errors of 200 nulls)."""
    rng, x = np.random.default_rng(5), law.isf(2 / DRAWS)
    nulls = [law.rvs(DRAWS, random_state=rng) for _ in range(200)]
    fitted = np.array([tail_p(x, null) for null in nulls]) * DRAWS
    counted = np.array([1 + np.sum(null >= x) for null in nulls])
    assert np.std(fitted) < 0.87 * np.std(counted)
    assert np.median(fitted) == pytest.approx(2.25, rel=0.2)


def test_p_stops_two_decades_below_the_draws() -> None:
    null = np.random.default_rng(0).standard_normal(DRAWS)
    assert tail_p(1e6, null) == pytest.approx(1e-2 / (DRAWS + 1))
    assert np.isnan(tail_p(np.nan, null))
    holes = np.append(null, np.full(50, np.nan))
    assert tail_p(2.0, holes) == tail_p(2.0, null)


def test_the_fit_recovers_a_generalised_pareto_law() -> None:
    """Moments' standard error at 250 excesses is about 0.08 in shape; 40 fits average to 0.013."""
    for shape in (0.1, 0.3):
        null = stats.genpareto(shape, scale=2.0).rvs((40, 2500), random_state=np.random.default_rng(1))
        tails = [fitted_tail(row) for row in null]
        assert np.mean([t.shape for t in tails if t]) == pytest.approx(shape, abs=0.06)
    assert fitted_tail(np.zeros(5000)) is None
    assert fitted_tail(np.arange(100.0)) is None
