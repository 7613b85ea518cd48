"""An atlas on disk: a folder with the decomposition of a whole model, readable without covector.

``manifest.json``        which model, frame and options; the digest of every part and file; whether it is complete
``vectors.safetensors``  ``vectors`` [directions, d_model], float16, one row per direction, length one
``index.parquet``        one row per direction: site, side, dyad, gain, scores, chance, tokens at both poles
``sites.parquet``        one row per site: shape and its whole spectrum

While it is being built the folder holds ``manifest.json`` with ``"complete": false`` and ``parts/``. The last three
files are written beside their places and renamed, the manifest last of all: a reader never sees half an atlas. What
is read is believed only after `covector.io.atlas_check` has looked at it.
"""

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from covector.axes import Float
from covector.errors import BadRequest, CorruptAtlas, CorruptCheckpoint
from covector.io import atlas_check as check
from covector.io.atlas_columns import ALWAYS, INDEX_RULES, PLACED, SITE_RULES, Rule
from covector.io.atlas_summary import summary
from covector.io.atomic import written
from covector.io.safetensors_file import Entry, SafetensorsFile

MANIFEST, VECTORS, INDEX, SITES = "manifest.json", "vectors.safetensors", "index.parquet", "sites.parquet"
FORMAT = 1
# What the manifest has size and digest of.
FILES = (VECTORS, INDEX, SITES)
# Letters of the list of columns that a refusal quotes.
MOST_LISTED = 120


class Atlas:
    """A complete atlas, opened; columns and vectors are read when they are asked for.

    Raises CorruptAtlas where the folder is none, is not complete, or its files disagree; so does whatever reads a
    column, a place or a vector that is not what it must be.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._read: dict[str, np.ndarray] = {}
        self.manifest = read_manifest(self.folder)
        if self.manifest.get("complete") is not True:
            done = len(list((self.folder / "parts").glob("*.safetensors")))
            raise CorruptAtlas(
                f"{self.folder}: expected a complete atlas, this one is being built ({done} of "
                f"{len(self.manifest.get('parts', {}))} parts); run the same covector atlas command again, it goes on"
            )
        self.names, rows = _columns(self.folder / INDEX, INDEX_RULES)
        self._site_names, self._n_sites = _columns(self.folder / SITES, SITE_RULES)
        self._entry = _vectors_entry(self.folder / VECTORS)
        count, width = self._entry.shape
        if rows != count:
            raise CorruptAtlas(
                f"{self.folder}: expected one vector per row, {INDEX} has {rows} and {VECTORS} {count}; build it again"
            )
        if not (count and width and 0 < self._n_sites <= check.MOST_SITES):
            told = f"{count} directions of width {width} in {self._n_sites} places"
            raise CorruptAtlas(f"{self.folder}: expected directions and their places, got {told}; build it again")
        if "options" in self.manifest:
            self.manifest["options"] = check.with_defaults(self.manifest["options"])
        check.check_manifest(self.folder / MANIFEST, self.manifest, rows, width)
        check.check_sizes(self.folder, self.manifest.get("files", {}))

    def __len__(self) -> int:
        """Number of directions."""
        return self._entry.shape[0]

    @cached_property
    def vectors(self) -> np.ndarray:
        """Every direction [directions, d_model], float16, mapped from the file, read-only, not yet checked: `units`."""
        entry = self._entry
        with (self.folder / VECTORS).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(mapped) < entry.stop:
            raise check.damaged(self.folder / VECTORS, "it became shorter after it was opened")
        flat = np.frombuffer(mapped, "<f2", count=entry.nbytes // 2, offset=entry.start)
        return flat.reshape(entry.shape)

    def units(self, which: np.ndarray | slice, dtype: type[np.floating] = np.float64) -> Float[np.ndarray, "n d"]:
        """Some of the vectors, widened. Raises CorruptAtlas where one has not length one."""
        rows = self.vectors[which].astype(dtype)
        check.check_units(self.folder / VECTORS, rows)
        return rows

    def check_scores(self, scores: Float[np.ndarray, "n k"]) -> None:
        """Raise CorruptAtlas where products of the vectors with unit vectors are none that unit vectors can have."""
        if scores.size and not np.abs(scores).max() <= 1 + check.OFF:
            raise check.damaged(self.folder / VECTORS, "it holds directions that have no length of 1")

    def column(self, name: str) -> np.ndarray:
        """One column of the index; see `columns`."""
        return self.columns(name)[name]

    def columns(self, *names: str) -> dict[str, np.ndarray]:
        """Columns of the index, kept once read; texts come as objects, lists as object arrays of lists.

        Raises BadRequest, listing the columns, for one that is not there; CorruptAtlas for one that every atlas has,
        and for values that cannot be.
        """
        self.need(names)
        wanted = [n for n in names if n not in self._read]
        if wanted:
            self._read |= {n: _array(column) for n, column in self.table(*wanted).items()}
        return {n: self._read[n] for n in names}

    def table(self, *names: str) -> dict[str, pa.ChunkedArray]:
        """Columns of the index as Arrow has them, looked at as `columns` are; read each time. Raises what it raises."""
        self.need(names)
        path = self.folder / INDEX
        table = _table(path, list(dict.fromkeys(names)))
        check.check_table(path, table, INDEX_RULES, self._entry.shape[1], len(self))
        if "site" in names:
            unknown = set(table.column("site").unique().to_pylist()) - self._sites_known
            if unknown:
                raise check.damaged(path, f"it names the place {check.clipped(min(unknown))} that {SITES} lacks")
        return {name: table.column(name) for name in names}

    def need(self, names: Iterable[str] = ALWAYS) -> None:
        """Raise for a column that is not there, as `columns` does, without reading any."""
        for name in names:
            if name in self.names:
                continue
            if name in ALWAYS:
                raise check.damaged(self.folder / INDEX, f"it lacks the column '{name}'")
            known = ", ".join(self.names)
            known = known if len(known) <= MOST_LISTED else known[:MOST_LISTED] + " …"
            raise BadRequest(f"{self.folder}: expected a column of its index ({known}), got {check.clipped(name)}")

    def _repr_html_(self) -> str:
        """What a notebook shows: kinds of places, and what was found there."""
        judged = ("interpretable",) if "interpretable" in self.names else ()
        given = self.columns("kind", "p_dir", "q_dir", *judged)
        kinds = [record["kind"] for record in self.sites]
        return summary(self.manifest, kinds, given, str(self.folder))._repr_html_()

    def rows(self, which: np.ndarray, names: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """Rows of the index as dicts, in the order asked for; without `names` with all columns."""
        wanted = None if names is None else list(names)
        self.need(ALWAYS if wanted is None else wanted)
        path, at = self.folder / INDEX, np.asarray(which, dtype=np.int64)
        table = _table(path, wanted)
        if table.num_rows != len(self):
            raise check.damaged(path, f"it has {table.num_rows} rows where its end tells of {len(self)}")
        taken = table.take(pa.array(at))
        check.check_table(path, taken, INDEX_RULES, self._entry.shape[1], len(at))
        return taken.to_pylist()

    @cached_property
    def places(self) -> np.ndarray:
        """Which of `sites` each direction belongs to, as its index. Raises CorruptAtlas for one that is not there."""
        known = {record["site"]: i for i, record in enumerate(self.sites)}
        given = self.columns("site", "kind", "dyad")
        at = np.array([known[site] for site in given["site"]], dtype=np.int64)
        kinds = np.array([record["kind"] for record in self.sites], dtype=object)
        gains = np.array([len(record["sigma"]) for record in self.sites])
        wrong = np.flatnonzero((kinds[at] != given["kind"]) | (given["dyad"] >= gains[at]))
        if len(wrong):
            told = ", ".join(f"{name} {check.clipped(str(given[name][wrong[0]]))}" for name in given)
            raise check.damaged(self.folder / INDEX, f"it has a direction ({told}) that its place in {SITES} has not")
        return at

    @cached_property
    def sites(self) -> list[dict[str, Any]]:
        """One dict per site: name, layer, head, kind, shape, inner size, and ``sigma``, its whole spectrum."""
        return self._places_with(PLACED)

    @property
    def sized_sites(self) -> list[dict[str, Any]]:
        """`sites`, which an older atlas may have without their sizes. Raises CorruptAtlas where they are not there."""
        missing = [name for name in ("n", "m", "inner") if name not in self._site_names]
        if missing:
            raise check.damaged(self.folder / SITES, f"it lacks the column '{missing[0]}'")
        return self.sites

    def _places_with(self, names: Iterable[str]) -> list[dict[str, Any]]:
        path = self.folder / SITES
        missing = [name for name in names if name not in self._site_names]
        if missing:
            raise check.damaged(path, f"it lacks the column '{missing[0]}'")
        table = _table(path, None)
        check.check_table(path, table, SITE_RULES, self._entry.shape[1], self._n_sites)
        records = table.to_pylist()
        check.check_places(path, records, self._entry.shape[1])
        return records

    @cached_property
    def _sites_known(self) -> set[str]:
        if "site" not in self._site_names:
            raise check.damaged(self.folder / SITES, "it lacks the column 'site'")
        table = _table(self.folder / SITES, ["site"])
        check.check_table(self.folder / SITES, table, SITE_RULES, self._entry.shape[1], self._n_sites)
        return set(table.column("site").to_pylist())


def _array(column: pa.ChunkedArray) -> np.ndarray:
    """A column as NumPy; texts by their few different values, which needs no pandas and is quicker."""
    if not pa.types.is_string(column.type):
        return column.to_numpy(zero_copy_only=False)
    coded = column.combine_chunks().dictionary_encode()
    values = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
    return values[coded.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)]


def _table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Columns of a Parquet file, by the plain reader: the other one imports a quarter of a second of pandas."""
    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            return file.read(columns)
    except (OSError, pa.ArrowException) as error:
        raise check.damaged(path, "it does not decode") from error


def _columns(path: Path, rules: Mapping[str, Rule]) -> tuple[tuple[str, ...], int]:
    """What the foot of a Parquet file says: its columns, those that we know of the types they must have, and its rows.

    Raises CorruptAtlas.
    """
    check.check_file(path)
    try:
        told = parquet.read_metadata(path)
        schema = told.schema.to_arrow_schema()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise check.damaged(path, "it is no Parquet file, or cut short") from error
    check.check_schema(path, schema, rules)
    return tuple(schema.names), told.num_rows


def _vectors_entry(path: Path) -> Entry:
    """Where the vectors lie in their file. Raises CorruptAtlas where it is missing or damaged."""
    check.check_file(path)
    try:
        entry = SafetensorsFile(path).entries.get("vectors")
    except (CorruptCheckpoint, OSError) as error:
        raise check.damaged(path, "it is no safetensors file, or cut short") from error
    if entry is None or entry.dtype != "F16" or len(entry.shape) != 2:
        raise check.damaged(path, "it holds no such float16 rows")
    return entry


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an atlas, complete or not. Raises CorruptAtlas where there is none or it is not ours."""
    path = folder / MANIFEST
    check.check_readable(folder)
    if not path.exists() and not path.is_symlink():
        raise CorruptAtlas(
            f"expected an atlas (a folder with {MANIFEST}) at '{folder}', there is none; covector atlas MODEL --out "
            f"{folder} builds one"
        )
    check.check_file(path)
    try:
        values = check.parsed(path)
    except OSError as error:
        raise check.damaged(path, f"it cannot be read ({error.strerror})") from error
    except ValueError as error:
        why = check.clipped(str(error))
        raise CorruptAtlas(
            f"{path}: expected the manifest of an atlas, it does not parse ({why}); build it again"
        ) from error
    found = values.get("format", "none") if isinstance(values, dict) else type(values).__name__
    if type(found) is not int or found != FORMAT:
        newer = type(found) is int and found > FORMAT
        told = found if isinstance(found, str) and len(found) < 10 else check.clipped(found)
        advice = "a newer covector made it: update this one" if newer else "build it again with this version"
        raise CorruptAtlas(f"{path}: expected format {FORMAT}, got {told}; {advice}")
    check.check_parts(path, values)
    return values


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Put the manifest in place, beside and renamed."""
    with written(folder / MANIFEST) as beside:
        beside.write_text(json.dumps({"format": FORMAT, **values}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def told_of_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file of a store, as the manifest records them."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in FILES}


def check_digests(atlas: "Atlas") -> bool:
    """Read the files of an atlas whole and compare them with its manifest; whether that has digests (older: none).

    Raises CorruptAtlas for a file of another content.
    """
    recorded = atlas.manifest.get("files", {})
    for name, told in recorded.items():
        if _digest(atlas.folder / name) != told["sha256"]:
            how = "its content is not what was built (another sha256)"
            raise check.damaged(atlas.folder / name, how, check.REBUILD)
    return bool(recorded)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise check.damaged(path, f"it cannot be read ({error.strerror})") from error


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
