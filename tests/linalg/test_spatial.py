"""Moran's I against its definition as a double sum, its mean under permutation, and what its nulls keep."""

from itertools import permutations

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.chance import max_t
from covector.linalg.spatial import morans_i, neighbours, permuted_i, standardised

GRID = np.array([(x, y) for x in range(5) for y in range(4)])


def by_hand(values: np.ndarray, cells: np.ndarray) -> float:
    z, top, pairs = values - values.mean(), 0.0, 0
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1:
                top, pairs = top + z[i] * z[j], pairs + 1
    return len(values) / pairs * top / np.sum(z**2)


def test_morans_i_is_the_double_sum_over_neighbours() -> None:
    values = np.random.default_rng(0).standard_normal((3, len(GRID)))
    found = morans_i(values, neighbours(GRID))
    np.testing.assert_allclose(found, [by_hand(v, GRID) for v in values], rtol=1e-12)
    hole = np.delete(GRID, [3, 7], axis=0)
    kept = np.delete(values[0], [3, 7])
    assert morans_i(kept, neighbours(hole)) == pytest.approx(by_hand(kept, hole), rel=1e-12)


def test_a_chessboard_has_minus_one_and_a_slope_is_near_one() -> None:
    near = neighbours(GRID)
    assert morans_i((GRID.sum(axis=1) % 2).astype(float), near) == pytest.approx(-1, abs=1e-12)
    assert morans_i(GRID[:, 0].astype(float), near) > 0.7
    assert np.isnan(morans_i(np.full(len(GRID), 0.1), near))


def test_the_mean_over_all_orders_is_minus_one_over_n_minus_one() -> None:
    cells = np.array([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)])
    values, near = np.array([1.0, 5.0, 2.0, -3.0, 0.5]), neighbours(cells)
    every = np.array([values[list(order)] for order in permutations(range(5))])
    assert morans_i(every, near).mean() == pytest.approx(-1 / 4, abs=1e-12)


def test_the_permutation_null_has_that_mean_and_moves_equal_maps_together() -> None:
    rng = np.random.default_rng(1)
    values, part = rng.standard_normal(len(GRID)), GRID[:12]
    null = permuted_i([values, values, values[:12]], [GRID, GRID, part], draws=4000, seed=0)
    np.testing.assert_array_equal(null[:, 0], null[:, 1])
    for column, n in ((0, 20), (2, 12)):
        error = null[:, column].std() / np.sqrt(4000)
        assert null[:, column].mean() == pytest.approx(-1 / (n - 1), abs=4 * error)
    np.testing.assert_array_equal(
        null, permuted_i([values, values, values[:12]], [GRID, GRID, part], draws=4000, seed=0)
    )


def test_one_family_of_random_maps_in_twenty_is_called_shaped() -> None:
    rng, found, families = np.random.default_rng(2), 0, 200
    for seed in range(families):
        maps = list(rng.standard_normal((4, len(GRID))))
        observed = np.array([morans_i(m, neighbours(GRID)) for m in maps])
        z, null = standardised(observed, permuted_i(maps, [GRID] * 4, draws=199, seed=seed))
        found += max_t(z, null).min() <= 0.05
    # Binomial: 200 × .05 = 10 ± 3.1.
    assert 1 <= found <= 20


def test_a_cell_named_twice_is_refused() -> None:
    with pytest.raises(BadRequest, match="one value per cell"):
        neighbours(np.array([(0, 0), (1, 0), (0, 0)]))
    with pytest.raises(BadRequest, match="draws >= 1"):
        permuted_i([np.ones(20)], [GRID], draws=0, seed=0)
