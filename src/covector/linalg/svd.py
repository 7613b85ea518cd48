"""The singular value decomposition of a map: dyads with gains, signs, gaps, blocks, and what rounding does to them.

``M = U·diag(S)·Vh``: column i of `U` is what dyad i reads, row i of `Vh` what it writes, ``x @ M = Σ Sᵢ (x·uᵢ) vᵢ``.
Everything is float64 and deterministic; no randomised algorithm is used anywhere.

How it is found depends on how the map is kept: factors are decomposed through their thin sides (`product_svd`), one
matrix through its Gram (`dense_svd`), an overlaid matrix by adding the overlay first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from covector.axes import Bool, Float
from covector.errors import BadRank, BadRequest
from covector.linalg.blocks import degenerate_blocks, gaps, kernel_size, noisy_dyads, wedin_bounds
from covector.linalg.dense_svd import dense_dyads
from covector.linalg.dyads import BACKWARD_ERROR, EPS, Dyads, first
from covector.linalg.maps import Dense, Factored, Map, Space, Updated, frobenius
from covector.linalg.product_svd import Measured, Room, by_grams, by_jacobi, is_turned, room_for
from covector.linalg.signs import STREAMS, canonical_signs, signs_of, written_side_decides
from covector.linalg.storage_noise import StorageNoise, noise_of_matrix, noise_of_product, together

if TYPE_CHECKING:
    import torch

# Entries of the factors that are decomposed together: 16 MB in float64, sixteen heads of gpt2-medium. With half of that
# the calls of two threads cost a twelfth more, with more nothing is gained.
TOGETHER = 2**21

# glibc hands freed blocks back to the system, which then has to find and clear every page again (up to half of the time
# of a head), until it has seen a larger block freed: from then on it keeps what is smaller. This is that block, never
# touched; 32 MB is the largest from which it learns.
np.empty(31 << 20, np.uint8)


@dataclass(frozen=True, eq=False)
class SVD:
    """Dyads of a map in order of falling gain, and how far each can be trusted.

    U, S, Vh     directions read [n, r], gains [r], directions written [r, m]; float64, orthonormal to 1e-11. With
                 `stream_only` the side outside the stream may be [n, 0] or [0, m]
    reads, writes  the spaces of the two sides
    stored       dtype of the weights, on which everything about noise below depends (with the map's `rounded`)
    beyond       the gains of dyads that are not here, falling; those below 1e-7·S[0] may not have been seen
    blocks       the indices cut into runs; in a run longer than one only the span is defined (storage noise or
                 arithmetic would turn its dyads into each other by 1/3 rad or more). They are those of the whole
                 map: the last may reach beyond the dyads here, and then its span is not all here either
    gap          distance to the nearest other singular value (kept or not, 0 if there is a kernel), over S[0]
    wedin        bound on the sine of the angle by which rounding the stored weights can have turned uᵢ or vᵢ; 1 says
                 that nothing is guaranteed, which for half-precision weights is the rule
    noisy        the *expected* such angle exceeds 0.1: too close to a neighbour, or to zero, for this storage dtype
    noise        expected spectral norm of the rounding of the stored weights, in the unit of S
    absolute     σᵢ is right to 8·eps·(size of the factors) only; else to 1e-11 of itself
    sign_margin  0 ... 1, how firmly the sign of the dyad is fixed; see `signs`
    cut          dyads dropped as numerical zeros, σ <= max(n, m)·2⁻⁵²·σ₁ (0 where only leading ones were looked for)
    route        which algorithm found them, in words
    """

    U: Float[np.ndarray, "n _"]
    S: Float[np.ndarray, " r"]
    Vh: Float[np.ndarray, "_ m"]
    reads: Space
    writes: Space
    stored: str
    beyond: Float[np.ndarray, " b"]
    blocks: tuple[range, ...]
    gap: Float[np.ndarray, " r"]
    wedin: Float[np.ndarray, " r"]
    noisy: Bool[np.ndarray, " r"]
    noise: float
    absolute: Bool[np.ndarray, " r"]
    sign_margin: Float[np.ndarray, " r"]
    cut: int
    route: str

    def __post_init__(self) -> None:
        for name in ("U", "S", "Vh", "beyond", "gap", "wedin", "noisy", "absolute", "sign_margin"):
            getattr(self, name).flags.writeable = False

    @property
    def rank(self) -> int:
        """How many dyads there are."""
        return self.S.size

    @property
    def following(self) -> float:
        """The next gain, that of the first dyad not here; 0 when none was left out."""
        return float(self.beyond[0]) if self.beyond.size else 0.0

    def torch(self) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
        """U, S, Vh as float64 torch tensors (copies: the arrays here are read-only). Needs torch."""
        import torch

        U, S, Vh = (torch.from_numpy(np.array(a)) for a in (self.U, self.S, self.Vh))
        return U, S, Vh

    def block_of(self, index: int) -> range:
        """Return the block of the whole map that holds dyad `index`. Raises BadRank outside 0 ... rank - 1."""
        if not 0 <= index < self.rank:
            raise BadRank(f"expected a dyad 0 ... {self.rank - 1} of {self.reads} -> {self.writes}, came {index}")
        return next(block for block in self.blocks if index in block)


def svd(m: Map, rank: int | None = None, *, stream_only: bool = False) -> SVD:
    """Return the leading `rank` dyads of a map, or all above numerical rank.

    `stream_only` leaves out the vectors of a side that is not the residual stream, where they cost extra (an MLP's
    neurons, a vocabulary's tokens): that side may then come as [n, 0]. What is left is the same but for rounding.
    What is told of a dyad (gap, block, noise) does not depend on how many are asked for.
    Exact in the sense of `SVD.absolute`; independent of how the map is kept up to rounding, except inside blocks. A
    rank beyond what the map has is capped. A map of zeros has no dyads: shapes [n, 0], [0], [0, m].
    Raises BadRank for a rank below 1 or not whole, BadRequest for weights that are not finite.
    Cost: 8dr² + 30r³ flop for factors d x r, r x d; 8d³ + 9d³ + 8d³ for d x 4d. BLAS threads are the caller's: on thin
    factors one thread is up to ten times faster than two.
    """
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, (int, np.integer)) or rank < 1):
        raise BadRank(f"expected rank >= 1, a whole number of dyads, came {rank!r}; leave it out for all there are")
    wanted = min(m.shape) if rank is None else min(int(rank), *m.shape)
    if isinstance(m, Factored):
        return _of_factors([m], wanted)[0]
    _check_finite(m)
    found = dense_dyads(m.dense(), wanted, stream_only and _short_side_is_stream(m))
    noise = _noise_of_dense(m, found)
    size = float(found.S[0]) if found.S.size else 0.0
    found = first(found, wanted)
    return _tell(m, found, _fix_signs(m, found), noise, BACKWARD_ERROR * EPS * size)


def svds(maps: Sequence[Factored]) -> list[SVD]:
    """Return `svd` of each of several factored maps, to the last bit; a quarter sooner for the heads of a layer.

    Neighbours of one shape, between the same spaces, are decomposed together. Their vectors lie in two blocks of
    memory, which stay as long as one of them does: copy those of a head that is to be kept alone. Raises as `svd` does.
    """
    found: list[SVD] = []
    for _, alike in groupby(maps, _alike):
        found += _of_alike(list(alike))
    return found


def at_a_time(entries: int) -> int:
    """How many products whose factors have so many entries are decomposed together."""
    return max(1, TOGETHER // max(1, entries))


def _alike(m: Factored) -> tuple[object, ...]:
    """What maps must share to be decomposed together."""
    return m.A.shape, m.B.shape, is_turned(m.A), is_turned(m.B), m.reads, m.writes


def _of_alike(maps: Sequence[Factored]) -> list[SVD]:
    (n, r), width = maps[0].A.shape, maps[0].B.shape[1]
    U, Vh = room_for(len(maps), n, r, width)
    step = at_a_time(r * (n + width))
    parts = [slice(start, start + step) for start in range(0, len(maps), step)]
    return [found for part in parts for found in _of_factors(maps[part], min(n, width), (U[part], Vh[part]))]


def _of_factors(maps: Sequence[Factored], wanted: int, room: Room | None = None) -> list[SVD]:
    """Dyads of maps that are alike; signs known early are cheaper, on the small matrices."""
    reads, writes = maps[0].reads, maps[0].writes
    early = _ByWrittenSide(writes) if written_side_decides(reads, writes) else None
    quick = by_grams([(m.A, m.B) for m in maps], early, room)
    margins = [None] * len(maps)
    if early is not None and early.margin.size:
        margins = early.margin.reshape(len(maps), -1)
    return [_of_product(m, found, margin, wanted) for m, found, margin in zip(maps, quick, margins, strict=True)]


def _of_product(
    m: Factored, quick: tuple[Dyads, Measured] | None, margin: Float[np.ndarray, " r"] | None, wanted: int
) -> SVD:
    """The dyads of one map, by the careful route where the quick one has none, and what is known of each."""
    if quick is None:
        _check_finite(m)
    found, measured = quick or by_jacobi(m.A, m.B)
    if quick is None or margin is None:
        margin = _fix_signs(m, found)
    noise = _noise_of_factors(m, measured)
    size = measured.left[1] * measured.right[1]
    return _tell(m, first(found, wanted), margin[:wanted], noise, BACKWARD_ERROR * EPS * size)


class _ByWrittenSide:
    """Canonical signs, told to whoever multiplies; the margins of the choice are kept."""

    def __init__(self, space: Space) -> None:
        self.space, self.margin = space, np.zeros(0)

    def __call__(self, Vh: np.ndarray) -> np.ndarray:
        signs, self.margin = signs_of(Vh, self.space)
        return signs


def _fix_signs(m: Map, dyads: Dyads) -> np.ndarray:
    """Make the signs canonical in place (for an embedding U is the largest array there is); the margins of that."""
    signs, margin = canonical_signs(dyads.U, dyads.Vh, m.reads, m.writes)
    for rows in (dyads.U.T, dyads.Vh):
        if len(rows) == len(signs):  # a side that was not asked for has none
            np.multiply(rows, signs[:, None], out=rows)
    return margin


def _short_side_is_stream(m: Map) -> bool:
    """Whether one side alone is the residual stream, and it is the shorter: the Gram's side. Overlays need both."""
    if not isinstance(m, Dense):
        return False
    stream = [space.kind in STREAMS for space in (m.reads, m.writes)]
    n, width = m.shape
    return (stream == [True, False] and n < width) or (stream == [False, True] and width <= n)


def _tell(m: Map, dyads: Dyads, margin: np.ndarray, noise: StorageNoise, floor: float) -> SVD:
    """Say what is known of each dyad."""
    following = float(dyads.beyond[0]) if dyads.beyond.size else 0.0
    gap, coupling = gaps(dyads.S, following, m.shape), noise.coupling[: dyads.S.size]
    spectrum = np.concatenate([dyads.S, dyads.beyond])
    return SVD(
        U=dyads.U,
        S=dyads.S,
        Vh=dyads.Vh,
        reads=m.reads,
        writes=m.writes,
        stored=m.stored,
        beyond=dyads.beyond,
        blocks=degenerate_blocks(spectrum, noise.coupling, floor, dyads.S.size),
        gap=gap,
        wedin=wedin_bounds(dyads.S, gap, noise.worst),
        noisy=noisy_dyads(dyads.S, gap, coupling, kernel_size(m.shape, spectrum), floor),
        noise=noise.typical,
        absolute=dyads.absolute,
        sign_margin=margin,
        cut=dyads.cut,
        route=dyads.route,
    )


def _noise_of_factors(m: Factored, measured: Measured) -> StorageNoise:
    """Noise of a product; what is rounded is what was stored, what passes it on is what is here."""
    (own_left, left), (own_right, right) = measured.left, measured.right
    rounded_left, rounded_right = m.rounded or (own_left, own_right)
    shape = (*m.A.shape, m.B.shape[1])
    return noise_of_product(shape, (rounded_left, left), (rounded_right, right), measured.reach, m.stored)


def _noise_of_dense(m: Map, dyads: Dyads) -> StorageNoise:
    """Noise of a matrix, and of its overlay as factors of the same dtype where it has one."""
    matrix = m.base if isinstance(m, Updated) else m
    told = matrix.rounded if isinstance(matrix, Dense) else None
    base = noise_of_matrix(m.shape, told[0] if told else frobenius(matrix), dyads.S.size, m.stored)
    if not isinstance(m, Updated):
        return base
    A, B = m.A.astype(np.float64, copy=False), m.B.astype(np.float64, copy=False)
    left, right = (
        (float(np.linalg.norm(factor)), float(np.linalg.norm(factor, 2))) if factor.size else (0.0, 0.0)
        for factor in (A, B)
    )
    reach = (np.linalg.norm(dyads.U.T @ A, axis=1), np.linalg.norm(B @ dyads.Vh.T, axis=0))
    return together(base, noise_of_product((*A.shape, B.shape[1]), left, right, reach, m.stored))


def _check_finite(m: Map) -> None:
    if isinstance(m, Factored):
        arrays = {"A": m.A, "B": m.B}
    elif isinstance(m, Updated):
        arrays = {"base": m.base.W, "A": m.A, "B": m.B}
    else:
        arrays = {"W": m.dense()}
    for name, array in arrays.items():
        # Extremes pass NaN on and need no array of flags the size of an embedding.
        if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise BadRequest(
                f"cannot decompose {m.reads} -> {m.writes}: {name} {array.shape} holds values that are not finite; "
                "mask or repair them first"
            )
