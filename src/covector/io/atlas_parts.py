"""Parts of an atlas that is being built: one safetensors file each, with the digest of its content inside.

A part is written beside its place and renamed, so it is there wholly or not at all; one whose bytes no longer match
its digest is as good as missing.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from covector.errors import BadRequest, CorruptCheckpoint
from covector.io.atomic import written
from covector.io.safetensors_file import SafetensorsFile

FOLDER = "parts"


@dataclass(frozen=True)
class Part:
    """Named arrays that one piece of work gave, and `notes` (JSON values) about them."""

    name: str
    arrays: Mapping[str, np.ndarray]
    notes: Mapping[str, object]

    @property
    def sha256(self) -> str:
        """Digest of names, dtypes, shapes, values and notes."""
        digest = hashlib.sha256(json.dumps(dict(self.notes), sort_keys=True).encode())
        for name in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[name])
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


def write_part(folder: Path, part: Part) -> Path:
    """Put a part in its place in an atlas folder; returns the file."""
    path = part_place(folder, part.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(
            f"cannot make the folder {path.parent}: the system says '{error.strerror}'; choose another --out"
        ) from error
    # One key: the library writes several in no fixed order.
    told = {"part": json.dumps({"notes": dict(part.notes), "sha256": part.sha256}, sort_keys=True)}
    content = save({name: np.ascontiguousarray(array) for name, array in part.arrays.items()}, told)
    with written(path) as beside:
        beside.write_bytes(content)
    return path


def read_part(folder: Path, name: str) -> Part | None:
    """The part of that name, or None where it is missing, damaged, or not what its digest says."""
    path = part_place(folder, name)
    try:
        if not path.exists():
            return None
        file = SafetensorsFile(path)
        arrays = {key: _exact(file, key) for key in file.entries}
        told = json.loads(file.metadata["part"])
        part = Part(name, arrays, told["notes"])
        return part if part.sha256 == told["sha256"] else None
    except (CorruptCheckpoint, OSError, ValueError, KeyError, TypeError):
        return None


def _exact(file: SafetensorsFile, name: str) -> np.ndarray:
    """The array in its stored dtype: half precision is not widened, its bytes are what the digest is of."""
    array = file.read(name, finite=False)
    return array.astype(np.float16) if file.entries[name].dtype == "F16" else array


def part_place(folder: Path, name: str) -> Path:
    """The file of a part, whether it is there or not."""
    return folder / FOLDER / f"{name}.safetensors"
