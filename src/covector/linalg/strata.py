"""Lists of tokens that are as frequent and as long as those of a given list, and how coherent they are.

If tokens of one frequency are alike for no other reason, a list that gathers them is coherent without meaning anything.
What a list has beyond its frequency is its coherence less that of lists whose members are exchanged, one by one, for
others of the same frequency and vector length.

Source: N8 of the theory page; `docs/theory/studies.md`, equations 21–22.
"""

import numpy as np
from scipy import stats

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.coherence import coherence
from covector.linalg.judging import Aimed, View

# Strata: up to ten of frequency, three of length in each, and no fewer than this many members in one.
BY_FREQUENCY, BY_LENGTH, LEAST = 10, 3, 12


def ranks(values: Float[np.ndarray, " n"], keep: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks of the kept values from 0 (smallest) to 1, ties sharing their mean; NaN for the others."""
    made = np.full(len(values), np.nan)
    if keep.sum() > 1:
        made[keep] = (stats.rankdata(values[keep]) - 1) / (keep.sum() - 1)
    return made


def strata(
    frequency: Float[np.ndarray, " n"], length: Float[np.ndarray, " n"], keep: Bool[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """A number for each label's stratum of frequency and, within that, of vector length; −1 outside `keep`.

    Quantiles of the kept ones; labels of equal frequency are split by their order. Raises BadRequest for fewer than
    `LEAST` kept labels.
    """
    kept = np.flatnonzero(keep)
    if len(kept) < LEAST:
        raise BadRequest(f"expected {LEAST} labels or more to match frequencies among, got {len(kept)}")
    outer = int(np.clip(len(kept) // (LEAST * BY_LENGTH), 1, BY_FREQUENCY))
    inner = int(np.clip(len(kept) // (LEAST * outer), 1, BY_LENGTH))
    made = np.full(len(keep), -1, dtype=np.int64)
    by_frequency = kept[np.argsort(frequency[kept], kind="stable")]
    for i, part in enumerate(np.array_split(by_frequency, outer)):
        by_length = part[np.argsort(length[part], kind="stable")]
        for j, members in enumerate(np.array_split(by_length, inner)):
            made[members] = i * inner + j
    return made


def matched_coherence(
    directions: Float[np.ndarray, "r d"] | Aimed,
    lists: Int[np.ndarray, "r k"],
    units: Float[np.ndarray, "n d"] | View,
    stratum: Int[np.ndarray, " n"],
    *,
    draws: int,
    seed: Seed,
) -> Float[np.ndarray, " r"]:
    """Mean coherence beyond each direction of `draws` lists whose members are exchanged within their strata.

    Members are drawn with replacement, so a list may hold a token twice (once in a few hundred pairs). What a row gets
    does not depend on how many rows follow. Costs draws · 2·r·k·d multiplications.
    Raises BadRequest for draws < 1, and what `coherence` raises.
    """
    if draws < 1:
        raise BadRequest(f"expected draws >= 1, got {draws}")
    order = np.argsort(stratum, kind="stable")
    starts = np.searchsorted(stratum[order], np.arange(stratum.max() + 2))
    at = stratum[lists]
    low, size = starts[at], starts[at + 1] - starts[at]
    total = np.zeros(len(lists))
    for draw in range(draws):
        drawn = generator(seed, "strata", draw).random(lists.shape)
        total += coherence(directions, order[low + (drawn * size).astype(np.int64)], units)
    return total / draws
