"""A slope over models, with what the sites of each leave open."""

import numpy as np
import pytest
from scipy import stats

from covector.analyses.studies.slopes import Clustered, slope
from covector.linalg.chance.clustered import clustered_share


def model(shares: np.ndarray, per: int, rng: np.random.Generator) -> Clustered:
    """Sites of `per` directions with these shares of finds."""
    found = rng.random((len(shares), per)) < shares[:, None]
    return Clustered(found.ravel(), np.repeat(np.arange(len(shares)), per))


@pytest.mark.parametrize("sites", [(3, 3), (3, 16), (2, 16), (4, 12, 24), (16, 16)])
def test_shares_of_models_that_are_alike_have_no_slope_beyond_the_interval_over_sites(sites):
    """Beta(2, 8) shares of sites in every model, 500 draws: 95 %, less 3 standard errors (.0097)."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(500):
        found = slope(np.arange(len(sites)) * 1.0, [model(rng.beta(2, 8, n), 32, rng) for n in sites])
        covered += found.low <= 0 <= found.high
    assert covered / 500 > 0.95 - 3 * 0.0097


@pytest.mark.parametrize("sites", [(3, 16), (4, 12, 24)])
def test_means_of_models_that_are_alike_have_no_slope_beyond_it_either(sites):
    """Normal scores, the sites of a model differing as much as its directions do."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(500):
        models = []
        for n in sites:
            values = rng.normal(size=(n, 1)) + rng.normal(size=(n, 8))
            models.append(Clustered(values.ravel(), np.repeat(np.arange(n), 8)))
        found = slope(np.arange(len(sites)) * 1.0, models)
        covered += found.low <= 0 <= found.high
    assert covered / 500 > 0.95 - 3 * 0.0097


def test_a_model_that_is_known_well_leaves_the_uncertainty_of_the_other():
    """Nothing varies in the second: the slope over x = 0, 1 is as uncertain as the first one's mean, on both sides."""
    rng = np.random.default_rng(2)
    values = rng.normal(size=6)
    found = slope(np.array([0.0, 1.0]), [Clustered(values, np.arange(6)), Clustered(np.zeros(6), np.arange(6))])
    wanted = stats.t.ppf(0.975, 5) * values.std(ddof=1) / np.sqrt(6)
    assert found.value == pytest.approx(-values.mean(), abs=1e-12)
    assert (found.high - found.value, found.value - found.low) == pytest.approx((wanted, wanted), rel=1e-9)


def test_ends_of_lopsided_intervals_go_where_they_belong():
    """No find in the first model, where the share can only be larger: the difference can only be smaller by that."""
    none, some = np.zeros(60, bool), np.arange(60) % 3 == 0
    unit = np.arange(60) // 6
    first, second = clustered_share(none, unit), clustered_share(some, unit)
    found = slope(np.array([0.0, 1.0]), [Clustered(none, unit), Clustered(some, unit)])
    assert found.low == pytest.approx(1 / 3 - np.hypot(first.high, 1 / 3 - second.low), rel=1e-9)
    assert found.high == pytest.approx(second.high, rel=1e-9)


def test_the_interval_over_three_models_is_the_one_of_a_regression():
    y = [np.full(8, mean) + np.tile([-1.0, 1.0], 4) for mean in (0.0, 1.0, 3.0)]
    found = slope(np.array([0.0, 1.0, 2.0]), [Clustered(v, np.arange(8)) for v in y])
    fit = np.array(stats.linregress([0.0, 1.0, 2.0], [0.0, 1.0, 3.0]), np.float64)
    assert found.value == pytest.approx(fit[0], rel=1e-12)
    assert found.models_high - found.value == pytest.approx(fit[4] * stats.t.ppf(0.975, 1), rel=1e-9)


def test_one_site_or_one_that_holds_nearly_all_leaves_the_slope_open():
    rng = np.random.default_rng(3)
    plenty = Clustered(rng.normal(size=32), np.arange(32) // 4)
    alone = Clustered(rng.normal(size=8), np.zeros(8, int))
    heavy = Clustered(rng.normal(size=104), np.repeat([0, 1, 2], [100, 2, 2]))
    for other in (alone, heavy):
        found = slope(np.array([0.0, 1.0]), [plenty, other])
        assert not found.has_sites
        assert found.verdict.startswith("cannot be told")
        assert found.words().endswith("(too few sites in a model for an interval)")
