"""One direction of the stream to look at: a side of a dyad, an observable's feature, or a vector of a file's.

``L0.mlp.in:0`` is what dyad 0 of that map reads (what it writes, where only that lies in the stream); ``L0H0.qk:0.key``
names the side.
"""

from dataclasses import dataclass

import numpy as np

from covector.analyses.propagate import propagate
from covector.axes import Float
from covector.errors import BadRank, BadRequest
from covector.linalg.svd import svd
from covector.model.circuits import side_centred, site_tensors
from covector.model.opened import Model
from covector.study.feature import Feature

SIDES = ("read", "write", "query", "key")


@dataclass(frozen=True, eq=False)
class Direction:
    """A unit row of the stream with its name; ``centred`` where it has no part along 1 in the model's frame."""

    name: str
    row: Float[np.ndarray, " d_model"]
    centred: bool
    tensors: tuple[str, ...] = ()
    said: str = ""


def direction(model: Model, text: str) -> Direction:
    """The side of a dyad that `text` names. Raises BadRequest, BadSite, BadRank, saying what was expected."""
    address, _, last = text.strip().rpartition(":")
    number, _, side = last.partition(".")
    if not address or not number.isdigit() or (side and side not in SIDES):
        raise BadRequest(f"expected a dyad such as L0.mlp.in:0, L0H0.ov:2.write or L0H0.qk:0.key, got '{text}'")
    site = model.site(address)
    if model.frame.bias:
        raise BadRequest("expected a frame without biases: directions of the stream carry no constant; drop +bias")
    found, names = svd(model.map(site)), ("query", "key") if site.kind == "qk" else ("read", "write")
    spaces = dict(zip(names, (found.reads, found.writes), strict=True))
    inside = [name for name in names if spaces[name].kind == "residual"]
    if not inside or (side and side not in inside):
        raise BadRequest(f"{site}: expected a side in the stream ({', '.join(inside) or 'it has none'}), got '{side}'")
    side, index = side or inside[0], int(number)
    if index >= found.rank:
        raise BadRank(f"{text}: {site} has dyads 0–{found.rank - 1}")
    second = side in ("write", "key")
    row = found.Vh[index] if second else found.U[:, index]
    centred = side_centred(model.stored.spec, model.frame, site, second)
    return Direction(f"{site}:{index} {side}", np.array(row), centred, site_tensors(site))


def of_observable(model: Model, observable: str, path: str) -> Direction:
    """The data-free feature of an observable over outputs at the input of a path's first component.

    Raises what `propagate` raises; BadRequest where nothing of the observable arrives.
    """
    return of_feature(propagate(model, observable, path), f"{observable} > {path}")


def of_feature(feature: Feature, name: str = "") -> Direction:
    """A feature (of a file, or just made) as a direction. Raises BadRequest for a null one."""
    length = float(np.linalg.norm(feature.vector))
    if not length > 0:
        raise BadRequest(f"{name or feature.observable}: its feature is zero there; choose another path")
    said = f"{feature.hook}, {feature.policy}" if feature.hook else ""
    title = name or " > ".join(filter(None, (feature.observable, feature.path))) or "vector"
    return Direction(title, feature.vector / length, False, (), said)
