"""Values as plain JSON ones: numpy scalars, arrays, paths and dataclasses are translated, the rest refused."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covector.errors import BadTable


def plain(value: object, where: str = "value") -> Any:
    """The same value made of dict, list, str, int, float, bool and None alone, so that strict JSON can hold it.

    NaN and infinities become None (JSON has no word for them); lone surrogates in texts become `\\udcXX`.
    Raises BadTable for any other type, naming the place `where` it was met: nothing is turned into `str(x)`.
    """
    if isinstance(value, str):
        return plain_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return _from_numpy(value, where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return plain_text(str(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: plain(getattr(value, f.name), f"{where}.{f.name}") for f in fields}
    if isinstance(value, Mapping):
        return {_key(k, where): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    raise BadTable(
        f"{where} is a {type(value).__name__}, which JSON cannot hold: "
        "give a number, text, list, mapping, path, dataclass or numpy array"
    )


def plain_text(text: str) -> str:
    """The text as UTF-8 can carry it: a lone surrogate (a byte that was no text) becomes its escape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return str(text)


def _from_numpy(value: np.ndarray | np.generic, where: str) -> object:
    if value.dtype.kind not in "biufUO":
        raise BadTable(f"{where} has dtype {value.dtype}, which JSON cannot hold: give real numbers or texts")
    return plain(value.item() if isinstance(value, np.generic) else value.tolist(), where)


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise BadTable(f"{where} has the key {key!r}, JSON keys are texts: give it as {str(key)!r}")
    return plain_text(key)
