"""An edited checkpoint as a folder that transformers loads: the base's files, with the edited tensors in their places.

Tensors that are not edited keep their bytes and dtype. Everything else in the base's folder (configuration, tokenizer,
licence) is copied; its card and its recorded input/output pairs are not: they speak of another model.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covector.errors import BadRequest
from covector.io.atomic import written_folder
from covector.io.checkpoint import Checkpoint
from covector.io.safetensors_file import SafetensorsFile
from covector.io.safetensors_write import WORDS, Written, rounded_to, write_safetensors

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".h5", ".msgpack")
_OF_THE_BASE = ("README.md", "edit.json", "check.safetensors")


def export_checkpoint(
    checkpoint: Checkpoint,
    tensors: Mapping[str, np.ndarray],
    folder: Path,
    *,
    dtype: str,
    edit: str,
    card: str,
    config: Mapping[str, Any],
    beside: str = "",
) -> Path:
    """Write the folder; `tensors` are the edited stored ones (float64), `config` the keys that change.

    `beside` is the stored tensor in whose file a tensor that the base has not is put (an output that is untied now).
    Raises BadRequest for a model in memory, a folder with content, and a value that overflows in `dtype`.
    """
    source = checkpoint.folder
    if source is None:
        raise BadRequest(
            f"{checkpoint.name}: expected a checkpoint in a folder to save beside, it is in memory; edit.json keeps "
            "the edit, and Runner.edited lays it over the model"
        )
    _check_range(tensors, dtype)
    made = {name: rounded_to(values, dtype) for name, values in tensors.items()}
    with written_folder(folder) as place:
        for item in sorted(source.iterdir()):
            if item.is_file() and not item.name.endswith(_WEIGHTS) and item.name not in _OF_THE_BASE:
                shutil.copyfile(item, place / item.name)
        _write_weights(checkpoint, made, place, beside)
        if config and checkpoint.config:
            _write_config(place, {**checkpoint.config, **config})
        (place / "edit.json").write_text(edit + "\n", encoding="utf-8")
        (place / "README.md").write_text(card, encoding="utf-8")
    return folder


def _write_config(place: Path, values: Mapping[str, Any]) -> None:
    (place / "config.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(checkpoint: Checkpoint, edited: Mapping[str, Written], place: Path, beside: str) -> None:
    """One file for each of the base's, with the same tensors; files that are not safetensors become one that is."""
    files = [path for path in checkpoint.tensors.files if path.name.endswith(".safetensors")]
    if len(files) != len(checkpoint.tensors.files) or not files:
        names = checkpoint.tensors.names()
        all_here = {name: _widened(checkpoint, name) for name in names}
        write_safetensors(place / "model.safetensors", {**all_here, **edited}, {"format": "pt"})
        return
    shards, left = {}, dict(edited)
    for path in files:
        file = SafetensorsFile(path)
        here = {name: left.pop(name) if name in left else _same(file, name) for name in file.entries}
        if beside in file.entries:
            here |= {name: one for name, one in left.items() if name not in checkpoint.tensors.names()}
        write_safetensors(place / path.name, here, file.metadata)
        shards |= dict.fromkeys(here, path.name)
    if len(files) > 1:
        size = sum((place / path.name).stat().st_size for path in files)
        index = {"metadata": {"total_size": size}, "weight_map": shards}
        text = json.dumps(index, indent=2, ensure_ascii=False, sort_keys=True)
        (place / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def _same(file: SafetensorsFile, name: str) -> Written:
    entry = file.entries[name]
    return Written(entry.dtype, entry.shape, entry.nbytes, lambda: file.raw(name))


def _widened(checkpoint: Checkpoint, name: str) -> Written:
    values = checkpoint.tensors.read(name)
    if str(values.dtype) in WORDS:
        return rounded_to(values, str(values.dtype))
    spelled = {"bool": "BOOL", "int64": "I64", "int32": "I32", "uint8": "U8"}[str(values.dtype)]
    return Written(spelled, values.shape, values.nbytes, values.tobytes)


def _check_range(tensors: Mapping[str, np.ndarray], dtype: str) -> None:
    limit = {"float16": 65504.0, "float64": float(np.finfo(np.float64).max)}.get(dtype, float(np.finfo(np.float32).max))
    for name, values in tensors.items():
        largest = float(np.abs(values).max())
        if largest > limit:
            raise BadRequest(
                f"{name}: expected values up to {limit:g} for {dtype}, the edit makes {largest:.3g}; use float32"
            )
