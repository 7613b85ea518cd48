"""A path's feature, step by step: how long the functional is after each component, and its constant.

Source: `docs/theory/observables.md`, equations 1–8 and 11.
"""

import numpy as np

from covector.analyses.propagate import propagate
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.render import Column, Table
from covector.study.feature import Feature
from covector.study.observable import Observable


def feature_steps(
    model: Model, observable: Observable, path: str, *, normed: bool = False, saved: str = ""
) -> tuple[Feature, Table]:
    """The data-free feature of a path, and a table with one row per step from the output down: its length there.

    `saved`: the file that it is written to, for the next command. Raises what `propagate` raises, BadRequest in a
    frame in which the feature would not be read in the running model.
    """
    if model.frame.name != "raw":
        raise BadRequest(f"a feature is added to the running model: expected frame raw, got {model.frame}")
    feature = propagate(model, observable, path, normed=normed)
    places, norms = [place for place, _ in feature.norms], np.array([norm for _, norm in feature.norms])
    places[-1] = f"{places[-1]} → {feature.hook}" if len(places) > 1 else places[-1]
    table = Table(
        columns=[
            Column("step", [str(i) for i in range(len(places))], about="from the output down"),
            Column("place", places, about="what the functional has been pulled through"),
            Column("norm", norms, "logits", about="its length: the observable per unit length of the stream"),
            Column("gain", np.concatenate([[1.0], norms[1:] / norms[:-1]]), "×", 3, "length over the step before"),
        ],
        meta=model.meta | {"analysis": "feature", "kind": "prediction"} | feature.to_meta(),
        title=f"{model.name} · {feature.observable} · {feature.path} · read at {feature.hook} · constant "
        f"{feature.constant:+.4f} · no data",
        says=f"A stream that moves by 1 along the feature at {feature.hook} moves {feature.observable} by up to "
        f"{feature.norm:.3f} logits through this path.",
        not_says=f"It does not say that the path is used: {feature.convention}.",
        next=f"covector steer {model.words} {observable.typed} --feature {saved or 'FILE'} --token NAME --template …",
        key=("step",),
    )
    return feature, table
