"""Inputs of a model without a tokenizer, from a JSON file: ``{"state": [[…], …], "action": […], "timestep": […]}``.

Pairs of them come as two such files, ``CLEAN.json:CORRUPT.json``, or as a JSONL file, one object a line with ``clean``,
``corrupt``, and ``slots`` and ``label`` if wanted.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.model.spec import Input
from covector.run.prompts import Pair


def read_inputs(model: Model, path: Path) -> dict[str, Int[np.ndarray, "#one position"] | Float[np.ndarray, "..."]]:
    """One sequence: input name → [1, time] indices or [1, time, n] vectors. Raises BadRequest, saying what is wrong."""
    return {name: value[None] for name, value in _inputs(model, _parsed(_text(path), str(path)), str(path)).items()}


def read_input_pairs(model: Model, given: Sequence[str]) -> list[Pair]:
    """Pairs of inputs: one per ``CLEAN.json:CORRUPT.json``, one per line of a ``PAIRS.jsonl``.

    A side that is left out is the other one. Positions go by input and timestep (``state3``, ``action0``); ``state``
    alone is the last one, ``end`` the last position. Raises BadRequest, with file and line, for what does not fit.
    """
    found: list[Pair] = []
    for text in given:
        if Path(text).suffix == ".jsonl":
            lines = [line for line in enumerate(_text(Path(text)).splitlines(), 1) if line[1].strip()]
            found += [_line(model, line, f"{text}, line {i}") for i, line in lines]
            continue
        clean, _, corrupt = (text, "", "") if Path(text).expanduser().exists() else text.partition(":")
        sides = [_parsed(_text(Path(name)), name) for name in (clean, corrupt or clean)]
        found.append(_pair(model, sides, {}, (clean, corrupt or clean), ""))
    if not found:
        raise BadRequest(f"--inputs {', '.join(given)}: expected pairs of inputs, got none")
    return found


def _line(model: Model, line: str, where: str) -> Pair:
    value = _parsed(line, where)
    slots = value.get("slots", {}) if isinstance(value, dict) else None
    if not isinstance(slots, dict) or not isinstance(value.get("clean"), dict):
        raise BadRequest(
            f"{where}: expected an object with 'clean' (inputs by name), and 'corrupt', 'slots', 'label' if wanted"
        )
    sides = [value["clean"], value.get("corrupt", value["clean"])]
    return _pair(model, sides, slots, (f"{where}, clean", f"{where}, corrupt"), str(value.get("label", "")))


def _pair(model: Model, sides: Sequence[Any], asked: Mapping[str, Any], texts: tuple[str, str], label: str) -> Pair:
    clean, corrupt = (_inputs(model, side, where) for side, where in zip(sides, texts, strict=True))
    shapes = [{name: value.shape for name, value in side.items()} for side in (clean, corrupt)]
    if shapes[0] != shapes[1]:
        raise BadRequest(f"{texts[0]} and {texts[1]}: expected inputs of equal length, got {shapes[0]} and {shapes[1]}")
    names = position_names(model, clean)
    known = {name: i for i, name in enumerate(names)}
    last = {name.rstrip("0123456789"): i for i, name in enumerate(names) if not name.isdecimal()}
    own = {name: _position(at, known | last, len(names), texts[0]) for name, at in asked.items()}
    numbered = {name: i for name, i in known.items() if not name.isdecimal()}
    slots = {**own, **{name: i for name, i in (numbered | last).items() if name not in own}, "end": len(names) - 1}
    return Pair((), (), slots, texts, ("", ""), label, (clean, corrupt))


def position_names(model: Model, inputs: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """What positions are called: ``state3`` of an agent, ``step3`` where its inputs are summed, else their numbers."""
    assembly, first = model.spec.assembly, model.spec.assembly.inputs[0].name
    if assembly.mode == "interleaved":
        steps = [(t, i, source.name) for i, source in enumerate(assembly.inputs)
                 for t in range(len(inputs.get(source.name, ())))]  # fmt: skip
        return tuple(f"{name}{t}" for t, _, name in sorted(steps))
    lead = "step" if assembly.mode == "summed" else ""
    return tuple(f"{lead}{t}" for t in range(len(inputs.get(first, ()))))


def _position(at: object, known: Mapping[str, int], length: int, where: str) -> int:
    found = known.get(at) if isinstance(at, str) else at
    if not isinstance(found, int) or isinstance(found, bool) or not -length <= found < length:
        raise BadRequest(
            f"{where}: expected a slot's position by number or name ({', '.join(list(known)[:4])} …), got {at!r}"
        )
    return found % length


def _text(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"expected JSON inputs at '{path}', got: {error}; check the path") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRequest(f"{where}: expected a JSON object of inputs, got: {error}") from error


def _inputs(model: Model, found: Any, where: str) -> dict[str, np.ndarray]:
    known = {i.name: i for i in (*model.spec.assembly.inputs, model.spec.assembly.time) if i is not None}
    if not isinstance(found, dict) or not found or set(found) - set(known):
        came = ", ".join(found) if isinstance(found, dict) else type(found).__name__
        raise BadRequest(f"{where}: expected an object with {', '.join(known)}, got {came or 'nothing'}")
    return {name: _array(value, known[name], f"{where}: {name}")[0] for name, value in found.items()}


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
