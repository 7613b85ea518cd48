"""The incomplete beta function against closed forms, fifty-digit arithmetic and SciPy; its inverse against itself."""

import mpmath
import numpy as np
import pytest
from scipy import special

from covector.linalg.chance import log_tail, quantile, tail
from covector.linalg.chance.incomplete_beta import (
    FEW,
    incomplete_beta,
    inverse_incomplete_beta,
    log_beta,
    log_incomplete_beta,
)

WIDTHS = [2, 3, 5, 16, 128, 1024, 4096, 100_000]
SIZES = [(d, k) for d in WIDTHS for k in sorted({1, 2, 5, 16, 64, d // 2, d - 1}) if 1 <= k < d]
# Far below a double's precision, through the bulk, to within 1e-9 of 1.
LEVELS = [1e-290, 1e-150, 1e-40, 1e-9, 1e-3, 0.05, 0.08, 0.3, 0.6, 0.92, 0.95, 1 - 1e-4, 1 - 1e-9]


def exact(cosine, d, k):
    """The tail and its logarithm to 30 digits and more, each from the end that is the smaller."""
    a, b, y = mpmath.mpf(d - k) / 2, mpmath.mpf(k) / 2, mpmath.mpf(float(cosine)) ** 2
    if (1 - y) * (a + b) <= a:
        share = lower_end(a, b, 1 - y)
        return share, mpmath.log(share)
    share = lower_end(b, a, y)
    return 1 - share, mpmath.log1p(-share)


def lower_end(a, b, x):
    if min(a, b) < 10_000:
        return mpmath.betainc(a, b, 0, x, regularized=True)
    # mpmath's series cancels for long here; this one, DLMF 8.17.8, has positive terms only.
    term, total, n = mpmath.mpf(1), mpmath.mpf(0), 0
    while term > total * mpmath.mpf(10) ** -40:
        total, term, n = total + term, term * x * (a + b + n) / (a + 1 + n), n + 1
    return total * x**a * (1 - x) ** b / a / mpmath.beta(a, b)


def cosines(d, k):
    found = np.append(quantile(np.array(LEVELS), d, k), [1e-9, np.sqrt((k + 2) / (d + 4))])  # the last: where ends meet
    return np.unique(found[found < 1])


def shares(cosine):
    return (1 - cosine) * (1 + cosine), cosine * cosine


@pytest.mark.parametrize(("d", "k"), SIZES)
def test_tail_and_its_logarithm_agree_with_fifty_digit_arithmetic(d, k):
    cosine = cosines(d, k)
    with mpmath.workdps(50):
        found = [exact(c, d, k) for c in cosine]
        # Promised: 1e-11. Lost here: a·eps = 5e-12 for every rounding of x that is not offset by one of y.
        assert max(abs(t / e - 1) for t, (e, _) in zip(tail(cosine, d, k), found, strict=True)) < 1e-11
        logs = log_tail(cosine, d, k)
        assert max(abs(t - e) for t, (_, e) in zip(logs, found, strict=True)) < 1e-11
        # Near 1 the logarithm has digits that the tail has lost. (A log of 1e-400 rounds to 0, rightly.)
        near = [(t, e) for t, (_, e) in zip(logs, found, strict=True) if -0.1 < e < -1e-300]
        assert all(abs(t / e - 1) < 1e-11 for t, e in near)
        # The points are what they should be: from the deepest tail that a cosine below 1 has, to near 1.
        assert found[0][0] > 0.9
        assert found[-1][0] < 1e-280 or cosine[-1] > 0.999


@pytest.mark.parametrize(("d", "k"), SIZES)
def test_tail_agrees_with_scipy(d, k):
    cosine = cosines(d, k)
    (x, y), a, b = shares(cosine), (d - k) / 2, k / 2
    # SciPy takes x alone, so each end is asked where it is the small one; and deep tails are left out, since its
    # betainc(2016, 32, 0.702052) is 0 instead of 4.1e-258 (SciPy 1.17).
    ours, theirs = incomplete_beta(a, b, x, y), special.betainc(a, b, x)
    told = (theirs > 1e-100) & (x < a / (a + b))
    np.testing.assert_allclose(ours[told], theirs[told], rtol=1e-10)  # x·(1 ± eps) moves x^a by a·eps = 5e-12
    np.testing.assert_allclose(incomplete_beta(b, a, y, x)[~told], special.betainc(b, a, y)[~told], rtol=1e-10)


def test_a_tail_is_found_where_scipy_says_zero():
    with mpmath.workdps(50):
        assert tail(0.5458545454545455, 4096, 64) == pytest.approx(float(exact(0.5458545454545455, 4096, 64)[0]))


def test_closed_forms_are_met():
    y = np.array([1e-12, 1e-3, 0.2, 0.5, 0.8, 0.999])
    x = 1 - y
    for b in (0.5, 1.0, 7.5, 300.0):
        np.testing.assert_allclose(incomplete_beta(1.0, b, x, y), -np.expm1(b * np.log(y)), rtol=1e-13)
        np.testing.assert_allclose(incomplete_beta(b, 1.0, x, y), np.exp(b * np.log(x)), rtol=1e-13)
    np.testing.assert_allclose(
        incomplete_beta(0.5, 0.5, x, y), 2 / np.pi * np.arctan2(np.sqrt(x), np.sqrt(y)), rtol=1e-14
    )


def test_far_tails_have_their_logarithm_at_any_width():
    # The promise: 1e-9 absolute up to d = 10⁵, where a log of −4e5 has rounding of 6e-11 per operation.
    for cosine, d, k in [(0.999999, 128, 1), (0.9999, 100_000, 1), (0.99, 100_000, 50_000), (0.999, 4096, 3000)]:
        with mpmath.workdps(50):
            assert abs(log_tail(cosine, d, k) - exact(cosine, d, k)[1]) < 1e-9


@pytest.mark.parametrize(("d", "k"), [*SIZES, (7, 3), (1_000_000, 1), (1_000_000, 500_000), (1_000_000, 999_999)])
def test_the_inverse_inverts_from_the_smallest_double_to_one(d, k):
    p = np.concatenate(
        [[5e-324], 10.0 ** -np.arange(300, 0, -3), np.linspace(0.11, 0.99, 45), 1 - 10.0 ** -np.arange(3, 17)]
    )
    a, b = (d - k) / 2, k / 2
    x, y = inverse_incomplete_beta(a, b, p)
    # The nearer end at log(x/y)·(1 ± eps) moves by eps·slope, and the slope is at most 6000·(d / 10⁵)^½: 1e-12.
    held = (x > 1e-299) & (p > 1e-300)
    np.testing.assert_allclose(incomplete_beta(a, b, x, y)[held], p[held], rtol=1e-11)
    other = 1 - p[p > 0.1]
    np.testing.assert_allclose(incomplete_beta(b, a, y, x)[p > 0.1], other, rtol=1e-11)
    assert np.all(np.abs(x + y - 1) < 1e-15)
    assert np.all(np.diff(x) >= 0)
    assert np.all(np.diff(y) <= 0)
    # An x too small for a double is a cosine of 1: P(X <= 1e-299) exceeds the p that were left out.
    assert np.all(p[x <= 1e-299] <= incomplete_beta(a, b, np.array(1e-299), np.array(1.0)))


@pytest.mark.parametrize(("d", "k"), SIZES)
def test_quantile_is_exact_to_a_few_roundings(d, k):
    # The error of c is that of its tail over the density; a few eps, and up to 20 where log(1 − p) is of size 30.
    p = np.array([1e-200, 1e-20, 1e-3, 0.3, 0.7, 0.999, 1 - 1e-12])
    cosine = quantile(p, d, k)
    assert np.all(np.diff(cosine) <= 0)
    a, b = (d - k) / 2, k / 2
    with mpmath.workdps(50):
        for level, c in zip(p, cosine, strict=True):
            if c < 1:
                y = mpmath.mpf(float(c)) ** 2
                slope = 2 * (1 - y) ** (a - 1) * y**b / mpmath.beta(a, b)  # −d tail / d log c
                assert abs((exact(c, d, k)[0] - mpmath.mpf(float(level))) / slope) < 1e-14


@pytest.mark.parametrize(("d", "k"), SIZES)
def test_nothing_jumps_or_turns_where_the_two_ends_meet(d, k):
    a, b = (d - k) / 2, k / 2
    middle = (a + 1) / (a + b + 2)
    x = middle * (1 + np.linspace(-1, 1, 401) * 1e-3 * (1 - middle))
    share = incomplete_beta(a, b, x, 1 - x)
    assert np.all(np.diff(share) > 0)
    assert np.all(np.diff(log_incomplete_beta(a, b, x, 1 - x)) > 0)
    # Steps of a smooth function change by a part in 10⁴ from one to the next here; a jump of 1e-9 would stand out.
    assert np.abs(np.diff(share, n=2)).max() < 1e-2 * np.diff(share).max() + 1e-12


@pytest.mark.parametrize(
    ("a", "b"), [(0.5, 0.5), (5.0, 0.5), (0.5, 5e4), (5e4, 5e4), (499_999.5, 0.5), (12.0, 9.0), (15.0, 15.0)]
)
def test_log_beta_keeps_its_digits(a, b):
    with mpmath.workdps(50):
        expected = mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(mpmath.mpf(a) + b)
        # A few roundings of terms of its own size. (Stirling's fifth term is 2e-14 where it is largest, at 15.)
        assert abs(log_beta(a, b) - expected) < 1e-15 * (1 + abs(expected))


def test_ends_missing_values_and_shapes_pass_through():
    x = np.array([[0.0, 1.0, np.nan], [0.25, 0.5, 0.75]])
    share, logs = incomplete_beta(2.5, 3.0, x, 1 - x), log_incomplete_beta(2.5, 3.0, x, 1 - x)
    np.testing.assert_array_equal(share[0], [0, 1, np.nan])
    np.testing.assert_array_equal(logs[0], [-np.inf, 0, np.nan])
    np.testing.assert_allclose(np.exp(logs[1]), share[1], rtol=1e-15)
    assert share.shape == (2, 3)
    back_x, back_y = inverse_incomplete_beta(2.5, 3.0, share)
    np.testing.assert_allclose(back_x, x, rtol=1e-14)
    np.testing.assert_allclose(back_y, 1 - x, rtol=1e-14)
    np.testing.assert_array_equal(back_x[0], x[0])
    np.testing.assert_array_equal(back_y[0], 1 - x[0])
    assert incomplete_beta(2.5, 3.0, np.zeros((0, 2)), np.ones((0, 2))).shape == (0, 2)
    assert inverse_incomplete_beta(2.5, 3.0, np.array(0.5))[0].shape == ()


def test_a_value_does_not_depend_on_how_many_are_asked_for():
    # One by one, in a few and in many pieces: the same operations in the same order, but for exp and log, which
    # NumPy takes in other instructions for long arrays (1 ulp each, of logs down to −90).
    cosine = np.linspace(0, 0.4, 20_001)
    together = tail(cosine, 1024)
    some = np.arange(0, 20_001, 1000)
    assert len(some) < FEW
    np.testing.assert_allclose(tail(cosine[some], 1024), together[some], rtol=1e-13)
    np.testing.assert_allclose([tail(c, 1024) for c in cosine[some]], together[some], rtol=1e-13)
