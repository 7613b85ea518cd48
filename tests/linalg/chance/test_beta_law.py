"""The Beta law of squared cosines against mpmath, against published values, and against simulated directions."""

import mpmath
import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.chance import haar_directions, log_tail, quantile, tail, threshold

# (cosine, d, k): likely, unlikely, hardly possible; one and many dimensions; up to the width of large models.
POINTS = [
    (0.24, 128, 1),
    (0.001, 768, 1),
    (0.9, 128, 1),
    (0.999, 3, 1),
    (0.5, 2000, 1),
    (0.5, 4096, 64),
    (0.1, 16384, 10),
    (0.99, 1000, 500),
    (0.7, 128, 64),
]
BEYOND_DOUBLES = [(0.999999, 128, 1), (0.3, 16384, 1), (0.5, 16384, 128), (0.15, 100_000, 1), (0.9, 4096, 3000)]


def exact_tail(cosine, d, k):
    with mpmath.workdps(50):
        # A hypergeometric series of positive terms, so the smallest tails keep all digits.
        complement = 1 - mpmath.mpf(cosine) ** 2
        return mpmath.betainc(mpmath.mpf(d - k) / 2, mpmath.mpf(k) / 2, 0, complement, regularized=True)


def test_the_reference_itself_is_the_integral_of_the_density():
    # d = 128: density of c is proportional to (1 − c²)^((128 − 3)/2).
    density = lambda c: (1 - c * c) ** mpmath.mpf("62.5")  # noqa: E731
    share = mpmath.quad(density, [0.24, 0.5, 1]) / mpmath.quad(density, [0, 0.24, 0.5, 1])
    assert float(share) == pytest.approx(float(exact_tail(0.24, 128, 1)), rel=1e-12)


@pytest.mark.identity("SV-32")
@pytest.mark.parametrize(("cosine", "d", "k"), POINTS)
def test_tail_agrees_with_fifty_digit_arithmetic(cosine, d, k):
    assert tail(cosine, d, k) == pytest.approx(float(exact_tail(cosine, d, k)), rel=1e-11)


@pytest.mark.parametrize(("cosine", "d", "k"), POINTS + BEYOND_DOUBLES)
def test_log_tail_agrees_with_fifty_digit_arithmetic_however_small_the_tail(cosine, d, k):
    expected = float(mpmath.log(exact_tail(cosine, d, k)))
    assert log_tail(cosine, d, k) == pytest.approx(expected, abs=1e-9, rel=1e-12)


def test_log_tail_does_not_jump_where_the_two_methods_meet():
    cosine = np.linspace(0.55, 0.60, 400)  # d = 3000: tails from 1e-237 to 1e-292, across 1e-250
    logs = log_tail(cosine, 3000)
    assert logs[0] > np.log(1e-250) > logs[-1]
    # A smooth curve: third differences scale with the step cubed (1e-4³ · curvature), a jump of 1e-8 would show.
    assert np.abs(np.diff(logs, n=3)).max() < 1e-2 * np.abs(np.diff(logs)).max() ** 3 + 1e-9


@pytest.mark.identity("SV-32")
@pytest.mark.parametrize(("d", "k"), [(64, 1), (128, 16), (10, 9), (2, 1)])
def test_squared_length_of_a_haar_direction_in_a_subspace_is_beta(d, k):
    length = np.linalg.norm(haar_directions(4000, d, seed=3)[:, :k], axis=1)
    assert stats.kstest(tail(length, d, k), "uniform").pvalue > 0.01
    # The same check sees a subspace that is one dimension too large.
    assert stats.kstest(tail(np.minimum(length * np.sqrt((k + 1) / k), 1), d, k), "uniform").pvalue < 0.01


@pytest.mark.parametrize(
    ("d", "n", "published"),
    [
        (128, 1152, 0.352),
        (768, 9216, 0.163),
        (1024, 24576, 0.148),
        (1024, 49152, 0.152),
        (1600, 76800, 0.124),
        (4096, 114688, 0.079),
    ],
)
def test_thresholds_are_those_of_the_theory_page(d, n, published):
    assert threshold(d, n) == pytest.approx(published, abs=5e-4)  # three digits were printed


def test_cosine_of_the_theory_page_has_its_published_p():
    assert tail(0.24, 128) == pytest.approx(0.006153, abs=5e-7)
    assert 1152 * tail(-0.24, 128) == pytest.approx(7.09, abs=5e-3)


@pytest.mark.identity("SV-32")
@pytest.mark.parametrize("k", [1, 10])
def test_threshold_inverts_to_alpha(k):
    n = np.array([1, 40, 50257])
    np.testing.assert_allclose(n * tail(threshold(768, n, 0.01, k), 768, k), 0.01, rtol=1e-10)


@pytest.mark.parametrize(("d", "k"), [(3, 1), (768, 1), (128, 64), (5, 5)])
def test_quantile_inverts_tail(d, k):
    p = np.array([1.0, 0.9, 0.5, 1e-3, 1e-12])
    cosine = quantile(p, d, k)
    # Near c = 1 the rounding of c itself (2⁻⁵³) moves the tail by 1e-16·d/(1 − c²): d = 3 at 1e-12 keeps four digits.
    np.testing.assert_allclose(tail(cosine, d, k), 1.0 if k == d else p, rtol=1e-10 if d > 3 else 1e-3)


def test_threshold_holds_the_error_rate_over_a_random_dictionary():
    n, d, trials = 200, 64, 8000
    cosine = haar_directions(trials, d, seed=5) @ haar_directions(n, d, seed=6).T
    false = np.mean(np.abs(cosine).max(axis=1) >= threshold(d, n, 0.05))
    error = np.sqrt(0.05 * 0.95 / trials)
    assert false <= 0.05 + 4 * error
    # … and is not idle: among independent directions the union bound loses only α²/2.
    assert false >= 0.05 - 0.00125 - 4 * error


def test_both_poles_count():
    assert tail(-0.3, 32) == tail(0.3, 32)
    assert tail(0.0, 32) == 1


def test_shapes_and_missing_values_pass_through():
    cosine = np.array([[0.1, np.nan], [1.0, -1.0]], dtype=np.float32)
    assert np.isnan(tail(cosine, 8)).tolist() == [[False, True], [False, False]]
    assert log_tail(cosine, 8).shape == (2, 2)
    assert log_tail(cosine, 8)[1].tolist() == [-np.inf, -np.inf]
    assert np.isnan(log_tail(np.nan, 8))
    assert np.isnan(tail(np.nan, 8, 8))
    assert isinstance(log_tail(0.5, 8), float)
    assert log_tail(0.5, 8, 8) == 0


def test_a_cosine_above_one_is_refused_but_not_its_rounding():
    assert tail(1 + 1e-7, 8) == 0
    with pytest.raises(BadRequest, match=r"a cosine lies in \[−1, 1\], got 1.5"):
        tail(np.array([0.1, 1.5]), 8)


def test_impossible_sizes_and_rates_are_refused():
    with pytest.raises(BadRequest, match="got k = 9, d = 8"):
        tail(0.5, 8, 9)
    with pytest.raises(BadRequest, match="a probability lies in"):
        quantile(5.0, 8)
    with pytest.raises(BadRequest, match="the number of tries n is at least 1, got 0"):
        threshold(8, 0)
    with pytest.raises(BadRequest, match="the error rate α"):
        threshold(8, 10, alpha=5.0)


@pytest.mark.parametrize("k", [1, 2, 64, 50_000, 99_999])
def test_log_tail_falls_all_the_way_at_any_width(k):
    logs = log_tail(np.linspace(0, 1, 5001)[:-1], 100_000, k)
    assert np.all(np.isfinite(logs))
    assert np.all(np.diff(logs) <= 1e-9)  # the error it promises
    assert logs[0] == 0
