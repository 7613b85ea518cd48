"""Virtual heads: a functional pulled back through chains of heads, all of them in a few large products.

A head is two thin factors, V [d, r] (read) and O [r, d] (written); it takes a functional f on what it writes to
(f Oᵀ) Vᵀ on what it reads. With V = QR and M = RO, y = f Mᵀ are the r coordinates of that result in the orthonormal
columns of Q: its length is ‖y‖, and the next head continues from y Qᵀ. So a step costs 2·d·r per path, and no d × d
matrix is made. A path is its heads' numbers, the earliest first; heads of one layer do not feed each other.

Norms and centring on the way are linear here (`Crossing`) and belong in V and O where they stand at a head.

Source: `docs/theory/observables.md`, equation 11; theory page §1.2, §1.6 (columns there, rows here).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from covector.axes import Float, Int
from covector.errors import BadRequest, SpaceMismatch

# Numbers of one block of coordinates: 4 MB in float64 stay in the cache while their lengths are taken.
BLOCK = 2**19
# Functionals in one product from which reading the matrix costs less than multiplying.
FEW = 512
# What rounding of float64 may take off a bound: relative to it, and to the size of the head that it is a bound for.
RELATIVE, ABSOLUTE = 1e-9, 1e-13


@dataclass(frozen=True, eq=False)
class Crossing:
    """A norm that a functional passes, without its scale: v ↦ (v ⊙ gain), centred where `centre`."""

    gain: Float[np.ndarray, " d"] | None
    centre: bool

    def pull(self, rows: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """Functionals on the norm's output as functionals on its input."""
        rows = rows if self.gain is None else rows * self.gain.astype(rows.dtype, copy=False)
        return rows - rows.mean(axis=-1, keepdims=True) if self.centre else rows


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's heads, compressed: f ↦ y = f M[h]ᵀ, and y ↦ y Q[group[h]]ᵀ, the functional that the head reads.

    `crossed`: what a functional passes between the next later layer (or the end) and this one, in that order.
    """

    M: Float[np.ndarray, "head r d"]
    Q: Float[np.ndarray, "kv_head d r"]
    group: tuple[int, ...]
    crossed: tuple[Crossing, ...] = ()

    @cached_property
    def flat(self) -> Float[np.ndarray, "d n"]:
        """All heads side by side, transposed: one product gives everybody's coordinates."""
        return self.M.reshape(-1, self.M.shape[-1]).T

    @property
    def per_head(self) -> Float[np.ndarray, "head d r"]:
        """Q of every query head; a copy where heads share one."""
        return self.Q if self.group == tuple(range(len(self.Q))) else self.Q[list(self.group)]

    def read(self, y: Float[np.ndarray, "*batch r"], head: int) -> Float[np.ndarray, "*batch d"]:
        """Coordinates at a head as functionals on what it reads."""
        return y @ self.Q[self.group[head]].T


def compress(
    V: Float[np.ndarray, "kv_head d r"],
    O: Float[np.ndarray, "head r d"],  # noqa: E741
    group: Sequence[int] | None = None,
    crossed: tuple[Crossing, ...] = (),
) -> Layer:
    """A layer from the two factors of its heads; `group[h]` is the read factor of head h (None: its own).

    Exact to rounding for every rank; keeps the precision of the factors. Costs a QR per read factor and 2·d·r² per
    head, once per model. Raises SpaceMismatch where the factors do not fit together.
    """
    group = tuple(range(len(V))) if group is None else tuple(group)
    if len(group) != len(O) or O.shape[1:] != V.shape[:0:-1] or (group and max(group) >= len(V)):
        raise SpaceMismatch(
            f"expected read factors [kv, d, r] and write factors [head, r, d], got {V.shape}, {O.shape}"
        )
    Q, R = np.linalg.qr(V)
    return Layer(R[list(group)] @ O, Q, group, crossed)


@dataclass(frozen=True, eq=False)
class Paths:
    """Paths of one length and the lengths of their features: `heads` [n, length], earliest first."""

    heads: Int[np.ndarray, "n m"]
    norms: Float[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Chain:
    """The layers of a model, earliest first. Heads are numbered through: `layer_of`, `within`."""

    layers: tuple[Layer, ...]

    @cached_property
    def starts(self) -> Int[np.ndarray, " n"]:
        """Number of each layer's first head, and of all heads at the end."""
        return np.concatenate([[0], np.cumsum([len(layer.M) for layer in self.layers])]).astype(np.int64)

    @cached_property
    def layer_of(self) -> Int[np.ndarray, " n"]:
        """The layer of each head."""
        return np.repeat(np.arange(len(self.layers)), np.diff(self.starts))

    @property
    def n_heads(self) -> int:
        """Heads of all layers."""
        return int(self.starts[-1])

    def within(self, head: int) -> tuple[int, int]:
        """(layer, head in it)."""
        layer = int(self.layer_of[head])
        return layer, head - int(self.starts[layer])

    def down(self, rows: Float[np.ndarray, "*batch d"], above: int, to: int) -> Float[np.ndarray, "*batch d"]:
        """Functionals on what layer `above` reads (the number of layers: on the end) as those on what `to` writes."""
        for layer in range(above - 1, to - 1, -1):
            for norm in self.layers[layer].crossed:
                rows = norm.pull(rows)
        return rows

    def link(self, a: int, b: int) -> Float[np.ndarray, "n m"]:
        """K with y_a = y_b Kᵀ: from coordinates at head b to those at the earlier head a. Raises BadRequest."""
        (at, head), (above, later) = self.within(a), self.within(b)
        if at >= above:
            raise BadRequest(
                f"expected a head of an earlier layer first, got heads {a} and {b} of layers {at}, {above}"
            )
        layer = self.layers[above]
        return self.layers[at].M[head] @ self.down(layer.Q[layer.group[later]].T, above, at).T

    def operator(self, path: Sequence[int], *, centred: bool = False) -> Float[np.ndarray, "r d"]:
        """X with y = f Xᵀ: from functionals on the end to coordinates at a path's earliest head.

        `centred`: for functionals without a part along 1.
        """
        above, head = self.within(path[-1])
        found = self.down_transposed(self.layers[above].M[head], above)
        found = found - found.mean(axis=-1, keepdims=True) if centred else found
        return self.step(path) @ found

    def step(self, path: Sequence[int]) -> Float[np.ndarray, "n m"]:
        """From coordinates at a path's last head to those at its earliest: the product of its links."""
        layer, _ = self.within(path[-1])
        found = np.eye(self.layers[layer].M.shape[1], dtype=self.layers[layer].M.dtype)
        for a, b in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
            found = self.link(a, b) @ found
        return found

    def down_transposed(self, rows: Float[np.ndarray, "*batch d"], to: int) -> Float[np.ndarray, "*batch d"]:
        """Rows that functionals brought `down` from the end to layer `to` are multiplied with, for those at the end."""
        for layer in range(to, len(self.layers)):
            for norm in reversed(self.layers[layer].crossed):
                rows = rows - rows.mean(axis=-1, keepdims=True) if norm.centre else rows
                rows = rows if norm.gain is None else rows * norm.gain
        return rows

    def count(self, length: int) -> int:
        """How many paths of 1 to `length` heads there are; exact."""
        ways = [1] + [0] * length
        for layer in self.layers:
            for m in range(length, 0, -1):
                ways[m] += ways[m - 1] * len(layer.M)
        return sum(ways[1:])


def all_norms(chain: Chain, f: Float[np.ndarray, " d"], length: int, *, links: "Links | None" = None) -> list[Paths]:
    """The length of the feature of every path of 1, 2, … `length` heads; `f` is a functional on the end.

    Exact to rounding, in the precision of the chain. Costs 2·d·r per path in products of many rows; memory: r numbers
    per path of less than `length` heads, and d per path of less than `length` − 1. With `links` (`all_links(chain)`,
    worth their memory where many functionals are asked for) 2·r² per path. Raises BadRequest for a length below 1.
    """
    check_length(length)
    sweep = _Sweep(chain, length, links)
    dtype = chain.layers[0].M.dtype if chain.layers else np.float64
    sweep.carry(np.zeros((1, 0), dtype=np.int32), f[None].astype(dtype))
    for at in range(len(chain.layers) - 1, -1, -1):
        sweep.pass_layer(at)
    return [_joined(parts, m + 1) for m, parts in enumerate(sweep.found)]


class _Sweep:
    """Paths extended from the latest layer to the earliest.

    Few paths are carried down together, so that a layer's matrix is read once for all of them; many that begin in one
    layer are extended through all earlier layers at once and dropped, so that only their coordinates are ever kept.
    """

    def __init__(self, chain: Chain, length: int, links: "Links | None") -> None:
        self.chain, self.length, self.links = chain, length, links
        self.found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(length)]
        # Per number of heads: paths (later heads, then functionals) that are carried.
        self.carried: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(length)]
        # Per layer and number of heads: (later heads [n, m − 1], coordinates [n, head, r]) of paths that begin in it.
        self.waiting = [[list[tuple[np.ndarray, np.ndarray]]() for _ in range(length)] for _ in chain.layers]

    def carry(self, paths: np.ndarray, F: np.ndarray) -> None:
        """Have functionals extended by every layer that is passed from now on."""
        self.carried[paths.shape[1]].append((paths, F))

    def pass_layer(self, at: int) -> None:
        """Extend what is carried by this layer's heads, then take up the paths that begin in it."""
        for m, groups in enumerate(self.carried):
            if groups:
                paths, F = (np.concatenate(part) for part in zip(*groups, strict=True))
                F = self._extend(paths, F, at)
                self.carried[m] = [(paths, F)]
        for group in self.waiting[at]:
            if group:
                later, Y = (np.concatenate(part) for part in zip(*group, strict=True))
                if self.links is not None and later.shape[1] == self.length - 2:
                    self._finish(later, Y, at)
                    continue
                Q = self.chain.layers[at].per_head
                F = np.matmul(Y.swapaxes(0, 1), Q.swapaxes(1, 2)).reshape(-1, Q.shape[1])
                paths = _before(self.chain, at, later)
                if paths.shape[1] < self.length - 1 or len(F) < FEW:
                    self.carry(paths, F)
                else:
                    for earlier in range(at - 1, -1, -1):
                        F = self._extend(paths, F, earlier)
        self.waiting[at] = []

    def _finish(self, later: np.ndarray, Y: np.ndarray, at: int) -> None:
        """Lengths of the longest paths that go on from this layer, from kept links."""
        assert self.links is not None
        paths, group = _before(self.chain, at, later), self.chain.layers[at].group
        for earlier, K in enumerate(self.links[at]):
            heads, r = self.chain.layers[earlier].M.shape[:2]
            lengths = np.empty((heads, len(group), len(Y)), dtype=Y.dtype)
            for h, kv in enumerate(group):
                made = (Y[:, h] @ K[kv]).reshape(len(Y), heads, r)
                lengths[:, h] = np.vecdot(made, made).T
            self.found[-1].append((_before(self.chain, earlier, paths), np.sqrt(lengths, out=lengths)))

    def _extend(self, later: np.ndarray, F: np.ndarray, at: int) -> np.ndarray:
        """Put every head of a layer in front; returns the functionals as that layer's writes see them."""
        layer, m = self.chain.layers[at], later.shape[1] + 1
        for norm in layer.crossed:
            F = norm.pull(F)
        lengths, Y = _coordinates(layer, F, keep=m < self.length)
        self.found[m - 1].append((_before(self.chain, at, later), lengths))
        if Y is not None:
            self.waiting[at][m - 1].append((later, Y))
        return F


def _joined(parts: list[tuple[np.ndarray, np.ndarray]], m: int) -> Paths:
    if not parts:
        return Paths(np.zeros((0, m), dtype=np.int32), np.zeros(0))
    return Paths(np.concatenate([p for p, _ in parts]), np.concatenate([n.reshape(-1) for _, n in parts]))


def _coordinates(layer: Layer, F: np.ndarray, *, keep: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Lengths [head, n] of what functionals become at every head of a layer, and if kept the coordinates."""
    heads, r, _ = layer.M.shape
    lengths = np.empty((heads, len(F)), dtype=F.dtype)
    kept = np.empty((len(F), heads, r), dtype=F.dtype) if keep else None
    rows = max(1, BLOCK // (heads * r))
    scratch = np.empty((min(rows, len(F)), heads * r), dtype=F.dtype)
    for start in range(0, len(F), rows):
        some = F[start : start + rows]
        out = kept[start : start + rows].reshape(len(some), -1) if kept is not None else scratch[: len(some)]
        np.matmul(some, layer.flat, out=out)
        Y = out.reshape(len(some), heads, r)
        lengths[:, start : start + rows] = np.vecdot(Y, Y).T
    return np.sqrt(lengths, out=lengths), kept


def _before(chain: Chain, at: int, later: np.ndarray) -> np.ndarray:
    """Every head of a layer in front of every path: [head · n, m + 1], head-major."""
    first, n = int(chain.starts[at]), len(later)
    heads = len(chain.layers[at].M)
    made = np.empty((heads, n, later.shape[1] + 1), dtype=np.int32)
    made[:, :, 0] = np.arange(first, first + heads)[:, None]
    made[:, :, 1:] = later
    return made.reshape(heads * n, -1)


Links = tuple[tuple[np.ndarray, ...], ...]


def links_from(chain: Chain, above: int) -> Iterator[tuple[int, Float[np.ndarray, "kv_head r n"]]]:
    """(earlier layer, links [kv, r, head · r]) of a layer to each earlier one, the nearest first: y_a = y_b · link.

    Costs 2·d·r² per pair.
    """
    rows = chain.layers[above].Q.swapaxes(1, 2)
    for at in range(above - 1, -1, -1):
        layer = chain.layers[at]
        for norm in layer.crossed:
            rows = norm.pull(rows)
        yield at, (rows.reshape(-1, rows.shape[-1]) @ layer.flat).reshape(*rows.shape[:2], -1)


def all_links(chain: Chain) -> Links:
    """The links of every layer to every earlier one, ``[later][earlier]``: r² numbers per pair (GPT-2: 160 MB)."""
    return tuple(tuple(K for _, K in reversed(list(links_from(chain, above)))) for above in range(len(chain.layers)))


def pair_bounds(chain: Chain) -> Float[np.ndarray, "n n"]:
    """N[a, b] ≥ what head a can multiply the length of a feature at the later head b by; 0 where a does not feed b.

    N = ‖(KKᵀ)⁴‖_F^⅛ with K the link from b to a: at most r^(1/16) above ‖K‖₂ (1.3 at r = 64), without an SVD, and
    widened by what rounding in float64 may take off. Costs 2·d·r² + 6·r³ per pair, once per model.
    """
    N = np.zeros((chain.n_heads, chain.n_heads))
    for above, layer in enumerate(chain.layers):
        for at, K in links_from(chain, above):
            M = chain.layers[at].M
            each = K.reshape(*K.shape[:2], *M.shape[:2]).transpose(0, 2, 1, 3).astype(np.float64, copy=False)
            bound = _schatten(each) * (1 + RELATIVE) + ABSOLUTE * np.linalg.norm(M, axis=(1, 2))
            earlier, later = (slice(chain.starts[i], chain.starts[i + 1]) for i in (at, above))
            N[earlier, later] = bound[list(layer.group)].T
    return N


def _schatten(K: Float[np.ndarray, "*batch n m"]) -> Float[np.ndarray, "*batch"]:
    """‖(KKᵀ)⁴‖_F^⅛ of every matrix, scaled so that nothing overflows: Schatten's norm of order 16."""
    size = np.linalg.norm(K, axis=(-2, -1))
    K = K / np.where(size > 0, size, 1.0)[..., None, None]
    S = K @ K.swapaxes(-1, -2)
    S = S @ S
    S = S @ S
    return size * np.linalg.norm(S, axis=(-2, -1)) ** 0.125


def check_length(length: int) -> None:
    """Raise BadRequest unless a path of this many heads exists."""
    if length < 1:
        raise BadRequest(f"expected paths of at least 1 head, got length {length}; 3 is usual")
