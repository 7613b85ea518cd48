"""Inputs of a model without a tokenizer, from a JSON file: ``{"state": [[…], …], "action": […], "timestep": […]}``."""

import json
from pathlib import Path

import numpy as np

from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.model.spec import Input


def read_inputs(model: Model, path: Path) -> dict[str, Int[np.ndarray, "#one position"] | Float[np.ndarray, "..."]]:
    """One sequence: input name → [1, time] indices or [1, time, n] vectors. Raises BadRequest, saying what is wrong."""
    try:
        found = json.loads(path.expanduser().read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise BadRequest(f"expected a JSON object of inputs at '{path}', got: {error}; check the path") from error
    known = {i.name: i for i in (*model.spec.assembly.inputs, model.spec.assembly.time) if i is not None}
    if not isinstance(found, dict) or not found or set(found) - set(known):
        came = ", ".join(found) if isinstance(found, dict) else type(found).__name__
        raise BadRequest(f"{path}: expected an object with {', '.join(known)}, got {came or 'nothing'}")
    return {name: _array(value, known[name], f"{path}: {name}") for name, value in found.items()}


def _array(value: object, source: Input, where: str) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"{where}: expected numbers, in a list of equal rows, got {error}") from error
    if source.kind == "linear":
        array = array[:, None] if source.n == 1 and array.ndim == 1 else array
        if array.ndim != 2 or array.shape[1] != source.n:
            raise BadRequest(f"{where}: expected {source.n} numbers per timestep, got shape {array.shape}")
        return array[None]
    if array.ndim != 1 or not len(array) or np.any((array != np.floor(array)) | (array < 0) | (array >= source.n)):
        raise BadRequest(f"{where}: expected whole numbers 0 … {source.n - 1}, one per timestep, got {value!r}"[:300])
    return array.astype(np.int64)[None]
