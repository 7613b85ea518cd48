"""A task's feature in the singular basis of a head: which dyads carry it.

Source: `docs/theory/observables.md`; theory page §1.7, §2.7; identity OP-20.
"""

import numpy as np

from covector.analyses.each_head import head_svd, without_bias
from covector.analyses.propagate import propagate
from covector.errors import BadSite
from covector.linalg import chance
from covector.model.opened import Model
from covector.render import Column, Table
from covector.study.observable import Observable


def align(
    model: Model, observable: Observable | str, head: str, *, frame: str | None = None, top: int | None = None
) -> Table:
    """One row per dyad of a head's OV, the largest |cos| first: how much of the feature reads along it.

    ``cos`` is of the feature behind the head's norm with what the dyad reads: Σ cos² = 1 over all dyads, since the
    feature lies in what the head can read, and cosᵢ = σᵢ (vᵢ·u)/‖f‖. ``cos_before`` is of the feature before the norm
    (the gain and the centring turn it, so its squares sum to less). ``cumulative`` is Σ cos² down to the row.
    ``writes`` is the cosine of what the dyad writes with the task's read-out: a dyad can be read strongly because it
    is strong, or because it writes the task.
    p: a random unit vector in the head's read space of r dimensions has a |cos| this large with one of its r dyads.
    Raises BadSite, BadRequest, NotOneToken, UnknownBasis.
    """
    view = without_bias(model, frame)
    observable = Observable.parse(observable, view) if isinstance(observable, str) else observable
    site = view.site(head)
    if site.kind != "ov" or site.layer is None or site.head is None:
        raise BadSite(f"expected a head such as L9H7, got '{head}'")
    dyads = head_svd(view, site.layer, site.head)
    path = f"L{site.layer}H{site.head}"
    behind, before = (propagate(view, observable, path, normed=normed) for normed in (True, False))
    u = propagate(view, observable, "").vector
    cos = dyads.U.T @ behind.vector / behind.norm
    order = np.argsort(-np.abs(cos), kind="stable")[: top or len(cos)]
    energy = np.cumsum(np.sort(cos**2)[::-1])[: len(order)]
    r = len(cos)
    level = float(chance.threshold(r, r)) if r > 1 else 1.0
    p = np.atleast_1d(chance.p_dir(np.minimum(np.abs(cos[order]), 1.0), r, r))
    needed = int(np.searchsorted(np.cumsum(np.sort(cos**2)[::-1]), 0.9) + 1)
    blocks = [dyads.block_of(int(i)) for i in order]
    columns = [
        Column("dyad", order, about="index of the singular triple, largest gain first"),
        Column("sigma", dyads.S[order], about="its gain"),
        Column("cos", cos[order], "cos", 4, "of the feature behind the norm with what it reads", chance=level),
        Column("cumulative", energy, "", 4, "Σcos² down to this row"),
        Column("p", p, about="chance in the head's read space, best of its dyads"),
        Column("cos_before", (dyads.U.T @ before.vector / before.norm)[order], "cos", 4,
               "of the feature before the norm", chance=float(chance.threshold(view.spec.d_model, r))),
        Column("writes", (dyads.Vh @ u / np.linalg.norm(u))[order], "cos", 4,
               "of what it writes with the task's read-out", chance=float(chance.threshold(view.spec.d_model, r))),
        Column("block", [f"{b.start}–{b.stop - 1}" if len(b) > 1 else str(b.start) for b in blocks],
               about="indices that rounding of the stored weights mixes"),
    ]  # fmt: skip
    first = int(order[0])
    return Table(
        columns=columns,
        meta=view.meta | {"analysis": "align", "observable": str(observable), "site": str(site), "norm": behind.norm,
                          "dyads_for_90": needed, "policy": behind.policy, "null": "Haar direction in the read space"},
        title=f"{view.name} {site} · {observable} · ‖f‖ {behind.norm:.4g} · {r} dyads · frame {view.frame}",
        says=f"{needed} of {r} dyads carry 90 % of the feature; the largest part, {cos[first] ** 2:.0%}, reads along "
        f"dyad {first}.",
        not_says="It does not say that the stream holds this direction, nor that two tasks which share a leading dyad "
        "share their feature: observe couple compares the features themselves.",
        next=f"covector svd {view.words} {path}",
        key=("dyad",),
    )  # fmt: skip
