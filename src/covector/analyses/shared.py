"""Whether two tasks share features over chains of heads: pairs of paths that end at one head and read one direction.

Source: theory page §1.6, §4.5 ("observable-conditioned coupling between two tasks"); `docs/theory/observables.md`,
equation 11.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.each_head import without_bias
from covector.analyses.propagate import CONVENTION, DATA_FREE
from covector.analyses.virtual_chain import chain_of
from covector.analyses.virtual_heads import NO_GAIN, Sphere, named, readout
from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.chance.streams import generator
from covector.linalg.virtual import Chain
from covector.linalg.virtual_gains import Gains, all_gains
from covector.model.opened import Model
from covector.render import Column, Table
from covector.study.observable import Observable

LEVEL = 0.05
# Cosines nearer to ±1 are rounding of 1; a pair whose cosine varies less than STILL has no freedom, so says nothing.
ONE, STILL = 1 - 1e-12, 1e-6
# Cosines per block: 32 MB.
BLOCK = 2**22

Path = tuple[int, ...]


def shared(
    model: Model,
    first: Observable | str,
    second: Observable | str,
    *,
    length: int = 3,
    top: int = 50,
    paths: int = 64,
    frame: str | None = None,
    draws: int = 500,
    seed: int = 0,
) -> Table:
    """One row per pair of paths, one of each task, that end at the same head: are their features one feature?

    At every head the `paths` paths of up to `length` (at most 3) heads with the largest gain for random read-outs (all
    where there are fewer) are taken from both tasks, all pairs compared; the choice does not see the tasks. Rows: the
    `top` pairs that are furthest above chance. ``cos`` is between the two features before the head's norm.
    Null: `draws` pairs of random read-outs with the cosine that the two tasks' read-outs have, read through the same
    paths. It holds what makes cosines large for nothing: features at a head lie in the few directions that it reads,
    unevenly, and read-outs that are alike stay alike. A law of cosines in d or d_head dimensions (Beta) holds neither.
    ``chance`` and ``p`` are of that pair alone; ``p_max`` repeats the choice of the best of all pairs at all heads:
    max-T over atanh|cos|, standardised pair by pair with the mean and deviation of the draws and the tasks together, so
    exact up to 1/(draws + 1) whatever depends on what. Prediction: nothing is run.
    Raises BadRequest, BadSite, NotOneToken, UnknownBasis.
    """
    if min(top, paths) < 1 or draws < 19:
        raise BadRequest(f"expected top and paths of at least 1, draws of at least 19, got {top}, {paths}, {draws}")
    view = without_bias(model, frame)
    one, two = (Observable.parse(o, view) if isinstance(o, str) else o for o in (first, second))
    (f, sphere), (g, _) = readout(view, one), readout(view, two)
    chain, names = chain_of(view)
    gains = all_gains(chain, length, centred=sphere.centred)
    rho = float(f @ g / np.linalg.norm(f) / np.linalg.norm(g))
    A, B = random_pairs(sphere, rho, draws, seed)
    A, B = np.concatenate([f[None], A]), np.concatenate([g[None], B])
    chosen = [chosen_paths(gains, chain, head, paths) for head in range(chain.n_heads)]
    found = compared(chain, chosen, A, B, top)
    return _table(view, (one, two), names, found, rho, chain.count(length), length, draws, seed)


def random_pairs(
    sphere: Sphere, rho: float, draws: int, seed: int
) -> tuple[Float[np.ndarray, "draws d"], Float[np.ndarray, "draws d"]]:
    """Pairs of unit directions, even in all of them, whose cosine is `rho`."""
    rng = generator(seed, "pairs of directions")
    u, v = sphere.draw(rng, draws), sphere.draw(rng, draws)
    v = v - np.sum(u * v, axis=1, keepdims=True) * u
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    return u, rho * u + np.sqrt(max(0.0, 1 - rho * rho)) * v


def chosen_paths(gains: Gains, chain: Chain, head: int, most: int) -> list[Path]:
    """The paths that begin at a head with the largest gain, at most so many; those without any gain are left out."""
    n, after = chain.n_heads, int(chain.starts[chain.layer_of[head] + 1])
    found: list[tuple[np.ndarray, np.ndarray]] = [(np.array([[head]]), gains.singles[[head]])]
    later = np.arange(after, n)
    if np.any(gains.pairs[head, after:]):
        found.append((_in_front([head], later), gains.pairs[head, after:]))
    for b in later if gains.through else ():
        table = gains.through[b]
        found.append((_in_front([head, int(b)], np.arange(n - table.shape[1], n)), table[head]))
    heads_of = [(path, gain) for heads, some in found for path, gain in zip(heads.tolist(), some, strict=True)]
    rows = [(float(gain), tuple(path)) for path, gain in heads_of]
    least = NO_GAIN * float(gains.singles.max(initial=0))
    rows = sorted((row for row in rows if row[0] > least), key=lambda row: (-row[0], row[1]))
    return [path for _, path in rows[:most]]


def _in_front(heads: Sequence[int], later: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n m"]:
    return np.column_stack([*(np.full(len(later), h) for h in heads), later])


@dataclass(frozen=True, eq=False)
class Compared:
    """The pairs furthest above chance, and how many there were.

    ``score`` standardised atanh|cos|; ``norms`` lengths of the two features; ``beyond`` pairs with p_max below LEVEL.
    """

    pairs: list[tuple[Path, Path]]
    cos: Float[np.ndarray, " n"]
    level: Float[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]
    p: Float[np.ndarray, " n"]
    p_max: Float[np.ndarray, " n"]
    norms: Float[np.ndarray, "n k"]
    count: int
    beyond: int


@dataclass(frozen=True, eq=False)
class _Row:
    score: float
    pair: tuple[Path, Path]
    cos: float
    level: float
    p: float
    norms: tuple[float, float]


def compared(
    chain: Chain, chosen: Sequence[Sequence[Path]], A: Float[np.ndarray, "draws d"], B: Float[np.ndarray, "draws d"],
    top: int,
) -> Compared:  # fmt: skip
    """Compare the tasks (row 0 of A and B, functionals on the end) with the null pairs (the other rows).

    `chosen[h]`: the paths that begin at head h. Exact max-T: row 0 and the others are treated alike.
    """
    at_last = _Coordinates(chain, A, B)
    largest = np.full(len(A), -np.inf)
    rows: list[_Row] = []
    scores: list[np.ndarray] = []
    for paths in chosen:
        if not paths:
            continue
        both = at_last.of(paths)
        lengths = [np.linalg.norm(Y[0], axis=1) for Y in both]
        X, Y = (_unit(Y) for Y in both)
        step = max(1, BLOCK // (len(A) * len(paths)))
        for start in range(0, len(paths), step):
            C = X[:, start : start + step] @ Y.swapaxes(1, 2)
            t = standardised(C)
            np.maximum(largest, t.max(axis=(1, 2)), out=largest)
            scores.append(t[0].reshape(-1))
            rows += _rows(C, t, paths, start, lengths, top)
            rows = sorted(rows, key=lambda row: (-row.score, row.pair))[:top]
    every = np.sort(np.concatenate(scores)) if scores else np.zeros(0)
    null = np.sort(largest[1:])
    score = np.array([row.score for row in rows])
    p_max = _exceeded(null, score)
    return Compared(
        [row.pair for row in rows], np.array([row.cos for row in rows]), np.array([row.level for row in rows]), score,
        np.array([row.p for row in rows]), p_max, np.array([row.norms for row in rows]).reshape(-1, 2), len(every),
        int(np.sum(_exceeded(null, every) < LEVEL)),
    )  # fmt: skip


def _exceeded(null: Float[np.ndarray, " draws"], score: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Monte-Carlo p of each score against a sorted null, never 0."""
    return (1 + len(null) - np.searchsorted(null, score, side="left")) / (1 + len(null))


class _Coordinates:
    """Coordinates of all read-outs at paths' earliest heads; what they are at every head alone is made once."""

    def __init__(self, chain: Chain, A: np.ndarray, B: np.ndarray) -> None:
        self.chain = chain
        both = np.concatenate([A, B])
        self.alone = [both @ chain.operator((head,)).T for head in range(chain.n_heads)]

    def of(self, paths: Sequence[Path]) -> tuple[Float[np.ndarray, "draws n r"], Float[np.ndarray, "draws n r"]]:
        """For A and for B: coordinates at the head that all these paths begin with."""
        found = np.stack([self.alone[path[-1]] @ self.chain.step(path).T for path in paths], axis=1)
        half = len(found) // 2
        return found[:half], found[half:]


def standardised(C: Float[np.ndarray, "draws n m"]) -> Float[np.ndarray, "draws n m"]:
    """atanh|cos| less its mean over the rows, over its deviation; 0 where it does not vary."""
    t = np.arctanh(np.minimum(np.abs(C), ONE))
    spread = t.std(axis=0)
    return np.where(spread > STILL, (t - t.mean(axis=0)) / np.where(spread > STILL, spread, 1.0), 0.0)


def _rows(
    C: np.ndarray, t: np.ndarray, paths: Sequence[Path], start: int, lengths: Sequence[np.ndarray], top: int
) -> list[_Row]:
    """The `top` pairs of a block."""
    order = np.argsort(-t[0].reshape(-1), kind="stable")[:top]
    found = []
    for i, j in zip(*np.unravel_index(order, t[0].shape), strict=True):
        null = np.abs(C[1:, i, j])
        reached = (1 + int(np.sum(null >= abs(C[0, i, j]) - 1e-12))) / len(C)
        pair = (paths[start + int(i)], paths[int(j)])
        sizes = (float(lengths[0][start + i]), float(lengths[1][j]))
        level = float(np.quantile(null, 1 - LEVEL))
        found.append(_Row(float(t[0, i, j]), pair, float(C[0, i, j]), level, reached, sizes))
    return found


def _unit(Y: Float[np.ndarray, "draws n r"]) -> Float[np.ndarray, "draws n r"]:
    size = np.linalg.norm(Y, axis=-1, keepdims=True)
    return np.divide(Y, size, out=np.zeros_like(Y), where=size > 0)


def _table(
    view: Model,
    tasks: tuple[Observable, Observable],
    names: list[str],
    found: Compared,
    rho: float,
    total: int,
    length: int,
    draws: int,
    seed: int,
) -> Table:
    firsts, seconds = ([named(pair[i], names) for pair in found.pairs] for i in (0, 1))
    columns = [
        Column("first", firsts, about=f"path of {tasks[0]}, earliest head first"),
        Column("second", seconds, about=f"path of {tasks[1]}; it ends at the same head"),
        Column("cos", found.cos, "cos", 4, "of the two features", chance="chance"),
        Column("chance", found.level, "", 4, "|cos| that random read-outs as alike stay below with 95 % here"),
        Column("above", found.score, "σ", 1, "atanh|cos| above the mean of random read-outs, in their deviations"),
        Column("p", found.p, about="chance of such a |cos| for this pair alone"),
        Column("p_max", found.p_max, about="chance that the best of all pairs at all heads is so far above"),
        Column("norm_first", found.norms[:, 0], "logits", 3, f"feature length of {tasks[0]}"),
        Column("norm_second", found.norms[:, 1], "logits", 3, f"feature length of {tasks[1]}"),
    ]
    heads = f"{firsts[0]} and {seconds[0]}" if firsts else ""
    return Table(
        columns=columns,
        meta=view.meta | {"analysis": "shared", "kind": "prediction", "observables": [str(o) for o in tasks],
                          "policy": str(DATA_FREE), "convention": CONVENTION, "length": length, "pairs": found.count,
                          "beyond": found.beyond, "readouts_cos": rho, "paths": total, "seed": seed,
                          "null": f"pairs of random read-outs with cosine {rho:.4f}, max-T, {draws} draws"},
        title=f"{view.name} · {tasks[0]} against {tasks[1]} · {found.count:,} pairs of paths of up to {length} heads · "
        f"read-outs cos {rho:.3f} · frame {view.frame} · no data",
        says=_says(found, heads, rho),
        not_says="It does not say that heads attend along these paths, nor that a shared feature is what either task "
        "uses. Attention paths through values only: no MLPs, no queries or keys. Two features at one head are alike by "
        "chance as far as the head reads few directions; that is in the null.",
        next=_next(view, tasks, firsts),
        key=("first", "second"),
    )  # fmt: skip


def _says(found: Compared, heads: str, rho: float) -> str:
    if not found.pairs:
        return "There is no path of heads to compare."
    beyond = (
        f"{found.beyond} of {found.count:,} pairs of paths are more alike than read-outs with cosine {rho:.2f} make "
        f"them, after paying for the choice among all"
    )
    if found.p_max[0] < LEVEL:
        return f"{heads} read one feature (cos {found.cos[0]:.2f}, p_max {found.p_max[0]:.2g}); {beyond}."
    return f"{beyond}: no pair shows a shared feature beyond what the read-outs themselves share."


def _next(view: Model, tasks: tuple[Observable, Observable], firsts: list[str]) -> str:
    if not firsts:
        return f"covector observe couple {view.words} {tasks[0].typed} {tasks[1].typed}{view.framing}"
    return f"covector observe align {view.words} {tasks[0].typed} {firsts[0].split('>')[0]}{view.framing}"
