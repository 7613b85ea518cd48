"""Rays or directions: does a direction mean something at one pole only?

Source: Q6 of the theory page; `docs/theory/studies.md`, equation 8.
"""

import numpy as np

from covector.axes import Float


def one_sidedness(top: Float[np.ndarray, " r"], bottom: Float[np.ndarray, " r"]) -> Float[np.ndarray, " r"]:
    """κ = (m₊ − m₋)/(m₊ + m₋) of the mean scores of both poles' labels, sizes as positive numbers.

    0 for a direction whose poles reach equally far, ±1 for a ray; its sign changes with the direction's. A pole on the
    other side of zero counts as not reaching at all. NaN where neither pole reaches.
    """
    plus, minus = np.maximum(top, 0.0), np.maximum(bottom, 0.0)
    total = plus + minus
    return np.divide(plus - minus, total, out=np.full(len(total), np.nan), where=total > 0)
