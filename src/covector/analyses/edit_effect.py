"""What an edit does: to observables on target prompts, predicted beside measured, and to other text, with controls.

Source: theory page F5, F14, SV-14, SV-20; `docs/theory/edits.md`, equations 8, 9, 20–22.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from covector.analyses.clock import Tell
from covector.analyses.edit_controls import DYADS, NORM, OUTPUT
from covector.analyses.edit_measures import Effects, Measured, measure
from covector.analyses.edit_picture import dose_response, kl_response
from covector.analyses.edit_setup import DOSES, Setup, Texts, set_up
from covector.analyses.edit_words import meta_of, words
from covector.axes import Float
from covector.linalg.chance import bh
from covector.linalg.interval import half_width
from covector.linalg.matched import two_sided_p
from covector.model.opened import Model
from covector.render import Column, Table
from covector.run.neutral import NEUTRAL
from covector.run.prompts import Pair
from covector.study.edit import Edit
from covector.study.observable import Observable

NAN = float("nan")
LOGITS, NATS = "logits", "nats"


def edit_effect(
    model: Model,
    edit: Edit | str | Sequence[Edit | str],
    observables: Sequence[Observable | str] | Observable | str = (),
    prompts: Sequence[Pair] = (),
    *,
    neutral: Texts | None = None,
    doses: Sequence[float] = DOSES,
    draws: int = 100,
    seed: int = 0,
    at: str = "end",
    bos: str = "auto",
    dtype: str = "float64",
    tokens: int | None = None,
    tell: Tell | None = None,
) -> Table:
    """One row per edit, dose, group and measure: before, after and change, with interval, prediction and controls.

    Several edits (or one of several terms) are measured each by itself and together. Groups: both sides of the pairs
    and ``gap`` (clean − corrupt), or ``prompts`` where pairs compare nothing; ``neutral`` or topics. Measures:
    the observables (logits), ``p`` and ``rank`` of their tokens (1: most likely), on `neutral` text KL(base ‖ edited)
    per token, change of the loss, ratio of perplexities, and |effect| per √KL (both grow with the dose alike).
    Dose t means W + t ΔW: of terms that do not overlap every ε becomes tε. ``predicted`` is first order: the gradient
    at dose 0 times the dose, from the same prompts: a fit. `low`, `high`: 95 % interval over names, or windows of text.

    Controls, `draws` of each: random changes of the same stored factors with the edit's rank and relative singular
    values there, scaled to its E‖Δoutput‖² over the clean inputs of the prompts (``p``, ``band``: 95 % of them stay
    within) or to its ‖ΔM‖_F (``p_norm``); the other dyads of the same matrices with the same ε (``p_dyads``). p is
    two-sided on |effect|, (1 + ties and larger) / (1 + draws). ``q``: Benjamini–Hochberg over the observables, groups
    and edits at dose 1, and over topics. ``dose`` 0 is the sham.

    `neutral`: a text, documents by topic, or token ids [batch, position]; `tokens` of it are looked at. Without
    observables and prompts the side effects alone: controls are then matched over the text's inputs. Measured with
    the reference decoder, ``float64`` or ``float32``. Raises BadRequest for nothing to measure on, an edit that
    changes nothing, prompts longer than the context, doses that turn a direction around unasked; what `Edit.resolve`
    and `Observable.parse` raise.
    """
    setup = set_up(model, edit, observables, prompts, neutral=neutral, doses=doses, draws=draws, seed=seed, at=at,
                   bos=bos, dtype=dtype, tokens=tokens)  # fmt: skip
    return table_of(measure(setup, tell))


def table_of(effects: Effects) -> Table:
    """The table of `edit_effect` for what has been measured."""
    rows = list(_rows(effects))
    for family in ("target", "neutral"):
        here = [row for row in rows if row["family"] == family]
        for row, q in zip(here, bh(np.array([row["p"] for row in here], dtype=np.float64)), strict=True):
            row["q"] = float(q)

    def of(name: str) -> Float[np.ndarray, " n"]:
        return np.array([row[name] for row in rows], dtype=np.float64)

    def said(name: str) -> list[str]:
        return [row[name] for row in rows]

    n = effects.setup.draws
    several = len(effects.parts) > 1
    edit = Column("edit", said("edit"), about="what is changed")
    predicted = Column("predicted", of("first"), about="gradient at dose 0 times the dose, same prompts (a fit)")
    columns = [
        *([edit] if several else []),
        Column("dose", of("dose"), "×", 2, about="share of the edit: W + t ΔW; 0 is the sham"),
        Column("on", said("on"), about="prompts: both sides, and gap: clean − corrupt; neutral text, topics"),
        Column("measure", said("measure"), about="what is measured"),
        Column("before", of("before"), about="in the model as it is"),
        Column("change", of("change"), about="edited − unedited; perplexity: the ratio"),
        Column("low", of("low"), about="95 % interval over names, on text over windows"),
        Column("high", of("high"), about="upper end"),
        *([predicted] if effects.setup.observables else []),
        Column("band", of("band"), about=f"95 % of {n} random changes of equal output stay within ±"),
        Column("p", of("p"), "", 3, about="share of random changes of equal output that do as much"),
        Column("p_norm", of("p_norm"), "", 3, about="the same among random changes of equal ‖ΔM‖_F"),
        Column("p_dyads", of("p_dyads"), "", 3, about="the same among other dyads of the same matrix, same ε"),
        Column(
            "q", of("q"), "", 3, about="of p: Benjamini–Hochberg over observables, groups, edits at dose 1; over topics"
        ),
        Column("unit", said("unit"), about="of before, change, low, high, predicted and band"),
        Column("after", of("after"), about="in the edited model"),
        *([] if several else [edit]),
    ]
    draw = dose_response if effects.setup.observables else kl_response
    key = (*(("edit",) if several else ()), "dose", "on", "measure")
    return Table(columns, meta_of(effects), *words(effects, rows), picture=lambda _: draw(effects),
                 key=key)  # fmt: skip


def _rows(effects: Effects) -> Iterator[dict[str, Any]]:
    """The whole edit first, then its parts at dose 1, then tokens and the parts' other doses."""
    whole, *parts = effects.parts
    last = int(np.flatnonzero(effects.setup.doses == 1)[0])
    yield from _target(effects, whole, last, effects.setup.groups)
    if not effects.setup.observables:
        yield from _text(effects, whole, last)
    yield from _doses(effects, whole)
    yield from _sham(effects)
    if effects.setup.observables:
        yield from _text(effects, whole, last)
    for m in parts:
        yield from _target(effects, m, last, effects.setup.groups)
        yield from _text(effects, m, last)
    yield from _tokens(effects, whole)
    for m in parts:
        yield from _doses(effects, m)
        yield from _tokens(effects, m)


def _doses(effects: Effects, m: Measured) -> Iterator[dict[str, Any]]:
    """The observables of the headline group, and KL, at every dose but 1."""
    others = [i for i, dose in enumerate(effects.setup.doses) if dose != 1]
    for i in others:
        yield from _target(effects, m, i, (effects.setup.headline,))
    for i in others:
        yield from _kl(effects, m, i, {})


def _row(edit: str, dose: float, on: str, measure: str, unit: str, **values: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("before", "after", "change", "low", "high", "first", "band", "p", "p_norm", "p_dyads", "q"),
                          NAN)  # fmt: skip
    return empty | {"edit": edit, "dose": dose, "on": on, "measure": measure, "unit": unit, "family": ""} | values


def slope(m: Measured, observable: int, group: str) -> float:
    """First-order effect of the whole part at dose 1, mean over names."""
    each = m.slopes[observable].sum(axis=1)
    return float(each[0] - each[1]) if group == "gap" else float(each[int(group == "corrupt")])


def _target(effects: Effects, m: Measured, i: int, groups: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The observables at one dose."""
    setup, dose = effects.setup, float(effects.setup.doses[i])
    for j, o in enumerate(setup.observables):
        for group in groups:
            change, low, high = setup.interval(setup.of_group(m.effects[i, j], group))
            before = float(setup.mean(setup.of_group(effects.before[j], group)))
            null = control_effects(setup, m, OUTPUT, j, group, i)
            row = _row(m.part.name, dose, group, str(o), LOGITS, before=before, after=before + change, change=change,
                       low=low, high=high, first=dose * slope(m, j, group), p=two_sided_p(change, null),
                       band=float(np.quantile(np.abs(null), 0.95)))  # fmt: skip
            if dose == 1:
                row["family"] = "target"
                for kind, name in ((NORM, "p_norm"), (DYADS, "p_dyads")):
                    row[name] = two_sided_p(change, control_effects(setup, m, kind, j, group))
            yield row


def control_effects(
    setup: Setup, m: Measured, kind: str, observable: int, group: str, dose: int = 0
) -> Float[np.ndarray, " draws"]:
    """Mean effect of every control of a kind; `dose` counts the doses, for random changes of equal output alone."""
    values = m.controls[kind][:, dose, observable]
    return setup.mean(setup.of_group(values, group)) if len(values) else np.zeros(0)


def _tokens(effects: Effects, m: Measured) -> Iterator[dict[str, Any]]:
    """Probability and rank of every token that an observable names, side by side."""
    setup = effects.setup
    labels = {i: label for o in setup.observables for i, label in zip(o.ids, o.labels, strict=True)}
    for name, unit, of in (("p", "", probability), ("rank", "", rank)):
        for token, label in labels.items():
            for group in setup.groups[: setup.bench.sides]:
                was, now = (setup.of_group(of(x, token), group) for x in (setup.base, m.logits))
                change, low, high = setup.interval(now - was)
                yield _row(m.part.name, 1.0, group, f"{name} {label!r}", unit, before=float(setup.mean(was)),
                           after=float(setup.mean(now)), change=change, low=low, high=high)  # fmt: skip


def probability(logits: Float[np.ndarray, "*batch token"], token: int) -> Float[np.ndarray, "*batch"]:
    """Softmax probability of one token."""
    top = logits.max(axis=-1)
    return np.asarray(np.exp(logits[..., token] - top) / np.exp(logits - top[..., None]).sum(axis=-1))


def rank(logits: Float[np.ndarray, "*batch token"], token: int) -> Float[np.ndarray, "*batch"]:
    """Its place among all tokens, 1 for the most likely; ties count for it."""
    return 1.0 + np.sum(logits > logits[..., token, None], axis=-1)


def _text(effects: Effects, m: Measured, i: int) -> Iterator[dict[str, Any]]:
    """Neutral text at dose 1: KL, loss, perplexity, effect per √KL; KL and loss by topic where there are several."""
    setup, text = effects.setup, effects.setup.neutral
    if text is None or m.side is None or effects.loss is None:
        return
    nulls = {kind: values[:, -1] for kind, values in m.control_kl.items()}
    yield from _kl(effects, m, i, nulls)
    everywhere = np.ones(len(text), dtype=bool)
    yield _loss(effects, m, i, NEUTRAL, everywhere)
    change, low, high = (np.exp(x) for x in _mean(m.side.loss[i], text.window, everywhere))
    before = float(np.exp(np.nanmean(effects.loss)))
    yield _row(m.part.name, 1.0, NEUTRAL, "perplexity ×", "×", before=before, after=before * change,
               change=float(change), low=float(low), high=float(high))  # fmt: skip
    yield from _per_kl(effects, m, i, nulls)
    taken = (*setup.groups, NEUTRAL)
    topics = [(t, f"topic {name}" if name in taken else name) for t, name in enumerate(text.topics)]
    several = topics if len(topics) > 1 else []
    for t, on in several:
        yield from _kl(effects, m, i, {k: v[:, t] for k, v in m.control_kl.items()}, on, text.topic == t)
    for t, on in several:
        yield _loss(effects, m, i, on, text.topic == t)


def _kl(
    effects: Effects, m: Measured, i: int, nulls: dict[str, np.ndarray], on: str = NEUTRAL,
    here: np.ndarray | None = None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    text = effects.setup.neutral
    if text is None or m.side is None:
        return
    here = np.ones(len(text), dtype=bool) if here is None else here
    change, low, high = _mean(m.side.kl[i], text.window, here)
    row = _row(m.part.name, float(effects.setup.doses[i]), on, "KL", NATS, before=0.0, after=change,
               change=change, low=max(low, 0.0) if np.isfinite(low) else NAN, high=high)  # fmt: skip
    if nulls:
        row |= {"band": float(np.quantile(nulls[OUTPUT], 0.95)), "family": "neutral"}
        for kind, name in ((OUTPUT, "p"), (NORM, "p_norm"), (DYADS, "p_dyads")):
            row[name] = two_sided_p(change, nulls[kind])
    yield row


def _loss(effects: Effects, m: Measured, i: int, on: str, here: np.ndarray) -> dict[str, Any]:
    assert effects.setup.neutral is not None
    assert m.side is not None
    assert effects.loss is not None
    change, low, high = _mean(m.side.loss[i], effects.setup.neutral.window, here)
    before = float(np.nanmean(effects.loss[here]))
    return _row(m.part.name, 1.0, on, "loss", NATS, before=before, after=before + change, change=change,
                low=low, high=high)  # fmt: skip


def _mean(values: Float[np.ndarray, " n"], window: np.ndarray, here: np.ndarray) -> tuple[float, float, float]:
    """Mean over tokens and its interval over windows."""
    here = here & np.isfinite(values)
    mean = float(values[here].mean())
    half = float(half_width(values[here] - mean, window[here]))
    return mean, mean - half, mean + half


def _per_kl(effects: Effects, m: Measured, i: int, nulls: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """|effect| per √KL of the headline group: what is gained for what it costs, among the same of the controls."""
    setup = effects.setup
    assert m.side is not None
    for j, o in enumerate(setup.observables):
        effect = float(setup.mean(setup.of_group(m.effects[i, j], setup.headline)))
        value = per_kl(effect, float(m.side.kl[i].mean()))
        null = {kind: per_kl(control_effects(setup, m, kind, j, setup.headline, i if kind == OUTPUT else 0), kl)
                for kind, kl in nulls.items()}  # fmt: skip
        yield _row(m.part.name, 1.0, setup.headline, f"per √KL: {o}", "logits/√nat", change=value,
                   band=float(np.nanquantile(null[OUTPUT], 0.95)) if len(null[OUTPUT]) else NAN,
                   p=two_sided_p(value, null[OUTPUT]), p_norm=two_sided_p(value, null[NORM]),
                   p_dyads=two_sided_p(value, null[DYADS]), family="target")  # fmt: skip


def per_kl(effect: float | np.ndarray, kl: float | np.ndarray) -> Any:
    """|effect| / √KL; NaN where the text does not move at all."""
    kl = np.asarray(kl, dtype=np.float64)
    return np.abs(effect) / np.sqrt(np.where(kl > 0, kl, np.nan))


def _sham(effects: Effects) -> Iterator[dict[str, Any]]:
    """The whole edit at dose 0."""
    setup, name = effects.setup, effects.parts[0].part.name
    for j, o in enumerate(setup.observables):
        before = float(setup.mean(setup.of_group(effects.before[j], setup.headline)))
        change = float(np.abs(effects.sham[j]).max())
        yield _row(name, 0.0, setup.headline, str(o), LOGITS, before=before, after=before, change=change, first=0.0)
    if setup.neutral is not None:
        yield _row(name, 0.0, NEUTRAL, "KL", NATS, before=0.0, after=effects.sham_kl,
                   change=effects.sham_kl)  # fmt: skip
