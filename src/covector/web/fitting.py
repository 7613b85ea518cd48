"""What fits the model that is shown: examples that it can answer, and for what it cannot the reason.

Examples are made, not kept: labels that are single tokens of its vocabulary, names that its tokenizer splits alike, the
dyad that writes the most of an observable, by its weights. A form that is opened can be run as it stands.
"""

import importlib.util
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from covector.analyses.strongest import Writer, strongest_writer
from covector.demo.corpus import documents
from covector.errors import CovectorError
from covector.io.atlas import Atlas
from covector.model.opened import Model
from covector.run.prompts import fill_template
from covector.study.agent import Agent
from covector.study.observable import Observable

# What a question takes: a model that opens, attention heads, two labels to compare, a package that runs models,
# prompts, an agent, its environment, states that are cells of a grid.
Need = Literal["model", "heads", "labels", "torch", "prompts", "agent", "plays", "grid"]
PAIRS = ((" she", " he"), (" She", " He"), (" her", " his"), (" woman", " man"), (" is", " are"), (" was", " were"))
TEMPLATES = (
    ("So, [NAME] really is a wise friend, isn't", " she", " he"),
    ("Yesterday [NAME] was happy because", " she", " he"),
    ("[NAME] was very happy.", " She", " He"),
)
# Plain text for side effects; any other will do.
ENGLISH = (
    "One day a little girl went to the park with her mother. They saw a big dog and a small bird near the lake. "
    "The dog wanted to play, but the bird was afraid and flew away. After that they went home, and the girl told her "
    "father what she had seen. He was happy that they had a good day."
)
FEMALE = ("Mary", "Lisa", "Emma", "Laura", "Lily", "Sara", "Lucy", "Anna", "Alice", "Kate")
MALE = ("John", "Mark", "Paul", "Jack", "Tim", "Timmy", "Max", "Tom", "David", "Ben")
# Names on each side: predictions need some to learn from and some to be tested on.
MOST_NAMES, FEWEST_NAMES = 4, 2
# Tokens per word up to which a template is in the model's own words.
MOST_PIECES = 1.6
TORCH = "models are run with torch, which is missing here: pip install 'covector[run]'"
GYM = "episodes are played with gymnasium, which is missing here: pip install 'covector[agents]'"


@dataclass(frozen=True)
class Fit:
    """Examples by field name, what a field offers to choose from, and the reason for every need that is not met.

    `writer`: what by the weights alone moves the example's observable the most, or the actions.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    offers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    missing: Mapping[Need, str] = field(default_factory=dict)
    writer: Writer | None = None

    def why_not(self, needs: Sequence[Need]) -> str:
        """The first reason why a question with these needs cannot be asked; empty where it can."""
        return next((self.missing[need] for need in ("model", *needs) if need in self.missing), "")


def unopened(why: str) -> Fit:
    """The fit of a model that cannot be opened: nothing is asked of it."""
    return Fit(missing={"model": f"the model cannot be opened: {why}"})


def fitted(
    model: Model,
    agent: Agent | None,
    has: Callable[[str], object] = importlib.util.find_spec,
    atlas: Atlas | None = None,
) -> Fit:
    """What fits `model`. `agent`: its agent file, if it has one. `has` says whether a package is installed.

    Examples of edits come from the directions of `atlas`; without one, or where it lacks these places, from the last
    few places of the model, which are decomposed.
    """
    missing = _missing(model, agent, has)
    values, offers, writer = {}, {}, None
    if "labels" not in missing:
        tasks = _tasks(model)
        filled = _prompts(model) if "prompts" not in missing else {}
        values = {"task": tasks[0], "second": tasks[1]} | filled
        values |= {"observe": values["task"]} | ({"neutral": _neutral(model)} if filled and not _letters(model) else {})
        offers |= {"task": tasks, "second": tasks}
        places, offers["edits"], writer = _places(model, values["task"], atlas)
        values |= places
    if "agent" not in missing:
        writer = _mover(model, atlas)
        values |= _arms(writer, agent)
        bases = [name for name in model.bases if not name.startswith(("timestep", "time", "position", "return"))]
        offers |= {"basis": bases, "grid_basis": [b for b in bases if _cells(model, b)]}
        values |= {"basis": "action_out"}
        if "grid" not in missing:
            values |= {"grid_basis": offers["grid_basis"][0], "map": "L0.mlp.in:0"}
    return Fit(values, offers, missing, writer)


def _missing(model: Model, agent: Agent | None, has: Callable[[str], object]) -> dict[Need, str]:
    found: dict[Need, str] = {}
    is_agent = "action_out" in model.bases
    if not has("torch"):
        found["torch"] = TORCH
    if not list(_heads(model)):
        found["heads"] = f"{model.name} has no attention heads"
    if len(_labels(model)) < 2:
        found["labels"] = f"{model.name} has no labels to compare: its checkpoint names no tokens or actions"
    if is_agent:
        found["prompts"] = f"{model.name} is an agent: it is given episodes, not prompts; see Agents"
    elif model.vocabulary is None or getattr(model.vocabulary, "tokenizer", None) is None:
        found["prompts"] = f"{model.name} has no tokenizer that could read a prompt"
    if not is_agent:
        found["agent"] = f"{model.name} is no agent: it has no actions and plays no episodes"
    elif not any(_cells(model, basis) for basis in model.bases):
        found["grid"] = f"the states of {model.name} are not cells of a grid"
    if is_agent and agent is None:
        found["plays"] = f"{model.name} has no agent.json, which says where and how it plays; see docs/rollout.md"
    elif not has("gymnasium"):
        found["plays"] = GYM
    return found


def _labels(model: Model) -> Sequence[str]:
    """The labels that an observable of this model is made of."""
    output = model.spec.outputs[0].name if model.spec.outputs else "token"
    name = f"{output}_out"
    return model.bases[name].labels if name in model.bases and output in model.labels else ()


def _heads(model: Model) -> Iterator[str]:
    for layer, block in enumerate(model.spec.blocks):
        if block.attn is not None:
            yield from (f"L{layer}H{h}" for h in range(block.attn.n_heads))


def _tasks(model: Model) -> list[str]:
    """Observables of this model's labels, at least two; the one that its example prompts are about comes first."""
    labels = _labels(model)
    known = set(labels)
    if "action_out" in model.bases:
        pairs = [(a, b) for a, b in zip(labels, [*labels[1:], labels[0]], strict=True) if a != b]
        return [_difference(a, b) for a, b in pairs[:6]] if len(pairs) > 1 else [_difference(*labels[:2])] * 2
    template = _template(model)
    first = [template[1:]] if template else []
    pairs = [p for p in [*first, *PAIRS] if set(p) <= known]
    if not pairs and _letters(model):
        a = _letters(model)
        return [_sum(a[:4], a[4:8]), _sum(a[:2], a[4:6]), _difference(a[0], a[4])]
    if len(pairs) < 2:
        words = [w for w in labels if w.strip().isalpha()] or [w for w in labels if w]
        pairs += [*zip(words[::2], words[1::2], strict=False)][:3]
    return list(dict.fromkeys(_difference(*p) for p in pairs))


def _difference(first: str, second: str) -> str:
    return f"{_quoted(first)} - {_quoted(second)}"


def _sum(first: Sequence[str], second: Sequence[str]) -> str:
    return " - ".join([" + ".join(map(_quoted, first)), *map(_quoted, second)])


def _quoted(label: str) -> str:
    return f'"{label}"' if "'" in label else f"'{label}'"


def _neutral(model: Model) -> str:
    """Text that has nothing to do with a task: English, or the language of the bundled model, which knows no other."""
    if model.name != "demo-lm":
        return ENGLISH
    prose = (d.text.strip() for d in documents(seed=0, count=40) if "." in d.text)
    return " ".join(itertools.islice(prose, 4))


def _letters(model: Model) -> list[str]:
    """The letters of a vocabulary that has all of them and no words."""
    known = set(_labels(model))
    every = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    return every if set(every) <= known and len(known) < 100 else []


def _template(model: Model) -> tuple[str, str, str] | None:
    """A template that this vocabulary reads in whole words, with the labels that follow it."""
    if model.vocabulary is None:
        return None
    known = set(_labels(model))
    for template, *labels in TEMPLATES:
        text = template.replace("[NAME] ", "")
        if set(labels) <= known and len(model.vocabulary.encode(text)) <= MOST_PIECES * (len(text.split()) + 1):
            return template, labels[0], labels[1]
    return None


def _prompts(model: Model) -> dict[str, str]:
    """A template and names for it that the tokenizer splits alike; nothing where there are too few."""
    if letters := _letters(model):
        return {"template": "mk[L]zqk", "fill": f"L={','.join(letters[:4])}:{','.join(letters[4:8])}"}
    found = _template(model)
    if found is None:
        return {}
    template, pairs = found[0], list[tuple[str, str]]()
    left: list[str] = [*MALE]
    for name in FEMALE:
        other = next((m for m in left if _alike(model, template, name, m)), None)
        if other is not None:
            pairs.append((name, other))
            left.remove(other)
    pairs = pairs[:MOST_NAMES]
    if len(pairs) < FEWEST_NAMES:
        return {}
    female, male = zip(*pairs, strict=True)
    return {"template": template, "fill": f"NAME={','.join(female)}:{','.join(male)}"}


def _alike(model: Model, template: str, first: str, second: str) -> bool:
    try:
        fill_template(model, template, {"NAME": ([first], [second])})
    except CovectorError:
        return False
    return True


def _places(model: Model, task: str, atlas: Atlas | None) -> tuple[dict[str, str], list[str], Writer | None]:
    """An edit and a path for an observable, the edits to choose from, and what writes the most of it.

    The edits: the head's dyad that writes the most of it, removed; or its direction, erased from what all MLPs write.
    The second comes first where a dyad of an MLP writes more than any of a head.
    """
    rows = Observable.parse(task, model).readout(model)[None]
    head = strongest_writer(model, [f"{h}.ov" for h in _heads(model)], rows, atlas)
    if head is None:
        return {}, [], None
    edits = [f"{head.dyad}*0"]
    other = strongest_writer(model, _mlps(model), rows, atlas)
    if other is not None:
        edits.insert(0 if other.moved > head.moved else 1, f"L*.mlp.out:({task})*0")
    most = other if other is not None and other.moved > head.moved else head
    return {"edits": edits[0], "path": f"{head.dyad.partition('.')[0]}>out"}, edits, most


def _mlps(model: Model) -> list[str]:
    return [f"L{i}.mlp.out" for i, block in enumerate(model.spec.blocks) if block.mlp is not None]


def _mover(model: Model, atlas: Atlas | None) -> Writer | None:
    """The dyad that moves the actions the most, against each other."""
    places = [*(f"{h}.ov" for h in _heads(model)), *_mlps(model)]
    rows = np.asarray(model.bases["action_out"].vectors, dtype=np.float64)
    return strongest_writer(model, places, rows - rows.mean(axis=0), atlas)


def _arms(writer: Writer | None, agent: Agent | None) -> dict[str, str]:
    """The dyad that moves the actions the most, removed; and as many episodes as are played in a minute or so."""
    is_long = agent is not None and (agent.most_time or 0) >= 500
    draws = agent is not None and agent.environment.id.startswith(("MiniGrid", "BabyAI"))
    few = {"episodes": "10", "controls": "4" if is_long else "19"} | ({"film": "yes"} if draws else {})
    return few | ({"arm": f"edit={writer.dyad}*0"} if writer is not None else {})


def _cells(model: Model, basis: str) -> bool:
    labels = model.bases[basis].labels if basis.endswith("_in") else ()
    return len(labels) > 1 and all(re.search(r" x\d+ y\d+$", text) for text in (labels[0], labels[-1]))
