"""Many typed arrays in one buffer, as a page takes them: no text to parse, no copy.

``CVCT`` | length of the header (uint32) | header, JSON | padding to 8 bytes | arrays, each on a multiple of 8 bytes.
The header names every array: its type (``f4 u1 u2 u4 i2``), shape and first byte, counted from the end of the padding.
All numbers are little-endian. The page reads it in `frontend/src/data/packing.ts`.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

MAGIC = b"CVCT"
TYPES = {"f4": np.float32, "u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "i2": np.int16}


def packed(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """One buffer of the arrays, with `about` (JSON values) in the header. Raises KeyError for another type."""
    names = {np.dtype(kind): name for name, kind in TYPES.items()}
    told, parts, at = {}, [], 0
    for name, array in arrays.items():
        array = np.ascontiguousarray(array)
        told[name] = {"type": names[array.dtype], "shape": list(array.shape), "at": at}
        data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        data += b"\0" * (-len(data) % 8)
        parts.append(data)
        at += len(data)
    header = json.dumps({"arrays": told, "about": about}, ensure_ascii=False, allow_nan=False).encode()
    header += b" " * (-(len(header) + 8) % 8)
    return b"".join([MAGIC, struct.pack("<I", len(header)), header, *parts])


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 with 12 bits of fraction (four digits): a page shows three, and the rest does not compress."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    is_finite = np.isfinite(bits.view(np.float32))
    kept = np.where(is_finite, (bits + np.uint32(1 << 10)) & np.uint32(0xFFFFF800), bits).view(np.float32)
    return np.where(np.isfinite(kept), kept, bits.view(np.float32)).astype(np.float32)
