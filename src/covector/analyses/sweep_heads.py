"""The largest weather head, the second, …: heads removed one after the other, and how many there are in effect.

Source: theory page Q5(d); `docs/theory/edits.md`, equation 24.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.choose_metric import Metric
from covector.analyses.clock import Clock, Tell
from covector.analyses.sweep_setup import (
    SITES,
    Ground,
    grounds,
    matrix_of,
    metric_of,
    tensor_of,
    whole,
)
from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.chance.streams import generator
from covector.linalg.sweeping import effective_number
from covector.model.opened import Model
from covector.model.overlay import Change
from covector.render import Column, Curve, Table
from covector.run.prompts import Pair
from covector.study.observable import Observable


@dataclass(frozen=True, eq=False)
class Removed:
    """``order``: sites, first removed first; ``score`` what they are ordered by; ``curve`` effects of the first k.

    ``curve`` and ``alone`` (each site by itself) are on the held half; ``random`` holds mean effects of random orders
    of all ``sites`` that came into question.
    """

    ground: Ground
    by: str
    order: Int[np.ndarray, " k"]
    score: Float[np.ndarray, " k"]
    dyads: Int[np.ndarray, " k"]
    curve: Float[np.ndarray, "k cluster"]
    alone: Float[np.ndarray, "k cluster"]
    random: Float[np.ndarray, "draws k"]
    sites: int

    @property
    def means(self) -> Float[np.ndarray, " k"]:
        """The cumulative curve."""
        return self.curve @ self.ground.held.metric.shares

    @property
    def steps(self) -> Float[np.ndarray, " k"]:
        """What each step adds."""
        return np.diff(self.means, prepend=0.0)


def head_curve(
    model: Model,
    observed: Metric | Observable | str,
    prompts: Sequence[Pair] = (),
    *,
    concepts: str | Sequence[str] | None = None,
    sites: Sequence[str] = SITES,
    first: int = 32,
    draws: int = 20,
    seed: int = 0,
    at: str = "end",
    dtype: str = "float64",
    tell: Tell | None = None,
) -> Table:
    """One row per step: the k-th head (or MLP) removed on top of those before it, and its effect on a metric.

    With `concepts`: ordered by concept gain Σσ²(v·c)² over its directions related beyond chance (weights alone), and
    those directions are removed. Without: ordered by the first-order effect of removing the whole site, on one half of
    the names, and the whole is removed (its matrix set to zero). ``effect`` is that of the first k together, measured
    on the other half; ``step`` what the k-th adds; ``alone`` its removal by itself. The effective number exp(H) of
    |steps| counts the sites that matter. Control: `draws` random orders of all sites in question; ``band_low``,
    ``band_high`` hold 90 % of them. Exact to rounding.
    Raises BadRequest as `dyad_sweep`; for a concept without related directions.
    Source: `docs/theory/edits.md`, equation 24; theory page Q5(d).
    """
    if first < 1 or draws < 1:
        raise BadRequest(f"--first, --draws: expected at least 1, got {first} and {draws}")
    ground = grounds(model, metric_of(model, observed, prompts, at=at, dtype=dtype), sites, concepts)
    return _table(_removed(ground, concepts is not None, first, draws, seed, tell), seed)


def _removed(ground: Ground, by_concept: bool, first: int, draws: int, seed: int, tell: Tell | None) -> Removed:
    n = len(ground.found.sites)
    if by_concept:
        score, changes, dyads = _concept_gains(ground)
    else:
        score, changes = _whole_slopes(ground), [whole(ground, s) for s in range(n)]
        dyads = np.bincount(ground.found.site, minlength=n)
    eligible = np.flatnonzero(dyads > 0)
    order = eligible[np.argsort(-np.abs(score[eligible]), kind="stable")][:first]
    k = len(order)
    clock = Clock(k * (2 + draws), tell, doing="gradient")
    base = ground.held.of()

    def along(sites: np.ndarray, doing: str) -> Float[np.ndarray, "k cluster"]:
        change, made = Change(), []
        for s in sites:
            change += changes[s]
            made.append(ground.held.of(change) - base)
            clock(doing)
        return np.array(made)

    curve = along(order, "one after the other")
    alone = np.array([ground.held.of(changes[s]) - base for s in order])
    clock("each alone", k)
    shares, random = ground.held.metric.shares, []
    for j in range(draws):
        some = generator((seed, j), "head orders").permutation(eligible)[:k]
        random.append(along(some, "random orders") @ shares)
    by = "concept gain" if by_concept else "first-order effect"
    return Removed(ground, by, order, score[order], dyads[order], curve, alone, np.array(random), len(eligible))


def _concept_gains(ground: Ground) -> tuple[np.ndarray, list[Change], np.ndarray]:
    found, n = ground.found, len(ground.found.sites)
    beyond = found.beyond
    if not beyond.any():
        best = int(np.argmax(found.related))
        raise BadRequest(
            f"no direction of {len(found):,} is related to {found.words} beyond chance (q ≤ 0.05): the closest is "
            f"{found.address(best)}; name other sites, more words, or leave --concept out to order by effect"
        )
    gains = np.bincount(found.site, np.where(beyond, found.gains**2 * found.related, 0.0), minlength=n)
    changes = []
    for s in range(n):
        mine = beyond & (found.site == s)
        changes.append(found.changed_by(-mine.astype(np.float64)) if mine.any() else Change())
    return gains, changes, np.bincount(found.site, beyond, minlength=n).astype(np.int64)


def _whole_slopes(ground: Ground) -> Float[np.ndarray, " site"]:
    """First-order effect of setting each site's matrix to zero: −⟨∂f/∂W, W⟩, on the choosing half."""
    every = range(len(ground.found.sites))
    gradients = ground.chosen.gradients(list(dict.fromkeys(tensor_of(ground, s)[0] for s in every)))
    found = []
    for s in every:
        name, head = tensor_of(ground, s)
        G = gradients[name] if head is None else gradients[name][head]
        found.append(-float(np.sum(G * matrix_of(ground, s))))
    return np.array(found)


def _table(r: Removed, seed: int) -> Table:
    held, k = r.ground.held, len(r.order)
    intervals = np.array([held.interval(row) for row in r.curve])
    low, high = np.quantile(r.random, (0.05, 0.95), axis=0)
    number = float(effective_number(r.steps))
    numbers = effective_number(np.diff(r.random, axis=1, prepend=0.0))
    whole_of = "its related directions" if r.by == "concept gain" else "its matrix"
    area = np.abs(r.means).sum()
    p = (1 + int(np.sum(np.abs(r.random).sum(axis=1) >= area - 1e-12 * area))) / (1 + len(r.random))
    columns = [
        Column("k", np.arange(1, k + 1), "", 0, "how many are removed"),
        Column("site", [str(r.ground.found.sites[s]) for s in r.order], about="the one removed at this step"),
        Column("dyads", r.dyads, "", 0, f"directions removed there ({whole_of})"),
        Column("score", r.score, "σ²" if r.by == "concept gain" else "logits", 3, f"what the order is by: {r.by}"),
        Column("effect", intervals[:, 0], "logits", 3, "of the first k together, held half"),
        Column("low", intervals[:, 1], "logits", 3, "95 % interval over names or windows"),
        Column("high", intervals[:, 2], "logits", 3, "upper end"),
        Column("step", r.steps, "logits", 3, "what this one adds"),
        Column("alone", r.alone @ held.metric.shares, "logits", 3, "its removal by itself"),
        Column("band_low", low, "logits", 3, f"{len(r.random)} random orders: 5 %"),
        Column("band_high", high, "logits", 3, "and 95 %"),
    ]
    ground = r.ground
    base = held.mean(held.of())
    half = int(np.argmax(np.abs(r.means) >= np.abs(r.means).max() / 2)) + 1
    return Table(
        columns=columns,
        meta=ground.model.meta | {
            "analysis": "head_curve", "metric": ground.words, "concept": ground.found.words, "order": r.by,
            "seed": seed, "draws": len(r.random), "sites": r.sites, "effective_number": number, "p_order": p,
            "effective_number_random": np.nanquantile(numbers, (0.05, 0.5, 0.95)).tolist(), "kind": "ablation",
            "names": [len(ground.chosen.metric.shares), len(held.metric.shares)],
        },
        title=f"{ground.model.name} · {ground.words} · {k} of {r.sites} sites in turn, by {r.by}",
        says=f"From {base:+.3f}: the largest, {columns[1].values[0]}, moves it by {r.means[0]:+.3f}, all {k} by "
        f"{r.means[-1]:+.3f}; half of the largest effect is reached at {half}. The steps are worth {number:.1f} equal "
        f"ones (random orders: {np.nanmedian(numbers):.1f}, 5–95 % {np.nanquantile(numbers, 0.05):.1f} to "
        f"{np.nanquantile(numbers, 0.95):.1f}); p {p:.2g} among {len(r.random)} random orders for as much on the way.",
        not_says="A later step is measured with the earlier ones gone: what backs a removed one up counts there. Whole "
        "matrices take everything else along that a head does." if r.by != "concept gain" else
        "The order is by weights alone; a later step is measured with the earlier ones gone.",
        next=f"covector svd {ground.model.words} {columns[1].values[0]}",
        picture=lambda _: picture(r), key=("k",),
    )  # fmt: skip


def picture(r: Removed) -> Curve:
    """The cumulative curve inside the band of random orders; a last point where the order has all sites."""
    low, high = np.quantile(r.random, (0.05, 0.95), axis=0)
    return Curve(
        x=np.arange(len(r.order) + 1), ys=np.concatenate([[0.0], r.means])[None], names=[f"by {r.by}"],
        x_name="removed", y_name="effect", x_unit="sites", y_unit="logits",
        band=(np.concatenate([[0.0], low]), np.concatenate([[0.0], high])), band_name="random orders, 90 %",
    )  # fmt: skip
