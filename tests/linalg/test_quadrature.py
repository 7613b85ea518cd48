"""Gauss–Legendre averages: exact for the polynomials that they promise, and of the promised order beyond."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.quadrature import gauss_legendre


@pytest.mark.parametrize("n", [1, 2, 3, 5, 12])
def test_polynomials_up_to_twice_the_nodes_less_one_are_averaged_exactly(n: int) -> None:
    nodes, weights = gauss_legendre(n)
    assert np.all((nodes > 0) & (nodes < 1))
    for degree in range(2 * n):
        assert weights @ nodes**degree == pytest.approx(1 / (degree + 1), rel=1e-13)
    # The error of the next degree is (n!)⁴ / ((2n + 1) ((2n)!)²), as every table of the rule has it.
    factorial = [float(np.prod(np.arange(1.0, m + 1))) for m in (n, 2 * n)]
    wanted = factorial[0] ** 4 / ((2 * n + 1) * factorial[1] ** 2)
    assert 1 / (2 * n + 1) - weights @ nodes ** (2 * n) == pytest.approx(wanted, rel=1e-3, abs=1e-15)


def test_no_nodes_are_refused() -> None:
    with pytest.raises(BadRequest, match="at least one node"):
        gauss_legendre(0)
