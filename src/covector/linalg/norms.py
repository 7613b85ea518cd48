"""Normalisations of a row, and the projection that LayerNorm hides from its readers.

Source: `docs/theory/frames.md`, equations 1–3.
"""

import numpy as np

from covector.axes import Float


def normalised(rows: Float[np.ndarray, "... d"], centre: bool, eps: float) -> Float[np.ndarray, "... d"]:
    """Rows divided by the root of their mean square (plus eps), after centring when `centre`; float64, no gain."""
    wide = rows.astype(np.float64)
    if centre:
        wide = wide - wide.mean(axis=-1, keepdims=True)
    return wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + eps)


def without_mean(rows: Float[np.ndarray, "... d"]) -> Float[np.ndarray, "... d"]:
    """Rows times C = I − 11ᵀ/d: their part that LayerNorm can see. In the rows' own precision."""
    return rows - rows.mean(axis=-1, keepdims=True, dtype=np.float64).astype(rows.dtype)
