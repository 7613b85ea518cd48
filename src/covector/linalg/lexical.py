"""How alike the labels of a list are as strings, kept apart from what they mean.

Two labels are compared by their character pairs and triples with the word's ends marked, blind to case and to the
space before a token: "·writ", "writ" and "Writ" are one string here, " write" and " writing" nearly so. A list that is
alike in this sense alone is a list of spellings.

Source: `docs/theory/scores.md`, equation 9; F10(vi) of the theory page.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from covector.axes import Float, Int
from covector.errors import BadRequest

# Lengths of character runs. Single letters make any two English words alike, runs of four make short tokens unlike.
RUNS = (2, 3)
# Marks of a token's beginning in the labels of vocabularies; they are no characters of the word.
MARKS = "·▁Ġ "
# Lists per step: their n-gram sums are sparse, at most a few hundred entries each.
ROWS = 8192


def lexical(lists: Int[np.ndarray, "r k"], labels: Sequence[str]) -> Float[np.ndarray, " r"]:
    """Mean over pairs of a list of the cosine between their counts of character pairs and triples.

    Returns a value in [0, 1] per list, 1 for equal strings, NaN for lists of fewer than two. Exact; costs the sum of
    the labels' lengths. Raises BadRequest for ids beyond `labels`.
    """
    r, k = lists.shape
    if k < 2 or not r:
        return np.full(r, np.nan)
    if lists.min() < 0 or lists.max() >= len(labels):
        raise BadRequest(f"lists hold ids 0 … {len(labels) - 1}, came {lists.min()} … {lists.max()}; one label per id")
    ids, inverse = np.unique(lists, return_inverse=True)
    grams = _grams([str(labels[i]) for i in ids])
    inverse = inverse.reshape(lists.shape)
    made = np.empty(r)
    for start in range(0, r, ROWS):
        part = inverse[start : start + ROWS]
        rows = np.repeat(np.arange(len(part)), k)
        chosen = sparse.csr_array((np.ones(part.size), (rows, part.ravel())), shape=(len(part), len(ids)))
        squares = sparse.csr_array(chosen @ grams).power(2)
        made[start : start + ROWS] = (squares.sum(axis=1) - k) / (k * (k - 1))
    return np.clip(np.round(made, 12), 0.0, 1.0)  # lists with nothing in common are alike, whatever was rounded


def _grams(labels: list[str]) -> sparse.csr_array:
    """One row of length one per label: how often each run of characters occurs in it. All labels at once."""
    words = [f"\x02{label.strip(MARKS).casefold()}\x03" for label in labels]
    lengths = np.array([len(word) for word in words])
    characters = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    word = np.repeat(np.arange(len(words)), lengths)
    rows, runs = [], []
    for n in RUNS:
        begins = np.flatnonzero(word[: 1 - n] == word[n - 1 :])  # runs that end in the word they begin in
        # A character takes 21 bits, so three fit; one more than its number, so that pairs are no triples.
        run = sum((characters[begins + i] + 1) << (21 * i) for i in range(n))
        rows.append(word[begins])
        runs.append(np.asarray(run))
    names, columns = np.unique(np.concatenate(runs), return_inverse=True)
    shape = (len(words), len(names))
    counts = sparse.csr_array((np.ones(len(columns)), (np.concatenate(rows), columns)), shape=shape)
    counts.sum_duplicates()
    return sparse.csr_array(sparse.diags_array(1 / np.sqrt(counts.power(2).sum(axis=1))) @ counts)
