"""The span of a few directions, where nearly parallel ones count once."""

import numpy as np

from covector.axes import Float

# Of unit vectors, a singular value below this share of the largest is the same direction said twice: two are merged
# when they are nearer than about 0.1° (tan of half the angle). The rounding of float16 weights turns a vector by 0.02°.
SAME = 1e-3


def span(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "k d"]:
    """An orthonormal basis of what the rows span, largest share first; what `SAME` calls the same is merged.

    Lengths do not matter. Of nearly parallel rows their common direction is kept, and the difference between them left
    out. Rows must be finite and not null.
    """
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    _, values, basis = np.linalg.svd(unit, full_matrices=False)
    return basis[values > SAME * values[0]]
