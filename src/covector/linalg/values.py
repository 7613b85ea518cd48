"""Singular values alone, for spectra of whole models: no vectors are kept, and for one matrix none are made.

Source: `docs/theory/spectra.md`, equation 1.
"""

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.dense_svd import SAFE_TRACE
from covector.linalg.dyads import numerical_rank
from covector.linalg.maps import Factored, Map, frobenius, row_tiles
from covector.linalg.product_svd import product_dyads

# σ/σ₁ down to which the Gram of the short side is asked: its eigenvalues are off by about 10·eps·σ₁², which is 1e-9 of
# the smallest value's square at this ratio. Below, the matrix itself is decomposed, at four times the cost.
WELL_CONDITIONED = 1e-3


def singular_values(m: Map) -> Float[np.ndarray, " r"]:
    """All singular values of a map above numerical rank (max(n, m)·2⁻⁵²·σ₁), largest first, in the map's units.

    Right to 1e-9 of each where σ_min/σ₁ ≥ 1e-3, else to 8·2⁻⁵²·σ₁ or better. A map of zeros has none.
    Raises BadRequest for weights that are not finite. Cost: 8dr² + 30r³ flop for factors d × r, r × d; for d × 4d
    4d³ + 4d³/3, or 17d³ where the matrix is not well conditioned.
    """
    size = frobenius(m)
    if not np.isfinite(size):
        raise BadRequest(
            f"cannot decompose {m.reads} -> {m.writes} {m.shape}: it holds values that are not finite, or too large to "
            "be squared; mask or repair them first"
        )
    if isinstance(m, Factored):
        return np.array(product_dyads(m.A, m.B)[0].S)
    S = _of_matrix(m.dense())
    return S[: numerical_rank(S, m.shape)]


def _of_matrix(W: Float[np.ndarray, "n m"]) -> Float[np.ndarray, " r"]:
    tall = W if W.shape[0] >= W.shape[1] else W.T
    gram = np.zeros((tall.shape[1], tall.shape[1]))
    for rows in row_tiles(tall.shape):
        tile = tall[rows].astype(np.float64, copy=False)
        gram += tile.T @ tile
    if SAFE_TRACE[0] < float(np.trace(gram)) < SAFE_TRACE[1]:
        squares = np.linalg.eigvalsh(gram)[::-1]
        if squares[-1] >= WELL_CONDITIONED**2 * squares[0]:
            return np.sqrt(squares)
    return np.linalg.svdvals(tall.astype(np.float64, copy=False))
