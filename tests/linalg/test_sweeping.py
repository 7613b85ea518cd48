"""Mathematics of sweeps: exact p by random changes of equal output, honest orders, effective numbers, sizes."""

import numpy as np
import pytest

from covector.linalg.sweeping import (
    effective_number,
    equal_output_p,
    honesty,
    off_diagonal,
    output_sizes,
    rank_correlation,
    share_of_size,
)


def problem(n: int = 5, m: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, n)) @ np.diag(np.geomspace(3, 0.3, n))
    return rng.standard_normal((n, m)), x.T @ x / len(x)


def test_p_is_the_share_of_random_changes_of_equal_output() -> None:
    """Against plain draws of u and w: 40,000 of them leave an error of 0.0025 at most; four of those."""
    G, second = problem()
    rng = np.random.default_rng(1)
    reads = rng.standard_normal((3, 5))
    writes = rng.standard_normal((3, 7))
    writes /= np.linalg.norm(writes, axis=1, keepdims=True)
    effects = np.einsum("rn,nm,rm->r", reads, G, writes)
    found = equal_output_p(effects, reads, G, second, draws=4000, seed=0)
    u, w = rng.standard_normal((40_000, 5)), rng.standard_normal((40_000, 7))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    size = np.sqrt(np.einsum("dn,nk,dk->d", u, second, u))
    random = np.abs(np.einsum("dn,nm,dm->d", u, G, w)) / size
    own = np.abs(effects) / np.sqrt(np.einsum("rn,nk,rk->r", reads, second, reads))
    expected = [(random >= r).mean() for r in own]
    # 4,000 reads leave an error of their own of about the same size.
    np.testing.assert_allclose(found, expected, atol=0.015)


def test_p_is_uniform_for_random_changes_at_any_number_of_draws() -> None:
    """Exactly uniform with few draws: shares below .05, .25 and .5 of 1,500, each within four binomial errors."""
    G, second = problem(seed=3)
    rng, p = np.random.default_rng(4), []
    for i in range(1500):
        u, w = rng.standard_normal(5), rng.standard_normal(7)
        w /= np.linalg.norm(w)
        p.append(equal_output_p(np.array([u @ G @ w]), u[None], G, second, draws=3, seed=i)[0])
    for level in (0.05, 0.25, 0.5):
        error = np.sqrt(level * (1 - level) / len(p))
        assert abs(np.mean(np.array(p) <= level) - level) < 4 * error


def test_p_of_what_does_nothing_is_one() -> None:
    G, second = problem()
    assert equal_output_p(np.zeros(2), np.zeros((2, 5)), G, second, draws=5, seed=0).tolist() == [1.0, 1.0]
    assert equal_output_p(np.zeros(1), np.ones((1, 5)), 0 * G, second, draws=5, seed=0).tolist() == [1.0]


def test_output_sizes_are_root_mean_squares() -> None:
    rng = np.random.default_rng(0)
    x, r = rng.standard_normal((50, 4)), rng.standard_normal((3, 4))
    np.testing.assert_allclose(output_sizes(r, x.T @ x / 50), np.sqrt(((x @ r.T) ** 2).mean(axis=0)))


def test_weighted_rank_correlation_is_that_of_repeated_values() -> None:
    """Whole weights are copies: Spearman's correlation of the longer list."""
    from scipy.stats import rankdata

    rng = np.random.default_rng(0)
    x = rng.standard_normal(12)
    y = x + rng.standard_normal(12)
    weight = np.array([1] * 6 + [3] * 6)
    expected = np.corrcoef(*(rankdata(np.repeat(values, weight)) for values in (x, y)))[0, 1]
    assert rank_correlation(x, y, weight.astype(float)) == pytest.approx(expected)


def test_honesty_counts_what_the_first_left_out() -> None:
    order = np.concatenate([np.linspace(10, 5, 6), np.linspace(4, 1, 8)])
    perfect = honesty(order, order, 6, 80, 0)
    assert perfect.correlation == pytest.approx(1.0)
    assert perfect.missed.value == 0
    measured = order.copy()
    measured[6:8] = 50.0
    worse = honesty(order, -measured, 6, 80, 0)
    assert worse.missed.value == pytest.approx(2 / 8)
    assert worse.low <= worse.correlation <= worse.high
    assert worse.correlation < 1
    assert np.isnan(honesty(order[:6], order[:6], 6, 0, 0).correlation)


def test_effective_number() -> None:
    assert effective_number(np.array([2.0, -2.0, 2.0, 0.0])) == pytest.approx(3.0)
    assert effective_number(np.array([0.0, 5.0])) == pytest.approx(1.0)
    assert np.isnan(effective_number(np.zeros(3)))
    shares = np.array([0.5, 0.3, 0.2])
    assert effective_number(7 * shares) == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))


def test_off_diagonal_mass() -> None:
    assert off_diagonal(np.eye(3)) == 0
    assert off_diagonal(np.ones((4, 4))) == pytest.approx(3 / 4)
    assert off_diagonal(np.array([[1.0, -2.0], [0.0, 1.0]])) == pytest.approx(0.5)
    assert off_diagonal(np.stack([np.eye(2), np.ones((2, 2))])).tolist() == [0, 0.5]


def test_sets_of_equal_size() -> None:
    """Σε²σ² is what was wished, along the order; all of it where there is not enough."""
    gains = np.array([3.0, 2.0, 1.0, 0.5])
    epsilon = share_of_size(gains, 6.0, np.array([2, 0, 1, 3]))
    assert np.sum((epsilon * gains) ** 2) == pytest.approx(6.0)
    assert epsilon[2] == -1
    assert -1 < epsilon[0] < 0
    assert epsilon[1] == epsilon[3] == 0
    assert share_of_size(gains, 100.0, np.arange(4)).tolist() == [-1] * 4
