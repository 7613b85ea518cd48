"""The picture that several studies share: which part of their directions lies below each value, beside chance."""

from collections.abc import Sequence

import numpy as np

from covector.axes import Float
from covector.render import Curve

# 95 % of empirical distributions of n values stay within this over √n of the true one (Kolmogorov).
REACH = 1.36


def below_picture(
    samples: Sequence[np.ndarray],
    names: Sequence[str],
    x: Float[np.ndarray, " n"],
    null: Float[np.ndarray, " n"],
    *,
    worth: float,
    x_name: str,
    band_name: str,
) -> Curve:
    """Empirical distributions of the samples at x, in the band around the law `null` that `worth` values keep to."""
    reach = REACH / np.sqrt(worth)
    return Curve(
        x=x,
        ys=np.array([shares_below(one, x) for one in samples]),
        names=list(names),
        x_name=x_name,
        y_name="share of directions below",
        x_unit="",
        y_unit="",
        band=(np.clip(null - reach, 0, 1), np.clip(null + reach, 0, 1)),
        band_name=band_name,
    )


def shares_below(values: np.ndarray, x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Share of the values that are at most x."""
    return np.searchsorted(np.sort(values), x, side="right") / len(values)
