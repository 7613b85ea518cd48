"""One safetensors file, read over a memory map: every byte of the header is checked before any tensor is believed.

The format is eight bytes with the length of a header (little-endian), the header (a JSON object: tensor name to
dtype, shape and byte range), and one buffer that the ranges cover without overlap, hole or rest. The library of that
name reads it too; ours keeps the file mapped, hands out views instead of copies, widens bfloat16 without torch, and
says in one line what is wrong with a file.

Source: github.com/huggingface/safetensors, section "Format" of its README; limits as in its `tensor.rs`.
"""

import contextlib
import hashlib
import json
import math
import mmap
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from covector.errors import CorruptCheckpoint, UnsupportedConfig

MAX_HEADER_BYTES = 100_000_000  # the format's own limit: no honest header is larger, and JSON is parsed in memory
_MAX_AXES = 64  # what numpy (2.0 and later) can hold
_MAX_BYTES = 2**63  # sizes are signed 64-bit in numpy and in the kernel
_MAX_SHOWN = 120  # a name in an error stays readable even if the file holds megabytes of it

_AGAIN = "the file is damaged or not safetensors: fetch or convert it again"
_LFS_POINTER = b"version https://git-lfs"

# Read as they stand; the names are the format's.
_PLAIN = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
# Known to the format but without a meaning here: scaled or packed numbers need a recipe that the file does not hold.
_PACKED_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "C64": 64,
}
_BITS = {name: 8 * dtype.itemsize for name, dtype in _PLAIN.items()} | {"BF16": 16} | _PACKED_BITS


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: its dtype as the format spells it, its shape, and bytes [start, stop) of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file (not after widening)."""
        return self.stop - self.start

    @property
    def is_packed(self) -> bool:
        """Whether the values are fp8, fp6, fp4 or complex, which `read` refuses."""
        return self.dtype in _PACKED_BITS


class SafetensorsFile:
    """A safetensors file, mapped and checked; nothing of the buffer is read before it is asked for.

    `entries` maps names to places in the order of the header, `metadata` holds the file's own strings,
    `header_sha256` the digest of the header's JSON bytes (names, dtypes, shapes and offsets in one number).
    Opening costs the header only. Arrays handed out keep the map alive after the object is gone.
    Raises CorruptCheckpoint for a file that is not exactly what the format allows.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map = _mapped(self.path)
        header, data_start = _header_bytes(self.path, self._map)
        self.header_sha256: str = hashlib.sha256(header).hexdigest()
        entries, metadata = _parsed(self.path, header)
        self.entries: Mapping[str, Entry] = MappingProxyType(
            _checked(self.path, entries, data_start, len(self._map) - data_start)
        )
        self.metadata: Mapping[str, str] = MappingProxyType(metadata)
        self._known_finite: set[str] = set()
        self._digests: dict[str, str] = {}
        self._hashing = threading.Lock()

    def read(self, name: str, *, finite: bool = True) -> np.ndarray:
        """The tensor, read-only, in the file's shape.

        float64, float32, integers and booleans are views of the map (no copy unless the file left them unaligned);
        float16 and bfloat16 are widened to float32, which is exact.
        With `finite`, the values of a float tensor are looked at once per file object (one pass at memory speed).
        Raises KeyError for a name that is not in `entries`, UnsupportedConfig for fp8, packed and complex numbers,
        CorruptCheckpoint for NaN or infinity and for booleans that are neither 0 nor 1.
        """
        entry = self.entries[name]
        if entry.is_packed:
            raise packed_refused(name, entry.dtype, self.path)
        array = _widened(self._map, entry)
        if entry.dtype == "BOOL":
            _require_booleans(array, name, self.path)
        elif finite and array.dtype.kind == "f" and name not in self._known_finite:
            require_finite(array, name, self.path)
            self._known_finite.add(name)
        return array

    def sha256(self, name: str) -> str:
        """Digest of the tensor's bytes as they stand in the file (before widening); remembered."""
        with self._hashing:  # whoever asks while another thread hashes waits for it instead of doing it again
            if name not in self._digests:
                entry = self.entries[name]
                with memoryview(self._map) as whole, whole[entry.start : entry.stop] as part:
                    self._digests[name] = hashlib.sha256(part).hexdigest()
            return self._digests[name]

    def raw(self, name: str) -> bytes:
        """The tensor's bytes as they stand in the file."""
        entry = self.entries[name]
        return self._map[entry.start : entry.stop]

    def release(self, name: str) -> None:
        """Tell the system that the tensor's pages are not needed for now.

        Arrays handed out stay valid: a later look reads the file again. A no-op where the system has no such call.
        """
        entry = self.entries[name]
        first = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: the edges belong to neighbours
        last = entry.stop // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


def require_finite(array: np.ndarray, name: str, where: str | Path) -> None:
    """Nothing, if every value is finite; else CorruptCheckpoint with the count and the first index.

    One sum settles the common case (any NaN or infinity makes it not finite) without an array of booleans; only a
    sum that overflows or is poisoned is looked at value by value.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.add.reduce(array, axis=None)):
            return
    bad = ~np.isfinite(array)
    count = int(np.count_nonzero(bad))
    if count:
        first = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), array.shape))
        raise CorruptCheckpoint(
            f"cannot read {shown(name)} of {where}: expected finite values, found {count} of {array.size} that are "
            f"NaN or infinite, the first at index {first}; training diverged or the file is damaged: "
            "use another checkpoint"
        )


def packed_refused(name: str, dtype: str, where: str | Path) -> UnsupportedConfig:
    """The error for a tensor whose numbers are scaled, packed or complex."""
    if dtype.startswith(("C64", "COMPLEX")):
        kind, advice = "complex", "use a checkpoint without them"
    else:
        kind, advice = "fp8" if dtype.startswith(("F8", "FLOAT8")) else "packed", "dequantise the checkpoint first"
    return UnsupportedConfig(
        f"cannot read {shown(name)} of {where}: expected float, integer or boolean values, found {dtype}; "
        f"{kind} tensors are not read: {advice}"
    )


def shown(name: str) -> str:
    """The name quoted, on one line and of bounded length: it may come from a hostile file."""
    return ascii(name) if len(name) <= _MAX_SHOWN else ascii(name[:_MAX_SHOWN]) + "…"


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; ValueError if a key comes twice (for `json.loads(object_pairs_hook=...)`)."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} twice")
        found[key] = value
    return found


def refuse_lfs_pointer(path: Path, head: bytes) -> None:
    """Nothing, unless the file's first bytes are those of a git-lfs pointer: then CorruptCheckpoint says so."""
    if head.startswith(_LFS_POINTER):
        raise CorruptCheckpoint(
            f"cannot read {path}: expected weights, found a git-lfs pointer to them; run 'git lfs pull' in that folder"
        )


def _refusal(path: Path, expected: str, found: str, advice: str = _AGAIN) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"cannot read {path}: expected {expected}, found {found}; {advice}")


def _mapped(path: Path) -> mmap.mmap:
    """The whole file, mapped read-only (a file that shrinks while mapped is the one thing this cannot survive)."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
            refuse_lfs_pointer(path, head)
            if len(head) < 8:
                raise _refusal(path, "at least 8 bytes (the length of the header)", f"{len(head)}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise _refusal(
            path, "a readable file", error.strerror or "an error of the system", "check the path and its permissions"
        ) from error


def _header_bytes(path: Path, mapped: mmap.mmap) -> tuple[bytes, int]:
    """The header's JSON bytes, and where the buffer begins."""
    (length,) = struct.unpack("<Q", mapped[:8])
    if length > MAX_HEADER_BYTES:
        raise _refusal(path, f"a header of at most {MAX_HEADER_BYTES} bytes", f"a length of {length}")
    if length > len(mapped) - 8:
        raise _refusal(path, f"a header of {length} bytes", f"{len(mapped) - 8} bytes after its length")
    return mapped[8 : 8 + length], 8 + length


def _parsed(path: Path, header: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """The header as JSON: what it says of each tensor, unchecked, and the metadata, checked."""
    if not header.startswith(b"{"):
        raise _refusal(path, "a header that begins with '{'", ascii(header[:8]))
    try:
        text = header.decode("utf-8")
        found = json.loads(text, object_pairs_hook=unique_pairs, parse_constant=_refuse_word, parse_int=_whole)
    except UnicodeDecodeError as error:
        raise _refusal(path, "a header in UTF-8", f"byte {header[error.start]:#04x} at {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise _refusal(path, "a JSON object as header", str(error)) from error
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refusal(path, "'__metadata__' to map strings to strings", ascii(metadata)[:_MAX_SHOWN])
    for text in (*found, *metadata, *metadata.values()):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise _refusal(path, "a header in Unicode", f"a lone surrogate in {shown(text)}")
    return found, metadata


def _refuse_word(word: str) -> Any:
    raise ValueError(f"the constant {word}, which JSON does not have")


def _whole(digits: str) -> int:
    if digits == "-0":  # a float to other readers: what they refuse is not to be believed here
        raise ValueError("the number -0")
    return int(digits)


def _checked(path: Path, raw: dict[str, Any], data_start: int, data_bytes: int) -> dict[str, Entry]:
    """The entries, once their ranges cover the buffer exactly."""
    entries = {name: _entry(path, name, value, data_start) for name, value in raw.items()}
    reached = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != reached:
            gap = entry.start - reached
            fault = f"a hole of {gap} bytes before it" if gap > 0 else f"an overlap of {-gap} bytes with another"
            raise _refusal(path, f"tensor {shown(name)} to begin where the one before it ends", fault)
        reached = entry.stop
    end = data_start + data_bytes
    if reached > end:
        raise _refusal(
            path, f"{reached - data_start} bytes of tensors", f"{data_bytes}", "the file is cut short: fetch it again"
        )
    if reached < end:
        raise _refusal(path, f"{reached - data_start} bytes of tensors", f"{end - reached} bytes after them")
    return entries


def _entry(path: Path, name: str, raw: Any, data_start: int) -> Entry:
    """One tensor's entry, once its dtype is known and its shape and byte range agree."""
    label = f"tensor {shown(name)}"
    if not isinstance(raw, dict) or not {"dtype", "shape", "data_offsets"} <= raw.keys():
        raise _refusal(path, f"{label} to have dtype, shape and data_offsets", ascii(raw)[:_MAX_SHOWN])
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _refusal(
            path, f"{label} to have a dtype of the format", ascii(dtype)[:_MAX_SHOWN], "the file is damaged or too new"
        )
    if not _are_sizes(shape) or len(shape) > _MAX_AXES:
        raise _refusal(path, f"{label} to have a shape of at most {_MAX_AXES} sizes ≥ 0", ascii(shape)[:_MAX_SHOWN])
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _refusal(path, f"{label} to have two rising data_offsets", ascii(offsets)[:_MAX_SHOWN])
    # A zero size hides the others from the product, so they are bounded on their own.
    if math.prod(max(size, 1) for size in shape) * _BITS[dtype] >= 8 * _MAX_BYTES:
        raise _refusal(path, f"{label} to fit into memory", f"shape {ascii(shape)[:_MAX_SHOWN]}")
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        raise _refusal(
            path,
            f"{label} to take {bits / 8:g} bytes ({dtype}, shape {tuple(shape)})",
            f"data_offsets {offsets}, which are {offsets[1] - offsets[0]}",
        )
    return Entry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_sizes(value: Any) -> bool:
    """Whether the value is a list of whole numbers from 0 to 2⁶³ − 1 (`type`, because True is an int)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < _MAX_BYTES for item in value)


def _widened(mapped: mmap.mmap, entry: Entry) -> np.ndarray:
    """The tensor as a read-only array: a view where numpy has the dtype, float32 for the 16-bit floats."""
    stored = np.dtype("<u2") if entry.dtype == "BF16" else _PLAIN[entry.dtype]
    array = np.ndarray(entry.shape, dtype=stored, buffer=mapped, offset=entry.start)
    if entry.dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        bits = array.astype(np.uint32)
        array = np.left_shift(bits, 16, out=bits).view(np.float32)
    elif entry.dtype == "F16":
        array = array.astype(np.float32)
    elif not array.flags.aligned:
        array = array.copy()  # legal in the format, but unaligned arithmetic is slow and BLAS refuses it
    array.flags.writeable = False
    return array


def _require_booleans(array: np.ndarray, name: str, path: Path) -> None:
    with contextlib.suppress(ValueError):  # the maximum of nothing
        worst = int(array.view(np.uint8).max())
        if worst > 1:
            raise _refusal(path, f"tensor {shown(name)} to hold booleans 0 and 1", f"a byte {worst}")
