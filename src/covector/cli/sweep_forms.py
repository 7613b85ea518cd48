"""The forms of `covector sweep`: what each needs, and which analysis it is."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from covector.errors import BadRequest

if TYPE_CHECKING:
    from covector.analyses.choose_metric import Metric
    from covector.analyses.sweep_setup import Tell
    from covector.model.opened import Model
    from covector.render import Table
    from covector.run.prompts import Pair
    from covector.study.observable import Observable


class Asked(NamedTuple):
    """The options of `covector sweep`."""

    by: str
    observe: tuple[str, ...]
    concepts: tuple[str, ...]
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

    metric = _metric(asked, model, observables, pairs, documents)
    concepts = asked.concepts or None
    return dyad_sweep(model, metric, sites=asked.sites, concepts=concepts, top=asked.first, sample=asked.sample,
                      draws=asked.draws, seed=asked.seed, tell=tell)  # fmt: skip


def _metric(
    asked: Asked,
    model: "Model",
    observables: "Sequence[Observable]",
    pairs: "Sequence[Pair]",
    documents: "Mapping[str, Sequence[str]] | None",
) -> "Metric":
    from covector.analyses.sweep_setup import metric_of
    from covector.cli.edit_choice import concept_logits
    from covector.run.edit_runs import decoder_of
    from covector.run.neutral import neutral_text

    if observables:
        return metric_of(model, observables[0], pairs, at=asked.at, dtype=asked.dtype)
    text = neutral_text(model, documents or {}, bos=asked.bos, most=asked.tokens)
    return concept_logits(model, asked.concepts, decoder_of(model, asked.dtype), text)
