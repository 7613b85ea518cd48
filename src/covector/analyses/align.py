"""A task's feature in the singular basis of a head: which dyads carry it.

Source: `docs/theory/observables.md`, equation 14; theory page §1.7, §2.7; identity OP-20.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from covector.analyses.each_head import head_svd, without_bias
from covector.analyses.propagate import DATA_FREE, propagate
from covector.analyses.shared import LEVEL, ONE, STILL
from covector.analyses.virtual_heads import readout
from covector.axes import Float, Int
from covector.errors import BadRequest, BadSite
from covector.linalg import chance
from covector.linalg.chance.streams import generator
from covector.linalg.svd import SVD
from covector.model.opened import Model
from covector.propagation.linearised import Linearised
from covector.render import Column, Curve, Table
from covector.study.feature import Feature
from covector.study.observable import Observable


def align(
    model: Model,
    observable: Observable | str,
    head: str,
    *,
    frame: str | None = None,
    top: int | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Table:
    """One row per dyad of a head's OV, the largest |cos| first: how much of the feature reads along it.

    ``cos`` is of the feature behind the head's norm with what the dyad reads: Σ cos² = 1 over all dyads, since the
    feature lies in what the head can read, and cosᵢ = σᵢ (vᵢ·u)/‖f‖. ``cos_before`` is of the feature before the norm
    (the gain and the centring turn it, so its squares sum to less). ``cumulative`` is Σ cos² down to the row.
    ``writes`` is the cosine of what the dyad writes with the task's read-out: a dyad can be read strongly because it
    is strong, or because it writes the task.
    Chance: `draws` random read-outs through this head. Since cosᵢ = σᵢ (vᵢ·u)/‖f‖ a strong dyad carries much of any
    task; the question is whether it carries more of this one. ``p``: the best of all dyads of a random read-out is as
    far above what is usual at it (max-T over atanh|cos|, standardised dyad by dyad, exact up to 1/(draws + 1));
    ``chance`` is the |cos| at which p is 5 %. ``p_haar``: a random *direction of the read space* has a |cos| this large
    with one of its r dyads. It knows no gains: small wherever the spectrum is uneven, for nearly every task.
    Raises BadSite, BadRequest, NotOneToken, UnknownBasis.
    """
    if draws < 19:
        raise BadRequest(f"expected draws of at least 19, got {draws}; p is never below 1/(draws + 1)")
    view = without_bias(model, frame)
    observable = Observable.parse(observable, view) if isinstance(observable, str) else observable
    site = view.site(head)
    if site.kind != "ov" or site.layer is None or site.head is None:
        raise BadSite(f"expected a head such as L9H7, got '{head}'")
    found = _aligned(view, observable, site.layer, site.head, draws, seed)
    order = np.argsort(-np.abs(found.cos), kind="stable")[: top or len(found.cos)]
    needed = int(np.searchsorted(np.cumsum(np.sort(found.cos**2)[::-1]), 0.9) + 1)
    first, r, path = int(order[0]), len(found.cos), f"L{site.layer}H{site.head}"
    return Table(
        columns=_columns(found, order, view.spec.d_model),
        meta=view.meta | {"analysis": "align", "observable": str(observable), "site": str(site),
                          "norm": found.behind.norm, "dyads_for_90": needed, "policy": found.behind.policy,
                          "seed": seed,
                          "null": f"random read-outs through this head, max-T over its dyads, {draws} draws"},
        title=f"{view.name} {site} · {observable} · ‖f‖ {found.behind.norm:.4g} · {r} dyads · frame {view.frame}",
        says=f"{needed} of {r} dyads carry 90 % of the feature; the largest part, {found.cos[first] ** 2:.0%}, reads "
        f"along dyad {first}; {_beyond(found.p)}.",
        not_says="It does not say that the stream holds this direction, nor that two tasks which share a leading dyad "
        "share their feature: observe couple compares the features themselves.",
        next=f"covector svd {view.words} {path}{view.framing}",
        picture=_picture(found.cos, found.null, str(observable)),
        key=("dyad",),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Aligned:
    """A feature and a head's dyads, in the order of their gains: cosines behind and before the norm, and the null."""

    dyads: SVD
    behind: Feature
    cos: Float[np.ndarray, " r"]
    before: Float[np.ndarray, " r"]
    writes: Float[np.ndarray, " r"]
    null: Float[np.ndarray, "draws r"]
    level: Float[np.ndarray, " r"]
    p: Float[np.ndarray, " r"]


def _aligned(view: Model, observable: Observable, layer: int, head: int, draws: int, seed: int) -> _Aligned:
    dyads = head_svd(view, layer, head)
    behind, before = (propagate(view, observable, f"L{layer}H{head}", normed=normed) for normed in (True, False))
    u = propagate(view, observable, "").vector
    cos = dyads.U.T @ behind.vector / behind.norm
    null = _of_random_readouts(view, observable, layer, dyads, draws, seed)
    level, p = best_of_dyads(cos, null)
    return _Aligned(
        dyads, behind, cos, dyads.U.T @ before.vector / before.norm, dyads.Vh @ u / np.linalg.norm(u), null, level, p
    )


def _columns(found: _Aligned, order: Int[np.ndarray, " n"], d: int) -> list[Column]:
    r = len(found.cos)
    energy = np.cumsum(np.sort(found.cos**2)[::-1])[: len(order)]
    p_haar = np.atleast_1d(chance.p_dir(np.minimum(np.abs(found.cos[order]), 1.0), r, r))
    blocks, bar = [found.dyads.block_of(int(i)) for i in order], float(chance.threshold(d, r))
    return [
        Column("dyad", order, about="index of the singular triple, largest gain first"),
        Column("sigma", found.dyads.S[order], about="its gain"),
        Column("cos", found.cos[order], "cos", 4, "of the feature behind the norm with what it reads",
               chance="chance"),
        Column("chance", found.level[order], "", 4, "|cos| at which p is 5 %, dyad by dyad"),
        Column("cumulative", energy, "", 4, "Σcos² down to this row"),
        Column("p", found.p[order], about="chance that a random read-out is so far above at its best dyad"),
        Column("p_haar", p_haar, about="chance that a random direction of the read space is so near to a dyad; "
                                       "small at strong dyads for nearly every task"),
        Column("cos_before", found.before[order], "cos", 4, "of the feature before the norm", chance=bar),
        Column("writes", found.writes[order], "cos", 4, "of what it writes with the task's read-out", chance=bar),
        Column("block", [f"{b.start}–{b.stop - 1}" if len(b) > 1 else str(b.start) for b in blocks],
               about="indices that rounding of the stored weights mixes"),
    ]  # fmt: skip


def _picture(cos: Float[np.ndarray, " r"], null: Float[np.ndarray, "draws r"], name: str) -> Callable[[Table], Curve]:
    """How much of the feature the first dyads carry, beside what they carry of random read-outs (95 %)."""
    low, high = np.quantile(np.cumsum(null**2, axis=1), [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    x = np.arange(1, len(cos) + 1, dtype=float)

    def drawn(_: Table) -> Curve:
        return Curve(x, np.cumsum(cos**2)[None], (name,), "first dyads, largest σ first", "Σcos²", "", "",
                     band=(low, high), band_name="random read-outs")  # fmt: skip

    return drawn


def best_of_dyads(
    cos: Float[np.ndarray, " r"], null: Float[np.ndarray, "draws r"]
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """Per dyad the |cos| at which p is 5 %, and p: max-T over the dyads, the feature treated as one more draw."""
    t = np.arctanh(np.minimum(np.abs(np.concatenate([cos[None], null])), ONE))
    mean, spread = t.mean(axis=0), t.std(axis=0)
    free = spread > STILL
    t = np.where(free, (t - mean) / np.where(free, spread, 1.0), 0.0)
    largest = t.max(axis=1)
    level = np.where(free, np.tanh(np.maximum(mean + spread * np.quantile(largest[1:], 1 - LEVEL), 0.0)), 1.0)
    return level, np.mean(largest[:, None] >= t[0], axis=0)


def _of_random_readouts(
    view: Model, observable: Observable, layer: int, dyads: SVD, draws: int, seed: int
) -> Float[np.ndarray, "draws r"]:
    """Cosines with the dyads of the features that random read-outs have behind the head's norm."""
    _, sphere = readout(view, observable)
    linear = Linearised(view.weights, (), DATA_FREE)
    c = next(c for c in linear.components if c.layer == layer and c.attn)
    G = sphere.draw(generator(seed, "directions"), draws)[:, None]
    for s in range(linear.end, c.writes - 1, -1):
        G = linear.before(G, s)
    found = dyads.S * (linear.out(G, c)[:, 0] @ dyads.Vh.T)
    size = np.linalg.norm(found, axis=1, keepdims=True)
    return np.divide(found, size, out=np.zeros_like(found), where=size > 0)


def _beyond(p: Float[np.ndarray, " r"]) -> str:
    """Which dyads carry more of this task than of others."""
    found = np.flatnonzero(p < LEVEL)
    if not len(found):
        return "no dyad carries more of it than of random read-outs"
    named = ", ".join(str(i) for i in found[:5]) + (" …" if len(found) > 5 else "")
    return f"dyad{'s' if len(found) > 1 else ''} {named} carr{'y' if len(found) > 1 else 'ies'} more of it than of " + (
        "random read-outs"
    )
