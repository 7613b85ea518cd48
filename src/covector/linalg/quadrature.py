"""Nodes and weights that average a function over an interval."""

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest


def gauss_legendre(n: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """`n` nodes in (0, 1) and weights of sum 1: exact for polynomials of degree 2n − 1.

    For smooth functions on an interval of length h the error is of order h^(2n). Raises BadRequest for n below 1.
    """
    if n < 1:
        raise BadRequest(f"expected at least one node, got {n}")
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return 0.5 * (nodes + 1), 0.5 * weights
