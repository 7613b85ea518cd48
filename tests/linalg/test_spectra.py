"""Norms, dimension counts and power laws of spectra, and values without vectors, against independent arithmetic."""

import mpmath
import numpy as np
import pytest
from scipy.stats import kstest, pareto

from covector.errors import BadRequest
from covector.linalg.maps import Dense, Factored, Space
from covector.linalg.spectra import counts, power_law, sizes
from covector.linalg.svd import svd
from covector.linalg.values import singular_values

RNG = np.random.default_rng(3)


def dense(W: np.ndarray) -> Dense:
    return Dense(W, Space("residual", W.shape[0]), Space("neurons", W.shape[1]))


@pytest.mark.identity("SV-17")
def test_norms_of_a_spectrum_are_norms_of_the_matrix() -> None:
    W = RNG.standard_normal((7, 5))
    found = sizes(singular_values(dense(W)))
    assert found.frobenius == pytest.approx(np.sqrt(np.sum(W * W)), rel=1e-13)
    assert found.nuclear == pytest.approx(np.linalg.norm(W, "nuc"), rel=1e-12)
    assert found.spectral == pytest.approx(np.linalg.norm(W, 2), rel=1e-12)
    assert found.condition == pytest.approx(np.linalg.cond(W), rel=1e-11)


@pytest.mark.identity("SV-17")
def test_a_bias_row_interlaces_the_values_and_the_core_has_their_product() -> None:
    A, B, row = RNG.standard_normal((9, 4)), RNG.standard_normal((4, 8)), RNG.standard_normal((1, 4))
    stream, other = Space("residual", 9), Space("written", 8)
    S = singular_values(Factored(A, B, stream, other))
    wider = singular_values(Factored(np.concatenate([row, A]), B, Space("residual+1", 10), other))
    assert np.all(wider >= S - 1e-12)
    assert np.all(S[:-1] >= wider[1:] - 1e-12)
    # log|det| of the r × r core, through the Grams: det(AᵀA·BBᵀ) = (Πσ)².
    assert np.log(S).sum() == pytest.approx(np.linalg.slogdet(A.T @ A @ B @ B.T)[1] / 2, rel=1e-11)


def test_counts_of_dimensions_against_arbitrary_precision() -> None:
    S = [3.0, 2.0, 0.5, 0.01]
    power = [mpmath.mpf(s) ** 2 for s in S]
    total = mpmath.fsum(power)
    entropy = -mpmath.fsum(x / total * mpmath.log(x / total) for x in power)
    found = sizes(np.array(S))
    assert found.stable == pytest.approx(float(total / power[0]), rel=1e-14)
    assert found.participation == pytest.approx(float(total**2 / mpmath.fsum(x**2 for x in power)), rel=1e-14)
    assert found.effective == pytest.approx(float(mpmath.exp(entropy)), rel=1e-14)


@pytest.mark.parametrize("k", [1, 6])
def test_equal_values_have_as_many_dimensions_as_there_are_by_every_count(k: int) -> None:
    found = sizes(np.full(k, 2.5))
    assert (found.stable, found.participation, found.effective) == pytest.approx((k, k, k), rel=1e-14)


def test_the_counts_stand_in_a_fixed_order() -> None:
    for _ in range(50):
        S = np.sort(RNG.exponential(size=12))[::-1] ** 3
        found = sizes(S)
        assert 1 <= found.stable <= found.participation <= found.effective <= 12


@pytest.mark.identity("SV-36")
@pytest.mark.parametrize("c", [1e-160, 1e3, 1e160])
def test_scale_changes_norms_and_nothing_else(c: float) -> None:
    S = np.sort(RNG.pareto(2.0, 80) + 0.1)[::-1].copy()
    before, after = sizes(S), sizes(c * S)
    assert after.frobenius == pytest.approx(c * before.frobenius, rel=1e-13)
    for name in ("stable", "participation", "effective", "condition"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-12)
    if c == 1e3:  # x_min is σ², which at 1e±160 has no float64; α is asked where it has one
        one, other = power_law(S), power_law(c * S)
        assert one is not None
        assert other is not None
        assert other.alpha == pytest.approx(one.alpha, rel=1e-9)
        assert other.x_min == pytest.approx(c**2 * one.x_min, rel=1e-12)


def test_a_map_of_zeros_has_norm_zero_and_no_dimensions() -> None:
    found = sizes(np.zeros(0))
    assert (found.spectral, found.frobenius, found.nuclear) == (0.0, 0.0, 0.0)
    assert np.isnan([found.stable, found.participation, found.effective, found.condition]).all()
    assert singular_values(dense(np.zeros((4, 3)))).size == 0


def test_counts_of_many_spectra_are_those_of_each() -> None:
    spectra = np.sort(RNG.random((5, 7)), axis=1)[:, ::-1]
    stable, participation, effective = counts(spectra)
    for i, S in enumerate(spectra):
        one = sizes(S.copy())
        assert (stable[i], participation[i], effective[i]) == pytest.approx(
            (one.stable, one.participation, one.effective), rel=1e-13
        )


@pytest.mark.parametrize("bad", [[1.0, 2.0], [1.0, -0.1], [np.nan, 0.0], [np.inf, 1.0]])
def test_what_is_no_spectrum_is_refused(bad: list[float]) -> None:
    with pytest.raises(BadRequest, match="largest first"):
        sizes(np.array(bad))


def test_the_power_law_is_the_one_that_brute_force_finds() -> None:
    S = np.sort(np.sqrt(RNG.pareto(1.5, 60) + 0.3))[::-1].copy()
    x = np.sort(S**2)
    best = (np.inf, 0.0, 0.0)
    for i in range(len(x) - 1):
        tail = x[i:]
        alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
        law = [1 - (t / tail[0]) ** (1 - alpha) for t in tail]
        distance = max(abs(f - j / len(tail)) for j, f in enumerate(law))
        best = min(best, (distance, alpha, tail[0]))
    found = power_law(S)
    assert found is not None
    assert (found.distance, found.alpha, found.x_min) == pytest.approx(best, rel=1e-10)


def test_a_power_law_is_recovered_within_its_error() -> None:
    # 4000 exact draws of density λ^−3: α = 3, whose standard error is (α − 1)/√n = 0.03; four of them.
    draws = pareto(2.0).rvs(4000, random_state=5)
    found = power_law(np.sort(np.sqrt(draws))[::-1].copy())
    assert found is not None
    assert abs(found.alpha - 3) < 4 * found.error
    assert kstest(draws, pareto(2.0).cdf).pvalue > 0.01  # the sample is what it is said to be


def test_fewer_than_fifty_values_have_no_power_law() -> None:
    S = np.sort(RNG.random(50))[::-1] + 0.1
    assert power_law(S) is not None
    assert power_law(S[:49]) is None
    assert power_law(np.ones(60)) is None  # equal values: no tail


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (9, 9)])
def test_values_alone_are_those_of_the_whole_decomposition(shape: tuple[int, int]) -> None:
    m = dense(RNG.standard_normal(shape))
    np.testing.assert_allclose(singular_values(m), svd(m).S, rtol=1e-9)


def test_small_values_are_not_lost_to_the_gram() -> None:
    Q, R = (np.linalg.qr(RNG.standard_normal((n, 8)))[0] for n in (30, 12))
    S = np.logspace(0, -9, 8)
    np.testing.assert_allclose(singular_values(dense(Q * S @ R.T)), S, rtol=1e-5)  # 8·2⁻⁵²·σ₁/σ₈ = 2e-6


def test_values_are_cut_at_numerical_rank() -> None:
    W = RNG.standard_normal((12, 5))
    assert singular_values(dense(np.concatenate([W, W], axis=1))).size == 5
    centred = RNG.standard_normal((8, 20))
    assert singular_values(dense(centred - centred.mean(axis=0))).size == 7


def test_weights_that_are_not_finite_are_refused() -> None:
    W = np.ones((3, 3))
    W[1, 1] = np.nan
    with pytest.raises(BadRequest, match="not finite"):
        singular_values(dense(W))
