"""Which virtual heads could matter for a task: chains of heads through their values, ranked without any data.

Source: `docs/theory/observables.md`, equation 11; theory page §1.2, §1.6, §4.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.each_head import without_bias
from covector.analyses.propagate import CONVENTION, DATA_FREE
from covector.analyses.virtual_chain import chain_of
from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.branch_and_bound import TIE, BestPaths, best_paths
from covector.linalg.chance.quadratic import gain_tail
from covector.linalg.chance.streams import generator
from covector.linalg.virtual import Chain, all_norms
from covector.linalg.virtual_gains import LONGEST, all_gains
from covector.model.opened import Model
from covector.model.spec import ModelSpec
from covector.propagation.linearised import Linearised
from covector.render import Column, Table
from covector.study.observable import Observable

LEVEL = 0.05
# Paths that may be listed one by one to be ranked by ratio: a minute and a gigabyte or so.
ENUMERATED = 10_000_000
# A path whose gain is below this part of the largest is a path of rounding: its ratio means nothing.
NO_GAIN = 1e-10


def virtual_heads(
    model: Model,
    observable: Observable | str,
    *,
    length: int = 3,
    top: int = 20,
    by: str = "norm",
    budget: int | None = None,
    frame: str | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Table:
    """One row per path of 1 to `length` heads, the `top` ones of all: its feature's length and what chance gives.

    A path goes through values only (attention V paths), every head attending fully to one place. ``norm`` is of the
    feature before the norm of the earliest head, with the conventions of `head_norms`: every norm on the way keeps gain
    and centring and loses its scale. `by` ``norm``: the longest features, by branch and bound; proven, or with the
    gap stated when `budget` node expansions did not suffice. `by` ``ratio``: the largest norm over the path's own
    baseline ‖f‖·‖M‖_F/√d (M the path's map, d the dimension of the last stream); all paths of up to 3 heads are listed.
    Chance: the same path read by random directions as long as the observable's own. ``chance`` and ``p`` by `draws`
    draws; ``p_all`` by saddlepoint, times the number of all paths (Bonferroni), so the choice is paid for.
    Prediction, nothing is run. Exact but for rounding and the p. Costs a product of two heads per pair of heads, once.
    Raises BadRequest, BadSite, NotOneToken, UnknownBasis.
    """
    if by not in ("norm", "ratio") or top < 1 or draws < 1:
        raise BadRequest(f"expected by norm or ratio, top and draws of at least 1, got {by}, {top}, {draws}")
    view = without_bias(model, frame)
    observable = Observable.parse(observable, view) if isinstance(observable, str) else observable
    f, sphere = readout(view, observable)
    chain, names = chain_of(view)
    if by == "norm":
        found = best_paths(chain, f, top, length, budget=budget)
    else:
        found = _by_ratio(chain, f, top, length, sphere, budget)
    measured = _measured(chain, f, found, sphere, draws, seed)
    return _table(view, observable, names, found, measured, by, length, draws, seed)


@dataclass(frozen=True)
class Sphere:
    """Where random read-outs live: all directions of `d` dimensions, or those without a part along 1 (`centred`)."""

    d: int
    centred: bool

    @property
    def free(self) -> int:
        """Dimensions that a direction has."""
        return self.d - self.centred

    def draw(self, rng: np.random.Generator, n: int) -> Float[np.ndarray, "n d"]:
        """Unit directions, even in all of them."""
        rows = rng.standard_normal((n, self.d))
        rows = rows - rows.mean(axis=1, keepdims=True) if self.centred else rows
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def readout(view: Model, observable: Observable) -> tuple[Float[np.ndarray, " d"], Sphere]:
    """The observable as a functional on the last state, and the sphere that it lies on. Raises BadRequest if null."""
    f = Linearised(view.weights, (), DATA_FREE).unread(observable.vector[None], observable.output)[1][0, 0]
    if not np.any(f):
        raise BadRequest(f"{observable} reads nothing of the last stream: its read-out is zero; choose other labels")
    final = view.spec.final_norm
    return f, Sphere(len(f), final is not None and final.kind == "layer")


@dataclass(frozen=True, eq=False)
class _Measured:
    """Per path: 95 % level of random read-outs, norm over baseline, Monte-Carlo p, exact p (saddlepoint)."""

    level: Float[np.ndarray, " k"]
    ratio: Float[np.ndarray, " k"]
    p: Float[np.ndarray, " k"]
    tail: Float[np.ndarray, " k"]


def _measured(chain: Chain, f: np.ndarray, found: BestPaths, sphere: Sphere, draws: int, seed: int) -> _Measured:
    size = float(np.linalg.norm(f))
    directions = sphere.draw(generator(seed, "directions"), draws)
    rows = []
    for path, norm in zip(found.paths, found.norms, strict=True):
        X = chain.operator(path, centred=sphere.centred)
        null = size * np.linalg.norm(directions @ X.T, axis=1)
        S = np.linalg.svd(X, compute_uv=False)[: sphere.free]
        ratio = norm / (size * np.linalg.norm(S) / np.sqrt(sphere.free))
        # Rounding: a path through a map of full rank and equal gains reaches its baseline and not a bit more.
        beyond = (1 + np.sum(null >= norm * (1 - TIE))) / (1 + draws)
        rows.append((np.quantile(null, 1 - LEVEL), ratio, beyond, gain_tail(S, float(ratio**2), sphere.free)))
    level, ratio, p, tail = np.array(rows).reshape(-1, 4).T
    return _Measured(level, ratio, p, tail)


def _by_ratio(chain: Chain, f: np.ndarray, top: int, length: int, sphere: Sphere, budget: int | None) -> BestPaths:
    total = chain.count(length)
    if length > LONGEST or total > ENUMERATED or budget is not None:
        raise BadRequest(
            f"by ratio all paths are listed: expected a length of at most {LONGEST}, at most {ENUMERATED:,} paths and "
            f"no budget, got length {length}, {total:,} paths, budget {budget}; shorten the paths or rank by norm"
        )
    every, gains = all_norms(chain, f, length), all_gains(chain, length, centred=sphere.centred)
    baseline = [gains.of(paths.heads) * np.linalg.norm(f) / np.sqrt(sphere.free) for paths in every]
    least = NO_GAIN * max((float(b.max(initial=0)) for b in baseline), default=0.0)
    kept: list[tuple[float, float, tuple[int, ...]]] = []
    for paths, usual in zip(every, baseline, strict=True):
        ratio = np.divide(paths.norms, usual, out=np.zeros_like(usual), where=usual > least)
        kept += [(float(ratio[i]), float(paths.norms[i]), _tuple(paths.heads[i])) for i in _largest(ratio, top)]
    kept = sorted((row for row in kept if row[0] > 0), key=lambda row: (-row[0], row[2]))[:top]
    norms = np.array([norm for _, norm, _ in kept])
    return BestPaths(tuple(path for *_, path in kept), norms, True, 0.0, 0, total, total, 0)


def _largest(values: Float[np.ndarray, " n"], k: int) -> Int[np.ndarray, " k"]:
    return np.argsort(-values, kind="stable")[:k]


def _tuple(heads: Int[np.ndarray, " m"]) -> tuple[int, ...]:
    return tuple(int(h) for h in heads)


def named(path: Sequence[int], names: Sequence[str]) -> str:
    """``L0H1>L3H2``, as the commands take it: the earliest head first."""
    return ">".join(names[h] for h in path)


def _table(
    view: Model,
    observable: Observable,
    names: list[str],
    found: BestPaths,
    m: _Measured,
    by: str,
    length: int,
    draws: int,
    seed: int,
) -> Table:
    paths = [named(path, names) for path in found.paths]
    p_all = np.minimum(1.0, m.tail * found.total)
    columns = [
        Column("path", paths, about="earliest head first; through values only"),
        Column("norm", found.norms, "logits", 4, "length of the feature before the first head's norm", chance="chance"),
        Column("chance", m.level, "logits", 4, "length that random read-outs stay below with 95 % on this path"),
        Column("ratio", m.ratio, "×", 2, "norm over ‖f‖·‖M‖_F/√d, what random read-outs have on this path"),
        Column("p", m.p, about="chance of a norm this large on this path (random read-outs, Monte-Carlo)"),
        Column("p_all", p_all, about="the same by saddlepoint, times the number of all paths"),
        Column("steps", np.array([len(path) for path in found.paths], dtype=np.int64), about="heads on the path"),
    ]
    return Table(
        columns=columns,
        meta=view.meta | {"analysis": "virtual_heads", "kind": "prediction", "observable": str(observable),
                          "policy": str(DATA_FREE), "convention": CONVENTION, "by": by, "length": length,
                          "proven": found.proven, "gap": found.gap if found.proven or len(found.norms) else None,
                          "bound": found.bound, "expanded": found.expanded, "generated": found.generated,
                          "paths": found.total, "tied": found.tied, "seed": seed, "mlps": _mlps(view.spec),
                          "null": f"random read-outs of equal length, {draws} draws; saddlepoint × paths"},
        title=f"{view.name} · {observable} · {len(paths)} of {found.total:,} paths of up to {length} heads by {by} · "
        f"frame {view.frame} · no data · {_proof(found, by)}",
        says=_says(observable, paths, found, m, p_all, by),
        not_says="Attention paths through values only: no MLPs, no queries or keys, norms without their scale. It does "
        "not say that heads attend along a path, nor how much of the feature the stream holds (observe paths runs "
        "prompts)" + (f"; {observable.warning}." if observable.warning else "."),
        next=_next(view, observable, found, names, length),
        key=("path",),
    )  # fmt: skip


def _mlps(spec: ModelSpec) -> str:
    return "left out" if any(block.mlp for block in spec.blocks) else "none"


def _proof(found: BestPaths, by: str) -> str:
    if by == "ratio":
        return "all listed"
    share = found.generated / max(found.total, 1)
    percent = f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:.2g}"
    looked = f"{found.expanded:,} expanded, {percent} % of all looked at"
    return f"proven: {looked}" if found.proven else f"NOT proven: {looked}"


def _says(observable: Observable, paths: list[str], found: BestPaths, m: _Measured, p_all: np.ndarray, by: str) -> str:
    if not paths:
        return f"No path of heads reads {observable}: every feature is zero to rounding."
    beyond = int(np.sum(p_all < LEVEL))
    first = (
        f"{paths[0]} can move {observable} most per unit of attention"
        if by == "norm"
        else f"{paths[0]} reads {observable} {m.ratio[0]:.1f} times as much as directions at random"
    )
    chance = f"{beyond} of the {len(paths)} read it beyond chance after paying for the choice among {found.total:,}"
    if not found.proven:
        return (
            f"{first}, of those looked at: an unseen path may be up to {found.gap:.0%} longer than the last; {chance}."
        )
    return f"{first}{' (proven)' if by == 'norm' else ''}; {chance}" + (
        f"; {found.tied} more are as long as the last." if found.tied else "."
    )


def _next(view: Model, observable: Observable, found: BestPaths, names: list[str], length: int) -> str:
    if not found.proven:
        more = f"--length {length} --top {max(len(found.paths), 1)} --budget {4 * found.expanded}"
        return f"covector observe virtual {view.words} {observable.typed} {more}{view.framing}"
    head = names[found.paths[0][-1]] if found.paths else names[0]
    return f"covector observe align {view.words} {observable.typed} {head}{view.framing}"
