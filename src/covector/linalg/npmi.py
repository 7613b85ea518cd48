"""Normalised pointwise mutual information of listed tokens over a corpus of token ids, counted as it streams by.

A window slides over each text word by word; a token occurs in a window or does not. NPMI of two tokens is 0 when they
occur independently, 1 when only together, −1 (nearly) when never together. Counting is restricted to the tokens of
the lists that are to be scored.

Source: Bouma 2009; Lau, Newman and Baldwin 2014 (list mean); `docs/theory/scores.md`, equation 10; F10(ii).
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest

# Added to the probability of a pair, so that pairs never seen have a finite, nearly lowest value (F10).
SMOOTHING = 1e-12
# Words per step of the counter: with windows of 10 its sparse matrix has at most ten times as many entries.
WORDS = 2**16


@dataclass(frozen=True, eq=False)
class Cooccurrence:
    """How many windows hold each listed token, and each pair: `ids` [m], `pairs` [m, m] (diagonal: single tokens)."""

    ids: Int[np.ndarray, " m"]
    pairs: sparse.csr_array
    windows: int


class Counter:
    """Counts windows text by text; `counts` gives what was counted so far. State lives here and nowhere else."""

    def __init__(
        self,
        lists: Int[np.ndarray, "r k"],
        n: int,
        *,
        window: int = 10,
        starts: Bool[np.ndarray, " token"] | None = None,
    ) -> None:
        """Count tokens of `lists` out of a vocabulary of n, in windows of `window` words.

        `starts` says which tokens begin a word; then a word is a token with those that follow it up to the next
        beginning, and all of them stand at the word's place. Without it every token is a word.
        Raises BadRequest for a window below 2 or ids outside the vocabulary.
        """
        ids = np.unique(lists)
        if window < 2 or (ids.size and not (ids[0] >= 0 and ids[-1] < n)):
            raise BadRequest(f"expected windows of 2 words or more and ids below {n}, came {window}; see F10")
        self.ids, self.window, self.starts = ids, window, starts
        self.slot = np.full(n, -1)
        self.slot[ids] = np.arange(len(ids))
        self.windows = 0
        self.pairs = sparse.csr_array((len(ids), len(ids)), dtype=np.int64)

    def add(self, text: Int[np.ndarray, " position"]) -> None:
        """Count one text; windows do not reach into the next. A text shorter than a window is one window."""
        if not text.size:
            return
        place = np.arange(text.size) if self.starts is None else np.cumsum(self.starts[text])
        place = place - place[0]
        slot = self.slot[text]
        place, slot, words = place[slot >= 0], slot[slot >= 0], int(place[-1]) + 1
        number = max(1, words - self.window + 1)
        self.windows += number
        for start in range(0, number, WORDS):
            stop = min(start + WORDS, number)
            inside = (place >= start) & (place < stop + self.window - 1)
            self._count(place[inside] - start, slot[inside], stop - start)

    def _count(self, place: np.ndarray, slot: np.ndarray, number: int) -> None:
        # A word at place q stands in the windows that start at q − window + 1 … q.
        begin = (place[:, None] - np.arange(self.window)).ravel()
        column = np.repeat(slot, self.window)
        valid = (begin >= 0) & (begin < number)
        held = sparse.csr_array(
            (np.ones(valid.sum(), np.int64), (begin[valid], column[valid])), shape=(number, len(self.ids))
        )
        held.sum_duplicates()
        held.data[:] = 1  # a token that occurs twice in a window occurs in it
        self.pairs = sparse.csr_array(self.pairs + held.T @ held)

    @property
    def counts(self) -> Cooccurrence:
        """What was counted so far."""
        return Cooccurrence(self.ids, self.pairs, self.windows)


def npmi(
    lists: Int[np.ndarray, "r k"], cooccurrence: Cooccurrence, *, smoothing: float = SMOOTHING
) -> tuple[Float[np.ndarray, " r"], Int[np.ndarray, " r"]]:
    """Mean NPMI over the pairs of each list, and over how many pairs: those whose two tokens both occur in the corpus.

    npmi(a, b) = ln[(p(ab) + ε)/(p(a)p(b))] / −ln(p(ab) + ε), unitless in [−1, 1]; a pair that every window holds counts
    1. NaN where no pair is left. Pairs of a token with itself are left out.
    Raises BadRequest if a listed id was not counted.
    """
    slot = np.searchsorted(cooccurrence.ids, lists)
    slot = np.minimum(slot, max(len(cooccurrence.ids) - 1, 0))
    if not len(cooccurrence.ids) or not (cooccurrence.ids[slot] == lists).all() or not cooccurrence.windows:
        raise BadRequest("lists hold ids that were not counted, or nothing was; make the counter from the same lists")
    one, other = np.triu_indices(lists.shape[1], 1)
    a, b = slot[:, one].ravel(), slot[:, other].ravel()
    single = cooccurrence.pairs.diagonal() / cooccurrence.windows
    both = np.asarray(cooccurrence.pairs[a, b]).ravel() / cooccurrence.windows + smoothing
    valid = (single[a] > 0) & (single[b] > 0) & (a != b)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log(both / (single[a] * single[b])) / -np.log(both)
    value = np.where(both >= 1, 1.0, np.clip(value, -1.0, 1.0))
    shape = (len(lists), len(one))
    valid, value = valid.reshape(shape), np.where(valid, value, 0.0).reshape(shape)
    number = valid.sum(axis=1)
    return np.where(number > 0, value.sum(axis=1) / np.maximum(number, 1), np.nan), number
