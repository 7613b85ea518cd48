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
    alphas = (1e-3, 1e-4, 3e-5)
    rates = np.zeros(len(alphas))
    repeats = 200
    grid = law.isf(np.geomspace(2e-2, 1e-8, 1500))  # rising values of x, tails known
    for _ in range(repeats):
        p = np.asarray(tail_p(grid, law.rvs(DRAWS, random_state=rng)))
        assert np.all(np.diff(p) <= 0)
        for i, alpha in enumerate(alphas):
            called = np.flatnonzero(p <= alpha)
            rates[i] += (law.sf(grid[called[0]]) if called.size else 0.0) / repeats
    # 1/(B + 1) = 5e-4: the first level is counted, the others are extrapolated. Factor 2.5 of slack below 1/B,
    # where 200 excesses determine a shape to ± 0.1 (heaviest law of these: lognormal).
    assert rates[0] <= 1.3 * alphas[0]
    assert (rates[1:] <= 2.5 * np.array(alphas[1:])).all(), rates


def test_p_is_the_counted_one_where_any_draw_reaches() -> None:
    null = np.random.default_rng(0).standard_normal(DRAWS)
    x = np.sort(null)[[5, 1000, -3, -1]]
    np.testing.assert_allclose(tail_p(x, null), (1 + np.array([1995, 1000, 3, 1])) / (DRAWS + 1))


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
