"""What the code behind the decision-transformer post did to weights, repeated as it was.

Source: §0.1, §0.2 and D1, D2, D9 of the theory page; `docs/replicate-dt-svd.md`.
"""

from collections.abc import Iterator

import numpy as np

from covector.axes import Float
from covector.linalg.chance.streams import Seed, generator

# Embeddings were multiplied by this "for the color map" before 2023-01-19: cosines were shown three times too large.
SHOWN_TIMES = 3.0


def rows_of_v(W: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"] | None:
    """Row i of V where singular vector i, row i of Vᴴ, was meant: `torch.svd` had been changed to `torch.linalg.svd`.

    Row i holds what every dyad writes to coordinate i, each with the sign that LAPACK gave it, so its cosines are one
    draw among `sign_patterns`. None for n < d, where rows of V are shorter than the stream and the code would stop.
    """
    Vh = np.linalg.svd(np.asarray(W, dtype=np.float64), full_matrices=False)[2]
    return None if len(Vh) < W.shape[1] else Vh.T


def sign_patterns(rows: Float[np.ndarray, "d d"], *, draws: int, seed: Seed) -> Iterator[Float[np.ndarray, "d d"]]:
    """The same rows with other signs of the dyads, which are as right: what another LAPACK might have shown."""
    for signs in generator(seed, "signs").choice([-1.0, 1.0], size=(draws, rows.shape[1])):
        yield rows * signs


def scrambled(W_in: Float[np.ndarray, "d n"]) -> Float[np.ndarray, "r d"]:
    """Right singular vectors of W_in [d, n] *reshaped* to [n, d] where its transpose was meant, as done to GPT-J."""
    mixed = np.ascontiguousarray(W_in, dtype=np.float64).reshape(W_in.shape[::-1])
    return np.linalg.svd(mixed, full_matrices=False)[2]
