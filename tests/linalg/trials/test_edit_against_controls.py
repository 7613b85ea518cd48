"""An edit against random controls: rank, spread of true effects, distance in spreads."""

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.trials.controls import distance_from_controls, rank_among, spread_of_controls

CLOSE = 1e-12
World = tuple[np.ndarray, np.ndarray, np.ndarray]


def world(
    rng: np.random.Generator, *, spread: float, edit: float | None = None, C: int = 19, m: int = 10, n: int = 40
) -> World:
    """Clean [n], edit [n], controls [C, m]: seeds differ by 2, episodes of one seed and arm by 0.5, mean effect −1.

    The edit is one more control where its effect is not given.
    """
    seeds, effects = 2 * rng.standard_normal(n), -1 + spread * rng.standard_normal(C + 1)
    if edit is not None:
        effects[0] = edit
    arms = seeds + effects[:, None] + 0.5 * rng.standard_normal((C + 1, n))
    return seeds + 0.5 * rng.standard_normal(n), arms[0], arms[1:, :m]


def test_p_of_an_edit_that_is_one_more_control_is_uniform() -> None:
    """19 controls: each of 20 ranks alike. 1500 worlds, 4 standard errors of 5 % (.0225) and of a half (.05)."""
    rng = np.random.default_rng(0)
    found = [rank_among(*world(rng, spread=0.3)) for _ in range(1500)]
    for name in ("p_low", "p_high", "p"):
        p = np.array([getattr(f, name) for f in found])
        assert abs(np.mean(p <= 0.05 + CLOSE) - 0.05) < 0.0225, name
        assert abs(np.mean(p <= 0.5 + CLOSE) - 0.5) < 0.05, name


def test_only_the_seeds_that_controls_ran_enter_the_rank() -> None:
    clean, edit, controls = world(np.random.default_rng(1), spread=0.3)
    elsewhere = np.where(np.arange(40) < 10, edit, edit - 100)
    one, other = rank_among(clean, edit, controls), rank_among(clean, elsewhere, controls)
    assert (one.p_low, one.p_high, one.p, one.edit) == (other.p_low, other.p_high, other.p, other.edit)
    assert one.seeds == 10
    assert one.edit == pytest.approx((edit - clean)[:10].mean(), rel=CLOSE)


def test_ranks_by_hand_with_ties() -> None:
    clean, controls = np.zeros(2), np.array([[-1.0, -1], [0, 0], [3, 1], [-2, 0]])
    found = rank_among(clean, np.array([-1.5, -0.5]), controls)
    assert (found.p_low, found.p_high, found.p) == pytest.approx((3 / 5, 5 / 5, 4 / 5))
    assert found.as_low.value == pytest.approx(2 / 4)
    wanted = stats.binomtest(2, 4).proportion_ci(method="exact")
    assert (found.as_low.low, found.as_low.high) == pytest.approx((wanted.low, wanted.high), rel=1e-9)


def test_low_and_high_change_places_with_the_sign() -> None:
    clean, edit, controls = world(np.random.default_rng(2), spread=0.3)
    one, other = rank_among(clean, edit, controls), rank_among(-clean, -edit, -controls)
    assert (one.p_low, one.p_high, one.p) == (other.p_high, other.p_low, other.p)


def test_the_spread_is_found_without_bias_whatever_arms_share() -> None:
    """Controls with unequal, correlated, skewed noise and a shared clean arm: mean of 3000 estimates within 4 errors.

    Taking the variance of a difference for the noise misses by the mean covariance over m, many errors.
    """
    rng, C, m, tau = np.random.default_rng(3), 6, 5, 0.4
    mixing = rng.standard_normal((C, C)) + 1.0
    estimates, naive = [], []
    for _ in range(3000):
        noise = (rng.exponential(size=(m, C)) - 1) @ mixing
        clean = 3 * rng.standard_normal(m)
        controls = (tau * rng.standard_normal(C) + noise).T
        found = spread_of_controls(clean, controls)
        estimates.append(found.variance)
        naive.append(found.between - (controls - clean).var(axis=1, ddof=1).mean() / m)
    error = np.std(estimates) / np.sqrt(3000)
    assert abs(np.mean(estimates) - tau**2) < 4 * error
    assert np.mean(naive) < tau**2 - 20 * error
    V = mixing.T @ mixing
    H = np.eye(C) - 1 / C
    # Equation 14 for this V: between = τ² + tr(HV)/((C − 1)m), and the noise is its second term on average.
    assert found.between - found.variance == pytest.approx(found.noise, rel=1e-9)
    assert np.trace(H @ V) / (C - 1) == pytest.approx(np.trace(V) / C - (V.sum() - np.trace(V)) / (C * (C - 1)))


def test_what_all_controls_meet_on_a_seed_is_no_spread() -> None:
    rng = np.random.default_rng(4)
    clean, _, controls = world(rng, spread=0.3)
    shift = 10 * rng.standard_normal(10)
    one, other = spread_of_controls(clean, controls), spread_of_controls(clean, controls + shift)
    assert (one.variance, one.noise, one.noise_df) == pytest.approx((other.variance, other.noise, other.noise_df))


def test_effects_without_noise_have_their_own_spread() -> None:
    effects = np.array([-1.0, 0.5, 2.0])
    found = spread_of_controls(np.arange(4.0), np.arange(4.0) + effects[:, None])
    assert found.noise == pytest.approx(0, abs=CLOSE)
    assert (found.mean, found.sd) == pytest.approx((effects.mean(), effects.std(ddof=1)))


@pytest.mark.parametrize(("C", "m", "spread"), [(40, 15, 0.4), (100, 30, 0.15), (12, 8, 0.5), (10, 60, 1.0)])
def test_the_interval_in_spreads_covers(C: int, m: int, spread: float) -> None:
    """The edit lies 3 spreads below. 600 worlds each; 4 standard errors of 95 % are .036, above it may lie a little."""
    rng, inside, sure = np.random.default_rng(C), 0, 0
    for i in range(600):
        clean, edit, controls = world(rng, spread=spread, edit=-1 - 3 * spread, C=C, m=m, n=2 * m)
        found = distance_from_controls(clean, edit, controls, draws=1000, seed=i)
        inside += found.low <= -3 <= found.high
        sure += found.difference_low <= -3 * spread <= found.difference_high
    assert 0.95 - 0.036 < inside / 600 < 0.99
    assert 0.95 - 0.036 < sure / 600 < 0.99


def test_a_breaking_edit_lies_many_spreads_below_its_controls() -> None:
    clean, edit, controls = world(np.random.default_rng(5), spread=0.2, edit=-4.0, C=99, m=30, n=300)
    found = distance_from_controls(clean, edit, controls)
    assert found.high < -8
    assert found.edit == pytest.approx((edit - clean).mean(), rel=CLOSE)
    assert found.low <= found.spreads <= found.high
    assert rank_among(clean, edit, controls).p_low == pytest.approx(0.01)


def test_controls_that_may_all_do_the_same_leave_an_end_open() -> None:
    clean, edit, controls = world(np.random.default_rng(6), spread=0.0, edit=-3.0, C=30, m=10)
    found = distance_from_controls(clean, edit, controls)
    assert found.low == -np.inf
    assert found.high < 0
    assert found.difference == pytest.approx(-2, abs=0.5)
    assert found.difference_high < 0


def test_a_seed_gives_the_same_interval_and_units_scale() -> None:
    clean, edit, controls = world(np.random.default_rng(7), spread=0.3)
    one, again = (distance_from_controls(clean, edit, controls, seed=3) for _ in range(2))
    assert one == again
    scaled = distance_from_controls(10 * clean, 10 * edit, 10 * controls, seed=3)
    assert (scaled.spreads, scaled.low, scaled.high) == pytest.approx((one.spreads, one.low, one.high), rel=1e-6)
    assert scaled.difference == pytest.approx(10 * one.difference)


def test_too_little_is_refused() -> None:
    clean, edit, controls = world(np.random.default_rng(8), spread=0.3)
    with pytest.raises(BadRequest, match="at least 2 controls on 2 or more"):
        spread_of_controls(clean, controls[:1])
    with pytest.raises(BadRequest, match="at least 1 controls"):
        rank_among(clean[:5], edit[:5], controls)
    with pytest.raises(BadRequest, match="finite"):
        rank_among(clean, edit, np.where(controls == controls[0, 0], np.nan, controls))
