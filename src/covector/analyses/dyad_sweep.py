"""Which directions decide a metric: every dyad by one gradient, the leading ones and a sample of the rest by ablation.

Chosen on one half of the names (or windows), measured on the other.

Source: theory page Q5(d), Q13; `docs/theory/edits.md`, equations 9, 23 and 24.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.choose_metric import Metric
from covector.analyses.clock import Clock, Tell
from covector.analyses.sweep_setup import (
    SITES,
    Ground,
    Started,
    grounds,
    hook_of,
    matrix_of,
    metric_of,
    tensor_of,
)
from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.chance import bh
from covector.linalg.chance.haar import haar_directions
from covector.linalg.chance.streams import generator
from covector.linalg.matched import two_sided_p
from covector.linalg.sweeping import Honesty, equal_output_p, honesty, output_sizes
from covector.model.opened import Model
from covector.render import Column, Scatter, Table
from covector.run.prompts import Pair
from covector.study.observable import Observable

LEVEL = 0.05
# Random read directions behind every first-order p; over the written ones it is exact.
READS = 400
GROUPS = ("top", "sample", "rest")


@dataclass(frozen=True, eq=False)
class Swept:
    """``slopes``: first-order effect of removing each dyad, on the choosing half and on the held one.

    ``measured``: dyads removed for good, the top first; ``effects`` theirs on the held half, per cluster; ``controls``
    random changes of equal output, [top, draw].
    """

    ground: Ground
    slopes: Float[np.ndarray, "half n"]
    p: Float[np.ndarray, " n"]
    top: int
    measured: Int[np.ndarray, " m"]
    effects: Float[np.ndarray, "m cluster"]
    controls: Float[np.ndarray, "top draws"]
    honest: Honesty

    @property
    def means(self) -> Float[np.ndarray, " m"]:
        """Mean effects of the measured dyads."""
        return self.effects @ self.ground.held.metric.shares


def dyad_sweep(
    model: Model,
    observed: Metric | Observable | str,
    prompts: Sequence[Pair] = (),
    *,
    sites: Sequence[str] = SITES,
    concepts: str | Sequence[str] | None = None,
    top: int = 32,
    sample: int = 64,
    draws: int = 100,
    seed: int = 0,
    at: str = "end",
    dtype: str = "float64",
    tell: Tell | None = None,
) -> Table:
    """One row per dyad of the sites: what its removal does to a metric; measured ones first, largest effect first.

    `observed`: weighted tokens on `prompts` (clean − corrupt where pairs compare), or a metric of a text. Names, or
    windows, are split: one half gives ``slope``, the first-order effect of removal (one backward pass for all), and by
    its size the ``top``; the other half gives ``effect``, exact, for the top and a random ``sample`` of the others.
    `low`, `high`: 95 % interval over names (or windows) of that half.

    ``p``: how often a random change of the same matrix with equal E‖Δoutput‖² does as much to first order, on the
    choosing half; ``q`` Benjamini–Hochberg over the whole sweep. ``p_runs``: the same measured, `draws` runs for each
    of the top, on the held half. ``p_dyads``: share of the sampled other dyads that do as much. ``cos`` is |v·c| with
    the concept, or with what the metric reads. All in logits, exact to rounding but for p (Monte-Carlo over what is
    read, exact over what is written).
    Raises BadRequest for no prompts, one name, sites that do not write to the stream, a frame other than raw.
    Source: `docs/theory/edits.md`, equations 9, 23 and 24.
    """
    for name, value, least in (("--first", top, 1), ("--sample", sample, 0), ("--draws", draws, 0)):
        if value < least:
            raise BadRequest(f"{name}: expected a number from {least} on, got {value}")
    metric = metric_of(model, observed, prompts, at=at, dtype=dtype)
    ground = grounds(model, metric, sites, concepts)
    return table_of(sweep(ground, top=top, sample=sample, draws=draws, seed=seed, tell=tell), seed)


def sweep(ground: Ground, *, top: int, sample: int, draws: int, seed: int, tell: Tell | None = None) -> Swept:
    """Gradient, selection, ablations, controls."""
    n = len(ground.found)
    top = min(top, n)
    sample = min(sample, n - top)
    clock = Clock(top * (1 + draws) + sample, tell, doing="gradient")
    chosen, held = slopes(ground, ground.chosen), slopes(ground, ground.held)
    p = first_order_p(ground, ground.chosen, chosen, seed)
    order = np.argsort(-np.abs(chosen), kind="stable")
    picked = generator(seed, "sweep sample").choice(order[top:], sample, replace=False)
    measured = np.concatenate([order[:top], picked]).astype(np.int64)
    base = ground.held.of()
    table = _removed(ground, measured, base, clock)
    controls = _controls(ground, measured[:top], base, draws, seed, clock)
    means = table @ ground.held.metric.shares
    judged = honesty(chosen[measured], means, top, n - top, seed)
    return Swept(ground, np.stack([chosen, held]), p, top, measured, table, controls, judged)


def slopes(ground: Ground, half: Started) -> Float[np.ndarray, " n"]:
    """First-order effect of removing each dyad: −⟨∂f/∂W, (W vᵀ) v⟩."""
    found = ground.found
    every = range(len(found.sites))
    gradients = half.gradients(list(dict.fromkeys(tensor_of(ground, s)[0] for s in every)))
    made = np.zeros(len(found))
    for s in every:
        here, G = found.site == s, _slice(gradients, *tensor_of(ground, s))
        rows = found.rows[here]
        made[here] = -np.sum((matrix_of(ground, s) @ rows.T) * (G @ rows.T), axis=0)
    return made


def first_order_p(
    ground: Ground, half: Started, effects: Float[np.ndarray, " n"], seed: int
) -> Float[np.ndarray, " n"]:
    """p of every dyad among random changes of equal output at its own matrix."""
    found = ground.found
    every = range(len(found.sites))
    gradients = half.gradients(list(dict.fromkeys(tensor_of(ground, s)[0] for s in every)))
    seconds = half.second(list(dict.fromkeys(hook_of(ground, s) for s in every)))
    made = np.ones(len(found))
    for s in every:
        here, (tensor, head) = found.site == s, tensor_of(ground, s)
        made[here] = equal_output_p(
            effects[here], found.rows[here] @ matrix_of(ground, s).T, _slice(gradients, tensor, head),
            _slice(seconds, hook_of(ground, s), head), draws=READS, seed=(seed, s),
        )  # fmt: skip
    return made


def _slice(arrays: Mapping[str, np.ndarray], name: str, head: int | None) -> np.ndarray:
    return arrays[name] if head is None else arrays[name][head]


def _removed(
    ground: Ground, which: Int[np.ndarray, " m"], base: Float[np.ndarray, " cluster"], clock: Clock
) -> Float[np.ndarray, "m cluster"]:
    """Effect of removing each dyad by itself, on the held half."""
    found, made = ground.found, np.zeros((len(which), len(base)))
    for s in np.unique(found.site[which]):
        here = np.flatnonzero(found.site[which] == s)
        rows = found.rows[which[here]]
        lefts = -(rows @ matrix_of(ground, int(s)).T)[:, :, None]
        made[here] = ground.held.laid(found.sites[s], lefts, rows[:, None, :]) - base
        clock(f"ablations at {found.sites[s]}", len(here))
    return made


def _controls(
    ground: Ground, which: Int[np.ndarray, " top"], base: np.ndarray, draws: int, seed: int, clock: Clock
) -> Float[np.ndarray, "top draws"]:
    """Mean effect, on the held half, of random rank-one changes with each dyad's E‖Δoutput‖²."""
    found = ground.found
    seconds = ground.held.second(list(dict.fromkeys(hook_of(ground, int(s)) for s in np.unique(found.site[which]))))
    made = np.full((len(which), draws), np.nan)
    for k, i in enumerate(which if draws else []):
        s = int(found.site[i])
        matrix, second = matrix_of(ground, s), _slice(seconds, hook_of(ground, s), tensor_of(ground, s)[1])
        reads = haar_directions(draws, matrix.shape[0], (seed, int(i), 0))
        writes = haar_directions(draws, matrix.shape[1], (seed, int(i), 1))
        sizes = output_sizes(np.stack([matrix @ found.rows[i], *reads]), second)
        lefts = reads * np.divide(sizes[0], sizes[1:], out=np.zeros(draws), where=sizes[1:] > 0)[:, None]
        values = ground.held.laid(found.sites[s], lefts[:, :, None], writes[:, None, :])
        made[k] = (values - base) @ ground.held.metric.shares
        clock(f"controls of {found.address(int(i))}", draws)
    return made


def table_of(swept: Swept, seed: int) -> Table:
    """The table of a finished sweep."""
    ground, found = swept.ground, swept.ground.found
    n, m = len(found), len(swept.measured)
    q, means = bh(swept.p), swept.means
    group = np.full(n, 2)
    group[swept.measured] = np.where(np.arange(m) < swept.top, 0, 1)
    values = {name: np.full(n, np.nan) for name in ("effect", "low", "high", "p_runs", "p_dyads")}
    others = means[swept.top :]
    for k, i in enumerate(swept.measured):
        values["effect"][i], values["low"][i], values["high"][i] = ground.held.interval(swept.effects[k])
        if k < swept.top:
            values["p_dyads"][i] = two_sided_p(means[k], others)
            values["p_runs"][i] = two_sided_p(means[k], swept.controls[k])
    size = np.where(np.isnan(values["effect"]), np.abs(swept.slopes[0]), np.abs(values["effect"]))
    order = np.lexsort((-size, group))
    tau = float(found.tau)
    columns = [
        Column("dyad", [found.address(int(i)) for i in order], about="site and dyad, 0 the largest gain"),
        Column("gain", found.gains[order], "σ", 2, "its singular value"),
        Column("cos", np.sqrt(found.related[order]), "cos", 2,
               f"|cos| with {_meant(ground)}; chance: the best of {n:,} random directions", tau),
        Column("slope", swept.slopes[0][order], "logits", 3, "first-order effect of removing it, choosing half"),
        *(Column(name, values[name][order], "logits", 3, about) for name, about in (
            ("effect", "effect of removing it, measured on the held half"),
            ("low", "95 % interval over names or windows"), ("high", "upper end"))),
        Column("p", swept.p[order], about="random changes of equal output that do as much, first order"),
        Column("q", q[order], about=f"Benjamini–Hochberg over all {n:,} dyads"),
        Column("p_runs", values["p_runs"][order], about=f"the same, {swept.controls.shape[1]} changes run, held half"),
        Column("p_dyads", values["p_dyads"][order], about=f"share of {len(others)} other dyads that do as much"),
        Column("group", [GROUPS[group[i]] for i in order],
               about="top: by |slope|; sample: random others; rest: not run"),
        Column("held_slope", swept.slopes[1][order], "logits", 3, "first-order effect on the held half"),
    ]  # fmt: skip
    return Table(
        columns=columns, meta=_meta(swept, seed), title=_title(swept), says=_says(swept, q, columns),
        not_says="One dyad at a time: what two do together, or what others make up for, is not seen. A dyad with a "
        "large effect need not be about the task; side effects are in covector edit --neutral.",
        next=_next(ground, columns), picture=_picture, key=("dyad",),
    )  # fmt: skip


def _meant(ground: Ground) -> str:
    return "what the metric reads" if ground.found.words == "the given directions" else ground.found.words


def _meta(swept: Swept, seed: int) -> dict:
    ground, h = swept.ground, swept.honest
    return ground.model.meta | {
        "analysis": "dyad_sweep", "metric": ground.words, "concept": _meant(ground), "seed": seed,
        "sites": [str(s) for s in ground.found.sites], "dyads": len(ground.found), "top": swept.top,
        "sample": len(swept.measured) - swept.top, "draws": int(swept.controls.shape[1]), "reads": READS,
        "names": [len(ground.chosen.metric.shares), len(ground.held.metric.shares)], "kind": "ablation",
        "rank_correlation": [h.correlation, h.low, h.high],
        "missed": {"share": h.missed.value, "low": h.missed.low, "high": h.missed.high},
        "null": "random rank-one changes of the same matrix with equal E‖Δoutput‖²",
    }  # fmt: skip


def _title(swept: Swept) -> str:
    ground = swept.ground
    halves = " + ".join(str(len(half.metric.shares)) for half in (ground.chosen, ground.held))
    return f"{ground.model.name} · {ground.words} · {len(ground.found):,} dyads, {halves} names or windows"


def _says(swept: Swept, q: np.ndarray, columns: list[Column]) -> str:
    by = {c.name: c for c in columns}
    base = swept.ground.held.mean(swept.ground.held.of())
    first = by["dyad"].values[0]
    slope, found, low, high = (float(by[name].numbers[0]) for name in ("slope", "effect", "low", "high"))
    interval = f" (95 % {low:+.3f} to {high:+.3f})" if np.isfinite(low) else ""
    return (
        f"Removing {first} moves {swept.ground.words} by {found:+.3f}{interval} from {base:+.3f}; first order, from "
        f"other names, {slope:+.3f}. To first order, on the half that chooses, {int((q <= LEVEL).sum())} of {len(q):,} "
        f"dyads do more than random changes of equal output (q ≤ {LEVEL}){_run(swept)}. {_honest(swept)}"
    )


def _run(swept: Swept) -> str:
    """How many of the top do more than their controls when both are run."""
    draws = swept.controls.shape[1]
    if not draws or not swept.top:
        return ""
    more = sum(two_sided_p(swept.means[k], swept.controls[k]) <= max(LEVEL, 1 / (1 + draws)) for k in range(swept.top))
    return f"; measured on the other half, {more} of the top {swept.top} do (p ≤ {max(LEVEL, 1 / (1 + draws)):.2g})"


def _honest(swept: Swept) -> str:
    h, others = swept.honest, len(swept.ground.found) - swept.top
    if not np.isfinite(h.correlation):
        return "Without a sample of the others nothing is known of what the gradient's order missed."
    m = h.missed
    return (
        f"The gradient's order holds to a rank correlation of {h.correlation:.2f} (95 % {h.low:.2f} to {h.high:.2f}) "
        f"with effects. Of {others:,} others {m.value * others:.0f} ({m.low * others:.0f} to {m.high * others:.0f}) "
        f"do more than the median of the top {swept.top}."
    )


def _next(ground: Ground, columns: list[Column]) -> str:
    first = str(columns[0].values[0])
    return f"covector svd {ground.model.words} {first.split(':')[0]}"


def _picture(table: Table) -> Scatter:
    """Predicted against measured; intervals of the top."""
    here = np.flatnonzero(np.isfinite(table.column("effect").numbers))
    some = table.take(here)
    x, y, low, high = (some.column(name).numbers for name in ("slope", "effect", "low", "high"))
    chosen = np.array(some["group"]) == GROUPS[0]
    low, high = np.where(chosen, low, y), np.where(chosen, high, y)  # those of the sample would hide the points
    return Scatter(
        x=x, y=y, x_name="first order, choosing half", y_name="effect, held half",
        x_unit="logits", y_unit="logits", labels=[d if i < 8 else "" for i, d in enumerate(some["dyad"])],
        groups=list(some["group"]), interval=(low, high), diagonal=True,
    )  # fmt: skip
