"""Why the two signs of a steering vector differ: both effects split, exactly, by what reads the added vector first.

Secant accounting between the steered and the unsteered run of the same prompt. Source: theory page §4.1, §4.6;
`docs/theory/steering.md`, equation 6.
"""

import shlex

import numpy as np

from covector.analyses.steer_experiment import Setup
from covector.analyses.steer_setup import Prompts
from covector.axes import Float
from covector.linalg.steering import clustered_interval
from covector.propagation.anatomy import Component
from covector.propagation.entry import first_readers
from covector.propagation.linearised import Linearised, Policies
from covector.render import Column, Table
from covector.run.clusters import no_interval
from covector.run.points import captured
from covector.run.steered import changes
from covector.study.path import Step

ORDER = ("straight through", "this head", "other heads there", "later heads", "queries and keys", "MLPs")


def split_of(setup: Setup) -> Table:
    """One row per part: its share of the effect of the largest dose and of its opposite, and their sum, the asymmetry.

    A part is everything that begins where the vector is read: ``straight through`` the stream, through the values of
    the path's head (``this head``), of the other heads of that layer, of ``later heads``, through any ``queries and
    keys``, through ``MLPs``. Accounting: the parts sum to the measured effect to rounding. An effect that were linear
    would have asymmetry 0.
    """
    dose = float(np.max(np.abs(setup.doses))) * (-1.0 if setup.slopes[0] < 0 else 1.0)
    sides = [_parts(setup, sign * dose) for sign in (1.0, -1.0)]
    names = [name for name in ORDER if any(name in s for s in sides)]
    n = len(setup.clusters)
    plus, minus = (np.stack([s.get(name, np.zeros(n)) for name in names]) for s in sides)
    return _table(setup, [*names, "sum"], *(np.vstack([x, x.sum(axis=0)]) for x in (plus, minus)), dose=dose)


def _parts(setup: Setup, dose: float) -> dict[str, Float[np.ndarray, " n"]]:
    each = [_of(setup, p, dose * setup.vector.unit) for p in setup.held]
    names = dict.fromkeys(name for one in each for name in one)
    return {name: np.concatenate([one[name] for one in each]) for name in names}


def _of(setup: Setup, p: Prompts, delta: Float[np.ndarray, " d_model"]) -> dict[str, Float[np.ndarray, " n"]]:
    """Shares by part; values are the first observable's."""
    o = setup.observables[0]
    run = captured(setup.decoder, p.tokens, changes(setup.decoder, setup.spot, delta[None], p.mask))
    linear = Linearised(setup.model.weights, (run, p.base), Policies.all("secant"))
    start = linear.start(o.vector[None], o.output, p.at)
    moved = p.mask[..., None] * delta
    path = setup.vector.path
    step = path.steps[0] if path and path.steps and path.steps[0].head is not None else None
    found: dict[str, np.ndarray] = {}
    for c, kind, values in first_readers(linear, start, setup.spot, moved):
        for head in range(values.shape[1]):
            name = _part(c, kind, head, step, setup.spot.layer)
            found[name] = found.get(name, np.zeros(len(values))) + values[:, head]
    return found


def _part(c: Component | None, kind: str, head: int, step: Step | None, layer: int) -> str:
    if c is None:
        return ORDER[0]
    if kind != "v":
        return ORDER[5] if kind == "mlp" else ORDER[4]
    if step is not None and (c.layer, head) == (step.layer, step.head):
        return ORDER[1]
    return ORDER[2] if c.layer == (step.layer if step else layer) else ORDER[3]


def _table(setup: Setup, names: list[str], plus: np.ndarray, minus: np.ndarray, *, dose: float) -> Table:
    both = [clustered_interval(x, setup.clusters) for x in plus + minus]
    up, down = (np.array([clustered_interval(v, setup.clusters)[0] for v in x]) for x in (plus, minus))
    off = np.array([b[0] for b in both])
    columns = [
        Column("part", names, about="what reads the added vector first"),
        Column("plus", up, "logits", 3, "its share of the effect of the dose"),
        Column("minus", down, "logits", 3, "its share of the effect of the opposite dose"),
        Column("asymmetry", off, "logits", 3, "plus + minus: 0 if the part were linear"),
        Column("low", np.array([b[1] for b in both]), "logits", 3, "95 % interval of the asymmetry over names"),
        Column("high", np.array([b[2] for b in both]), "logits", 3, "upper end"),
    ]
    o, model, i = setup.observables[0], setup.model, int(np.argmax(np.abs(off[:-1])))
    first = setup.held[0].batch.pairs[0]
    prompt = first.texts[0] if first.inputs is None else ""
    size = abs(dose) * float(np.linalg.norm(setup.vector.unit)) / setup.stream
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "steer_split", "observable": str(o), "operation": "add", "hook": setup.spot.hook,
                           "token": setup.token, "dose": dose, "size": size, "policy": "secant", "kind": "accounting",
                           "vector": setup.vector.about},
        title=f"{model.name} · {o} · {setup.vector.about} · {setup.where} · ±{size:.2f} of the stream's length · "
        f"{up[-1]:+.3f} and {down[-1]:+.3f} logits",
        says=f"The dose moves {o} by {up[-1]:+.3f}, its opposite by {down[-1]:+.3f}; of the asymmetry {off[-1]:+.3f} "
        f"most enters by {names[i]} ({off[i]:+.3f}).",
        not_says="Shares are one exact way of dividing an effect between two runs; where the vector enters first does "
        "not say what later components do with it, and removing a part is another experiment"
        f"{no_interval([p for t in setup.held for p in t.batch.pairs])}.",
        next=f"covector attribute {model.words} {o.typed} --prompt {shlex.quote(prompt)}" if prompt
        else f"covector observe norms {model.words} {o.typed}",
        key=("part",),
    )  # fmt: skip
