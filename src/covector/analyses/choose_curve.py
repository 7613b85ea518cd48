"""Ways to change a concept compared at equal ‖ΔM‖_F: what each does to the metric, and to other text.

Source: F6, Q12 of the theory page; `docs/theory/edits.md`, equations 12–15.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.choose import MOST_WEIGHED, Budget, usage
from covector.analyses.choose_candidates import Candidates
from covector.analyses.choose_metric import Metric
from covector.axes import Float
from covector.linalg.choosing import box_minimum, mu_of_size, proportional, size_of
from covector.model.overlay import Change
from covector.render import Column, Curve, Table
from covector.run.fisher import gauss_newton

# Sizes of the change, in units of the one dyad that writes most of the concept.
SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)
WAYS = SINGLE, FREE, DATA, ERASED, BEST = "one dyad", "in proportion", "in proportion, by data", "erasure", "optimised"


@dataclass(frozen=True, eq=False)
class _Way:
    """A way to spend a size: ε of dyads, or another change, and None where it cannot be as large."""

    name: str
    made: Callable[[float], tuple[Change, int] | None]


def curve(
    found: Candidates,
    choose_by: Metric,
    measure_on: Metric,
    budget: Budget,
    *,
    sizes: Sequence[float] = SIZES,
) -> Table:
    """One row per size and way: change of the metric on held-out clusters with its interval, KL on held-out text.

    Ways: the one dyad that writes most of the concept weakened; all dyads in proportion (equation 12), and with the
    second moments of `choose_by`'s and the text's inputs (13); the concept's span erased, M(I + ε CᵀC); the optimum
    for `choose_by` under the Gauss–Newton price of the text (14). ``against`` is the change less that of the one dyad
    of the same size, with its interval over clusters (paired). Sizes that a way cannot reach are left out.
    """
    unit = int(np.argmax(found.gains**2 * found.related))
    sigma = float(found.gains[unit])
    ways = _ways(found, unit, choose_by, budget)
    before = measure_on.of()
    rows, single = [], {}
    for size in sizes:
        for way in ways:
            made = way.made(size * sigma)
            if made is None:
                continue
            change, n = made
            each = measure_on.of(change) - before
            if way.name == SINGLE:
                single[size] = each
            against = each - single[size] if size in single and way.name != SINGLE else np.full(len(each), np.nan)
            kl = budget.kl(change, held=True)
            rows.append({
                "size": size * sigma, "way": way.name, "dyads": n, "change": measure_on.mean(each),
                "half": measure_on.half(each), "kl": kl, "against": measure_on.mean(against),
                "against_half": measure_on.half(against),
            })  # fmt: skip
    return _table(found, unit, rows, measure_on, before, budget)


def _ways(found: Candidates, unit: int, metric: Metric, budget: Budget) -> list[_Way]:
    target = usage(metric.decoder, metric.tokens, found, metric.kept)
    control = usage(budget.decoder, budget.fit.batches, found, budget.fit.kept)
    slopes = metric.slopes(found.pieces(range(len(found))))
    weighed = np.argsort(-np.abs(slopes), kind="stable")[:MOST_WEIGHED]
    F = gauss_newton(budget.decoder, found.pieces(weighed), budget.fit, budget.tick)
    whole = float(np.sqrt(np.sum(found.gains**2 * found.related)))

    def laid(epsilon: Float[np.ndarray, " n"]) -> tuple[Change, int]:
        return found.changed_by(epsilon), int(np.count_nonzero(epsilon))

    def one(size: float) -> tuple[Change, int] | None:
        share = size / found.gains[unit]
        return None if share > 1 + 1e-9 else laid(-share * (np.arange(len(found)) == unit))

    def free(size: float) -> tuple[Change, int] | None:
        mu = mu_of_size(found.related, found.gains, size)
        return None if np.isnan(mu) else laid(proportional(found.related, mu))

    def by_data(size: float) -> tuple[Change, int] | None:
        mu = mu_of_size(found.related, found.gains, size, 0.0, target, control)
        return None if np.isnan(mu) else laid(proportional(found.related, mu, 0.0, target, control))

    def erased(size: float) -> tuple[Change, int] | None:
        return None if size > whole else (found.erasing(-size / whole).change(found.model), 0)

    def best(size: float) -> tuple[Change, int] | None:
        epsilon = _optimum(slopes[weighed], F, found.gains[weighed], size)
        if epsilon is None:
            return None
        all_of_them = np.zeros(len(found))
        all_of_them[weighed] = epsilon
        return laid(all_of_them)

    return [_Way(SINGLE, one), _Way(FREE, free), _Way(DATA, by_data), _Way(ERASED, erased), _Way(BEST, best)]


def _optimum(
    slopes: Float[np.ndarray, " n"], gram: Float[np.ndarray, "n n"], gains: Float[np.ndarray, " n"], size: float
) -> Float[np.ndarray, " n"] | None:
    """The box optimum whose ‖ΔM‖_F is `size`, by bisection of its price; None for more than all at their bounds."""
    scale = float(np.abs(slopes).max()) / float(np.abs(gram).max())
    low, high = np.log(1e-6 * scale), np.log(1e10 * scale)
    if size > size_of(box_minimum(slopes, gram, float(np.exp(low)), -1.0, 0.0).epsilon, gains):
        return None
    for _ in range(50):
        middle = (low + high) / 2
        found = box_minimum(slopes, gram, float(np.exp(middle)), -1.0, 0.0)
        low, high = (middle, high) if size_of(found.epsilon, gains) > size else (low, middle)
    return box_minimum(slopes, gram, float(np.exp((low + high) / 2)), -1.0, 0.0).epsilon


def _table(
    found: Candidates, unit: int, rows: list[dict], metric: Metric, before: Float[np.ndarray, " c"], budget: Budget
) -> Table:
    def of(name: str) -> Float[np.ndarray, " n"]:
        return np.array([row[name] for row in rows], dtype=np.float64)

    change, half, kl = of("change"), of("half"), of("kl")
    columns = (
        Column("size", of("size"), about="‖ΔM‖_F over all sites"),
        Column("way", [row["way"] for row in rows], about="how the size is spent"),
        Column("dyads", of("dyads"), digits=0, about="dyads whose gain changes; 0: the change is along no dyads"),
        Column("change", change, "logits", about=f"of {metric.words}, held-out clusters"),
        Column("low", change - half, "logits", about="95 % interval over clusters"),
        Column("high", change + half, "logits", about="upper end"),
        Column("against", of("against"), "logits", about="change less that of the one dyad of this size (paired)"),
        Column("±", of("against_half"), "logits", about="half width of its 95 % interval"),
        Column("KL", kl, "nats", about="KL(base ‖ edited) per token of held-out text"),
        Column("per √KL", change / np.sqrt(np.maximum(kl, 1e-300)), about="change over √KL"),
    )
    return Table(
        columns,
        title=f"{found.model.name} · {found.words} · {len(found):,} dyads of {len(found.sites)} sites, at equal ‖ΔM‖",
        meta=found.model.meta
        | {
            "analysis": "choose_curve", "concept": found.words, "sites": [str(s) for s in found.sites],
            "metric": metric.words, "before": metric.mean(before), "clusters": len(metric.shares), "kind": "fit",
            "unit": found.address(unit), "text_tokens": len(budget.held),
        },
        says=_says(found, unit, rows, metric, before),
        not_says=(
            "That equal ‖ΔM‖ is an equal price: inputs use directions unequally, KL says what it costs on this text. "
            "The optimum knows the metric's gradient and half of the text, the proportional forms the concept alone."
        ),
        next=f'covector edit {found.model.words} --concept "{found.words}" --budget-kl 0.01',
        picture=lambda table: _picture(table, metric),
        key=("size", "way"),
    )  # fmt: skip


def _says(found: Candidates, unit: int, rows: list[dict], metric: Metric, before: Float[np.ndarray, " c"]) -> str:
    one = [r for r in rows if r["size"] == found.gains[unit]]
    start = metric.mean(before)
    lines = [f"{r['way']} {r['change']:+.3f} (KL {r['kl']:.2g})" for r in one]
    better = [
        r["way"] for r in one if r["way"] != SINGLE and abs(r["against"]) > r["against_half"]
        and abs(r["change"]) > abs(one[0]["change"]) and r["change"] * one[0]["change"] > 0 and r["kl"] <= one[0]["kl"]
    ]  # fmt: skip
    verdict = (
        f"Better than removing {found.address(unit)} in both, beyond its interval: {', '.join(better)}"
        if better
        else f"None does more than removing {found.address(unit)} at no more KL, beyond its interval"
    )
    if len(metric.shares) < 2:
        verdict = "One window (or name) measures, so there is no interval and no way is called better"
    return (
        f"{metric.words} is {start:+.3f}; at the size of one dyad removed: {', '.join(lines)}. {verdict}.{_same(rows)}"
    )


def _same(rows: list[dict]) -> str:
    """Told where the data say nothing: the metric and the text are read on the same inputs."""
    by_way = [{r["size"]: r["change"] for r in rows if r["way"] == way} for way in (FREE, DATA)]
    same = by_way[0] == by_way[1] and by_way[0]
    return " Metric and text are the same inputs: by data is in proportion, once more." if same else ""


def _picture(table: Table, metric: Metric) -> Curve:
    """The size of the change, ‖ΔM‖_F, against the change of the metric, a line for each way."""
    names = list(dict.fromkeys(table["way"]))
    sizes = np.unique(table["size"])
    ys = np.full((len(names), len(sizes)), np.nan)
    for row in table.rows:
        ys[names.index(row["way"]), int(np.searchsorted(sizes, row["size"]))] = row["change"]
    return Curve(sizes, ys, names, "‖ΔM‖_F", f"change of {metric.words}", "", "logits")
