"""Named tensors, wherever they lie: a folder of weight files, arrays in memory, or a torch module's state dict.

An adapter asks a `TensorSource` by name and gets NumPy arrays back; which of the three it talks to it cannot tell.
16-bit floats are always widened to float32 (exact), nothing else changes its dtype, and the digest of a tensor is that
of its stored bytes, so it is the same in every container.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from covector.errors import CheckpointMismatch, CorruptCheckpoint, UnknownModel, UnsupportedConfig
from covector.io.safetensors_file import SafetensorsFile, packed_refused, require_finite, shown, unique_pairs
from covector.io.torch_bin import load_state_dict

# safetensors' spelling → the words that numpy and torch share
_WORDS = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
_READABLE = frozenset(_WORDS.values())

# Safetensors files that are not a model's weights: LoRA and training state, recorded pairs for a proof, an atlas.
_NOT_WEIGHTS = ("adapter_", "optimizer", "scheduler", "check.safetensors", "vectors.safetensors")
_MAX_LISTED = 12  # names in an error: enough to recognise a folder, short enough for one line


class TensorInfo(NamedTuple):
    """What a tensor is before it is read: its stored dtype in numpy's words (plus `bfloat16`), and its shape."""

    dtype: str
    shape: tuple[int, ...]


@runtime_checkable
class TensorSource(Protocol):
    """Named tensors that can be asked for one by one.

    `where` names the source in errors, `files` are the files behind it (none for memory), `nbytes` what it takes as
    stored, `headers` the sha256 of each safetensors header by file name.
    """

    @property
    def where(self) -> str:
        """The source in words, for errors and `inspect`."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files behind it."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """sha256 of the header of each safetensors file, by file name."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        ...

    def names(self) -> tuple[str, ...]:
        """Every name, sorted."""
        ...

    def info(self, name: str) -> TensorInfo:
        """dtype and shape, without reading values. Raises CheckpointMismatch for a name it does not hold."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The values, read-only and finite. Raises CheckpointMismatch, UnsupportedConfig or CorruptCheckpoint."""
        ...

    def sha256(self, name: str) -> str:
        """Digest of the stored bytes in row order. Raises CheckpointMismatch for a name it does not hold."""
        ...

    def release(self, name: str) -> None:
        """Say that the tensor is not needed for now; arrays handed out stay valid."""
        ...


class ArrayTensors:
    """Arrays in memory as a source, without a copy: the caller must not write to them afterwards."""

    def __init__(self, arrays: Mapping[str, np.ndarray], *, where: str = "arrays in memory") -> None:
        self.where = where
        self.files: tuple[Path, ...] = ()
        self.headers: Mapping[str, str] = {}
        self._arrays = {name: _read_only(np.asarray(array)) for name, array in arrays.items()}
        self.nbytes = sum(array.nbytes for array in self._arrays.values())

    def names(self) -> tuple[str, ...]:
        """Every name, sorted."""
        return tuple(sorted(self._arrays))

    def info(self, name: str) -> TensorInfo:
        """dtype and shape."""
        array = self._array(name)
        return TensorInfo(array.dtype.name, array.shape)

    def read(self, name: str) -> np.ndarray:
        """A read-only view; float16 comes as a float32 copy."""
        array = self._array(name)
        if array.dtype.name not in _READABLE:
            raise packed_refused(name, array.dtype.name.upper(), self.where)
        if array.dtype == np.float16:
            array = _read_only(array.astype(np.float32))
        if array.dtype.kind == "f":
            require_finite(array, name, self.where)
        return array

    def sha256(self, name: str) -> str:
        """Digest of the bytes in row order."""
        return _digest(self._array(name))

    def release(self, name: str) -> None:
        """A no-op: the arrays are the caller's."""

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise _no_such_tensor(name, self)
        return self._arrays[name]


class StateDictTensors:
    """A torch module's state dict as a source, by what its tensors can do: torch is not imported here.

    `state` is a module or its state dict. `read` copies by default, so that training the module further cannot
    change what was read; `copy=False` is for tensors that nobody else holds (a file just loaded).
    """

    def __init__(
        self, state: Any, *, where: str = "a state dict in memory", files: tuple[Path, ...] = (), copy: bool = True
    ) -> None:
        self.where = where
        self.files = files
        self.headers: Mapping[str, str] = {}
        self._copy = copy
        self._tensors: Mapping[str, Any] = state.state_dict() if hasattr(state, "state_dict") else state
        for name, value in self._tensors.items():
            if not hasattr(value, "element_size"):
                raise CheckpointMismatch(
                    f"cannot read {where}: expected named tensors, found {shown(str(name))} to be a "
                    f"{type(value).__name__}; pass a module or its plain state dict"
                )
        self.nbytes = sum(t.nelement() * t.element_size() for t in self._tensors.values())

    def names(self) -> tuple[str, ...]:
        """Every name, sorted."""
        return tuple(sorted(self._tensors))

    def info(self, name: str) -> TensorInfo:
        """dtype (torch's word without its prefix) and shape."""
        tensor = self._tensor(name)
        return TensorInfo(str(tensor.dtype).removeprefix("torch."), tuple(int(size) for size in tensor.shape))

    def read(self, name: str) -> np.ndarray:
        """The values on the CPU, read-only; 16-bit floats widened to float32."""
        dtype = self.info(name).dtype
        array = self._stored(name)
        if dtype in ("bfloat16", "float16"):
            array = array.astype(np.float32)
        if array.dtype.kind == "f":
            require_finite(array, name, self.where)
        return _read_only(array.copy() if self._copy and dtype not in ("bfloat16", "float16") else array)

    def sha256(self, name: str) -> str:
        """Digest of the bytes in row order, in the dtype that the tensor has."""
        array = self._stored(name)
        if self.info(name).dtype == "bfloat16":
            # Undo the widening: the lower half is 0. (asarray: shifting a scalar gives no array.)
            array = np.asarray(array.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return _digest(array)

    def release(self, name: str) -> None:
        """A no-op: the tensors are the module's."""

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            raise _no_such_tensor(name, self)
        return self._tensors[name]

    def _stored(self, name: str) -> np.ndarray:
        """The tensor as numpy sees it, without a copy where that is possible; bfloat16 as float32."""
        tensor, dtype = self._tensor(name), self.info(name).dtype
        if dtype not in _READABLE:
            raise packed_refused(name, dtype.upper(), self.where)
        if str(tensor.device) == "meta" or str(tensor.layout) != "torch.strided":
            raise UnsupportedConfig(
                f"cannot read {shown(name)} of {self.where}: expected a dense tensor with values, found device "
                f"{tensor.device} and layout {tensor.layout}; load the model with its weights in memory"
            )
        tensor = tensor.detach().cpu()
        return (tensor.float() if dtype == "bfloat16" else tensor).numpy()


class FileTensors:
    """One safetensors file as a source."""

    def __init__(self, path: str | Path) -> None:
        self._file = SafetensorsFile(path)
        self.where = str(path)
        self.files = (self._file.path,)
        self.headers: Mapping[str, str] = {self._file.path.name: self._file.header_sha256}
        self.nbytes = sum(entry.nbytes for entry in self._file.entries.values())
        for name, entry in self._file.entries.items():
            if entry.is_packed and entry.dtype != "C64":  # scaled weights spoil the model; a complex buffer may be idle
                raise packed_refused(name, entry.dtype, self.where)

    def names(self) -> tuple[str, ...]:
        """Every name, sorted."""
        return tuple(sorted(self._file.entries))

    def info(self, name: str) -> TensorInfo:
        """dtype and shape from the header."""
        entry = self._file.entries[self._known(name)]
        return TensorInfo(_WORDS.get(entry.dtype, entry.dtype), entry.shape)

    def read(self, name: str) -> np.ndarray:
        """A read-only view of the mapped file; 16-bit floats widened to float32."""
        return self._file.read(self._known(name))

    def sha256(self, name: str) -> str:
        """Digest of the bytes in the file."""
        return self._file.sha256(self._known(name))

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system."""
        self._file.release(self._known(name))

    def position(self, name: str) -> tuple[str, int]:
        """The file, and the first byte in it."""
        return self._file.path.name, self._file.entries[self._known(name)].start

    def _known(self, name: str) -> str:
        if name not in self._file.entries:
            raise _no_such_tensor(name, self)
        return name


class FolderTensors:
    """The weight files of one folder as one source; each name belongs to exactly one file."""

    def __init__(self, folder: Path, parts: Iterable[TensorSource]) -> None:
        self.where = str(folder)
        parts = tuple(parts)
        self._owner: dict[str, TensorSource] = {}
        for part in parts:
            for name in part.names():
                if name in self._owner:
                    raise CheckpointMismatch(
                        f"cannot read {folder}: expected each tensor in one file, found {shown(name)} in both "
                        f"{self._owner[name].where} and {part.where}; remove the file that does not belong here"
                    )
                self._owner[name] = part
        self.files: tuple[Path, ...] = tuple(file for part in parts for file in part.files)
        self.headers: Mapping[str, str] = {name: digest for part in parts for name, digest in part.headers.items()}
        self.nbytes = sum(part.nbytes for part in parts)

    def names(self) -> tuple[str, ...]:
        """Every name, sorted."""
        return tuple(sorted(self._owner))

    def info(self, name: str) -> TensorInfo:
        """dtype and shape."""
        return self._part(name).info(name)

    def read(self, name: str) -> np.ndarray:
        """The values, read-only; 16-bit floats widened to float32."""
        return self._part(name).read(name)

    def sha256(self, name: str) -> str:
        """Digest of the stored bytes."""
        return self._part(name).sha256(name)

    def release(self, name: str) -> None:
        """Give the tensor's pages back where the file is mapped."""
        self._part(name).release(name)

    def position(self, name: str) -> tuple[str, int]:
        """The file, and the first byte in it where that is known."""
        part = self._part(name)
        return part.position(name) if isinstance(part, FileTensors) else (part.where, 0)

    def _part(self, name: str) -> TensorSource:
        if name not in self._owner:
            raise _no_such_tensor(name, self)
        return self._owner[name]


def open_folder(path: str | Path) -> TensorSource:
    """The weights of a local folder, headers checked and no values read yet.

    Looks for model.safetensors, model.safetensors.index.json, a single other *.safetensors, pytorch_model.bin and
    pytorch_model.bin.index.json, in this order. Raises UnknownModel for a folder without weights (the text lists what
    it has), CheckpointMismatch if index and shards disagree, CorruptCheckpoint, UnsupportedConfig, UnsafeCheckpoint.
    """
    folder = Path(path)
    try:
        present = sorted(item.name for item in folder.iterdir())
    except OSError as error:
        raise UnknownModel(
            f"cannot open {folder}: expected a folder with weights, found {error.strerror or 'no folder'}; "
            "check the path"
        ) from error
    chosen = weight_files(present, where=str(folder))
    if chosen is None:
        raise UnknownModel(
            f"cannot open {folder}: expected model.safetensors, its index, or pytorch_model.bin, found "
            f"{_listed(present) or 'an empty folder'}; point to the folder that holds the weights"
        )
    if chosen.endswith(".index.json"):
        return _open_sharded(folder, chosen)
    return FolderTensors(folder, [_open_file(folder / chosen)])


def weight_files(names: Iterable[str], *, where: str) -> str | None:
    """Of a folder's file names, the one that holds the weights or is their index; None if there is none.

    Raises CheckpointMismatch if two safetensors files could both be meant.
    """
    present = set(names)
    for standard in ("model.safetensors", "model.safetensors.index.json"):
        if standard in present:
            return standard
    others = sorted(
        name for name in present if name.endswith(".safetensors") and not name.lower().startswith(_NOT_WEIGHTS)
    )
    if len(others) > 1:
        raise CheckpointMismatch(
            f"cannot open {where}: expected model.safetensors, its index or one other safetensors file, found "
            f"{_listed(others)}; keep the one that holds the weights, or add the index of the shards"
        )
    if others:
        return others[0]
    for standard in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
        if standard in present:
            return standard
    return None


def shards_of(index: str | Path) -> dict[str, str]:
    """Tensor name → file name, from an index file.

    Raises CorruptCheckpoint if it is not a JSON object with a `weight_map` of plain file names.
    """
    index = Path(index)
    try:
        found = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=unique_pairs)
    except (OSError, ValueError, RecursionError) as error:
        raise _bad_index(index, f"{type(error).__name__}: {error}") from error
    shards = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise _bad_index(index, "no weight_map")
    for name, file in shards.items():
        # Path(...).name drops every folder: only a plain name of a weight file equals it
        if not isinstance(file, str) or Path(file).name != file or not file.endswith((".safetensors", ".bin")):
            raise _bad_index(index, f"{ascii(file)[:80]} for {shown(name)}")
    return shards


def _open_file(path: Path) -> TensorSource:
    if path.suffix == ".bin":
        return StateDictTensors(load_state_dict(path), where=str(path), files=(path,), copy=False)
    return FileTensors(path)


def _open_sharded(folder: Path, index: str) -> TensorSource:
    """All shards of an index, once index and shards name the same tensors in the same files."""
    shards = shards_of(folder / index)
    files = sorted(set(shards.values()))
    if missing := [file for file in files if not (folder / file).exists()]:
        raise CheckpointMismatch(
            f"cannot read {folder}: expected {len(files)} shards after {index}, {_listed(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there; fetch the missing files"
        )
    parts = {file: _open_file(folder / file) for file in files}
    for file, part in parts.items():
        held = set(part.names())
        promised = {name for name, shard in shards.items() if shard == file}
        if lacking := sorted(promised - held):
            raise CheckpointMismatch(
                f"cannot read {folder}: expected {shown(lacking[0])} in {file} (so says {index}), which does not hold "
                f"it ({len(lacking)} such); index and shards are of different checkpoints: fetch them again"
            )
        if extra := sorted(held - promised):
            raise CheckpointMismatch(
                f"cannot read {folder}: expected every tensor of {file} in {index}, {shown(extra[0])} is not listed "
                f"there ({len(extra)} such); index and shards are of different checkpoints: fetch them again"
            )
    return FolderTensors(folder, parts.values())


def _bad_index(index: Path, found: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        f"cannot read {index}: expected a JSON object whose weight_map gives a plain file name for each tensor, found "
        f"{' '.join(found.split())}; fetch the index again"
    )


def _no_such_tensor(name: str, source: TensorSource) -> CheckpointMismatch:
    names = source.names()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(shown(close) for close in near)}?" if near else f"it has {_listed(names)}"
    return CheckpointMismatch(
        f"cannot read {shown(name)}: expected it among the {len(names)} tensors of {source.where}, it is not there; "
        f"{hint}"
    )


def _listed(names: Iterable[str]) -> str:
    names = [shown(name)[1:-1] for name in names]
    rest = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _digest(array: np.ndarray) -> str:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)  # as a file would hold it
    return hashlib.sha256(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data).hexdigest()
