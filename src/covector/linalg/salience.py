"""Which labelled vectors a map answers to most: gains, and the largest of them by chance.

The gain of a vector e is ‖e·M‖ / ‖e‖ over ‖M‖_F / √d, the root-mean-square gain of a random direction: 1 is chance's
mean of squares. The largest of n gains is compared with the largest of n under a random rotation of M.

Source: `docs/theory/heads.md`, equation 9; SV-19.
"""

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.haar import draw_frames
from covector.linalg.chance.streams import Seed, generator

# Rows of the vocabulary per product.
ROWS = 8192


def gains(
    vectors: Float[np.ndarray, "n d"],
    lengths: Float[np.ndarray, " n"],
    U: Float[np.ndarray, "d r"],
    S: Float[np.ndarray, " r"],
    d: int,
) -> Float[np.ndarray, " n"]:
    """Return ‖e·M‖ / ‖e‖ · √d / ‖M‖_F of every row e, unitless; `d` is the dimension that reads can have.

    Sums are float64. A map of zeros has no gain: zeros come back.
    """
    scale = float(np.linalg.norm(S))
    if not scale > 0:
        return np.zeros(len(vectors))
    out = np.empty(len(vectors))
    for start in range(0, len(vectors), ROWS):
        rows = slice(start, start + ROWS)
        out[rows] = np.linalg.norm((vectors[rows].astype(np.float64) @ U) * S, axis=1)
    return out / lengths * np.sqrt(d) / scale


def null_top_gains(
    units: Float[np.ndarray, "n d"],
    S: Float[np.ndarray, "h r"],
    d: int,
    *,
    draws: int,
    seed: Seed,
    first: int = 0,
) -> Float[np.ndarray, "draws h"]:
    """Return the largest gain over all rows, for maps of the spectra `S` turned at random against them; [draws, h].

    One Haar frame serves all h maps in a draw: each column has its own law exactly, columns depend on each other.
    `d` < the width says that `units` and the maps live in the hyperplane without a part along 1.
    Costs 2·n·d·r flop per draw, whatever h. Products in the precision of `units`. Raises BadRequest for r > d.
    """
    r, width = S.shape[1], units.shape[1]
    if not 1 <= r <= d or d not in (width, width - 1):
        raise BadRequest(f"expected spectra of 1 to d = {d} values in a stream of {width}, got {r}")
    power = np.square(S)
    weights = (power * d / np.maximum(power.sum(axis=1, keepdims=True), np.finfo(float).tiny)).astype(units.dtype)

    def one(block: int) -> Float[np.ndarray, "draws h"]:
        turned = haar_rows(generator(seed, "top gain", block), r, width, centred=d < width)
        frame = turned.astype(units.dtype)
        largest = np.zeros(len(S), dtype=units.dtype)
        for start in range(0, len(units), ROWS):
            reached = np.square(units[start : start + ROWS] @ frame.T) @ weights.T
            np.maximum(largest, reached.max(axis=0), out=largest)
        return np.sqrt(largest.astype(np.float64))[None]

    return np.concatenate([one(block) for block in range(first, first + draws)])


def haar_rows(rng: np.random.Generator, r: int, width: int, *, centred: bool) -> Float[np.ndarray, "r d"]:
    """One Haar r-frame of R^width, or of the hyperplane without a part along 1 where `centred`."""
    if not centred:
        return draw_frames(rng, 1, width, r)[0]
    rows = rng.standard_normal((r, width))
    rows -= rows.mean(axis=1, keepdims=True)
    columns, triangle = np.linalg.qr(rows.T)
    return (columns * np.copysign(1.0, np.diagonal(triangle))).T
