"""Which rows of a table, and which output heads, look as if no training had touched them.

What a table begins with is the same everywhere: independent entries of one law. Rows that training never reached keep
that, whatever weight decay makes of the law, since decay treats all entries alike. Two things follow for a row e of
d entries with excess kurtosis κ: ‖e‖² varies by √((κ + 2)/d) of itself and no more, and e is aligned with no other row
beyond what random directions are, Σ_j d·cos²(e, e_j) = n ± √(2n).

A hint, not a verdict: a row that training moved by less than this scatter is not told from one that it never met.

Source: N9 and SV-30 of the theory page; `docs/theory/location.md`, equations 12–13.
"""

import numpy as np
from scipy import stats

from covector.axes import Bool, Float

# Rows that make a cluster at least: fewer cannot show that they are scattered as random rows are.
FEWEST = 16
# Standard deviations of a length, and of an alignment, that a row of the cluster may be off.
WITHIN = 3.5
# Rounds of "leave out what stands off, measure again"; it settles in three or four.
ROUNDS = 12
# A head is called untouched unless its entries depart from the law with less probability than this.
DEPARTS = 1e-3
# A value rounded to float16 may exceed the bound it was drawn under by this share.
HALF = 2.0**-10


def untouched_rows(vectors: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, " n"]:
    """Which rows look as they were when training began; all False where no such cluster of rows exists.

    The cluster is sought around the commonest length. Null rows are never in it. Costs n²·d per round; of a table with
    rows that share a direction (any trained table) nothing is flagged. Finds no fewer than `FEWEST` rows.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    usable = np.isfinite(lengths) & (lengths > 1e-12 * np.nanmax(lengths, initial=0.0))
    none = np.zeros(len(rows), dtype=bool)
    if usable.sum() < FEWEST:
        return none
    units = np.divide(rows, lengths[:, None], out=np.zeros_like(rows), where=usable[:, None])
    inside = _around_the_mode(lengths, usable, rows.shape[1])
    for _ in range(ROUNDS):
        if inside.sum() < FEWEST:
            return none
        found = usable & _same_law(rows, lengths, inside) & _unaligned(units, inside)
        if np.array_equal(found, inside):
            break
        inside = found
    return inside if inside.sum() >= FEWEST and _scattered(units[inside]) else none


def untouched_head(W: Float[np.ndarray, "n d"], b: Float[np.ndarray, " n"] | None) -> str:
    """How an output head looks untouched, in words; empty where training shows.

    Two beginnings leave a mark that training wipes out: a bias of exact zeros beside Gaussian weights, and weights and
    bias spread evenly within ±1/√d (torch's own), none beyond.
    """
    d, entries = W.shape[1], np.asarray(W, dtype=np.float64).ravel()
    sd = float(np.sqrt(np.mean(entries**2)))
    if sd == 0:
        return "all zero"
    if b is not None and not np.any(b) and stats.kstest(entries / sd, "norm").pvalue > DEPARTS:
        return f"bias exactly zero, weights Gaussian with standard deviation {sd:.2g}"
    bound = d**-0.5
    beyond = max(np.abs(entries).max(), 0.0 if b is None else np.abs(b).max()) > bound * (1 + HALF)
    even = not beyond and stats.kstest(np.clip(entries / bound, -1, 1), "uniform", args=(-1, 2)).pvalue > DEPARTS
    return f"weights spread evenly within ±1/√{d}, none beyond" if even else ""


def _around_the_mode(lengths: np.ndarray, usable: np.ndarray, d: int) -> Bool[np.ndarray, " n"]:
    """Rows within a window of ±3 Gaussian deviations, placed where it holds the most of them."""
    logs = np.log(np.where(usable, lengths, 1.0))
    width = 6 / np.sqrt(2 * d)
    starts = np.sort(logs[usable])
    held = np.searchsorted(starts, starts + width, side="right") - np.arange(len(starts))
    low = starts[int(np.argmax(held))]
    return usable & (logs >= low) & (logs <= low + width)


def _same_law(rows: np.ndarray, lengths: np.ndarray, inside: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Rows whose squared length is within what independent entries of the cluster's law give."""
    entries = rows[inside]
    squares = lengths**2
    middle = float(np.median(squares[inside]))
    fourth = float(np.mean(entries**4) / np.mean(entries**2) ** 2)
    spread = np.sqrt(max(fourth - 1, 0.5) / rows.shape[1])
    return np.abs(squares / middle - 1) <= WITHIN * spread


def _unaligned(units: np.ndarray, inside: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Rows that lie with the cluster's other rows no more than random directions do."""
    d, n = units.shape[1], int(inside.sum())
    squares = np.sum((units @ units[inside].T) ** 2, axis=1) - inside  # its own cosine is 1
    others = n - inside
    return squares * d - others <= WITHIN * np.sqrt(2.0 * others)


def _scattered(units: np.ndarray) -> bool:
    """Whether the rows as a whole are no more aligned than random ones: Σ_{i<j} d·cos² = m ± √(2m), m pairs."""
    n, d = units.shape
    pairs = n * (n - 1) / 2
    total = (np.sum((units @ units.T) ** 2) - n) / 2 * d
    return bool(total - pairs <= WITHIN * np.sqrt(2 * pairs))
