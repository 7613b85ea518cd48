"""What changed between two models: how much at every place, in which directions, and what random changes would show.

One row per place, the most changed first. The null is a random change of equal norm and equal rank in the same place.

Source: §2 F16, §4 Q17 of the theory page; `docs/theory/changes.md`, equations 1–9.
"""

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from covector.analyses.clock import Clock, Tell
from covector.analyses.diff_lines import change_line
from covector.analyses.diff_measures import Asked, Changed, Labels, Measures, at_site, labels_of
from covector.analyses.diff_picture import layers_by_kinds
from covector.analyses.side import read_side
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.change import ABOVE_NOISE, is_zero, rank_above_noise, relative_change
from covector.linalg.lapack import at_most_threads
from covector.linalg.maps import frobenius
from covector.model.address import Site, named_sites
from covector.model.bases import left
from covector.model.change import ChangeModel, both, change
from covector.model.circuits import site_tensors
from covector.model.opened import Model
from covector.model.weights import Held
from covector.render import Column, Table

KINDS = ("ov", "qk", "mlp", "embed")
# New dyads that resemble no old one by half (cos of both sides multiplied) are called intruders.
BELOW = 0.5
# Fewer draws put no value above a 95 % level with any confidence.
FEWEST_DRAWS = 100
LEVEL = 0.05
QUESTIONS = ("inside", "turn", "new", "label")


class _Tokens(NamedTuple):
    """What one side of the leading dyad is near to, + pole and − pole."""

    verb: str
    labels: tuple[list[str], list[str]]


@dataclass(frozen=True, eq=False)
class _Row:
    """What is known of one changed place; `null` has a row per draw, none where it was not tested."""

    site: Site
    relative: float
    gain: float
    rank: int
    share: float
    measures: Measures | None = None
    null: np.ndarray | None = None
    tokens: tuple["_Tokens", ...] = ()
    label: str = ""


def diff(
    base: Model,
    other: Model | None = None,
    *,
    kinds: Sequence[str] = KINDS,
    top: int = 8,
    below: float = BELOW,
    tested: int = 20,
    draws: int = FEWEST_DRAWS,
    k: int = 6,
    seed: int = 0,
    tell: Tell | None = None,
) -> Table:
    """How much every place changed from `base` to `other`, and in which directions; one row per place.

    `base` may be a change already (`covector.changed`); an adapter is opened with `covector.adapted`. `kinds`: which of
    ov, qk, mlp, embed. `top`: how many leading dyads the questions about subspaces are asked of; `below`: what an
    intruder is (|u·u'||v·v'| with every old dyad). The `tested` most changed places are compared with `draws` random
    changes of equal norm and equal rank; the choice by norm does not bias them, since their null has that norm.

    Changes are exact to float64 of what is stored; a rank counts gains above twice the expected norm of storage
    rounding. Nothing larger than the stored matrices is formed. 100 draws take about
    10 s for a head at d_model 1024 and minutes for an MLP: then fewer `tested`, or `kinds` without it.
    Raises CheckpointMismatch for models of another anatomy, BadRequest for options outside their range.
    """
    _check(kinds, top, below, tested, draws, k)
    model = _changed(base, other)
    with at_most_threads(1):  # thin factors are slower on two threads than on one
        rows = sorted(_changes(model, kinds), key=lambda row: -row.relative)
        moved = [row for row in rows if row.relative > 0]
        clock, tests = Clock(min(len(moved), tested), tell), []
        for row in moved[:tested]:
            clock.begin(f"random changes at {row.site}")
            tests.append(_tested(model, row, top, below, draws, k, seed))
            clock(str(row.site))
    rows = [*tests, *moved[tested:], *(row for row in rows if row.relative == 0)]
    others = _others(model)
    old, new = both(model)
    return Table(
        columns=_columns(rows),
        meta=model.meta
        | {
            "analysis": "diff",
            "kinds": list(kinds),
            "top": top,
            "below": below,
            "draws": draws,
            "tested": len(tests),
            "seed": seed,
            "null": "random change of equal norm and equal rank: each stored array's change with its own gains and "
            "Haar-random singular vectors",
            "policy": "none: weights only",
            "other_tensors": dict(others),
        },
        title=f"{old.name} → {new.name} · {len(rows)} places · frame {model.frame} · leading {top} dyads, intruders "
        f"below {below:g} · null: {draws} random changes of equal norm and rank",
        says=_says(rows, tests, others),
        not_says=_not_says(tests, draws, len(moved)),
        next=_next(model, rows),
        picture=layers_by_kinds,
        lines=change_line,
        key=("site",),
    )


def _check(kinds: Sequence[str], top: int, below: float, tested: int, draws: int, k: int) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise BadRequest(f"expected kinds among {', '.join(KINDS)}, got '{', '.join(unknown)}'; leave it out for all")
    if top < 1 or k < 1 or tested < 0 or not 0 < below < 1:
        raise BadRequest(f"expected top >= 1, k >= 1, tested >= 0, 0 < below < 1, got {top}, {k}, {tested}, {below:g}")
    if draws < FEWEST_DRAWS:
        raise BadRequest(f"expected at least {FEWEST_DRAWS} draws, got {draws}: fewer give no level of 95 %")


def _changed(base: Model, other: Model | None) -> ChangeModel:
    if other is not None:
        return change(base, other)
    if not isinstance(base, ChangeModel):
        raise BadRequest(f"expected two models to compare, got {base.name} alone; name the other")
    return base


def diff_sites(model: Model, kinds: Sequence[str]) -> tuple[Site, ...]:
    """Every place that is compared; a tied unembedding is the embedding, and is left out."""
    spec, found = model.spec, list[Site]()
    for layer, block in enumerate(spec.blocks):
        heads = range(block.attn.n_heads) if block.attn else ()
        found += [Site(layer, head, kind) for kind in ("ov", "qk") if kind in kinds for head in heads]
        if block.mlp is not None and "mlp" in kinds:
            found += [Site(layer, None, kind) for kind in ("in", *(("gate",) if block.mlp.gated else ()), "out")]
    if "embed" in kinds:
        found += [Site(None, None, name) for name in named_sites(spec) if not (name == "unembed" and spec.tied)]
    return tuple(found)


def _changes(model: ChangeModel, kinds: Sequence[str]) -> Iterator[_Row]:
    """Every place's change, layer by layer; the tensors of a layer are read once and let go."""
    at, view = object(), model
    for site in sorted(diff_sites(model, kinds), key=lambda s: (s.layer is not None, s.layer or 0)):
        if site.layer != at or site.layer is None:
            at, view = site.layer, held(model)
        yield _row(at_site(view, site))


def held(model: ChangeModel) -> ChangeModel:
    """The change with each tensor read once, for one piece of work."""
    return dataclasses.replace(model, weights=Held(model.weights))


def _row(found: Changed) -> _Row:
    if is_zero(found.change):
        return _Row(found.site, 0.0, 0.0, 0, float("nan"))
    delta, size = found.delta, frobenius(found.change)
    share = float(delta.S[0] ** 2 / size**2) if delta.rank else float("nan")
    gain = float(delta.S[0]) if delta.rank else 0.0
    return _Row(found.site, relative_change(found.change, found.base), gain, rank_above_noise(delta), share)


def _tested(model: ChangeModel, row: _Row, top: int, below: float, draws: int, k: int, seed: int) -> _Row:
    """The row with what is measured, its null, and the labels of the leading dyad of the change."""
    found = at_site(held(model), row.site)
    labels = labels_of(model, row.site, found.change)
    asked = Asked(labels, top, below)
    null = found.null(asked, draws, diff_stream(model, row.site, seed))
    measures = found.measured(asked)
    tokens = tuple(_listed(found, one, k) for one in labels)
    return dataclasses.replace(row, measures=measures, null=null, tokens=tokens, label=_nearest_label(found, labels))


def diff_stream(model: ChangeModel, site: Site, seed: int) -> tuple[int, ...]:
    """A site's own stream of random numbers."""
    every = diff_sites(model, KINDS)
    return (seed, every.index(site))


def _listed(found: Changed, labels: Labels, k: int) -> _Tokens:
    """The `k` labels of each pole of one side of the leading dyad."""
    reading = read_side(
        np.ascontiguousarray(labels.rows(found.delta)[:1]),
        None,
        labels.basis,
        k=k,
        keep=left(labels.basis, labels.basis, ()),
        centred=labels.centred,
    )
    plus, minus = ([labels.basis.labels[i] for i in ids[0]] for ids in (reading.top, reading.bottom))
    return _Tokens(("reads", "writes")[labels.at], (plus, minus))


def _nearest_label(found: Changed, labels: Sequence[Labels]) -> str:
    """The label that the leading dyad is nearest to, whichever side."""
    if not labels:
        return ""
    one = max(labels, key=lambda each: each.best(found.delta))
    rows = one.rows(found.delta)[:1]
    ids = np.flatnonzero(one.basis.usable)
    return one.basis.labels[ids[int(np.abs(one.units @ rows.T.astype(one.units.dtype)).argmax())]] if rows.size else ""


def _columns(rows: Sequence[_Row]) -> list[Column]:
    p = {name: _p(rows, i) for i, name in enumerate(QUESTIONS)}
    level = {name: _level(rows, i) for i, name in enumerate(QUESTIONS)}
    value = {name: [np.nan if r.measures is None else r.measures[i] for r in rows] for i, name in enumerate(QUESTIONS)}
    about = {
        "inside": "share of ‖ΔM‖² that reads and writes in the old map's leading dyads",
        "turn": "largest principal angle between the old and the new leading subspaces, either side",
        "new": "intruders: leading new dyads that resemble no old dyad",
        "label": "|cos| of the change's leading dyad with its nearest label, either side, over the 95 % level of a "
        "random direction",
    }
    unit = {"inside": "", "turn": "°", "new": "", "label": ""}
    digits = {"inside": 2, "turn": 1, "new": 0, "label": 2}
    made = [
        Column("site", [str(r.site) for r in rows], about="the place"),
        Column("change", np.array([r.relative for r in rows]), "‖M‖", None, "‖ΔM‖ / ‖M‖, Frobenius"),
        Column("rank", np.array([r.rank for r in rows]), about=f"gains above {ABOVE_NOISE:g} × storage rounding"),
    ]
    for name in QUESTIONS:
        made.append(Column(name, np.array(value[name]), unit[name], digits[name], about[name], chance=f"{name}_level"))
        made.append(Column(f"p_{name}", p[name], digits=2, about="share of random changes that reach it (+1)"))
    made.append(Column("nearest", [r.label or None for r in rows], about="the label nearest to the leading dyad"))
    for name in QUESTIONS:
        made.append(Column(f"{name}_level", level[name], unit[name], digits[name], "95 % of random changes stay below"))
        made.append(Column(f"q_{name}", _q(p[name]), digits=2, about="Benjamini–Hochberg over the places tested"))
    made.append(Column("first", np.array([r.share for r in rows]), "", 2, "share of ‖ΔM‖² in its leading dyad"))
    made.append(
        Column("gain", np.array([r.gain for r in rows]), about="leading gain of the change, in units of the map")
    )
    return [*made, *_label_columns(rows)]


def _label_columns(rows: Sequence[_Row]) -> list[Column]:
    """All labels of the leading dyad, for files."""
    made = []
    for verb in ("reads", "writes"):
        for pole, name in enumerate(("plus", "minus")):
            lists = [next((one.labels[pole] for one in row.tokens if one.verb == verb), None) for row in rows]
            if any(one is not None for one in lists):
                made.append(Column(f"{verb}_{name}", lists, about=f"labels that the leading dyad {verb}, {name} pole"))
    return made


def _p(rows: Sequence[_Row], question: int) -> np.ndarray:
    return np.array(
        [
            np.nan
            if r.measures is None or r.null is None
            else float(chance.monte_carlo_p(r.measures[question], r.null[:, question]).value)
            for r in rows
        ]
    )


def _level(rows: Sequence[_Row], question: int) -> np.ndarray:
    return np.array([np.nan if r.null is None else np.quantile(r.null[:, question], 0.95) for r in rows])


def _q(p: np.ndarray) -> np.ndarray:
    """Benjamini–Hochberg over those that were tested."""
    made, at = np.full(len(p), np.nan), np.isfinite(p)
    if at.any():
        made[at] = chance.bh(p[at])
    return made


def _others(model: ChangeModel) -> list[tuple[str, float]]:
    """Relative change of every changed tensor that no place is made of (gains, biases), the most changed first."""
    every = diff_sites(model, KINDS)
    used = {tensor for site in every for tensor in site_tensors(site)} | ({"W_U"} if model.spec.tied else set())
    found = []
    old, new = both(model)
    for name in (n for n in old.stored.names() if n not in used):
        one, two = (np.asarray(side.stored[name], dtype=np.float64) for side in (old, new))
        size, moved = float(np.linalg.norm(one)), float(np.linalg.norm(two - one))
        if moved:
            found.append((name, moved / size if size else None))
    return sorted(found, key=lambda pair: -(pair[1] or np.inf))


def _says(rows: Sequence[_Row], tests: Sequence[_Row], others: Sequence[tuple[str, float]]) -> str:
    moved = [r for r in rows if r.relative > 0]
    beside = f"{len(others)} gains and biases changed too, most {others[0][0]}" if others else ""
    if not moved:
        if not others:
            return f"Nothing changed: all {len(rows)} places and all other tensors are the same, number by number."
        return f"No map changed: all {len(rows)} places are the same, number by number; {beside}."
    parts = [f"{len(moved)} of {len(rows)} places changed, most {moved[0].site} (‖ΔM‖ = {moved[0].relative:.3g} ‖M‖)"]
    if tests:
        told = {
            "inside": "lie more in the old leading dyads",
            "turn": "turn the leading subspaces further",
            "new": "bring more new dyads",
            "label": "come nearer to a label",
        }
        counts = [int(np.sum(_q(_p(tests, i)) < LEVEL)) for i in range(len(QUESTIONS))]
        listed = ", ".join(f"{n} {told[name]}" for name, n in zip(QUESTIONS, counts, strict=True))
        parts.append(f"of {len(tests)} tested, at a false-discovery rate of {LEVEL:.0%}: {listed} than random changes")
    return "; ".join([*parts, *([beside] if beside else [])]) + "."


def _not_says(tests: Sequence[_Row], draws: int, moved: int) -> str:
    parts = ["It does not say what the change does to outputs: a small change may decide, a large one may not"]
    if len(tests) > LEVEL * (draws + 1):
        parts.append(f"with {draws} draws and {len(tests)} tests one place cannot reach q < {LEVEL:g}: more --draws")
    if moved > len(tests):
        parts.append(f"{moved - len(tests)} changed places were not tested: --tested")
    return "; ".join(parts) + "."


def _next(model: ChangeModel, rows: Sequence[_Row]) -> str:
    if not rows or rows[0].relative == 0:
        return f"covector inspect {both(model)[0].words}"
    return diff_words(model, str(rows[0].site))


def diff_words(model: ChangeModel, site: str) -> str:
    """The command that shows one place of this change."""
    old, new = both(model)
    frame = "" if str(model.frame) == "raw" else f" --frame {model.frame}"
    return f"covector diff {old.words} {new.typed or shlex.quote(new.name)} {site}{frame}"
