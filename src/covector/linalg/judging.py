"""Rows of a table in the metric that lists are judged in, without a second table.

A judged row is w = (û − μ)T, û the row at length one. Of a list no w is ever needed by itself, only sums of them, their
products with a few vectors, and their lengths. Sums are taken of the rows as they are and brought into the metric
once, Σ aₜwₜ = (Σ aₜ(ûₜ − μ))T; products go the other way, w·m = (û − μ)·(T m); lengths are found once, for all. So a
list costs as many products with T as it has sums, not as it has members, and the table is held once.

Inside, the metric is that of the eigenvectors A of the shrunk covariance, w = (û − μ)A/√λ: the whitened rows of
equation 3 up to a rotation of the space, which changes no length and no cosine. What is handed out is symmetric.

Source: `docs/theory/scores.md`, equations 3 and 17.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from covector.axes import Float, Int
from covector.linalg.lapack import scipy_linalg

# Rows per step of a pass over the table: 2048 of d = 4096 in float64 are 64 MB.
ROWS = 2048


@dataclass(frozen=True, eq=False)
class Aimed:
    """Directions to be taken out of listed rows, at length one: `own` in the metric, `along` for products with rows.

    (û − μ)·along = w·own.
    """

    own: Float[np.ndarray, "r d"]
    along: Float[np.ndarray, "r d"]

    def __len__(self) -> int:
        """Number of directions."""
        return len(self.own)

    def part(self, rows: slice) -> "Aimed":
        """Some of them."""
        return Aimed(self.own[rows], self.along[rows])


@dataclass(frozen=True, eq=False)
class Plain:
    """An array of rows, of any lengths, compared as they are."""

    array: Float[np.ndarray, "n d"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and width."""
        return self.array.shape

    def rows(self, ids: Int[np.ndarray, "b k"]) -> tuple[Float[np.ndarray, "b k d"], Float[np.ndarray, "b k"]]:
        """The rows and their squared lengths."""
        found = self.array[ids].astype(np.float64)
        return found, np.vecdot(found, found)

    def into(self, rows: Float[np.ndarray, "r d"]) -> Float[np.ndarray, "r d"]:
        """As they are."""
        return rows

    def back(self, rows: Float[np.ndarray, "r d"]) -> Float[np.ndarray, "r d"]:
        """As they are."""
        return rows

    def aim(self, directions: Float[np.ndarray, "r d"]) -> Aimed:
        """At length one."""
        unit = _unit(directions.astype(np.float64))
        return Aimed(unit, unit)


@dataclass(frozen=True, eq=False)
class Judging:
    """Rows of `vectors` times `scale`, less `mean`, in the metric A/√λ of `axes` and `root` (None: as they are).

    scale    1/length of every row; 0 for those that must not be looked at
    root     √λ, λ the eigenvalues of the shrunk covariance that belong to the columns of `axes`
    """

    vectors: Float[np.ndarray, "n d"]
    scale: Float[np.ndarray, " n"]
    mean: Float[np.ndarray, " d"] | None = None
    axes: Float[np.ndarray, "d d"] | None = None
    root: Float[np.ndarray, " d"] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and width."""
        return self.vectors.shape

    @cached_property
    def squares(self) -> Float[np.ndarray, " n"]:
        """Squared length of every row in the metric; 0 where scale is. Costs n·d² multiplications once."""
        found = np.zeros(len(self.vectors))
        for ids, rows in self.blocks():
            rows = self.into(rows)
            found[ids] = np.vecdot(rows, rows)
        return found

    def blocks(self) -> Iterator[tuple[Int[np.ndarray, " b"], Float[np.ndarray, "b d"]]]:
        """Ids and rows (û − μ) of all that may be looked at, `ROWS` at a time, float64."""
        ids = np.flatnonzero(self.scale)
        for start in range(0, len(ids), ROWS):
            some = ids[start : start + ROWS]
            yield some, self._as_they_are(some)

    def rows(self, ids: Int[np.ndarray, "b k"]) -> tuple[Float[np.ndarray, "b k d"], Float[np.ndarray, "b k"]]:
        """Rows as they are (û − μ), float64, and their squared lengths in the metric."""
        return self._as_they_are(ids), self.squares[ids]

    def into(self, rows: Float[np.ndarray, "r d"]) -> Float[np.ndarray, "r d"]:
        """Sums of rows, brought into the metric."""
        if self.axes is None or self.root is None:
            return rows
        found = rows @ self.axes
        found /= self.root
        return found

    def back(self, rows: Float[np.ndarray, "r d"]) -> Float[np.ndarray, "r d"]:
        """What rows as they are must be multiplied with to give the products of these in the metric."""
        return rows if self.axes is None or self.root is None else (rows / self.root) @ self.axes.T

    def aim(self, directions: Float[np.ndarray, "r d"]) -> Aimed:
        """Directions given in the judging metric (as `pulled` gives them), at length one."""
        wide = directions.astype(np.float64)
        own = _unit(wide if self.axes is None else wide @ self.axes)
        return Aimed(own, self.back(own))

    def aim_of(self, directions: Float[np.ndarray, "r d"]) -> Aimed:
        """The same of directions that lists are drawn by: what they become in the metric is Σ^½ v."""
        wide = directions.astype(np.float64)
        if self.axes is None or self.root is None:
            return self.aim(wide)
        own = (wide @ self.axes) * self.root
        length = np.linalg.norm(own, axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            return Aimed(own / length, wide / length)

    def pulled(self, directions: Float[np.ndarray, "r d"]) -> Float[np.ndarray, "r d"]:
        """Σ^½ v, symmetric: directions in the metric of `whole`."""
        if self.axes is None or self.root is None:
            return directions
        return ((directions @ self.axes) * self.root) @ self.axes.T

    def whole(self) -> Float[np.ndarray, "n d"]:
        """All judged rows, in the precision of the table: as large as it. For looking at; nothing here needs it."""
        made = np.zeros(self.vectors.shape, self.vectors.dtype)
        for ids, rows in self.blocks():
            made[ids] = rows if self.axes is None else self.into(rows) @ self.axes.T
        return made

    def moment(self) -> Float[np.ndarray, "d d"]:
        """Mean of (û − μ)ᵀ(û − μ), float64 in Fortran order, summed by blocks of rows."""
        total = np.zeros((self.vectors.shape[1],) * 2, order="F")
        for _, rows in self.blocks():
            total += (rows.T @ rows).T
        total /= max(np.count_nonzero(self.scale), 1)
        return total

    def _as_they_are(self, ids: np.ndarray) -> np.ndarray:
        rows = self.vectors[ids].astype(np.float64)
        rows *= self.scale[ids][..., None]
        if self.mean is not None:
            rows -= self.mean
        return rows


# Rows that lists are made of, and the metric in which they are compared.
View = Plain | Judging


def judging(vectors: Float[np.ndarray, "n d"], scale: Float[np.ndarray, " n"], measure: str) -> Judging:
    """The view of a measure: ``raw``, ``centred`` or ``whitened``. Holds one d × d array, and two more for a moment."""
    view = Judging(vectors, scale)
    number, d = int(np.count_nonzero(scale)), vectors.shape[1]
    if measure == "raw" or not number:
        return view
    total = np.zeros(d)
    for _, rows in view.blocks():
        total += rows.sum(axis=0)
    view = replace(view, mean=total / number)
    if measure == "centred":
        return view
    # LAPACK works where the covariance lies: with its work space the largest arrays here.
    values, axes = scipy_linalg().eigh(view.moment(), overwrite_a=True, check_finite=False, driver="evd")
    shrunk = (number * np.maximum(values, 0.0) + d * values.mean()) / (number + d)
    return replace(view, axes=axes, root=np.sqrt(shrunk))


def view_of(units: Float[np.ndarray, "n d"] | View) -> View:
    """Rows to be compared: an array as it is, or a view."""
    return Plain(units) if isinstance(units, np.ndarray) else units


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return rows / length
