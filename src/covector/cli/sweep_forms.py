"""The forms of `covector sweep`: what each needs, and which analysis it is."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from covector.errors import BadRequest

if TYPE_CHECKING:
    from covector.analyses.choose_metric import Metric
    from covector.analyses.clock import Tell
    from covector.model.opened import Model
    from covector.render import Table
    from covector.run.neutral import Neutral
    from covector.run.prompts import Pair
    from covector.study.observable import Observable


# How many are measured, removed or taken, and where, unless said otherwise.
FIRST = {"dyads": 32, "heads": 32, "units": 3, "concepts": 32, "granularity": 10}
# Longer concepts are cut in titles.
LONG = 32
SITES = "L*H*.ov,L*.mlp.out"
_NAMED = re.compile(r"([\w ]+)=(.+)", re.DOTALL)


class Asked(NamedTuple):
    """The options of `covector sweep`."""

    by: str
    observe: tuple[str, ...]
    concepts: tuple[str, ...]
    names: tuple[str, ...]
    neutral: tuple[str, ...]
    sites: tuple[str, ...]
    first: int
    sample: int
    draws: int
    topic: str | None
    tokens: int
    seed: int
    at: str
    bos: str
    dtype: str


def named(texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(expressions, names) of concepts typed as NAME=EXPRESSION; the name is the expression itself where none is."""
    found = [_NAMED.fullmatch(text) for text in texts]
    words = tuple(m[2] if m else text for m, text in zip(found, texts, strict=True))
    return words, tuple(m[1].strip() if m else text for m, text in zip(found, texts, strict=True))


def check(asked: Asked, *, has_prompts: bool) -> None:
    """Raise BadRequest, before anything is loaded, for options that do not make a sweep."""
    by, metric = asked.by, bool(asked.observe)
    if metric and not has_prompts:
        raise BadRequest("--observe: expected prompts, got none; give --template and --fill, or --prompts FILE")
    if not metric and not asked.concepts:
        raise BadRequest("expected something to measure: --observe \"' she' - ' he'\" with prompts, or --concept with "
                         "--neutral FILE")  # fmt: skip
    needs_text = by in ("units", "concepts", "granularity") or not metric
    if needs_text and not asked.neutral:
        raise BadRequest(f"--by {by}: expected --neutral FILE, a text to measure on")
    if len(asked.observe) > 1:
        raise BadRequest(f"--observe: expected one metric to sweep on, got {len(asked.observe)}")
    if by == "concepts" and (len(asked.concepts) < 2 or metric):
        raise BadRequest("--by concepts: expected two or more --concept and no --observe")
    if by == "units" and not asked.concepts:
        raise BadRequest("--by units: expected --concept, what the unit is about")


def run(
    asked: Asked,
    model: "Model",
    observables: "Sequence[Observable]",
    pairs: "Sequence[Pair]",
    documents: "Mapping[str, Sequence[str]] | None",
    tell: "Tell",
) -> "Table":
    """The table of the form that was asked for."""
    from covector.analyses.dyad_sweep import dyad_sweep

    if asked.by == "concepts":
        return _concepts(asked, model, documents, tell)
    if asked.by == "units":
        return _units(asked, model, documents, tell)
    metric = _metric(asked, model, observables, pairs, documents)
    concepts = asked.concepts or None
    if asked.by == "heads":
        from covector.analyses.sweep_heads import head_curve

        return head_curve(model, metric, concepts=concepts, sites=asked.sites, first=asked.first, draws=asked.draws,
                          seed=asked.seed, tell=tell)  # fmt: skip
    if asked.by == "granularity":
        from covector.analyses.sweep_granularity import granularity

        return granularity(model, metric, _text(asked, model, documents), sites=asked.sites, first=asked.first,
                           tell=tell)  # fmt: skip
    return dyad_sweep(model, metric, sites=asked.sites, concepts=concepts, top=asked.first, sample=asked.sample,
                      draws=asked.draws, seed=asked.seed, tell=tell)  # fmt: skip


def _text(asked: Asked, model: "Model", documents: "Mapping[str, Sequence[str]] | None") -> "Neutral":
    from covector.run.neutral import neutral_text

    return neutral_text(model, documents or {}, bos=asked.bos, most=asked.tokens)


def _units(asked: Asked, model: "Model", documents: "Mapping[str, Sequence[str]] | None", tell: "Tell") -> "Table":
    from covector.analyses.sweep_units import unit_ablation

    return unit_ablation(
        model, asked.concepts, _text(asked, model, documents), asked.topic, sites=asked.sites, first=asked.first,
        draws=asked.draws, seed=asked.seed, dtype=asked.dtype, tell=tell,
    )  # fmt: skip


def _concepts(asked: Asked, model: "Model", documents: "Mapping[str, Sequence[str]] | None", tell: "Tell") -> "Table":
    from covector.analyses.choose_metric import concept_logits
    from covector.analyses.sweep_concepts import concept_matrix
    from covector.run.edit_runs import decoder_of

    decoder, text = decoder_of(model, asked.dtype), _text(asked, model, documents)
    metrics = [concept_logits(model, (one,), decoder, text) for one in asked.concepts]
    return concept_matrix(
        model, asked.concepts, metrics, names=asked.names, sites=asked.sites, first=asked.first, draws=asked.draws,
        seed=asked.seed, tell=tell,
    )  # fmt: skip


def _metric(
    asked: Asked,
    model: "Model",
    observables: "Sequence[Observable]",
    pairs: "Sequence[Pair]",
    documents: "Mapping[str, Sequence[str]] | None",
) -> "Metric":
    from covector.analyses.choose_metric import concept_logits
    from covector.analyses.sweep_setup import metric_of
    from covector.run.edit_runs import decoder_of

    if observables:
        return metric_of(model, observables[0], pairs, at=asked.at, dtype=asked.dtype)
    metric = concept_logits(model, asked.concepts, decoder_of(model, asked.dtype), _text(asked, model, documents))
    names = ", ".join(n if len(n) <= LONG else f"{n[: LONG - 1]}…" for n in asked.names)
    return dataclasses.replace(metric, words=f"logit of {names} before its tokens")
