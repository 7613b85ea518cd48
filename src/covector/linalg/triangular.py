"""Inverses of many small triangular matrices at once, by products: what is done to one is done to all in one call."""

import numpy as np

from covector.axes import Float

# Largest blocks that are inverted row by row; a power of two. Larger ones are put together from inverses of halves.
SMALL = 8


def inverses_of_lower(lower: Float[np.ndarray, "h r r"]) -> Float[np.ndarray, "h r r"]:
    """Inverses of lower triangular matrices; rows of a matrix with a zero on its diagonal are not finite.

    With ``[[A, 0], [B, C]]⁻¹ = [[A⁻¹, 0], [-C⁻¹·B·A⁻¹, C⁻¹]]`` from the diagonal outwards. As near to the inverse as
    substitution comes, ‖L·X − I‖ of a few eps·r·κ (Higham 2002, §14.2); what is above the diagonal is not read.
    """
    number, r = lower.shape[:2]
    size = padded_size(r)
    padded = np.zeros((number, size, size))
    padded[:, :r, :r] = lower
    padded[:, np.arange(r, size), np.arange(r, size)] = 1.0
    made = np.zeros_like(padded)
    _diagonal(made, SMALL)[...] = _row_by_row(_diagonal(padded, SMALL))
    half = SMALL
    while half < size:
        blocks, whole = _diagonal(made, 2 * half), _diagonal(padded, 2 * half)
        first, second = blocks[..., :half, :half], blocks[..., half:, half:]
        blocks[..., half:, :half] = -(second @ (whole[..., half:, :half] @ first))
        half *= 2
    return made[:, :r, :r]


def padded_size(r: int) -> int:
    """Of the squares in which r x r matrices are inverted: the next power of two."""
    return max(SMALL, 1 << (r - 1).bit_length())


def _diagonal(matrices: Float[np.ndarray, "h s s"], size: int) -> Float[np.ndarray, "h n size size"]:
    """The blocks of that size on the diagonals: a view that can be written to."""
    number, width = matrices.shape[:2]
    step = matrices.strides
    return np.lib.stride_tricks.as_strided(
        matrices,
        (number, width // size, size, size),
        (step[0], size * (step[1] + step[2]), step[1], step[2]),
    )


def _row_by_row(lower: Float[np.ndarray, "h n s s"]) -> Float[np.ndarray, "h n s s"]:
    """Forward substitution with the unit vectors, a row of every block at a time."""
    made = np.zeros(lower.shape)
    for row in range(lower.shape[-1]):
        made[..., row, row] = 1.0
        made[..., row, :row] = -(lower[..., row, None, :row] @ made[..., :row, :row])[..., 0, :]
        made[..., row, : row + 1] /= lower[..., row, row, None]
    return made
