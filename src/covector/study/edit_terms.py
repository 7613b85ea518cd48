"""The terms of an edit: what may be said of one site, as values.

A term multiplies a map from one side by I + AᵀB, which its thin factor takes exactly: no d x d matrix is made and the
rank does not grow. On the write side M' = M(I + Σ ε vvᵀ), on the read side M' = (I + Σ ε uuᵀ)M.

Source: F5 of the theory page; `docs/theory/edits.md`, equations 1–4.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest

WRITE, READ = "write", "read"
SIDES = (WRITE, READ)


@dataclass(frozen=True)
class Dyads:
    """Gains of dyads changed: σᵢ → (1 + εᵢ) σᵢ. `site` is an address (or a pattern), `side` the factor that takes it.

    An empty `side` stands for the site's own: write for OV, o, W_out and embeddings, read (the query's) for QK and
    for every other reader.
    """

    site: str
    indices: tuple[int, ...]
    epsilon: tuple[float, ...]
    side: str = ""

    def __post_init__(self) -> None:
        if len(self.indices) != len(self.epsilon) or not self.indices:
            raise BadRequest(
                f"edit of {self.site}: expected one ε for every dyad, got {len(self.epsilon)} for {len(self.indices)}"
            )
        if len(set(self.indices)) != len(self.indices) or min(self.indices) < 0:
            raise BadRequest(f"edit of {self.site}: expected every dyad once, from 0, got {list(self.indices)}")
        _check(self.site, self.epsilon, self.side)


@dataclass(frozen=True, eq=False)
class Along:
    """Directions weakened or strengthened, dyads or not: M' = M(I + Σ εᵢ qᵢqᵢᵀ) for orthonormal rows qᵢ.

    `said` are the rows in words: the text of a concept, resolved in the model's token basis where `rows` is None.
    """

    site: str
    epsilon: tuple[float, ...]
    rows: Float[np.ndarray, "k m"] | None = None
    said: str = ""
    side: str = ""

    def __post_init__(self) -> None:
        _check(self.site, self.epsilon, self.side)
        if self.rows is None:
            if not self.said:
                raise BadRequest(f"edit of {self.site}: expected directions, or a concept in words, got neither")
            return
        rows = rows_of(self.site, self.rows)
        if len(rows) != len(self.epsilon):
            raise BadRequest(f"edit of {self.site}: expected one ε for each of {len(rows)} directions")
        if not np.allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-9):
            raise BadRequest(
                f"edit of {self.site}: expected orthonormal directions, these are not; Edit.within(…) makes them so"
            )
        object.__setattr__(self, "rows", rows)


@dataclass(frozen=True, eq=False)
class Replace:
    """One direction of a dyad put in place of another, its gain and its other direction kept: vᵢ → w.

    `row` may have any length: ‖w‖ scales the gain. Source document 000 writes 1/d into every entry, ``ones/d``.
    """

    site: str
    index: int
    row: Float[np.ndarray, " m"] | None = None
    said: str = ""
    side: str = ""

    def __post_init__(self) -> None:
        _check(self.site, (), self.side)
        if self.row is None and self.said not in CONSTANTS:
            raise BadRequest(f"edit of {self.site}: expected a vector or one of {', '.join(CONSTANTS)}")
        if self.row is not None:
            object.__setattr__(self, "row", rows_of(self.site, self.row)[0])


@dataclass(frozen=True, eq=False)
class Rewrite:
    """Any low-rank rewriting of one side: M' = M(I + readsᵀ writes), or (I + writesᵀ reads)M on the read side."""

    site: str
    reads: Float[np.ndarray, "k m"]
    writes: Float[np.ndarray, "k m"]
    said: str = ""
    side: str = ""

    def __post_init__(self) -> None:
        _check(self.site, (), self.side)
        object.__setattr__(self, "reads", rows_of(self.site, self.reads))
        object.__setattr__(self, "writes", rows_of(self.site, self.writes))
        if self.reads.shape != self.writes.shape:
            raise BadRequest(f"edit of {self.site}: expected as many rows read as written")


Term = Dyads | Along | Replace | Rewrite
# Vectors that the text form knows by name: the source document's, and the unit vector along it.
CONSTANTS = ("ones/d", "ones")


def _check(site: str, epsilon: tuple[float, ...], side: str) -> None:
    if side not in ("", *SIDES):
        raise BadRequest(f"edit of {site}: expected side write or read, got '{side}'")
    if not all(math.isfinite(e) for e in epsilon):
        raise BadRequest(f"edit of {site}: expected finite ε, got {list(epsilon)}")


def rows_of(site: str, vectors: Any) -> Float[np.ndarray, "k m"]:
    """Finite, non-null rows in float64, read-only. Raises BadRequest, naming the site, for anything else."""
    rows = np.atleast_2d(np.array(vectors, dtype=np.float64))
    if rows.ndim != 2 or not np.isfinite(rows).all() or not rows.any(axis=1).all():
        raise BadRequest(f"edit of {site}: expected finite vectors, none of them null, got shape {np.shape(vectors)}")
    rows.flags.writeable = False
    return rows
