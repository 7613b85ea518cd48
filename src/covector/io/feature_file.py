"""Vectors and features in safetensors files: a tensor ``vector``, and how it was made in the metadata.

The metadata's ``feature`` is strict JSON (what is not defined is null): hook, path, observable, policy, constant,
norms, model, frame and the digests of the checkpoint's tensors.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from covector.errors import BadRequest, CorruptCheckpoint
from covector.io.atomic import written
from covector.io.safetensors_file import SafetensorsFile
from covector.study.feature import Feature

KEY = "feature"


def save_feature(feature: Feature, path: Path) -> Path:
    """Write a feature; the vector in float64. Raises BadRequest where the file cannot be written."""
    meta = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in feature.to_meta().items()}
    vector = np.ascontiguousarray(feature.vector, dtype=np.float64)
    data = save({"vector": vector}, {KEY: json.dumps(meta, ensure_ascii=False, allow_nan=False)})
    with written(path) as beside:
        beside.write_bytes(data)
    return path


def load_feature(path: Path) -> Feature:
    """The feature of a file; a bare vector becomes one that does not know where it is read (hook and path empty).

    Raises BadRequest for a file that holds no vector, several, or metadata that is no feature's.
    """
    rows = vector_in(path)
    if rows.ndim != 1:
        raise BadRequest(f"{path}: expected one vector [d_model], got an array of shape {rows.shape}")
    vector, text = rows.astype(np.float64), SafetensorsFile(path).metadata.get(KEY)
    if text is None:
        return Feature(vector, float("nan"), "", "", "", "")
    try:
        return _feature(vector, json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise BadRequest(f"{path}: expected a feature's metadata under '{KEY}', cannot read it: {error}") from error


def _feature(vector: np.ndarray, meta: dict[str, Any]) -> Feature:
    own = {f.name for f in dataclasses.fields(Feature)} - {"vector", "origin"}
    norms = tuple((str(place), float(norm)) for place, norm in meta.get("norms", []))
    constant = float("nan") if meta["constant"] is None else float(meta["constant"])
    words = {k: str(meta[k]) for k in ("hook", "path", "observable", "policy")}
    origin = {k: v for k, v in meta.items() if k not in own}
    return Feature(vector, constant, **words, norms=norms, convention=str(meta.get("convention", "")), origin=origin)


def vector_in(path: Path) -> np.ndarray:
    """The vector (or vectors) that a safetensors file holds: the tensor ``vector``, or the only one.

    Raises BadRequest for a file that is none, or that holds several tensors and none of that name.
    """
    if not path.is_file():
        raise BadRequest(f"expected a safetensors file with a vector at '{path}', there is none; check the path")
    try:
        file = SafetensorsFile(path)
    except CorruptCheckpoint as error:
        raise BadRequest(f"expected a safetensors file with a vector: {error}") from error
    names = list(file.entries)
    name = "vector" if "vector" in names else names[0] if len(names) == 1 else None
    if name is None:
        raise BadRequest(f"{path}: expected a tensor called 'vector', or a single one, it holds {', '.join(names)}")
    return file.read(name)
