"""Exact accounting between two inputs: what each component brings to the difference, a head's values and attention
apart.

Source: `docs/theory/observables.md`, equations 8–10; theory page §4.1.
"""

from collections.abc import Sequence

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.interval import half_width
from covector.model.opened import Model
from covector.propagation.linearised import Functional
from covector.propagation.search import World, head_shares
from covector.render import Column, Scatter, Table
from covector.run.clusters import clusters_of, no_interval, pairs_told
from covector.run.pairs import worlds_of
from covector.run.prompts import Pair, batches
from covector.study.observable import Observable


def shares(model: Model, observable: Observable | str, pairs: Sequence[Pair], *, at: str = "end") -> Table:
    """One row per component: its share of the mean difference clean − corrupt, written directly to the output.

    ``direct`` sums to the difference over all rows (embeddings included). For heads it is split exactly into ``ov``
    (other values fetched with the mean pattern) and ``qk`` (the mean values fetched with another pattern), the latter
    into
    ``q`` and ``k`` (which query, which key moved it). ``through`` is the share of all paths that go through the
    component's output, direct or not: these do not sum to the total, a path of three components counts three times.
    Accounting: secant stand-ins saw both prompts; sums close to rounding. Raises BadRequest, NotOneToken, UnknownBasis.
    """
    if not pairs:
        raise BadRequest("expected pairs of prompts, got none; give --template and --fill, or --prompts FILE")
    observable = Observable.parse(observable, model) if isinstance(observable, str) else observable
    worlds, measured = worlds_of(model, observable, pairs, at=at, by_slot=False)
    each = [_of(world) for world in worlds]
    names = list(each[0])
    values = np.concatenate([np.stack([one[name] for name in names]) for one in each], axis=2)
    total = float((measured[:, 0] - measured[:, 1]).mean())
    ordered = [pair for batch in batches(pairs) for pair in batch.pairs]
    return _table(model, observable, names, values, total, at, ordered)


def _of(world: World) -> dict[str, Float[np.ndarray, "column batch"]]:
    """Per component: direct, ov, q, k, through; NaN where a column means nothing for it."""
    model, n = world.model, len(world.names)
    every = model.adjoint(world.start)
    found: dict[str, np.ndarray] = {}
    F: Functional = world.start
    for s in range(model.end, 0, -1):
        F = model.before(F, s)
        for c in reversed(model.components):
            if c.writes != s:
                continue
            own, whole = model.out(F, c), model.out(model.before(every[s], s), c)
            if c.mlp:
                change = model.change(c.hook("mlp_out"))
                parts = [np.sum(G * change, axis=(1, 2)) for G in (own, whole)]
                found[c.name] = np.stack([parts[0], *[np.full(n, np.nan)] * 3, parts[1]])
                continue
            pulled = model.heads(own, c)
            split = [head_shares(model, pulled, c, kind).sum(axis=1) for kind in "vqk"]
            through = np.sum(model.on_z(whole, c) * model.change(c.hook("z")), axis=(1, 3))
            for h in range(through.shape[1]):
                v, q, k = (part[:, h] for part in split)
                found[f"L{c.layer}H{h}"] = np.stack([v + q + k, v, q, k, through[:, h]])
    ends = [np.sum(G * model.change("resid_in"), axis=(1, 2)) for G in (F, every[0])]
    found["embed"] = np.stack([ends[0], *[np.full(n, np.nan)] * 3, ends[1]])
    return found


def _table(
    model: Model,
    observable: Observable,
    names: list[str],
    values: Float[np.ndarray, "component column n"],
    total: float,
    at: str,
    pairs: Sequence[Pair],
) -> Table:
    mean, n = values.mean(axis=2), values.shape[2]
    direct, ov, q, k, through = mean.T
    error = half_width(values[:, 0], clusters_of(pairs))
    order = np.argsort(-np.abs(direct), kind="stable")
    heads = np.isfinite(ov)
    ov_sum, qk_sum = float(ov[heads].sum()), float((q + k)[heads].sum())
    gross = float(np.abs(direct).sum())
    columns = [
        Column("component", names, about="what writes to the output"),
        Column("direct", direct, observable.unit, 3, "share of the difference, written directly"),
        Column("low", direct - error, observable.unit, 3, "lower end of a 95 % interval over names"),
        Column("high", direct + error, observable.unit, 3, "upper end"),
        Column("of_total", direct / total if total else direct * np.nan, "", 3, "direct over the difference"),
        Column("ov", ov, observable.unit, 3, "through its values: other content fetched with the mean pattern"),
        Column("qk", q + k, observable.unit, 3, "through its pattern: the mean content fetched from elsewhere"),
        Column("q", q, observable.unit, 3, "the part of qk by changed queries"),
        Column("k", k, observable.unit, 3, "the part of qk by changed keys"),
        Column("through", through, observable.unit, 3, "all paths through its output; does not add up"),
    ]
    first = int(order[0])
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "shares", "observable": str(observable), "pairs": n, "at": at, "total": total,
                           "ov": ov_sum, "qk": qk_sum, "gross": gross, "policy": "secant", "kind": "accounting"},
        title=f"{model.name} · {observable} · {pairs_told(pairs)} · clean − corrupt {total:.3f} = "
        f"Σ direct {direct.sum():.3f} (gross {gross:.3f}) · heads: OV {ov_sum:.3f}, QK {qk_sum:.3f}",
        says=f"{names[first]} brings most, {direct[first]:+.3f} of {total:.3f} {observable.unit}; of what heads write "
        f"directly, {ov_sum:+.3f} is other content (OV) and {qk_sum:+.3f} other attention (QK).",
        not_says="Shares account for these pairs: they are not what patching a component does (covector patch), and "
        "a head "
        f"whose attention changes may do so because of earlier heads (observe paths){no_interval(pairs)}"
        f"{_warned(observable)}.",
        next=f"covector observe paths {model.words} {observable.typed} with the same prompts",
        picture=lambda _: _content_and_attention(names, ov, q + k, observable.unit),
        key=("component",),
    ).take(order)  # fmt: skip


def _content_and_attention(
    names: list[str], ov: Float[np.ndarray, " n"], qk: Float[np.ndarray, " n"], unit: str
) -> Scatter:
    """Heads by what they bring through other content and through other attention."""
    heads = np.flatnonzero(np.isfinite(ov))
    labels = [names[i] for i in heads]
    return Scatter(ov[heads], qk[heads], "other content (OV)", "other attention (QK)", unit, unit, labels)


def _warned(observable: Observable) -> str:
    return f"; {observable.warning}" if observable.warning else ""
