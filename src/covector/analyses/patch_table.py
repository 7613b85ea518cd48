"""What a patch has measured, as a table: effects beside guesses, intervals and p over names, a picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.head_grid import head_grid
from covector.axes import Float
from covector.linalg import chance
from covector.linalg.interval import cluster_sums, half_width
from covector.linalg.sign_flips import sign_flips
from covector.model.opened import Model
from covector.render import Column, Grid, Table
from covector.run.clusters import clusters_of, counted, found_in_texts, no_interval, pairs_told, what_counts
from covector.run.prompts import Pair
from covector.run.sweep import Place
from covector.study.observable import Observable

LEVEL = 0.05
ABOUT = {
    "first_order": "gradient at the clean run times the change (fit)",
    "integrated": "gradient averaged along the line from clean to new, times the change (fit)",
    "softmax": "changed attention, computed, times the gradient on it (fit)",
}


@dataclass(frozen=True, eq=False)
class Patched:
    """What was measured: a row of `effects` and of every guess per place, clean − corrupt of each pair in `whole`."""

    places: Sequence[Place]
    pairs: Sequence[Pair]
    effects: Float[np.ndarray, "place n"]
    guesses: Mapping[str, Float[np.ndarray, "place n"]]
    whole: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Asked:
    """What was asked for: places (with the route, in words), the source, where the output is read."""

    what: str
    source: str
    at: str
    seed: int
    steps: int


def patch_table(model: Model, observable: Observable, found: Patched, asked: Asked) -> Table:
    """One row per place, the largest effect first."""
    clusters = clusters_of(found.pairs)
    mean, groups = found.effects.mean(axis=1), len(np.unique(clusters))
    p = sign_flips(cluster_sums(found.effects, clusters), asked.seed)
    q, total = chance.bh(p), float(found.whole.mean())
    told, best_guess = list(found.guesses.items())[-1]
    slope, r2 = line(best_guess.mean(axis=1), mean)
    fit: dict[str, object] = {"guess": told, "slope": slope, "r2": r2}
    named = ""
    if told == "integrated":
        fit |= {"steps": asked.steps, "error": float(np.abs(best_guess - found.effects).max())}
        named = f" · integrated, {asked.steps} steps, error at most {fit['error']:.2g}"
    order = np.argsort(-np.abs(mean), kind="stable")
    best = int(order[0])
    return Table(
        columns=_columns(found, observable.unit, total, half_width(found.effects, clusters), p, q),
        meta=model.meta | {"analysis": "patch", "observable": str(observable), "what": asked.what,
                           "source": asked.source, "at": asked.at, "pairs": len(found.pairs), "seed": asked.seed,
                           "kind": "measurement; first_order: fit", "total": total,
                           "first_order": fit, "names": groups, "counted": what_counts(found.pairs),
                           "null": "sign flips over names"},
        title=f"{model.name} · {observable} · {asked.what} from {asked.source} · {pairs_told(found.pairs)} · "
        f"clean − corrupt {total:.3f}{named}",
        says=f"Replacing {found.places[best]} moves {observable} most, by {mean[best]:+.3f} of {total:.3f} "
        f"{observable.unit}{_tested(q, groups)}.",
        not_says="Effects of single places do not add up (observe paths gives shares that do), and say nothing of "
        "prompts "
        f"unlike these{_few(found.pairs)}{_fit(told, slope, r2)}"
        f"{'; ' + observable.warning if observable.warning else ''}.",
        next=f"covector observe shares {model.words} {observable.typed} with the same prompts",
        picture=_picture(found.places, mean, observable.unit),
        key=("place",),
    ).take(order)  # fmt: skip


def _columns(
    found: Patched,
    unit: str,
    total: float,
    error: Float[np.ndarray, " place"],
    p: Float[np.ndarray, " place"],
    q: Float[np.ndarray, " place"],
) -> list[Column]:
    mean = found.effects.mean(axis=1)
    return [
        Column("place", [str(place) for place in found.places], about="what was replaced; @ at which positions"),
        Column("effect", mean, unit, 3, "clean − patched, mean over pairs"),
        Column("low", mean - error, unit, 3, "lower end of a 95 % interval over names"),
        Column("high", mean + error, unit, 3, "upper end"),
        Column("share", mean / total if total else np.full(len(mean), np.nan), "", 3, "effect over clean − corrupt"),
        *[Column(name, values.mean(axis=1), unit, 3, ABOUT[name]) for name, values in found.guesses.items()],
        Column("p", p, about="sign flips over names: the effect has no sign"),
        Column("q", q, about="Benjamini–Hochberg over places"),
    ]


def _fit(guess: str, slope: float, r2: float) -> str:
    """How well a guess that saw the same prompts does, which is no prediction; nothing where there is none."""
    return f"; {guess} is a fit to these prompts (slope {slope:.2f}, r² {r2:.2f})" if np.isfinite(slope) else ""


def _tested(q: Float[np.ndarray, " place"], groups: int) -> str:
    """How many places have an effect; nothing was tested where all pairs are one piece of evidence."""
    if groups == 1:
        return ""
    return (
        f"; {int(np.sum(q < LEVEL))} of {len(q)} places have an effect beyond sign flips at a false-discovery rate of "
        f"{LEVEL:.0%}"
    )


def _few(pairs: Sequence[Pair]) -> str:
    """A caution where so few names leave no room for a small p, and where they come from if the texts told them."""
    n = len(np.unique(clusters_of(pairs)))
    if n == 1:
        few = f"; nothing was tested{no_interval(pairs).replace(';', ':', 1)}"
    else:
        few = f"; with {counted(pairs)} no p is below {2.0 ** (1 - n):.2g}" if n <= 7 else ""
    if not few or len(pairs) == 1 or not found_in_texts(pairs):
        return few
    return f"{few}; names are the words in which texts differ (give 'names' in the file for others)"


def line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Slope through the origin of y on x, and squared correlation; NaN where x does not vary."""
    if not np.any(x) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    return float(x @ y / (x @ x)), float(np.corrcoef(x, y)[0, 1] ** 2)


def _picture(places: Sequence[Place], mean: Float[np.ndarray, " place"], unit: str) -> Callable[[Table], Grid] | None:
    """Layers × heads, or layers × slots; None where both vary."""
    if places[0].head is not None and places[0].slot is None:
        names = [f"L{p.layer}H{p.head}" for p in places]
        return lambda _: head_grid(names, mean, value_name="clean − patched", unit=unit)
    if places[0].head is not None:
        return None
    layers, slots = sorted({p.layer for p in places}), list(dict.fromkeys(p.slot or "all" for p in places))
    cells = np.full((len(layers), len(slots)), np.nan)
    for place, value in zip(places, mean, strict=True):
        cells[layers.index(place.layer), slots.index(place.slot or "all")] = value
    return lambda _: Grid(cells, [f"L{i}" for i in layers], slots, value_name="clean − patched", unit=unit,
                              row_name="layer", column_name="position")  # fmt: skip
