"""An experiment with edits, resolved: the edits one by one and together, the prompts, the neutral text, the doses.

Source: theory page F5; `docs/theory/edits.md`, equations 8, 20 and 22.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.steering import clustered_interval
from covector.model.opened import Model
from covector.model.overlay import Change
from covector.run.clusters import cluster_by
from covector.run.edit_runs import Bench, begins, bench, decoder_of, inputs_of
from covector.run.neutral import NEUTRAL, Neutral, neutral_text
from covector.run.prompts import Pair
from covector.study.edit import Edit
from covector.study.edit_resolve import Resolved
from covector.study.edit_terms import Along, Dyads
from covector.study.observable import Observable

DOSES = (0.25, 0.5, 0.75, 1.0)
# More edits than this are measured together alone: each costs as many controls as all together.
MOST_PARTS = 12
Texts = str | Mapping[str, Sequence[str]] | Int[np.ndarray, "batch position"]


@dataclass(frozen=True, eq=False)
class Part:
    """One edit on the model: its name in tables, what it comes to, and the change of stored tensors."""

    name: str
    edit: Edit
    resolved: Resolved

    @property
    def change(self) -> Change:
        """The change of stored tensors."""
        return self.resolved.change


@runtime_checkable
class Drawing(Protocol):
    """What controls are drawn for: an opened model, how many, and the seed of the draws."""

    @property
    def model(self) -> Model:
        """The model that is edited."""
        ...

    @property
    def draws(self) -> int:
        """Controls of each kind."""
        ...

    @property
    def seed(self) -> int:
        """Where the draws begin."""
        ...


@dataclass(frozen=True, eq=False)
class Setup:
    """Everything that is decided before the long work. ``parts[0]`` is the whole edit; the others its parts.

    ``doses`` grow and end with 1 or more; dose t means W + t ΔW. Without prompts nothing is observed, and the neutral
    text alone says what the edit does.
    """

    model: Model
    observables: tuple[Observable, ...]
    parts: tuple[Part, ...]
    bench: Bench
    neutral: Neutral | None
    doses: Float[np.ndarray, " dose"]
    draws: int
    seed: int
    at: str
    base: Float[np.ndarray, "side n token"]

    @property
    def groups(self) -> tuple[str, ...]:
        """What is averaged over: both sides of the pairs and the gap between them, or the prompts."""
        if not self.observables:
            return ()
        return ("clean", "corrupt", "gap") if self.bench.sides == 2 else ("prompts",)

    @property
    def headline(self) -> str:
        """The group that sentences and pictures are about."""
        return self.groups[-1] if self.groups else NEUTRAL

    @cached_property
    def clusters(self) -> list[str]:
        """The names of every pair: what intervals are over."""
        return [*map(cluster_by(self.bench.pairs), self.bench.pairs)]

    @cached_property
    def weights(self) -> Float[np.ndarray, " n"]:
        """What each pair counts in a mean over clusters of their means."""
        sizes = {name: self.clusters.count(name) for name in self.clusters}
        return np.array([1 / (len(sizes) * sizes[name]) for name in self.clusters])

    def of_group(self, values: Float[np.ndarray, "*batch side n"], group: str) -> Float[np.ndarray, "*batch n"]:
        """Values of one group: a side, or clean − corrupt."""
        return values[..., 0, :] - values[..., 1, :] if group == "gap" else values[..., int(group == "corrupt"), :]

    def mean(self, values: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
        """Mean over names of their means."""
        return np.asarray(values @ self.weights)

    def interval(self, values: Float[np.ndarray, " n"]) -> tuple[float, float, float]:
        """The mean and its 95 % interval over names."""
        return clustered_interval(values, self.clusters)

    def observed(self, change: Change | None) -> Float[np.ndarray, "observable side n"]:
        """Every observable on every prompt."""
        if not self.observables:
            return np.zeros((0, *self.base.shape[:2]))
        logits = self.base if change is None else self.bench.logits(change)
        return np.stack([o.of(logits) for o in self.observables])

    def inputs(self, tensors: Sequence[str]) -> dict[str, np.ndarray]:
        """What matrices multiply in the unedited model, over all positions of the prompts, or else of the text."""
        decoder, text = self.bench.decoder, self.neutral
        if self.observables or text is None:
            prompts = [start.tokens for start in self.bench.starts]
            return inputs_of(decoder, prompts, [np.ones(t.shape, dtype=bool) for t in prompts], tensors)
        return inputs_of(decoder, text.batches, text.kept, tensors)


def set_up(
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
) -> Setup:
    """Resolve the options of `edit_effect`; see there. Raises what it raises, before anything long is run."""
    edits = [edit] if isinstance(edit, Edit | str) else list(edit)
    asked = [observables] if isinstance(observables, Observable | str) else list(observables)
    _check(model, draws)
    _check_measured(model, asked, prompts, neutral)
    read = tuple(Observable.parse(o, model) if isinstance(o, str) else o for o in asked)
    if any(o.output != "token" for o in read):
        raise BadRequest("edit: expected observables of tokens; other outputs need their environment, not prompts")
    parts = parts_of(model, [Edit.parse(e) if isinstance(e, str) else e for e in edits])
    grid = _doses(doses, parts[0].edit)
    text = None
    if neutral is not None:
        given = {NEUTRAL: [neutral]} if isinstance(neutral, str) else neutral
        text = neutral_text(model, given, bos=bos, **({} if tokens is None else {"most": tokens}))
    made = bench(decoder_of(model, dtype), prompts, at, begins(model.stored.spec, [p.change for p in parts]))
    return Setup(model, read, parts, made, text, grid, draws, seed, at, made.logits())


def parts_of(model: Model, edits: Sequence[Edit]) -> tuple[Part, ...]:
    """The whole edit and, where there are several (or several terms in one step), each by itself.

    Raises BadRequest for an edit that changes nothing, and what `Edit.resolve` raises.
    """
    whole = Edit.together(edits)
    each = list(edits)
    if len(edits) == 1 and len(whole.steps) == 1:
        each = [Edit(((term,),), whole.frame, whole.base, whole.reflects) for term in whole.steps[0]]
    if not 1 < len(each) <= MOST_PARTS:
        each = []
    together = str(whole) if not each else "together"
    parts = [Part(together, whole, whole.resolve(model)), *(Part(str(e), e, e.resolve(model)) for e in each)]
    for part in parts:
        _check_change(part)
    names = [p.name for p in parts]
    if len(set(names)) < len(names):
        raise BadRequest(f"expected edits that differ, '{max(names, key=names.count)}' comes twice; leave one out")
    _check_twice(whole)
    return tuple(parts)


def _check_twice(edit: Edit) -> None:
    """One ε per dyad: of two the effects neither add up nor have a common first order."""
    for step in edit.steps:
        named = [(t.site, t.side, i) for t in step if isinstance(t, Dyads) for i in t.indices]
        twice = next((n for n in named if named.count(n) > 1), None)
        if twice:
            raise BadRequest(
                f"edit: dyad {twice[2]} of {twice[0]} is named twice; expected one ε for it, or 'A then B' in steps"
            )


def _check_change(part: Part) -> None:
    if all(one.norm == 0 for one in part.resolved.laid):
        raise BadRequest(
            f"edit '{part.edit}' changes nothing (ε 0): expected a factor other than 1, such as *0 to remove"
        )


def _check(model: Model, draws: int) -> None:
    if draws < 1:
        raise BadRequest(f"--draws: expected at least one random change, got {draws}; 100 or more are worth reading")
    if model.spec.output("token") is None:
        raise BadRequest(f"{model.name} has no token output: expected a language model")


def _check_measured(
    model: Model, observables: Sequence[object], prompts: Sequence[Pair], neutral: Texts | None
) -> None:
    if not observables and not prompts and neutral is None:
        raise BadRequest(
            "expected something to measure the edit on, got nothing: --observe \"' she' - ' he'\" with prompts, or "
            "--neutral FILE for side effects alone"
        )
    if prompts and not observables:
        raise BadRequest("expected something to observe, got nothing; give --observe \"' she' - ' he'\"")
    if observables and not prompts:
        raise BadRequest("expected prompts, got none; give --template and --fill, or --prompts FILE")
    longest, room = max(map(len, prompts), default=0), model.spec.n_ctx
    if longest > room:
        raise BadRequest(
            f"expected prompts of at most {room} tokens, which {model.name} can read, got one of {longest}"
        )


def _doses(doses: Sequence[float], edit: Edit) -> Float[np.ndarray, " dose"]:
    """The doses in order, 1 among them. Raises BadRequest for doses below 0, or ε below −1 that was not asked for."""
    found = np.unique([*map(float, doses), 1.0])
    if not np.isfinite(found).all() or found[0] < 0:
        raise BadRequest(f"--dose: expected numbers from 0 on (1 is the edit as it is typed), got {list(doses)}")
    least = min((min(t.epsilon) for step in edit.steps for t in step if isinstance(t, Dyads | Along)), default=0.0)
    if found[-1] * least < -1 and found[-1] > 1 and not edit.reflects:
        raise BadRequest(
            f"--dose {found[-1]:g}: ε {least:g} would become {found[-1] * least:g}, which turns a direction around; "
            "--reflect allows it"
        )
    return found[found > 0]


def framed(setup: Drawing, part: Part) -> Model:
    """The model in the frame that the edit's dyads are of."""
    frame = part.resolved.frame
    return setup.model if frame == setup.model.frame else setup.model.framed(frame)
