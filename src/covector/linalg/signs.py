"""One sign for each dyad: (u, v) and (-u, -v) are the same component, and every driver picks its own.

The largest entry by size of the residual-side vector is made positive, jointly for u and v. The residual side is the
written one if it lies in the residual stream, else the read one if that does, else the written one. A stream with a
constant 1 in front ("residual+1") is one too, and the constant has no say (unless a vector is nothing else): a frame
with biases keeps the signs of the one without as far as it keeps the dyads. Entries within `TIE` of the largest count
as equal and the lowest index decides, so that rounding does not.
"""

import numpy as np

from covector.axes import Float
from covector.linalg.maps import Space

# Kinds of space that are the residual stream, and how many coordinates in front of it are not.
STREAMS = {"residual": 0, "residual+1": 1}

# Relative difference below which two entries count as equally large: ten times the orthonormality of the vectors,
# a hundred times below the rounding of float32 weights.
TIE = 1e-10


def canonical_signs(
    U: Float[np.ndarray, "n _"], Vh: Float[np.ndarray, "_ m"], reads: Space, writes: Space
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """Return the factor (1 or -1) that makes each dyad canonical, and the margin of that choice.

    The margin is the largest entry of the canonical sign less the largest of the other sign, over the largest of all:
    1 when no entry has the other sign, 0 when the sign could as well be the opposite.
    """
    rows, space = (U.T, reads) if writes.kind not in STREAMS and reads.kind in STREAMS else (Vh, writes)
    if not rows.shape[0]:
        return np.zeros(0), np.zeros(0)
    if skipped := STREAMS.get(space.kind, 0):
        beyond = np.abs(rows[:, skipped:]).max(axis=1, initial=0.0) > TIE
        rows = rows.copy()
        rows[beyond, :skipped] = 0.0
    sizes = np.abs(rows)
    largest = sizes.max(axis=1)
    pivot = np.argmax(sizes >= (1 - TIE) * largest[:, None], axis=1)
    signs = np.where(np.take_along_axis(rows, pivot[:, None], axis=1)[:, 0] < 0, -1.0, 1.0)
    highest, lowest = rows.max(axis=1), rows.min(axis=1)
    own, other = np.where(signs > 0, highest, -lowest), np.where(signs > 0, -lowest, highest)
    return signs, np.maximum(own - np.maximum(other, 0.0), 0.0) / largest
