"""The least change that takes one input's answer away: against a generic solver, and its laws."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.least_change import least_rows

D, M_OUT = 6, 4


def case(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs of an uneven covariance with a mean, one of them, and a map that is not square."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((200, D)) @ rng.standard_normal((D, D)) + rng.standard_normal(D)
    return X, X[:9].mean(axis=0), rng.standard_normal((D, M_OUT))


def solved(moment: np.ndarray, e: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """min tr(ΔᵀΣΔ) with eΔ = wanted, as one dense linear system over all entries of Δ and their multipliers."""
    n = D * M_OUT
    objective = np.kron(moment, np.eye(M_OUT))  # over Δ row by row
    constraint = np.kron(e[None], np.eye(M_OUT))
    system = np.block([[2 * objective, constraint.T], [constraint, np.zeros((M_OUT, M_OUT))]])
    return np.linalg.solve(system, np.concatenate([np.zeros(n), wanted]))[:n].reshape(D, M_OUT)


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_it_is_what_a_generic_solver_finds(share: float) -> None:
    """The closed form against the stationarity conditions solved densely, with no formula of ours in them."""
    X, e, W = case()
    moment = X.T @ X / len(X)
    w = least_rows(e[None], moment, share)[0]
    np.testing.assert_allclose(np.outer(w, e @ W), solved(moment, e, -share * e @ W), rtol=1e-9, atol=1e-12)


def test_the_input_keeps_its_share_and_the_cost_is_the_least_there_is() -> None:
    """(e + (ew)e)M = (1 − α)eM; the cost is α²‖eM‖²/(eΣ⁻¹eᵀ), and moves that keep the constraint only raise it."""
    X, e, W = case(1)
    moment, share = X.T @ X / len(X), 0.7
    w = least_rows(e[None], moment, share)[0]
    edited = W + np.outer(w, e @ W)
    np.testing.assert_allclose(e @ edited, (1 - share) * e @ W, rtol=1e-10)
    cost = np.mean(np.sum((X @ (edited - W)) ** 2, axis=1))
    assert cost == pytest.approx(share**2 * np.sum((e @ W) ** 2) / (e @ np.linalg.inv(moment) @ e), rel=1e-10)
    rng = np.random.default_rng(2)
    for size in (1e-3, 1.0):
        move = rng.standard_normal((D, M_OUT))
        move -= np.outer(e, e @ move) / (e @ e)
        assert np.mean(np.sum((X @ (edited - W + size * move)) ** 2, axis=1)) > cost


def test_every_row_is_solved_by_itself() -> None:
    X, _, _ = case(3)
    moment = X.T @ X / len(X)
    rows = least_rows(X[:5], moment, ridge=1e-3)
    for x, row in zip(X[:5], rows, strict=True):
        np.testing.assert_allclose(row, least_rows(x[None], moment, ridge=1e-3)[0], rtol=1e-10)
        assert x @ row == pytest.approx(-1, rel=1e-10)


def test_inputs_that_tell_a_token_apart_are_left_alone() -> None:
    """Where one direction belongs to one input alone, the others' answers do not change at all."""
    X = np.concatenate(
        [np.tile(np.eye(D)[0] + np.eye(D)[1], (5, 1)), np.random.default_rng(4).standard_normal((50, D))]
    )
    X[5:, 0] = 0
    w = least_rows(X[:1], X.T @ X / len(X))[0]
    np.testing.assert_allclose(X @ w, np.where(np.arange(len(X)) < 5, -1, 0), atol=1e-9)


def test_the_ridge_is_a_share_of_the_mean_diagonal() -> None:
    X, e, _ = case(5)
    moment = X.T @ X / len(X)
    thick = moment + 0.2 * np.mean(np.diag(moment)) * np.eye(D)
    np.testing.assert_allclose(least_rows(e[None], moment, ridge=0.2), least_rows(e[None], thick), rtol=1e-12)


def test_what_cannot_be_solved_is_refused() -> None:
    X, e, _ = case(6)
    flat = X.copy()
    flat[:, 0] = 0
    with pytest.raises(BadRequest, match="give a ridge above 0"):
        least_rows(e[None], flat.T @ flat)
    with pytest.raises(BadRequest, match="inputs other than 0"):
        least_rows(np.zeros((1, D)), X.T @ X)
