"""Inverses of triangular matrices: against substitution by LAPACK, over every size around the blocks."""

import numpy as np
import pytest
from scipy.linalg import solve_triangular

from covector.linalg.triangular import inverses_of_lower

EPS = np.finfo(float).eps


def lower_matrices(h: int, r: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = np.tril(rng.standard_normal((h, r, r)))
    made[:, np.arange(r), np.arange(r)] = np.sqrt(r) * rng.choice([-1.0, 1.0], (h, r)) * rng.uniform(0.5, 2.0, (h, r))
    return made


@pytest.mark.parametrize("r", [1, 2, 7, 8, 9, 16, 17, 40, 64, 65, 80, 128])
def test_they_are_those_of_substitution(r: int) -> None:
    lower = lower_matrices(3, r, seed=r)
    found = inverses_of_lower(lower)
    assert found.shape == (3, r, r)
    for matrix, inverse in zip(lower, found, strict=True):
        expected = solve_triangular(matrix, np.eye(r), lower=True)
        # Both err by r·eps·κ of the largest entry at most (Higham 2002, theorem 14.2).
        allowed = r * EPS * np.linalg.cond(matrix) * np.abs(expected).max()
        np.testing.assert_allclose(inverse, expected, rtol=0, atol=allowed)
        assert not np.triu(inverse, 1).any()


def test_residuals_are_small_next_to_the_product_of_sizes_also_where_rows_are_graded() -> None:
    rng = np.random.default_rng(0)
    lower = np.tril(rng.standard_normal((2, 40, 40))) * np.geomspace(1, 1e-8, 40)[:, None]
    lower[:, np.arange(40), np.arange(40)] = np.geomspace(1, 1e-8, 40)
    found = inverses_of_lower(lower)
    bound = 40 * EPS * (np.abs(found) @ np.abs(lower))  # row-wise backward error of a left inverse
    assert np.all(np.abs(found @ lower - np.eye(40)) <= 10 * bound)


def test_what_stands_above_the_diagonal_is_not_read() -> None:
    lower = lower_matrices(2, 20, seed=1)
    np.testing.assert_array_equal(
        inverses_of_lower(lower + np.triu(np.full((20, 20), 7.0), 1)), inverses_of_lower(lower)
    )


def test_each_is_found_as_if_it_were_alone_and_a_singular_one_spoils_no_other() -> None:
    lower = lower_matrices(4, 24, seed=2)
    lower[1, 5, 5] = 0.0
    with np.errstate(all="ignore"):
        found = inverses_of_lower(lower)
    assert not np.isfinite(found[1]).all()
    for i in (0, 2, 3):
        np.testing.assert_array_equal(found[i], inverses_of_lower(lower[i : i + 1])[0])
