"""The two sentences that each view of questions opens with, made from what is shown: what it can say, and what not."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from covector.model.opened import Model
from covector.render.number import number_text
from covector.study.agent import Agent
from covector.web.fitting import Fit

Sentences = tuple[str, str]
# Views that hold questions in the page and kept results in a report; the last one has results alone.
VIEWS = ("observables", "edits", "steering", "agents")
KEPT = (*VIEWS, "results")
_BOUNDS = {
    "observables": "What is written is no effect: whether a head attends where it reads, and what later layers and the "
    "last norm make of it, is said by paths and predictions on prompts.",
    "edits": "A large effect alone says little: beside it stand random changes of the same output, and side effects on "
    "text that has nothing to do with it.",
    "steering": "Predictions are first order: the measured curve says where they fail, random directions of the same "
    "length what any push would do.",
    "agents": "A cosine with an action is no effect on behaviour: that is said by episodes on the same seeds, beside "
    "random edits.",
}


def openings(model: Model, fit: Fit, agent: Agent | None) -> dict[str, Sentences]:
    """What each view can say of this model, by its weights and the examples that fit it, and what it cannot."""
    told = {
        "observables": _observables(model, fit), "edits": _edits(model, fit), "steering": _steering(model, fit),
        "agents": _agents(model, fit, agent),
    }  # fmt: skip
    return {view: (says, _BOUNDS[view]) for view, says in told.items()}


def closed() -> dict[str, Sentences]:
    """The same for a model that cannot be opened."""
    said = (
        "The questions of this view are asked of the model, which cannot be opened.",
        "The atlas is whole: views of it need no model.",
    )
    return dict.fromkeys(VIEWS, said)


def kept(entries: Sequence[Mapping[str, Any]], model: str) -> dict[str, Sentences]:
    """What a report keeps for each view, and of which models; `model`: the name of the one that the report is of."""
    found = {view: [e["result"] for e in entries if e["view"] == view] for view in KEPT}
    return {view: (_kept(results), _of_which(results, model)) for view, results in found.items()}


def _kept(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return "This report keeps no result of this kind."
    told = ", ".join(dict.fromkeys(str(r["meta"].get("analysis", "result")) for r in results))
    return f"{len(results)} {'result is' if len(results) == 1 else 'results are'} kept here: {told}."


def _of_which(results: Sequence[Mapping[str, Any]], model: str) -> str:
    if not results:
        return "A report computes nothing: it holds what commands wrote with --out when it was made."
    named = Counter(str(r["meta"].get("model", "")) for r in results)
    strange = [name for name in named if name and name.rstrip("/").rpartition("/")[2] != model.rpartition("/")[2]]
    bound = "Nothing is computed again: each result names the model and frame that it read."
    note = f" {sum(named[n] for n in strange)} of these results are of another model ({', '.join(strange[:3])})."
    return bound + (note if strange else "")


def _observables(model: Model, fit: Fit) -> str:
    if why := fit.why_not(("labels",)):
        return _sentence(why)
    task, parts = fit.values["task"], _parts(model)
    if fit.writer is None:
        return f"{parts} of {model.name} could move an observable such as {task}."
    return (
        f"{parts} of {model.name} could move {task}; by the weights alone {fit.writer.dyad} writes the most of it, "
        f"{number_text(fit.writer.moved, 2)} logits for a unit of what it reads, before the last norm."
    )


def _edits(model: Model, fit: Fit) -> str:
    if why := fit.why_not(("torch", "prompts")):
        return _sentence(why)
    edit = fit.values.get("edits", "")
    example = f"; the example is {edit}, for {fit.values['task']}" if edit else ""
    return (
        f"Any direction of the {_parts(model)} of {model.name} can be weakened, removed or turned; what follows is "
        f"predicted, and measured on prompts{example}."
    )


def _steering(model: Model, fit: Fit) -> str:
    if why := fit.why_not(("heads", "labels", "torch", "prompts")):
        return _sentence(why)
    if "path" not in fit.values:
        return f"A feature vector of {model.name} is added to one token's stream, in doses of logits that it predicts."
    pairs = len(fit.values.get("fill", "").partition(":")[0].split(","))
    tried = f", tried on {pairs} pairs of names of which some are held out" if "fill" in fit.values else ""
    return (
        f"The feature vector of {fit.values['task']} behind {fit.values['path']} is added to one token's stream of "
        f"{model.name}, in doses of the logits that it predicts{tried}."
    )


def _agents(model: Model, fit: Fit, agent: Agent | None) -> str:
    if why := fit.why_not(("agent",)):
        return _sentence(why)
    actions = len(model.bases["action_out"].labels)
    most = f"; by the weights alone {fit.writer.dyad} moves them the most" if fit.writer is not None else ""
    plays = (
        f" It plays {agent.environment.id}."
        if agent is not None and not fit.why_not(("plays",))
        else f" {_sentence(fit.why_not(('plays',)))}"
    )
    return f"{model.name} chooses among {actions} actions{most}.{plays}"


def _parts(model: Model) -> str:
    heads = sum(b.attn.n_heads for b in model.spec.blocks if b.attn is not None)
    mlps = sum(b.mlp is not None for b in model.spec.blocks)
    return " and ".join(f"{n} {name}" for n, name in ((heads, "heads"), (mlps, "MLPs")) if n)


def _sentence(why: str) -> str:
    return why if why.endswith(".") else f"{why}."
