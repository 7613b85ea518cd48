"""How strongly to change each direction: the closed form against the objective, the box against its conditions."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.choosing import box_minimum, mu_of_size, proportional, size_of

DRAW = np.random.default_rng(0)


def objective(M: np.ndarray, edited: np.ndarray, C: np.ndarray, mu: float) -> float:
    return float(np.sum((edited @ C.T) ** 2) + mu * np.sum((edited - M) ** 2))


@pytest.mark.identity("SV-27")
@pytest.mark.parametrize("mu", [0.01, 0.3, 20.0])
def test_the_closed_form_minimises_the_objective(mu: float) -> None:
    """Dense algebra: no step in any ε lowers ‖M'Cᵀ‖² + μ‖M' − M‖², and its slope there is zero."""
    M = DRAW.standard_normal((9, 12))
    U, S, Vh = np.linalg.svd(M, full_matrices=False)
    C = np.linalg.qr(DRAW.standard_normal((12, 2)))[0].T
    best = proportional(np.sum((Vh @ C.T) ** 2, axis=1), mu)

    def value(epsilon: np.ndarray) -> float:
        return objective(M, (U * ((1 + epsilon) * S)) @ Vh, C, mu)

    for i in range(9):
        step = 1e-4 * np.eye(9)[i]
        assert value(best + step) > value(best) < value(best - step)
        assert abs(value(best + step) - value(best - step)) / 2e-4 < 1e-7 * S[0] ** 2 * (1 + mu)


@pytest.mark.identity("SV-27")
def test_limits_and_order() -> None:
    a = np.array([0.0, 1e-6, 0.1, 0.5, 1.0])
    np.testing.assert_allclose(proportional(a, 1e-15)[1:], -1, atol=1e-8)
    np.testing.assert_allclose(proportional(a, 1e15), 0, atol=1e-14)
    assert proportional(a, 1e-15)[0] == 0
    some = np.stack([proportional(a, mu) for mu in (0.01, 0.1, 1.0)])
    assert (np.diff(some, axis=1) <= 0).all()  # the more related, the stronger
    assert (np.diff(some, axis=0) >= 0).all()  # the dearer the change, the weaker
    assert ((some >= -1) & (some <= 0)).all()


@pytest.mark.identity("SV-27")
def test_with_data_it_minimises_the_expected_effect() -> None:
    """Inputs uncorrelated along the u: E_t‖xM'Cᵀ‖² + μ E_κ‖x(M' − M)‖² from dense second moments."""
    M = DRAW.standard_normal((9, 12))
    U, S, Vh = np.linalg.svd(M, full_matrices=False)
    c = np.linalg.qr(DRAW.standard_normal((12, 1)))[0].T
    t, k = DRAW.uniform(0.1, 3, 9), DRAW.uniform(0.1, 3, 9)
    moments = [(U * w) @ U.T for w in (t, k)]
    best = proportional((Vh @ c.T)[:, 0] ** 2, 0.4, target=t, control=k)

    def value(epsilon: np.ndarray) -> float:
        after = (U * ((1 + epsilon) * S)) @ Vh
        D = after - M
        return float(np.trace(c @ after.T @ moments[0] @ after @ c.T) + 0.4 * np.trace(D.T @ moments[1] @ D))

    for i in range(9):
        step = 1e-4 * np.eye(9)[i]
        assert value(best + step) > value(best) < value(best - step)


def test_amplifying_and_keeping() -> None:
    a = np.array([1.0, 0.25])
    np.testing.assert_allclose(proportional(a, 1e-12, keep=3.0), 2.0, atol=1e-9)
    np.testing.assert_allclose(proportional(a, 0.25, keep=0.3), [-0.7 * 0.8, -0.7 * 0.5])
    for mu, keep in ((0.0, 0.0), (-1.0, 0.0), (1.0, -0.1), (float("nan"), 0.0)):
        with pytest.raises(BadRequest, match="expected μ > 0"):
            proportional(a, mu, keep)


def test_a_size_finds_its_price() -> None:
    a, gains = DRAW.uniform(0, 1, 20), DRAW.uniform(0, 5, 20)
    for share in (0.01, 0.4, 0.99):
        wanted = share * size_of(np.full(20, -1.0), gains)
        mu = mu_of_size(a, gains, wanted)
        assert size_of(proportional(a, mu), gains) == pytest.approx(wanted, rel=1e-9)
    assert np.isnan(mu_of_size(a, gains, 1.01 * size_of(np.full(20, -1.0), gains)))


@pytest.mark.parametrize("price", [0.01, 1.0, 100.0])
def test_the_box_satisfies_its_conditions(price: float) -> None:
    """At the minimum the slope is zero inside, points outwards at bounds (Karush–Kuhn–Tucker); free of bounds it is
    the linear solution."""
    J = DRAW.standard_normal((40, 8))
    F, g = J.T @ J / 40, DRAW.standard_normal(8)
    found = box_minimum(g, F, price)
    slope = g + price * F @ found.epsilon
    free = ~found.at_low & ~found.at_high
    assert np.abs(slope[free]).max(initial=0.0) < 1e-6
    assert (slope[found.at_low] >= -1e-7).all()
    assert (slope[found.at_high] <= 1e-7).all()
    assert ((found.epsilon >= -1) & (found.epsilon <= 1)).all()
    if price == 100.0:
        assert found.free == 8
        np.testing.assert_allclose(found.epsilon, -np.linalg.solve(price * F, g), rtol=1e-5)
    if price == 0.01:
        assert found.free < 8


def test_the_box_takes_a_singular_gram() -> None:
    """Two directions with one effect: the cheaper way, within bounds."""
    F = np.array([[1.0, 1.0], [1.0, 1.0]])
    found = box_minimum(np.array([1.0, 1.0]), F, 2.0)
    assert found.epsilon.sum() == pytest.approx(-0.5, abs=1e-6)
