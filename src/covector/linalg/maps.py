"""A map is a matrix whose read side and write side have names, kept in factors as long as it can be.

Rows are vectors: a map of shape [n, m] takes ``x`` with n entries to ``x @ M`` with m entries. A head's OV circuit is
``W_V @ W_O``, a d_model x d_model matrix of rank d_head; kept as two thin factors it costs d_head/d_model of the dense
matrix in memory and far less in time, and its small singular values survive (the dense product buries them in noise).

Five questions are asked of a map: its shape, what it does to a vector, its dense form, its transpose, and what goes in
and comes out. Everything else is a free function: `compose`, `add`, `scale`, `low_rank_update`, `frobenius` here,
`svd` next door. Maps are values: their arrays are read-only views of what was given (no copy), so a map changes when
its owner writes into the original array, and a map made from a checkpoint costs no memory.

Weights keep the dtype they came in; every product is made in float64. ``stored`` names the dtype of the file the
weights came from, which is what decides how much of a singular vector is rounding (see `storage_noise`); float32
arrays widened from bfloat16 must say ``stored="bfloat16"``. Where an array was rewritten after it was read (a mean
taken off, a gain folded in), its rounding is still that of the array that was stored, which may have been much larger:
``rounded`` holds the Frobenius norm that a dtype's rounding is relative to, one per array. The algebra carries it on.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, final

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.storage_noise import coarser, unit_roundoff

# Entries widened to float64 at a time: 2^24 doubles are 128 MB; an embedding of 150,000 x 4096 at once would be 5 GB.
TILE_ENTRIES = 2**24


@dataclass(frozen=True)
class Space:
    """Where a vector lives: the kind of coordinates, how many, and where, if that matters ("L9H6" for a head's own).

    Two spaces are the same when all three agree. The residual stream is ``Space("residual", d_model)`` at every layer.
    """

    kind: str
    size: int
    where: str = ""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SpaceMismatch(f"a space needs at least 1 coordinate, {self.kind!r} came with {self.size}")

    def __str__(self) -> str:
        return f"{self.kind}{'@' + self.where if self.where else ''}[{self.size}]"


class Map(ABC):
    """A linear map from `reads` to `writes`, as a frozen value. Final kinds: `Dense`, `Factored`, `Updated`."""

    reads: Space
    writes: Space
    stored: str

    @property
    def shape(self) -> tuple[int, int]:
        """Sizes (n, m) of the read and the write side."""
        return self.reads.size, self.writes.size

    @abstractmethod
    def apply(self, x: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch m"]:
        """Return ``x @ M`` in float64, rows of `x` being vectors of `reads`. Raises SpaceMismatch on another width."""

    @abstractmethod
    def dense(self) -> Float[np.ndarray, "n m"]:
        """Return the matrix [n, m]: float64, except that a `Dense` map hands out its own read-only array."""

    @property
    @abstractmethod
    def T(self) -> "Map":
        """The same matrix read from the other side; no copy."""


@final
@dataclass(frozen=True, eq=False)
class Dense(Map):
    """A map held as one matrix [n, m]: an MLP's input or output weights, an embedding.

    `rounded` is (‖W‖_F as stored,) where W was rewritten since; None stands for W's own norm.
    Raises SpaceMismatch for a shape that is not that of the spaces, BadRequest for weights that are not floating-point,
    a `stored` that is no dtype and a `rounded` that is not one norm.
    """

    W: Float[np.ndarray, "n m"]
    reads: Space
    writes: Space
    stored: str = "float32"
    rounded: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_rounded(self.rounded, 1)
        _check_matrix("W", self.W, self.reads.size, self.writes.size, f"{self.reads} -> {self.writes}")
        unit_roundoff(self.stored)
        object.__setattr__(self, "W", _frozen(self.W))

    def apply(self, x: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch m"]:
        """Return ``x @ W`` in float64."""
        rows = _rows_of(self.reads, x)
        total = np.zeros((*rows.shape[:-1], self.writes.size))
        for part in row_tiles(self.W.shape):
            total += rows[..., part] @ _wide(self.W[part])
        return total

    def dense(self) -> Float[np.ndarray, "n m"]:
        """Return the matrix itself, in the dtype it came in, read-only."""
        return self.W

    @property
    def T(self) -> "Dense":
        """The transposed map; its matrix is a view."""
        return Dense(self.W.T, self.writes, self.reads, self.stored, self.rounded)


@final
@dataclass(frozen=True, eq=False)
class Factored(Map):
    """A map ``A @ B`` that is never multiplied out: OV = W_V · W_O, QK = W_Q · W_Kᵀ.

    The inner size r may exceed n or m (a sum of many heads); nothing is assumed about the rank of either factor.
    `rounded` is (‖A‖_F, ‖B‖_F) as stored, where one of them was rewritten since; None stands for their own norms.
    Raises as `Dense` does.
    """

    A: Float[np.ndarray, "n r"]
    B: Float[np.ndarray, "r m"]
    reads: Space
    writes: Space
    stored: str = "float32"
    rounded: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_rounded(self.rounded, 2)
        _check_factors(self.A, self.B, self.reads, self.writes)
        unit_roundoff(self.stored)
        object.__setattr__(self, "A", _frozen(self.A))
        object.__setattr__(self, "B", _frozen(self.B))

    def apply(self, x: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch m"]:
        """Return ``(x @ A) @ B`` in float64."""
        return _rows_of(self.reads, x) @ _wide(self.A) @ _wide(self.B)

    def dense(self) -> Float[np.ndarray, "n m"]:
        """Return the product in float64; for looking at small maps, nothing here needs it."""
        return _wide(self.A) @ _wide(self.B)

    @property
    def T(self) -> "Factored":
        """The transposed map ``Bᵀ @ Aᵀ``; its factors are views."""
        turned = None if self.rounded is None else self.rounded[::-1]
        return Factored(self.B.T, self.A.T, self.writes, self.reads, self.stored, turned)


@final
@dataclass(frozen=True, eq=False)
class Updated(Map):
    """A large matrix with a low-rank overlay, ``base + A @ B``, the sum being made only where it is asked for.

    An edit of an embedding thus costs its two thin factors and leaves the base untouched and shared. `base.rounded`
    holds for the base; the overlay's factors count as they are.
    """

    base: Dense
    A: Float[np.ndarray, "n r"]
    B: Float[np.ndarray, "r m"]
    reads: Space = field(init=False)
    writes: Space = field(init=False)
    stored: str = field(init=False)

    def __post_init__(self) -> None:
        _check_factors(self.A, self.B, self.base.reads, self.base.writes)
        for name in ("reads", "writes", "stored"):
            object.__setattr__(self, name, getattr(self.base, name))
        object.__setattr__(self, "A", _frozen(self.A))
        object.__setattr__(self, "B", _frozen(self.B))

    def apply(self, x: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch m"]:
        """Return ``x @ W + (x @ A) @ B`` in float64."""
        rows = _rows_of(self.reads, x)
        return self.base.apply(rows) + rows @ _wide(self.A) @ _wide(self.B)

    def dense(self) -> Float[np.ndarray, "n m"]:
        """Return the sum as a new float64 matrix."""
        total = _wide(self.A) @ _wide(self.B)
        total += self.base.W
        return total

    @property
    def T(self) -> "Updated":
        """The transposed map, overlay still apart; no copy."""
        return Updated(self.base.T, self.B.T, self.A.T)


def compose(first: Map, second: Map) -> Map:
    """Return the map ``x -> second(first(x))``, from what `first` reads to what `second` writes.

    Stays factored through the thinnest joint: of two factored maps the r1 x r2 core is merged into the side that keeps
    the smaller inner size; a dense map is absorbed into the neighbouring factor; two dense maps are kept as factors
    when the space between them is smaller than both ends, and multiplied out otherwise. Products are float64, so exact
    to rounding. `stored` becomes the coarser of the two. Where an array of either was `rounded` at a size g times its
    own, both factors of the result count as rounded at g times theirs (the largest g): a bound, not an estimate.
    Raises SpaceMismatch when `second` does not read what `first` writes.
    """
    if first.writes != second.reads:
        raise SpaceMismatch(
            f"cannot compose: the first map writes {first.writes}, the second reads {second.reads}; "
            "they must be the same space, maybe one of them needs .T"
        )
    product, growth = _product(first, second), max(_growth(first), _growth(second))
    return product if growth == 1.0 else replace(product, rounded=tuple(growth * n for n in _own_norms(product)))


def _product(first: Map, second: Map) -> Dense | Factored:
    reads, writes, stored = first.reads, second.writes, coarser(first.stored, second.stored)
    if isinstance(first, Factored) and isinstance(second, Factored):
        core = _wide(first.B) @ _wide(second.A)
        if core.shape[0] <= core.shape[1]:
            return Factored(first.A, core @ _wide(second.B), reads, writes, stored)
        return Factored(_wide(first.A) @ core, second.B, reads, writes, stored)
    if isinstance(first, Factored):
        return Factored(first.A, second.apply(first.B), reads, writes, stored)
    if isinstance(second, Factored):
        return Factored(first.T.apply(second.A.T).T, second.B, reads, writes, stored)
    if first.writes.size < min(reads.size, writes.size):
        return Factored(first.dense(), second.dense(), reads, writes, stored)
    return Dense(first.T.apply(second.dense().T).T, reads, writes, stored)


def add(one: Map, other: Map) -> Map:
    """Return the sum of two maps between the same spaces, kept in factors where one of them is.

    Two factored maps give a factored one with the inner sizes added (heads of a layer: the stacked factors); a dense
    and a factored one give `Updated`; two dense ones are summed in float64. `stored` becomes the coarser of the two.
    `rounded` norms add up (stacked factors: in squares), except those of a factored map that becomes an overlay: there
    its factors count as they are.
    Raises SpaceMismatch when the spaces differ.
    """
    if (one.reads, one.writes) != (other.reads, other.writes):
        raise SpaceMismatch(
            f"cannot add: {one.reads} -> {one.writes} and {other.reads} -> {other.writes} differ; "
            "both maps must read the same space and write the same space"
        )
    stored = coarser(one.stored, other.stored)
    if isinstance(one, Factored) and isinstance(other, Factored):
        return Factored(*_stacked(one, other), one.reads, one.writes, stored, _stacked_rounding(one, other))
    if isinstance(one, Factored):
        one, other = other, one
    if isinstance(other, Factored):
        return _restored(low_rank_update(one, other.A, other.B), stored)
    bases = [m.base if isinstance(m, Updated) else m for m in (one, other)]
    norms = (
        None if all(_rounded(b) is None for b in bases) else (sum((_rounded(b) or _own_norms(b))[0] for b in bases),)
    )
    return Dense(_wide(one.dense()) + other.dense(), one.reads, one.writes, stored, norms)


def scale(m: Map, factor: float) -> Map:
    """Return the map times a number, of the same kind, its scaled factor a new float64 array, the rest shared.

    `rounded` scales along.
    """
    factor = float(factor)
    if isinstance(m, Factored):
        norms = None if m.rounded is None else (m.rounded[0], m.rounded[1] * abs(factor))
        return Factored(m.A, _wide(m.B) * factor, m.reads, m.writes, m.stored, norms)
    if isinstance(m, Updated):
        return Updated(_scaled(m.base, factor), m.A, _wide(m.B) * factor)
    return _scaled(m, factor)


def _scaled(m: Map, factor: float) -> Dense:
    norms = _rounded(m)
    norms = None if norms is None else (norms[0] * abs(factor),)
    return Dense(_wide(m.dense()) * factor, m.reads, m.writes, m.stored, norms)


def transpose(m: Map) -> Map:
    """Return the map read from the other side: what it wrote it now reads. No copy."""
    return m.T


def low_rank_update(m: Map, A: Float[np.ndarray, "n r"], B: Float[np.ndarray, "r m"]) -> Map:
    """Return ``M + A @ B`` without multiplying: factored stays factored, dense becomes `Updated`, overlays add up.

    `rounded` is carried on, A and B counting as they are.
    Raises SpaceMismatch when the factors do not fit the map.
    """
    overlay = Factored(A, B, m.reads, m.writes, m.stored)
    if isinstance(m, Factored):
        return Factored(*_stacked(m, overlay), m.reads, m.writes, m.stored, _stacked_rounding(m, overlay))
    if isinstance(m, Updated):
        return Updated(m.base, *_stacked(m, overlay))
    return Updated(_as_dense(m, m.stored), A, B)


def frobenius(m: Map) -> float:
    """Return ‖M‖_F without forming an n x m matrix in float64.

    Exact to eps·‖A‖·‖B‖ (and eps·‖base‖): factors go through their triangular QR factors rather than their Grams, whose
    trace loses half the digits when a sum of maps nearly cancels.
    """
    if isinstance(m, Factored):
        left, right = _triangle(m.A), _triangle(m.B.T)
        return float(np.linalg.norm(left @ right.T))
    total = 0.0
    for rows in row_tiles(m.shape):
        if isinstance(m, Updated):
            tile = m.base.W[rows] + _wide(m.A[rows]) @ _wide(m.B)
        else:
            tile = _wide(m.dense()[rows])
        total = float(np.hypot(total, np.linalg.norm(tile)))
    return total


def row_tiles(shape: tuple[int, int]) -> Iterator[slice]:
    """Yield slices of rows that cover a matrix in tiles of at most `TILE_ENTRIES` (one row at least)."""
    step = max(1, TILE_ENTRIES // shape[1])
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _stacked(one: "Factored | Updated", other: "Factored | Updated") -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([one.A, other.A], axis=1), np.concatenate([one.B, other.B], axis=0)


def _rounded(m: Map) -> tuple[float, ...] | None:
    return m.base.rounded if isinstance(m, Updated) else m.rounded if isinstance(m, Dense | Factored) else None


def _own_norms(m: Map) -> tuple[float, ...]:
    """Frobenius norms of a map's arrays as they are, overlays not counted."""
    if isinstance(m, Factored):
        return float(np.linalg.norm(_wide(m.A))), float(np.linalg.norm(_wide(m.B)))
    return (frobenius(m.base if isinstance(m, Updated) else m),)


def _growth(m: Map) -> float:
    """How many times larger than now an array of this map was when it was rounded: 1 where nothing is known of it."""
    pairs = zip(_rounded(m) or (), _own_norms(m), strict=True) if _rounded(m) else ()
    # An array of zeros makes a product of zeros, whose noise is nobody's question.
    return max((stored / own for stored, own in pairs if own > 0), default=1.0)


def _stacked_rounding(one: Factored, other: Factored) -> tuple[float, ...] | None:
    if one.rounded is None and other.rounded is None:
        return None
    pairs = zip(one.rounded or _own_norms(one), other.rounded or _own_norms(other), strict=True)
    return tuple(float(np.hypot(a, b)) for a, b in pairs)


def _restored(m: Map, stored: str) -> Map:
    """The same map with another name for the dtype its weights came from."""
    if isinstance(m, Updated):
        return Updated(_as_dense(m.base, stored), m.A, m.B)
    return _as_dense(m, stored)


def _as_dense(m: Map, stored: str) -> Dense:
    return Dense(m.dense(), m.reads, m.writes, stored, _rounded(m))


def _triangle(array: np.ndarray) -> np.ndarray:
    """The R of a QR, which has the norms of the matrix; the stub of numpy types it as a pair."""
    R: Any = np.linalg.qr(_wide(array), mode="r")
    return R


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64, copy=False)


def _frozen(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _rows_of(space: Space, x: np.ndarray) -> np.ndarray:
    if x.ndim < 1 or x.shape[-1] != space.size:
        raise SpaceMismatch(f"this map reads {space}: expected rows of {space.size} entries, came shape {x.shape}")
    return _wide(x)


def _check_rounded(norms: tuple[float, ...] | None, arrays: int) -> None:
    if norms is not None and (len(norms) != arrays or not all(isfinite(n) and n >= 0 for n in norms)):
        raise BadRequest(
            f"rounded must be {arrays} norm{'s' * (arrays > 1)} >= 0, one per array as it was stored, came {norms}; "
            "leave it out where the arrays are as stored"
        )


def _check_matrix(name: str, array: np.ndarray, rows: int, columns: int, between: str) -> None:
    if not np.issubdtype(array.dtype, np.floating):
        raise BadRequest(f"factor {name} must hold floating-point weights, came {array.dtype}; convert it first")
    if array.shape != (rows, columns):
        raise SpaceMismatch(
            f"a map {between} needs {name} of shape ({rows}, {columns}), came {array.shape}; "
            "matrices are stored input x output, maybe it needs .T"
        )


def _check_factors(A: np.ndarray, B: np.ndarray, reads: Space, writes: Space) -> None:
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[0]:
        raise SpaceMismatch(f"factors of a map need A [n, r] and B [r, m], came {A.shape} and {B.shape}")
    _check_matrix("A", A, reads.size, A.shape[1], f"{reads} -> {writes}")
    _check_matrix("B", B, B.shape[0], writes.size, f"{reads} -> {writes}")
