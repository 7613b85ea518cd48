"""The two routes to the dyads of a product: what they tell of the factors, and when the fast one steps back."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.maps import Factored, Space
from covector.linalg.product_svd import by_gram, by_jacobi
from covector.linalg.svd import svd

N, R, M = 60, 12, 45


def factors(seed: int, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gains = np.geomspace(1, 0.03, R)
    return (rng.standard_normal((N, R)) * gains).astype(dtype), rng.standard_normal((R, M)).astype(dtype)


@pytest.mark.parametrize("route", [by_gram, by_jacobi])
@pytest.mark.parametrize("seed", range(3))
def test_what_each_factor_passes_on_is_measured_as_it_is_defined(route, seed):
    A, B = factors(seed)
    dyads, measured = route(A, B)
    # From triangles of condition below 100, each right to some thousand roundings.
    np.testing.assert_allclose(measured.reach[0], np.linalg.norm(dyads.U.T @ A, axis=1), rtol=1e-11)
    np.testing.assert_allclose(measured.reach[1], np.linalg.norm(B @ dyads.Vh.T, axis=0), rtol=1e-11)
    for (frobenius, spectral), factor in ((measured.left, A), (measured.right, B)):
        exact = np.linalg.norm(factor, 2)
        np.testing.assert_allclose(frobenius, np.linalg.norm(factor), rtol=1e-12)
        # From above, by r^(1/8) at most; the rounding of 1e-12 is that of the Gram.
        assert exact * (1 - 1e-12) <= spectral <= exact * R**0.125


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_signs_that_are_asked_for_go_to_both_vectors_of_a_dyad(dtype):
    A, B = factors(4, dtype)
    plain = by_gram(A, B)
    flips = np.where(np.arange(R) % 3 == 0, -1.0, 1.0)
    shown = []

    def signs(Vh: np.ndarray) -> np.ndarray:
        shown.append(Vh.copy())
        return flips

    turned = by_gram(A, B, signs)
    assert plain is not None
    assert turned is not None
    np.testing.assert_array_equal(shown, [plain[0].Vh])
    np.testing.assert_array_equal(turned[0].Vh, plain[0].Vh * flips[:, None])
    np.testing.assert_array_equal(turned[0].U, plain[0].U * flips)
    np.testing.assert_array_equal(turned[1].reach, plain[1].reach)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("writes", ["residual", "head"])  # whose signs are known early, and whose late
def test_a_value_that_is_not_finite_is_refused_on_whichever_route(bad, side, writes):
    pair = [factor.astype(np.float32) for factor in factors(5)]
    pair[side][3, 4] = bad
    assert by_gram(*pair) is None
    with pytest.raises(BadRequest, match=f"{'AB'[side]} .* not finite"):
        svd(Factored(*pair, Space("residual", N), Space(writes, M)))


@pytest.mark.parametrize("scale", [1e-120, 1e120])
def test_squares_out_of_range_take_the_careful_route_and_agree(scale):
    A, B = factors(6)
    assert by_gram(A * scale, B) is None
    here, there = (svd(Factored(A * s, B, Space("residual", N), Space("residual", M))) for s in (1.0, scale))
    # Two routes, each right to 1e-11 of a gain.
    np.testing.assert_allclose(there.S, here.S * scale, rtol=2e-11)
    np.testing.assert_allclose(there.U, here.U, atol=1e-10)


@pytest.mark.parametrize("shape", [(5, 8, 20), (20, 8, 5)])
def test_a_wide_inner_size_is_left_to_the_careful_route(shape):
    n, r, m = shape
    rng = np.random.default_rng(7)
    assert by_gram(rng.standard_normal((n, r)), rng.standard_normal((r, m))) is None
