"""Rotary positions on NumPy arrays: how queries and keys turn, and back."""

import numpy as np

from covector.axes import Float, Int
from covector.model.spec import Rotary


def turn(
    x: Float[np.ndarray, "*batch position head d_head"],
    rotary: Rotary | None,
    positions: Int[np.ndarray, " position"],
    *,
    back: bool = False,
) -> Float[np.ndarray, "*batch position head d_head"]:
    """Each coordinate pair i of x turned by position · frequency_i, or by minus that (`back`); x itself without rotary.

    A turn is orthogonal, so `back` is its inverse, and pulls a functional on turned queries back onto queries. Float64.
    Source: Su et al., RoFormer; which coordinates pair is said by `Rotary.interleaved`.
    """
    if rotary is None:
        return x
    angle = positions[:, None, None] * np.array(rotary.frequencies())
    cos, sin = np.cos(angle), np.sin(angle) * (-1 if back else 1)
    turning, still = x[..., : rotary.dim], x[..., rotary.dim :]
    if rotary.interleaved:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = np.stack((a * cos - b * sin, b * cos + a * sin), axis=-1).reshape(turning.shape)
    else:
        a, b = np.split(turning, 2, axis=-1)
        turned = np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)
    return np.concatenate((turned, still), axis=-1)
