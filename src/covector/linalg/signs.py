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
    return signs_of(Vh, writes) if written_side_decides(reads, writes) else signs_of(U.T, reads)


def written_side_decides(reads: Space, writes: Space) -> bool:
    """Whether the sign is read off what a dyad writes: always, unless it alone does not lie in the stream."""
    return writes.kind in STREAMS or reads.kind not in STREAMS


def signs_of(rows: Float[np.ndarray, "r d"], space: Space) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """Return the factors and margins of `canonical_signs` for the rows that decide."""
    if not rows.shape[0]:
        return np.zeros(0), np.zeros(0)
    if skipped := STREAMS.get(space.kind, 0):
        beyond = np.abs(rows[:, skipped:]).max(axis=1, initial=0.0) > TIE
        rows = rows.copy()
        rows[beyond, :skipped] = 0.0
    highest, lowest = rows.max(axis=1), rows.min(axis=1)
    largest = np.maximum(highest, -lowest)
    signs = np.where(highest >= -lowest, 1.0, -1.0)
    tied = np.flatnonzero(np.minimum(highest, -lowest) >= (1 - TIE) * largest)
    if tied.size:
        pivot = np.argmax(np.abs(rows[tied]) >= (1 - TIE) * largest[tied, None], axis=1)
        signs[tied] = np.where(rows[tied, pivot] < 0, -1.0, 1.0)
    own, other = np.where(signs > 0, highest, -lowest), np.where(signs > 0, -lowest, highest)
    return signs, np.maximum(own - np.maximum(other, 0.0), 0.0) / largest
