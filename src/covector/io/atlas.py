"""An atlas on disk: a folder with the decomposition of a whole model, readable without covector.

``manifest.json``        which model, frame and options; the digest of every part; whether it is complete
``vectors.safetensors``  ``vectors`` [directions, d_model], float16, one row per direction, length one
``index.parquet``        one row per direction: site, side, dyad, gain, scores, chance, tokens at both poles
``sites.parquet``        one row per site: shape and its whole spectrum

While it is being built the folder holds ``manifest.json`` with ``"complete": false`` and ``parts/``. The last three
files are written beside their places and renamed, the manifest last of all: a reader never sees half an atlas.
"""

import json
import mmap
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from covector.errors import BadRequest, CorruptAtlas, CorruptCheckpoint
from covector.io.atlas_summary import summary
from covector.io.atomic import written
from covector.io.safetensors_file import Entry, SafetensorsFile

MANIFEST, VECTORS, INDEX, SITES = "manifest.json", "vectors.safetensors", "index.parquet", "sites.parquet"
FORMAT = 1


class Atlas:
    """A complete atlas, opened; columns and vectors are read when they are asked for.

    Raises CorruptAtlas where the folder is none, is not complete, or its files disagree.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._read: dict[str, np.ndarray] = {}
        self.manifest = read_manifest(self.folder)
        if not self.manifest.get("complete"):
            done = len(list((self.folder / "parts").glob("*.safetensors")))
            raise CorruptAtlas(
                f"{self.folder}: expected a complete atlas, this one is being built ({done} of "
                f"{len(self.manifest.get('parts', {}))} parts); run the same covector atlas command again, it goes on"
            )
        rows = _parquet(self.folder, INDEX).num_rows
        _parquet(self.folder, SITES)
        if rows != len(self.vectors):
            raise CorruptAtlas(
                f"{self.folder}: expected one vector per row, {INDEX} has {rows} and {VECTORS} {len(self.vectors)}; "
                "build it again"
            )

    def __len__(self) -> int:
        """Number of directions."""
        return len(self.vectors)

    @cached_property
    def vectors(self) -> np.ndarray:
        """Every direction [directions, d_model], float16, mapped from the file and read-only."""
        path = self.folder / VECTORS
        entry = _vectors_entry(path)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        flat = np.frombuffer(mapped, "<f2", count=entry.nbytes // 2, offset=entry.start)
        return flat.reshape(entry.shape)

    def column(self, name: str) -> np.ndarray:
        """One column of the index; see `columns`."""
        return self.columns(name)[name]

    def columns(self, *names: str) -> dict[str, np.ndarray]:
        """Columns of the index, kept once read; texts come as objects, lists as object arrays of lists.

        Raises BadRequest, listing the columns, for one that is not there.
        """
        known = self.names
        missing = [n for n in names if n not in known]
        if missing:
            raise BadRequest(f"{self.folder}: expected a column of its index ({', '.join(known)}), got '{missing[0]}'")
        wanted = [n for n in names if n not in self._read]
        if wanted:
            table = _table(self.folder / INDEX, wanted)
            self._read |= {n: _array(table.column(n)) for n in wanted}
        return {n: self._read[n] for n in names}

    def _repr_html_(self) -> str:
        """What a notebook shows: kinds of places, and what was found there."""
        judged = ("interpretable",) if "interpretable" in self.names else ()
        given = self.columns("kind", "p_dir", "q_dir", *judged)
        kinds = [record["kind"] for record in self.sites]
        return summary(self.manifest, kinds, given, str(self.folder))._repr_html_()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns of the index."""
        return tuple(parquet.read_schema(self.folder / INDEX).names)

    def rows(self, which: np.ndarray, names: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """Rows of the index as dicts, in the order asked for."""
        table = _table(self.folder / INDEX, list(names) if names else None)
        return table.take(pa.array(np.asarray(which, dtype=np.int64))).to_pylist()

    @cached_property
    def places(self) -> np.ndarray:
        """Which of `sites` each direction belongs to, as its index. Raises CorruptAtlas for one that is not there."""
        known = {record["site"]: i for i, record in enumerate(self.sites)}
        named = self.column("site")
        unknown = set(named) - known.keys()
        if unknown:
            raise _damaged(
                self.folder / INDEX, f"it names the place '{str(min(map(str, unknown)))[:40]}' that {SITES} lacks"
            )
        return np.array([known[site] for site in named], dtype=np.int64)

    @cached_property
    def sites(self) -> list[dict[str, Any]]:
        """One dict per site: name, layer, head, kind, shape, inner size, and ``sigma``, its whole spectrum."""
        return _table(self.folder / SITES).to_pylist()


def _array(column: pa.ChunkedArray) -> np.ndarray:
    """A column as NumPy; texts by their few different values, which needs no pandas and is quicker."""
    if not pa.types.is_string(column.type):
        return column.to_numpy(zero_copy_only=False)
    coded = column.combine_chunks().dictionary_encode()
    values = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
    return values[coded.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)]


def _table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Columns of a Parquet file, by the plain reader: the other one imports a quarter of a second of pandas."""
    with parquet.ParquetFile(path, memory_map=True) as file:
        return file.read(columns)


def _parquet(folder: Path, name: str) -> parquet.FileMetaData:
    """What the foot of a Parquet file says. Raises CorruptAtlas where it is missing or damaged."""
    try:
        return parquet.read_metadata(folder / name)
    except FileNotFoundError as error:
        raise _damaged(folder / name, "it is missing") from error
    except (OSError, pa.ArrowException) as error:
        raise _damaged(folder / name, "it is no Parquet file, or cut short") from error


def _vectors_entry(path: Path) -> Entry:
    """Where the vectors lie in their file. Raises CorruptAtlas where it is missing or damaged."""
    if not path.exists():
        raise _damaged(path, "it is missing")
    try:
        entry = SafetensorsFile(path).entries.get("vectors")
    except (CorruptCheckpoint, OSError) as error:
        raise _damaged(path, "it is no safetensors file, or cut short") from error
    if entry is None or entry.dtype != "F16" or len(entry.shape) != 2:
        raise _damaged(path, "it holds no such float16 rows")
    return entry


def _damaged(path: Path, how: str) -> CorruptAtlas:
    return CorruptAtlas(
        f"{path.parent}: expected {path.name} of a complete atlas, {how}; copy it again, or build it anew elsewhere"
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an atlas, complete or not. Raises CorruptAtlas where there is none or it is not ours."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CorruptAtlas(
            f"expected an atlas (a folder with {MANIFEST}) at '{folder}', there is none; covector atlas MODEL --out "
            f"{folder} builds one"
        ) from error
    except (OSError, ValueError) as error:
        raise CorruptAtlas(f"{path}: expected the manifest of an atlas, it does not parse; build it again") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format", "none") if isinstance(values, dict) else type(values).__name__
        raise CorruptAtlas(f"{path}: expected format {FORMAT}, got {found}; build it again with this version")
    return values


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Put the manifest in place, beside and renamed."""
    with written(folder / MANIFEST) as beside:
        beside.write_text(json.dumps({"format": FORMAT, **values}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_vectors(folder: Path, blocks: Iterable[np.ndarray], shape: tuple[int, int]) -> None:
    """Stream float16 rows into ``vectors.safetensors``; only one block is held at a time."""
    nbytes = 2 * shape[0] * shape[1]
    header = json.dumps({"vectors": {"dtype": "F16", "shape": list(shape), "data_offsets": [0, nbytes]}}).encode()
    header += b" " * (-len(header) % 8)
    with written(folder / VECTORS) as beside, beside.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<f2").tobytes())


def write_table(folder: Path, name: str, table: pa.Table) -> None:
    """Write a Parquet file whose bytes depend on the table alone."""
    with written(folder / name) as beside:
        parquet.write_table(table, beside, compression="zstd", row_group_size=2**16, write_statistics=True)
