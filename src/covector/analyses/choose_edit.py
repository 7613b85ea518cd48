"""Find an edit of a concept: in proportion, within a budget of side effects, or optimised; and compare the ways.

    found = covector.choose_edit(model, "' flame' + ' smoke'", optimise=True, max_kl=0.01)
    found.table.show(), found.edit, found.beyond

Source: F6 and F7 of the theory page; `docs/theory/edits.md`, equations 12–15.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.choose import MOST_WEIGHED, STEPS, Budget, Choice, budget_of, dampened, optimised, related
from covector.analyses.choose_candidates import candidates
from covector.analyses.choose_curve import SIZES, WAYS, curve
from covector.analyses.choose_metric import Metric, concept_logits, on_prompts, split
from covector.analyses.choose_tables import chosen_table
from covector.analyses.choose_wish import SITES, Wish, concepts_of
from covector.analyses.clock import Clock, Tell
from covector.analyses.edit_setup import Texts
from covector.axes import Float
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.render import Table
from covector.run.edit_runs import decoder_of
from covector.run.neutral import MOST_TOKENS, NEUTRAL, neutral_text
from covector.run.prompts import Pair
from covector.run.sampled import sampled, sampling_work
from covector.study.edit import Edit
from covector.study.observable import Observable

# A token of a run without a token of a base run beside it, which a KL takes.
_ALONE = 0.4


@dataclass(frozen=True, eq=False)
class Chosen:
    """An edit that was found: as a value, as ε of every candidate, and as a table."""

    edit: Edit
    choice: Choice
    table: Table

    @property
    def beyond(self) -> bool:
        """Whether it costs more KL than was allowed, on the half of the text that did not choose."""
        return self.choice.beyond


@dataclass(frozen=True, eq=False)
class Judging:
    """What an edit is chosen by and judged on: as it is observed on some prompts and on others, and a text."""

    observable: Observable | None = None
    prompts: Sequence[Pair] = ()
    neutral: Texts | None = None
    tokens: int = MOST_TOKENS
    at: str = "end"
    bos: str = "auto"
    dtype: str = "float64"
    seed: int = 0


def choose_edit(
    model: Model,
    concepts: str | Sequence[str] | Float[np.ndarray, "*k d_model"],
    *,
    sites: Sequence[str] = SITES,
    keep: float = 0.0,
    mu: float | None = None,
    every: bool = False,
    max_kl: float | None = None,
    optimise: bool = False,
    raises: bool = False,
    observable: Observable | str | None = None,
    prompts: Sequence[Pair] = (),
    neutral: Texts | None = None,
    tokens: int = MOST_TOKENS,
    at: str = "end",
    bos: str = "auto",
    dtype: str = "float64",
    seed: int = 0,
    tell: Tell | None = None,
) -> Chosen:
    """ε for the dyads of `sites` that lie along a concept; the table has a row per dyad that changes.

    Options as in `Wish`. The metric is the observable on the prompts, else the concept's logits where its tokens come
    next in the text; every other name (or window) chooses, the rest measures. The same goes for the KL per token of
    `neutral`: `beyond` says that the half which did not choose exceeds `max_kl`. Where a text is needed and none is
    given, the model says one. In proportion, without a budget, prompts or a text, nothing is run. Exact in float64.
    Raises BadRequest for wishes that contradict each other, for a concept that no direction is related to, for a
    budget that nothing meets; what `candidates` and `neutral_text` raise.
    """
    wish = Wish(concepts_of(concepts), tuple(sites), keep, mu, every, max_kl, optimise, raises)
    judging = Judging(_read(observable, model), prompts, neutral, tokens, at, bos, dtype, seed)
    return chosen(model, wish, judging, tell)


def chosen(model: Model, wish: Wish, judging: Judging, tell: Tell | None = None) -> Chosen:
    """See `choose_edit`."""
    found = candidates(model, wish.concepts, wish.sites)
    if not wish.optimise:
        related(found, wish.every)
    if judging.neutral is None and not wish.optimise and wish.max_kl is None:
        choice = dampened(found, keep=wish.keep, mu=wish.mu, every=wish.every)
        return Chosen(found.edit(choice.epsilon), choice, chosen_table(choice))
    runs = min(MOST_WEIGHED, len(found)) * wish.optimise + (STEPS + 2 if wish.max_kl is not None else 2)
    fit, held, budget, clock = _judges(model, wish.concepts, judging, wish.max_kl, runs, tell)
    if wish.optimise:
        choice = optimised(found, fit, budget, raises=wish.raises)
    else:
        choice = dampened(found, keep=wish.keep, mu=wish.mu, every=wish.every, budget=budget)
    clock("what did not choose")
    return Chosen(found.edit(choice.epsilon), choice, chosen_table(choice, budget, held))


def choose_curve(
    model: Model,
    concepts: str | Sequence[str] | Float[np.ndarray, "*k d_model"],
    *,
    sites: Sequence[str] = SITES,
    observable: Observable | str | None = None,
    prompts: Sequence[Pair] = (),
    neutral: Texts | None = None,
    tokens: int = MOST_TOKENS,
    at: str = "end",
    bos: str = "auto",
    dtype: str = "float64",
    seed: int = 0,
    tell: Tell | None = None,
) -> Table:
    """Ways to change a concept at equal ‖ΔM‖_F, one row per size and way; see `covector.analyses.choose_curve.curve`.

    Metric and text as in `choose_edit`. Raises what it raises.
    """
    judging = Judging(_read(observable, model), prompts, neutral, tokens, at, bos, dtype, seed)
    return compared(model, Wish(concepts_of(concepts), tuple(sites)), judging, tell)


def compared(model: Model, wish: Wish, judging: Judging, tell: Tell | None = None) -> Table:
    """See `choose_curve`."""
    found = candidates(model, wish.concepts, wish.sites)
    runs = min(MOST_WEIGHED, len(found)) + len(SIZES) * len(WAYS)
    fit, held, budget, clock = _judges(model, wish.concepts, judging, wish.max_kl, runs, tell)
    table = curve(found, fit, held, budget)
    clock("ways compared")
    return table


def _read(observable: Observable | str | None, model: Model) -> Observable | None:
    return Observable.parse(observable, model) if isinstance(observable, str) else observable


def _judges(
    model: Model, concepts: tuple[str, ...] | np.ndarray, judging: Judging, most: float | None, runs: int,
    tell: Tell | None,
) -> tuple[Metric, Metric, Budget, Clock]:  # fmt: skip
    """The metric's halves and the text's, and a clock for `runs` runs over half of the text."""
    decoder, given = decoder_of(model, judging.dtype), judging.neutral
    prompted = judging.observable is not None and bool(judging.prompts)
    if isinstance(concepts, np.ndarray) and not prompted:
        raise BadRequest("expected an observable and prompts beside directions: they have no tokens to look for")
    saying = _ALONE * sampling_work(model, judging.tokens) if given is None else 0.0
    clock = Clock(2 + (given is None), tell, work=saying + runs * judging.tokens / 2, doing="opened")
    if given is None:
        clock.begin("the model says a text")
        ids = sampled(model, decoder, judging.tokens, judging.seed, lambda tokens: clock.spend(_ALONE * tokens))
        text, told = neutral_text(model, ids), "text that the model says"
        clock("the model says a text", work=0.0)
    else:
        documents = {NEUTRAL: [given]} if isinstance(given, str) else given
        text, told = neutral_text(model, documents, bos=judging.bos, most=judging.tokens), "the text"
    if prompted and judging.observable is not None:
        metric = on_prompts(decoder, judging.observable, judging.prompts, judging.at)
    else:
        assert not isinstance(concepts, np.ndarray)
        metric = concept_logits(model, concepts, decoder, text)
    clock.work = max(saying + runs * text.size / 2, 1.0)
    clock("gradients and side effects", work=0.0)
    return *split(metric), budget_of(decoder, text, most, told=told, tick=clock.spend), clock
