"""Pictures as plain values and back: what a page that draws for itself is given, and what is kept beside a result.

The values are those of the picture, nothing is drawn: an interactive page shows other marks than a file does.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from covector.errors import BadTable
from covector.render.picture import Curve, Graph, Grid, Picture, Scatter
from covector.render.plain import plain

_KINDS: dict[str, type] = {kind.__name__.lower(): kind for kind in (Grid, Curve, Scatter, Graph)}
# Fields that are arrays, or pairs of arrays; NaN is null in JSON.
_ARRAYS = {"values", "x", "y", "ys"}


def picture_data(picture: Picture) -> dict[str, Any]:
    """The fields of a picture as strict JSON values under ``kind``: grid, curve, scatter or graph; NaN is None."""
    fields = {f.name: getattr(picture, f.name) for f in dataclasses.fields(picture)}
    told: dict[str, Any] = {"kind": type(picture).__name__.lower(), **fields}
    if isinstance(picture, Grid):
        told["limits"] = picture.limits
    return plain(told, "picture")


def picture_from(data: Mapping[str, Any]) -> Picture:
    """The picture that `picture_data` told. Raises BadTable for anything else."""
    kind = _KINDS.get(str(data.get("kind"))) if isinstance(data, Mapping) else None
    if kind is None:
        raise BadTable(f"expected a picture ({', '.join(_KINDS)}), got {str(data)[:40]}; make the result again")
    names = {f.name for f in dataclasses.fields(kind)}
    try:
        return kind(**{name: _held(name, value, kind) for name, value in data.items() if name in names})
    except (TypeError, ValueError, AttributeError) as error:
        raise BadTable(f"expected the fields of a {data['kind']}, got others; make the result again") from error


def _held(name: str, value: Any, kind: type) -> Any:
    if value is None:
        return None
    if name in _ARRAYS and kind is not Graph:
        return _array(value)
    if name in ("band", "interval"):
        return tuple(_array(bound) if isinstance(bound, list) else bound for bound in value)
    if name == "edges":
        return [(int(i), int(j), float("nan") if w is None else float(w)) for i, j, w in value]
    return value


def _array(value: Any) -> np.ndarray:
    return np.array(value, dtype=np.float64)
