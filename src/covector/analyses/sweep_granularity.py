"""The same effect by a head, by neurons or by directions: what each costs on other text.

Source: `docs/theory/edits.md`, equation 27.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.choose_metric import Metric
from covector.analyses.clock import Clock, Tell
from covector.analyses.dyad_sweep import slopes
from covector.analyses.sweep_setup import SITES, Ground, Started, grounds, matrix_of, tensor_of, whole
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.interval import half_width
from covector.model.opened import Model
from covector.model.overlay import Change, Update
from covector.render import Column, Scatter, Table
from covector.run.edit_runs import begins, drifts, scaled
from covector.run.neutral import Neutral

# Doses at which the wished effect is first looked for; then bisection between two of them.
GRID = np.linspace(0.125, 1.0, 8)
BISECTIONS = 20


@dataclass(frozen=True, eq=False)
class Part:
    """Something that may be removed in part: its name, what removing all of it comes to, and how many pieces it is."""

    name: str
    change: Change
    count: int


def granularity(
    model: Model,
    metric: Metric,
    text: Neutral,
    *,
    sites: Sequence[str] = SITES,
    first: int = 10,
    share: float = 0.5,
    tell: Tell | None = None,
) -> Table:
    """One row per way to bring a metric nearer to 0: its dose for the same effect, and its KL on neutral text.

    Ways: the head, the MLP, the `first` neurons, the one and the `first` dyads with the largest first-order effect in
    that direction, on one half of the names. Doses t (W + tΔW, ΔW the removal) are such that on that half each has
    `share` of the effect that the weakest of them has at 1: ``wanted``. ``effect``, with its 95 % interval over names,
    is then measured on the other half; ``kl`` is KL(base ‖ changed) per token of the text, with its interval over
    windows, ``more`` the paired difference to the `first` dyads. Ways that do not get there at any dose in (0, 1] are
    left out and named. Exact to rounding; doses to 1e-6. Raises BadRequest where no way lowers the metric, for a
    share outside (0, 1].
    Source: `docs/theory/edits.md`, equation 27.
    """
    if not 0 < share <= 1 or first < 1:
        raise BadRequest(f"expected a share in (0, 1] and --first of at least 1, got {share:g} and {first}")
    ground = grounds(model, metric, sites)
    base = ground.chosen.mean(ground.chosen.of())
    sign = -1.0 if base >= 0 else 1.0
    parts = _parts(ground, sign, first)
    full = [sign * _mean(ground.chosen, p.change, base) for p in parts]
    able = [i for i, e in enumerate(full) if e > 0]
    if not able:
        raise BadRequest(f"{ground.words}: nothing of {', '.join(sites)} brings it nearer to 0; measure another task")
    wanted = share * min(full[i] for i in able)
    doses: dict[int, float] = {}
    batches = len(text.batches)
    clock = Clock(len(able) * (1 + batches), tell, work=2 * text.size * len(able))
    for i in able:
        clock(f"dose of {parts[i].name}", 1, text.size)
        found = _dose(lambda t, p=parts[i]: sign * _mean(ground.chosen, scaled(p.change, t), base), wanted)
        if found is not None:
            doses[i] = found
    kept = list(doses)
    changes = [scaled(parts[i].change, doses[i]) for i in kept]
    clock.begin("neutral text")
    kl, _, _ = drifts(ground.decoder, text, changes, begins(ground.decoder.spec, changes), clock.tick)
    return _table(ground, parts, full, doses, sign * wanted, kl, text, first)


def _parts(ground: Ground, sign: float, first: int) -> list[Part]:
    found, sites = ground.found, ground.found.sites
    every = range(len(sites))
    gradients = ground.chosen.gradients(list(dict.fromkeys(tensor_of(ground, s)[0] for s in every)))
    made, neurons = [], []
    by_site = np.full(len(sites), -np.inf)
    for s in every:
        name, head = tensor_of(ground, s)
        each = -sign * np.sum(
            (gradients[name] if head is None else gradients[name][head]) * matrix_of(ground, s), axis=1
        )
        by_site[s] = each.sum()
        neurons += [] if head is not None else [(float(x), s, n) for n, x in enumerate(each)]
    for kind, told in (("ov", "head"), ("out", "MLP")):
        mine = [s for s in every if sites[s].kind == kind]
        if mine:
            best = max(mine, key=lambda s: float(by_site[s]))
            made.append(Part(f"{told} {str(sites[best]).split('.')[0]}", whole(ground, best), 1))
    if neurons:
        made.append(_neurons(ground, sorted(neurons, reverse=True)[:first]))
    order = np.argsort(-sign * slopes(ground, ground.chosen), kind="stable")
    for k in sorted({1, min(first, len(found))}):
        epsilon = np.zeros(len(found))
        epsilon[order[:k]] = -1.0
        name = f"dyad {found.address(int(order[0]))}" if k == 1 else f"{k} dyads"
        made.append(Part(name, found.changed_by(epsilon), k))
    return made


def _neurons(ground: Ground, chosen: Sequence[tuple[float, int, int]]) -> Part:
    updates = []
    for s in sorted({s for _, s, _ in chosen}):
        matrix, mine = matrix_of(ground, s), [n for _, at, n in chosen if at == s]
        pick = np.zeros((len(matrix), len(mine)))
        pick[mine, np.arange(len(mine))] = 1.0
        updates.append(Update(tensor_of(ground, s)[0], -pick, matrix[mine], None))
    return Part(f"{len(chosen)} neurons", Change(tuple(updates)), len(chosen))


def _mean(half: Started, change: Change, base: float) -> float:
    return half.mean(half.of(change)) - base


def _dose(effect: Callable[[float], float], wanted: float) -> float | None:
    """The smallest dose in (0, 1], as far as the grid sees, at which the effect is the wished one."""
    low = 0.0
    for high in GRID.tolist():
        if effect(high) >= wanted:
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                low, high = (low, middle) if effect(middle) >= wanted else (middle, high)
            return high
        low = high
    return None


def _table(
    ground: Ground, parts: Sequence[Part], full: Sequence[float], doses: dict[int, float], wanted: float,
    kl: Float[np.ndarray, "k n"], text: Neutral, first: int,
) -> Table:  # fmt: skip
    kept, held = list(doses), ground.held
    base = held.of()
    measured = [held.interval(held.of(scaled(parts[i].change, doses[i])) - base) for i in kept]
    names = [parts[i].name for i in kept]
    reference = len(kept) - 1
    halves = half_width(kl, text.window)
    more = kl - kl[reference]
    more_half = half_width(more, text.window)
    mean = kl.mean(axis=1)
    order = np.argsort(mean, kind="stable")
    effects = np.array(measured)
    left = [p.name for i, p in enumerate(parts) if i not in doses]

    def column(name: str, values: np.ndarray, unit: str, digits: int | None, about: str) -> Column:
        return Column(name, values[order], unit, digits, about)

    columns = [
        Column("removed", [names[i] for i in order], about="what is weakened"),
        column("pieces", np.array([parts[i].count for i in kept]), "", 0, "how many"),
        column("dose", np.array([doses[i] for i in kept]), "×", 3, "share of its removal, for the same effect"),
        column("effect", effects[:, 0], "logits", 3, "on the held half"),
        column("low", effects[:, 1], "logits", 3, "95 % interval over names or windows"),
        column("high", effects[:, 2], "logits", 3, "upper end"),
        column("kl", mean, "nats", None, "KL(base ‖ changed) per token of the text"),
        column("kl_low", np.maximum(mean - halves, 0.0), "nats", None, "95 % interval over windows"),
        column("kl_high", mean + halves, "nats", None, "upper end"),
        column("more", more.mean(axis=1), "nats", None, f"KL above that of {names[reference]}, paired"),
        column("more_low", more.mean(axis=1) - more_half, "nats", None, "95 % interval over windows"),
        column("more_high", more.mean(axis=1) + more_half, "nats", None, "upper end"),
        column("at_1", np.array([full[i] * (-1 if wanted < 0 else 1) for i in kept]), "logits", 3, "removed whole"),
    ]
    cheap, dear = order[0], order[-1]
    note = f" Not reached by {', '.join(left)}." if left else ""
    return Table(
        columns=columns,
        meta=ground.model.meta | {
            "analysis": "granularity", "metric": ground.words, "wanted": wanted, "first": first,
            "left_out": left, "neutral_tokens": len(text), "neutral_windows": len(set(text.window.tolist())),
            "names": [len(ground.chosen.metric.shares), len(held.metric.shares)], "kind": "ablation",
        },
        title=f"{ground.model.name} · {ground.words} · the same effect, {wanted:+.3f}, by {len(kept)} ways",
        says=f"For {wanted:+.3f} on the choosing half, {names[cheap]} cost least on other text: {mean[cheap]:.3g} nats "
        f"a token (95 % {mean[cheap] - halves[cheap]:.3g} to {mean[cheap] + halves[cheap]:.3g}); {names[dear]} most: "
        f"{mean[dear]:.3g} ({mean[dear] - halves[dear]:.3g} to {mean[dear] + halves[dear]:.3g}).{note}",
        not_says="Effects are equal on the half that chose the doses; on the other they are as measured. Which parts "
        "are taken is by first order alone: other sets of that size may be cheaper.",
        next=f"covector svd {ground.model.words} {_site(names[reference - 1])}",
        picture=_picture, key=("removed",),
    )  # fmt: skip


def _site(name: str) -> str:
    """The site of ``dyad L0H0.ov:0``, ``head L0H0``, ``MLP L1``."""
    kind, _, where = name.partition(" ")
    return {"dyad": where.split(":")[0], "head": f"{where}.ov", "MLP": f"{where}.mlp.out"}.get(kind, "L0H0.ov")


def _picture(table: Table) -> Scatter:
    """Effect on the held half and KL, with the intervals of the KL."""
    x, y, low, high = (table.column(name).numbers for name in ("effect", "kl", "kl_low", "kl_high"))
    return Scatter(
        x=x, y=y, x_name="effect, held half", y_name="KL on other text", x_unit="logits",
        y_unit="nats", labels=list(table["removed"]), interval=(low, high),
    )  # fmt: skip
