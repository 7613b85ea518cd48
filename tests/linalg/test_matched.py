"""Random changes of a matrix: the rank and singular values that were asked for, in any direction; their sizes."""

import numpy as np
import pytest

from covector.linalg.matched import driven_by, mean_square, product_norm, random_factors, spectrum, two_sided_p

# Float64 sums of a few hundred terms of order one.
CLOSE = 1e-10


def thin(n: int = 9, k: int = 3, m: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, k)), rng.standard_normal((k, m))


def test_the_spectrum_is_that_of_the_product() -> None:
    left, right = thin()
    np.testing.assert_allclose(spectrum(left, right), np.linalg.svd(left @ right)[1][:3], rtol=CLOSE)


def test_directions_that_come_twice_count_once() -> None:
    left, right = thin(k=1)
    twice = spectrum(np.concatenate([left, left], axis=1), np.concatenate([right, right]))
    np.testing.assert_allclose(twice, [2 * np.linalg.norm(left) * np.linalg.norm(right)], rtol=CLOSE)
    assert not len(spectrum(0 * left, right))


def test_a_random_change_has_the_singular_values_that_were_asked_for() -> None:
    values = np.array([3.0, 1.0, 0.5])
    left, right = random_factors(values, 9, 7, np.random.default_rng(1))
    np.testing.assert_allclose(np.linalg.svd(left @ right)[1][:3], values, rtol=CLOSE)


def test_random_changes_have_no_preferred_direction() -> None:
    """E[vᵀv] = I/m on the written side, E[uᵀu] = I/n on the read side, 4000 draws: 6 standard errors."""
    rng, draws = np.random.default_rng(2), 4000
    made = [random_factors(np.ones(1), 5, 4, rng) for _ in range(draws)]
    for rows, d in ((np.stack([left[:, 0] for left, _ in made]), 5), (np.stack([right[0] for _, right in made]), 4)):
        # An entry u_i u_j has variance below E[u_i⁴] = 3/(d(d + 2)).
        error = np.sqrt(3 / (d * (d + 2)) / draws)
        np.testing.assert_allclose(rows.T @ rows / draws, np.eye(d) / d, atol=6 * error)
        np.testing.assert_allclose(rows.mean(axis=0), 0, atol=6 / np.sqrt(d * draws))


def test_sizes_are_those_of_the_multiplied_out_change() -> None:
    left, right = thin()
    X, b = np.random.default_rng(3).standard_normal((20, 9)), np.arange(7.0)
    dense = np.mean(np.sum((X @ left @ right + b) ** 2, axis=1))
    np.testing.assert_allclose(mean_square(X @ left, right, b), dense, rtol=CLOSE)
    np.testing.assert_allclose(product_norm(left, right), np.linalg.norm(left @ right), rtol=CLOSE)


def test_ids_stand_for_one_hot_inputs() -> None:
    left, _ = thin()
    ids = np.array([4, 0, 4])
    np.testing.assert_array_equal(driven_by(ids, left), np.eye(9)[ids] @ left)


def test_p_counts_both_signs_ties_and_the_edit_itself() -> None:
    null = np.array([-3.0, -1.0, 2.0, 0.5])
    assert two_sided_p(-2.0, null) == pytest.approx(3 / 5)
    assert two_sided_p(9.0, null) == pytest.approx(1 / 5)
    assert np.isnan(two_sided_p(1.0, np.zeros(0)))
