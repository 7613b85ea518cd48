"""Which position a head's scores favour, when positions are all it sees: the one before, its own, or the first.

For a query at position p the keys 0 … p (all keys without a causal mask) have scores s. The *share* of a key is how
many of the others score below it, ties by half: 1 for the highest, 0 for the lowest, ½ on average for a key that
chance chose. Shares are averaged over queries. No attention is computed: no softmax, no token, no norm between
position and head.

Source: `docs/theory/heads.md`, equation 8.
"""

import numpy as np

from covector.axes import Float, Int
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.salience import haar_rows

TARGETS = ("previous", "current", "first")
# Queries that are looked at: evenly spread over the context.
QUERIES = 32


def queries_of(n: int) -> Int[np.ndarray, " q"]:
    """The query positions that are looked at: at most 32, evenly spread over 2 … n − 1 (none below 3 positions).

    From 2 on the position before is not the first one.
    """
    return np.unique(np.linspace(2, n - 1, QUERIES).astype(np.int64)) if n > 2 else np.zeros(0, dtype=np.int64)


def offset_shares(
    scores: Float[np.ndarray, "h q n"], queries: Int[np.ndarray, " q"], causal: bool
) -> Float[np.ndarray, "h k"]:
    """Return the mean share of the previous, the current and the first position, per head; [h, 3], 0 … 1."""
    n = scores.shape[2]
    seen = np.arange(n)[None, :] <= queries[:, None] if causal else np.ones((len(queries), n), dtype=bool)
    others = seen.sum(axis=1) - 1.0
    rows = np.arange(len(queries))
    shares = []
    for target in (queries - 1, queries, np.zeros_like(queries)):
        own = scores[:, rows, target][:, :, None]
        below = ((scores < own) & seen).sum(axis=2) + 0.5 * (((scores == own) & seen).sum(axis=2) - 1)
        shares.append((below / others).mean(axis=1))
    return np.stack(shares, axis=1)


def null_offset_shares(
    asked: Float[np.ndarray, "h q r"],
    positions: Float[np.ndarray, "n d"],
    queries: Int[np.ndarray, " q"],
    *,
    causal: bool,
    centred: bool,
    draws: int,
    seed: Seed,
) -> Float[np.ndarray, "draws h k"]:
    """Return shares of QK maps of the same spectrum and the same read queries, their key side turned at random.

    `asked` are the queries in the map's own coordinates, P·U·diag(S). The mean is ½: turning a frame into its negative
    turns the order round. One Haar frame serves all heads in a draw. `centred`: keys have no part along 1.
    """
    out = np.empty((draws, len(asked), len(TARGETS)))
    wide = positions.astype(np.float64)
    for draw in range(draws):
        frame = haar_rows(generator(seed, "offsets", draw), asked.shape[2], wide.shape[1], centred=centred)
        keys = frame @ wide.T
        out[draw] = offset_shares(asked @ keys, queries, causal)
    return out
