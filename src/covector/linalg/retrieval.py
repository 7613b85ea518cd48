"""Does a map send one labelled vector to another? Ranks among all labels, without a table of labels x labels.

A source e is sent to e·A·B, and every label w of the output scores ⟨e·A·B, w⟩. A target is *reached* when it stands
among the k highest scores, *suppressed* when it stands among the k lowest (the k highest of −A·B). Ties count against
it: a map of zeros reaches nothing. Scores are float64, made in tiles of the vocabulary.

Source: `docs/theory/heads.md`, equations 6–7.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest

# Scores held at a time (float64): 32 MB.
TILE_ENTRIES = 2**22
# Scores nearer than this many roundings of their own size are ties.
TIE = 256 * np.finfo(float).eps


@dataclass(frozen=True, eq=False)
class Reached:
    """For every map and source (and target, where there are several): among the k highest, among the k lowest."""

    high: Bool[np.ndarray, "..."]
    low: Bool[np.ndarray, "..."]


def reaches_own(
    sources: Float[np.ndarray, "h m r"],
    B: Float[np.ndarray, "h r d"],
    vectors: Float[np.ndarray, "n d"],
    own: Int[np.ndarray, " m"],
    k: int,
) -> Reached:
    """Return for h maps and m sources whether source i reaches, or suppresses, label ``own[i]`` among n; each [h, m].

    `sources` are e·A in the map's own r coordinates, `vectors` the output labels. Costs 2·h·m·n·r flop at most, as much
    less as sources are decided early; a tile of scores in memory. m may be 0. Raises BadRequest for k outside 1 … n.
    """
    _check(k, len(vectors))
    h, m, _ = sources.shape
    targets = np.einsum("hmr,hrd,md->hm", sources, B, vectors[own].astype(np.float64), optimize=True)
    tie = _ties(sources, B, vectors)
    above, below = np.zeros((2, h, m), dtype=np.int64)
    step = max(1, TILE_ENTRIES // max(1, m))
    for start in range(0, len(vectors), step):
        # Whoever has more than k above and more than k below is neither reached nor suppressed, whatever follows: after
        # the first tile these are nearly all, except in heads that copy.
        undecided = [np.flatnonzero((above[i] <= k) | (below[i] <= k)) for i in range(h)]
        if not any(rows.size for rows in undecided):
            break
        tile = vectors[start : start + step].astype(np.float64)
        for i, rows in enumerate(undecided):
            if rows.size:
                scores = sources[i, rows] @ (B[i] @ tile.T)
                above[i, rows] += np.count_nonzero(scores >= (targets[i, rows] - tie[i, rows])[:, None], axis=1)
                below[i, rows] += np.count_nonzero(scores <= (targets[i, rows] + tie[i, rows])[:, None], axis=1)
    # A label is within a tie of itself and counts once.
    return Reached(above <= k, below <= k)


def reaches_each(
    sources: Float[np.ndarray, "h m r"],
    B: Float[np.ndarray, "h r d"],
    vectors: Float[np.ndarray, "n d"],
    targets: Int[np.ndarray, " t"],
    k: int,
) -> Reached:
    """Return for h maps whether source i reaches, or suppresses, label ``targets[j]``: [h, m, t], every i with every j.

    What a permutation of the targets would give can be read off, so no permutation costs a product.
    Raises BadRequest for k outside 1 … n.
    """
    _check(k, len(vectors))
    h, m, _ = sources.shape
    wanted = vectors[targets].astype(np.float64)
    tie = _ties(sources, B, vectors)[:, :, None]
    high, low = np.zeros((2, h, m, len(targets)), dtype=bool)
    step = max(k + 1, TILE_ENTRIES // max(1, m))
    for i in range(h):
        top = np.full((m, k + 1), -np.inf)
        bottom = np.full((m, k + 1), np.inf)
        for start in range(0, len(vectors), step):
            scores = sources[i] @ (B[i] @ vectors[start : start + step].astype(np.float64).T)
            top = np.partition(np.concatenate([top, scores], axis=1), -(k + 1), axis=1)[:, -(k + 1) :]
            bottom = np.partition(np.concatenate([bottom, scores], axis=1), k, axis=1)[:, : k + 1]
        own = sources[i] @ (B[i] @ wanted.T)
        # In the top k exactly when above the (k + 1)-th of all labels, the target among them.
        high[i] = own > top.min(axis=1, keepdims=True) + tie[i]
        low[i] = own < bottom.max(axis=1, keepdims=True) - tie[i]
    return Reached(high, low)


def _ties(sources: np.ndarray, B: np.ndarray, vectors: np.ndarray) -> Float[np.ndarray, "h m"]:
    """What rounding can make of a score, per map and source."""
    longest = float(np.sqrt(np.max(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))))
    return TIE * np.linalg.norm(sources, axis=2) * np.linalg.norm(B, axis=(1, 2))[:, None] * longest


def _check(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise BadRequest(f"expected 1 <= k <= {n} labels, got k = {k}; k counts the labels that pass for a hit")
