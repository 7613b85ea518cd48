"""Safetensors files written tensor by tensor, raw bytes handed on as they are.

The library's NumPy face knows no bfloat16 and wants every tensor in memory at once; a copied checkpoint needs neither.
The format is a length, a JSON header and the buffers.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from covector.io.atomic import written

WORDS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class Written(NamedTuple):
    """One tensor to write: its dtype as the format spells it, its shape, how many bytes, and how to get them."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    data: Callable[[], bytes]


def rounded_to(values: np.ndarray, dtype: str) -> Written:
    """Float values in another precision, rounded to nearest: ``float64``, ``float32``, ``float16``, ``bfloat16``."""
    spelled = WORDS[dtype]
    return Written(spelled, values.shape, values.size * _SIZES[spelled], lambda: _bytes(values, dtype))


def read_back(values: np.ndarray, dtype: str) -> np.ndarray:
    """What a reader of `rounded_to` sees, widened to float64."""
    if dtype != "bfloat16":
        return values.astype(dtype).astype(np.float64)
    return (_bfloat16(values).astype(np.uint32) << 16).view(np.float32).reshape(values.shape).astype(np.float64)


def write_safetensors(path: Path, tensors: Mapping[str, Written], metadata: Mapping[str, str]) -> None:
    """Write a file beside `path` and rename it; tensors in the order given. Raises BadRequest as `written` does."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, one in tensors.items():
        header[name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [at, at + one.nbytes]}
        at += one.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written(path) as beside, beside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, one in tensors.items():
            data = one.data()
            assert len(data) == one.nbytes, f"{name}: {len(data)} bytes, the header says {one.nbytes}"
            file.write(data)


def _bytes(values: np.ndarray, dtype: str) -> bytes:
    if dtype == "bfloat16":
        return _bfloat16(values).tobytes()
    return np.ascontiguousarray(values.astype(dtype)).tobytes()


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32, rounded to nearest even."""
    bits = np.ascontiguousarray(values.astype(np.float32)).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
