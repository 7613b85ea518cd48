"""The k paths of heads with the longest features, proven: best-first branch and bound, without enumeration.

A node is a path with the coordinates of its feature. What any extension of it can reach is at most its length times
the largest product of pairwise bounds along heads that may still be put in front; a node is opened only if that is
above the k-th best length found so far. Opening a batch of nodes is one product per earlier layer, which gives the
exact lengths of all children. The search ends when no node is left to open: the k paths are then the k longest. When
a budget ends it before, the largest open bound says how far an unseen path could be ahead.

Source: `docs/theory/observables.md`, equation 11; theory page §4.5 ("pruning bound"), with norms of pairs for σ₁.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.virtual import Chain, check_length, pair_bounds

# Nodes opened together: enough rows for a matrix product at full speed.
BATCH = 64
# Lengths closer than this, relatively, are ties: the same path has another rounding in another batch.
TIE = 1e-9
# Lengths below this part of the largest, or of what rounding leaves at a head, are zero.
ZERO, NOISE = 1e-12, 1e-14

Path = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class BestPaths:
    """The longest features found. `paths` are heads' numbers, earliest first, longest feature first.

    ``proven``    no other path is longer than the last of them (by more than rounding)
    ``bound``     what no path that was not looked at exceeds; at most the last length where `proven`
    ``expanded``  nodes opened; ``generated`` paths whose length was computed, of ``total``
    ``tied``      paths as long as the last one that were left out
    """

    paths: tuple[Path, ...]
    norms: Float[np.ndarray, " k"]
    proven: bool
    bound: float
    expanded: int
    generated: int
    total: int
    tied: int

    @property
    def gap(self) -> float:
        """How much longer than the last path an unseen one may be, as a ratio minus 1; 0 where proven."""
        if self.proven:
            return 0.0
        return self.bound / float(self.norms[-1]) - 1 if len(self.norms) and self.norms[-1] > 0 else float("inf")


@dataclass(order=True)
class _Node:
    priority: float
    path: Path
    y: np.ndarray = field(compare=False)


def best_paths(
    chain: Chain,
    f: Float[np.ndarray, " d"],
    k: int,
    length: int = 3,
    *,
    budget: int | None = None,
    bounds: Float[np.ndarray, "n n"] | None = None,
) -> BestPaths:
    """The `k` paths of 1 to `length` heads with the longest features of `f`, a functional on the end.

    Exact: equal to enumerating all paths, up to rounding; ties are put in the order of the heads' numbers. Paths whose
    length is zero to rounding are no answer, so fewer than `k` may come back. `budget`: nodes opened at most;
    `bounds`: `pair_bounds(chain)`, made here if not given.
    Costs the table of bounds, and 2·d·r per path generated; typically a few per cent of all while most bounds are
    below ½, and no saving where heads amplify. Raises BadRequest for k, length or budget below 1.
    """
    check_length(length)
    if k < 1 or (budget is not None and budget < 1):
        raise BadRequest(f"expected k and a budget of at least 1, got k {k}, budget {budget}")
    search = _Search(chain, np.asarray(f), k, length, bounds)
    open_nodes: list[_Node] = []
    search.open([(None, f)], open_nodes)
    expanded = 1
    while open_nodes:
        batch = _pop(open_nodes, search.worth, BATCH if budget is None else min(BATCH, budget - expanded))
        if not batch:
            break
        expanded += len(batch)
        search.open([(node.path, node.y) for node in batch], open_nodes)
    return search.answer(open_nodes, expanded)


def growth(bounds: Float[np.ndarray, "n n"], length: int) -> Float[np.ndarray, "m n"]:
    """G[m, b] ≥ the factor by which 1 to m heads in front of head b can lengthen a feature; G[0] = 0.

    Admissible: a product of pairwise bounds along the best chain. Costs length·n².
    """
    found = np.zeros((length + 1, len(bounds)))
    for m in range(1, length + 1):
        found[m] = np.max(bounds * np.maximum(1.0, found[m - 1])[:, None], axis=0, initial=0.0)
    return found


def _pop(nodes: list[_Node], worth: float, most: int) -> list[_Node]:
    """The nodes of largest bound that may still hold something, at most so many."""
    batch: list[_Node] = []
    while nodes and len(batch) < most and -nodes[0].priority >= worth:
        batch.append(heapq.heappop(nodes))
    return batch


class _Search:
    """What has been found, and what it takes to be of interest."""

    def __init__(self, chain: Chain, f: np.ndarray, k: int, length: int, bounds: np.ndarray | None) -> None:
        self.chain, self.k, self.length = chain, k, length
        needed = bounds is None and length > 1
        table = pair_bounds(chain) if needed else np.zeros((chain.n_heads,) * 2) if bounds is None else bounds
        self.growth = growth(table, length - 1)
        largest = max((float(np.linalg.norm(layer.M, axis=(1, 2)).max(initial=0)) for layer in chain.layers), default=0)
        self.found: list[tuple[float, Path]] = []
        self.generated = 0
        # What a length has to reach; never 0, so that paths of no length are no answer.
        self.worth = max(NOISE * float(np.linalg.norm(f)) * largest, float(np.finfo(np.float64).tiny))

    def open(self, nodes: Sequence[tuple[Path | None, np.ndarray]], into: list[_Node]) -> None:
        """Compute all children of these nodes (None: the functional itself), keep what counts, queue what may."""
        for at, rows, Y in self._children(nodes):
            values = np.sqrt(np.vecdot(Y, Y))
            self.generated += values.size
            first = int(self.chain.starts[at])
            paths = [nodes[i][0] or () for i in rows]
            # Most children are of no interest: the threshold is raised by the few best before they are looked at.
            self._raise(values)
            left = np.array([self.length - len(path) - 1 for path in paths])
            reach = values * self.growth[left, first : first + values.shape[1]]
            for i, h in np.argwhere(np.maximum(values, reach) >= self.worth):
                path = (first + int(h), *paths[i])
                if values[i, h] >= self.worth:
                    self.found.append((float(values[i, h]), path))
                if reach[i, h] >= self.worth and left[i]:
                    heapq.heappush(into, _Node(-float(reach[i, h]), path, Y[i, h].copy()))
            if len(self.found) > 4 * self.k:
                self._prune()
        self._prune()

    def _children(
        self, nodes: Sequence[tuple[Path | None, np.ndarray]]
    ) -> Iterable[tuple[int, list[int], Float[np.ndarray, "batch head r"]]]:
        """(layer, which nodes, coordinates of their children there), from the latest layer down."""
        by_layer: dict[int, list[int]] = {}
        for i, (path, _) in enumerate(nodes):
            above = self.chain.within(path[0])[0] if path else len(self.chain.layers)
            by_layer.setdefault(above, []).append(i)
        rows: list[int] = []
        F = np.zeros((0, self.chain.layers[0].M.shape[-1] if self.chain.layers else 0))
        for at in range(max(by_layer, default=0) - 1, -1, -1):
            new = by_layer.get(at + 1, [])
            if new:
                F = np.concatenate([F, np.stack([self._functional(*nodes[i]) for i in new])])
                rows = rows + new
            layer = self.chain.layers[at]
            for norm in layer.crossed:
                F = norm.pull(F)
            if rows:
                yield at, rows, (F @ layer.flat).reshape(len(F), *layer.M.shape[:2])

    def _functional(self, path: Path | None, y: np.ndarray) -> np.ndarray:
        if not path:
            return y
        at, head = self.chain.within(path[0])
        return self.chain.layers[at].read(y, head)

    def _raise(self, values: np.ndarray) -> None:
        """Count these values towards the k-th best, before any of them is looked at."""
        flat = values.reshape(-1)
        best = np.partition(flat, -self.k)[-self.k :] if len(flat) > self.k else flat
        known = np.concatenate([best, [value for value, _ in self.found]])
        if len(known):
            self._set(known)

    def _set(self, known: np.ndarray) -> None:
        kth = float(np.partition(known, -self.k)[-self.k]) if len(known) >= self.k else 0.0
        self.worth = max(self.worth, kth * (1 - TIE), ZERO * float(known.max()))

    def _prune(self) -> None:
        self.found = [pair for pair in self.found if pair[0] >= self.worth]

    def answer(self, left: list[_Node], expanded: int) -> BestPaths:
        """The best k in the order of length, ties in the order of heads, and whether that is proven."""
        self._prune()
        ordered = sorted(self.found, key=lambda pair: (-pair[0], pair[1]))
        ordered = [pair for group in _ties(ordered) for pair in sorted(group, key=lambda p: p[1])]
        chosen, rest = ordered[: self.k], ordered[self.k :]
        last = chosen[-1][0] if len(chosen) == self.k else self.worth
        tied = sum(abs(value - last) <= TIE * last for value, _ in rest)
        bound = max((-node.priority for node in left), default=0.0)
        return BestPaths(
            tuple(path for _, path in chosen), np.array([value for value, _ in chosen]), bound < self.worth,
            max(bound, last), expanded, self.generated, self.chain.count(self.length), tied,
        )  # fmt: skip


def _ties(ordered: Sequence[tuple[float, Path]]) -> Iterable[list[tuple[float, Path]]]:
    """Runs of equal lengths, up to rounding."""
    group: list[tuple[float, Path]] = []
    for pair in ordered:
        if group and group[-1][0] - pair[0] > TIE * pair[0]:
            yield group
            group = []
        group.append(pair)
    if group:
        yield group
