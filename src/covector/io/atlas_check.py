"""Whether the files of an atlas are what `covector.io.atlas` says of them: an atlas may be broken, or a stranger's.

What costs nothing is looked at on opening: the manifest, the kinds of files, types of columns, numbers of rows. The
values of a column are looked at when it is read, and those of a vector when its row is taken. Each refusal is one
CorruptAtlas: the folder and the file, what was expected, what came, what to do.
"""

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from covector.axes import Float
from covector.errors import CorruptAtlas
from covector.io.atlas_columns import LARGEST, LISTS, Rule, fits
from covector.io.safetensors_file import unique_pairs

AGAIN = "copy it again, or build it anew elsewhere"
REBUILD = "copy it again, or remove the folder and build it anew"
# A manifest of a model of a thousand tensors has a tenth of a megabyte.
MOST_BYTES, MOST_DEPTH, MOST_TEXT = 2**26, 32, 4096
# Seventy billion parameters make six thousand heads, two places each. A map has the stream on one of its sides; what
# is larger than both of these would be simulated for minutes as noise beside a spectrum.
MOST_SITES, MOST_STREAM, MOST_INNER = 2**20, 2**12, 2**10
# Rows in float16 have length one to a thousandth.
OFF = 0.01
# What commands are told again in words of a shell line, and must say nothing else there.
_FRAME = re.compile(r"[\w+.,=:-]{1,80}", re.ASCII)
_HEAD_SITE = re.compile(r"L(\d{1,5})[HK](\d{1,5})\.(ov|qk|q|k|v|o)", re.ASCII)
_MLP_SITE = re.compile(r"L(\d{1,5})\.(mlp\.(?:in|gate|out))", re.ASCII)
_NAMED_SITE = re.compile(r"[A-Za-z_]\w{0,79}", re.ASCII)
_COUNT = "a whole number of 1 or more"
_OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "kinds": ("a list of texts", lambda v: isinstance(v, list) and all(isinstance(k, str) for k in v)),
    "rank": (f"null or {_COUNT}", lambda v: v is None or _is_count(v)),
    "k": (_COUNT, lambda v: _is_count(v)),
    "draws": (_COUNT, lambda v: _is_count(v)),
    "rotations": ("a whole number", lambda v: v == 0 or _is_count(v)),
    "seed": ("a whole number", lambda v: type(v) is int),
    "scores": ("true or false", lambda v: isinstance(v, bool)),
}  # fmt: skip
OPTIONS = tuple(_OPTIONS)
# Of an atlas that was made before there was such an option: what `covector.atlas.plan.Options` takes without one.
DEFAULTS: dict[str, Any] = {
    "kinds": ["ov", "qk", "mlp", "embed"],
    "rank": None,
    "k": 10,
    "draws": 10_000,
    "rotations": 1,
    "seed": 0,
    "scores": True,
}


def damaged(path: Path, how: str, advice: str = AGAIN) -> CorruptAtlas:
    """The error for a file of an atlas, in one line."""
    return CorruptAtlas(f"{path.parent}: expected {path.name} of a complete atlas, {how}; {advice}")


def clipped(value: object) -> str:
    """A value from the file as one short line that steers no terminal."""
    text = ascii(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:60] + "…"


def check_file(path: Path) -> None:
    """Raise CorruptAtlas unless `path` is a plain file that lies in its folder, not a link to another place."""
    check_readable(path.parent)
    if not path.exists():
        raise damaged(path, "it is missing")
    if Path(os.path.realpath(path)).parent != Path(os.path.realpath(path.parent)):
        raise damaged(path, "it is a link to a place outside the folder", "put the file itself there")
    if not path.is_file():
        raise damaged(path, "it is no plain file")


def check_readable(folder: Path) -> None:
    """Raise CorruptAtlas where the system does not let us look into a folder; one that is not there is no matter."""
    try:
        (folder / "manifest.json").lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise CorruptAtlas(
            f"expected an atlas that can be read at '{folder}', the system says '{error.strerror}'; ask its owner for "
            "the right to read it, or copy it"
        ) from error


def with_defaults(options: Any) -> Any:
    """The options of a manifest, those that it lacks as they were before they could be chosen."""
    return {**DEFAULTS, **options} if isinstance(options, Mapping) else options


def check_sizes(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise CorruptAtlas where a file has not the size that the manifest tells of."""
    for name, told in files.items():
        size = (folder / name).stat().st_size
        if size != told["bytes"]:
            raise damaged(folder / name, f"it has {size:,} bytes where {told['bytes']:,} were written", REBUILD)


def parsed(path: Path) -> Any:
    """The JSON of a manifest, strict: no key twice, no NaN, no number beyond float64, no half characters, not deep.

    Raises ValueError, saying what is wrong, and OSError.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_pairs)
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError(f"it is more than {MOST_DEPTH} levels deep") from None
    level = [values]
    for _ in range(MOST_DEPTH):
        level = [inner for value in level if isinstance(value, dict | list) for inner in _inside(value)]
    if level:
        raise ValueError(f"it is more than {MOST_DEPTH} levels deep")
    return values


def _inside(value: dict | list) -> Sequence[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def check_parts(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise CorruptAtlas where a manifest, complete or not, has a part of another type than it is read as."""
    for name in ("meta", "options", "parts", "tensors"):
        if name in manifest and not isinstance(manifest[name], dict):
            _refuse(path, f"'{name}' to be a mapping", manifest[name])
    for name in ("parts", "tensors"):
        for key, value in manifest.get(name, {}).items():
            if not (isinstance(value, str) or (value is None and name == "parts")):
                _refuse(path, f"a digest in '{name}' of {clipped(key)}", value)


def check_manifest(path: Path, manifest: Mapping[str, Any], rows: int, width: int) -> None:
    """Raise CorruptAtlas unless the manifest of a complete atlas has all that readers take from it.

    `rows` and `width`: of its vectors.
    """
    for name in ("meta", "options", "reference", "d_model"):
        if name not in manifest:
            raise damaged(path, f"it has no '{name}'")
    _check_meta(path, manifest["meta"])
    given = manifest["options"]
    for name in given:
        if name not in _OPTIONS:
            raise damaged(path, f"its options have an unknown {clipped(name)}")
        said, holds = _OPTIONS[name]
        if not holds(given[name]):
            _refuse(path, f"the option '{name}' to be {said}", given[name])
    if not isinstance(manifest["reference"], str) or not _is_words(manifest["reference"]):
        _refuse(path, "'reference' to be words that open a model, quoted as a shell needs it", manifest["reference"])
    check_files(path, manifest.get("files", {}))
    if type(manifest["d_model"]) is not int or manifest["d_model"] != width:
        _refuse(path, f"'d_model' to be the width of the vectors, {width}", manifest["d_model"])
    if type(manifest.get("directions", rows)) is not int or manifest.get("directions", rows) != rows:
        _refuse(path, f"'directions' to be the number of vectors, {rows}", manifest["directions"])


def check_files(path: Path, files: Any) -> None:
    """Raise CorruptAtlas unless `files` of a manifest has a size and a digest for files of an atlas."""
    known = ("vectors.safetensors", "index.parquet", "sites.parquet")
    if not isinstance(files, dict):
        _refuse(path, "'files' to be a mapping", files)
    for name, told in files.items():
        if name not in known or not isinstance(told, dict):
            _refuse(path, f"'files' to tell of {', '.join(known)}", {name: told})
        if type(told.get("bytes")) is not int or not isinstance(told.get("sha256"), str):
            _refuse(path, f"size and digest in 'files' of {clipped(name)}", told)


def _check_meta(path: Path, meta: Mapping[str, Any]) -> None:
    for name in ("model", "frame"):
        if not isinstance(meta.get(name), str) or not 0 < len(meta[name]) <= MOST_TEXT:
            _refuse(path, f"'meta' to name the {name} in a text", meta.get(name))
    if not _FRAME.fullmatch(meta["frame"]):
        _refuse(path, "'meta' to name a frame such as raw or folded+bias", meta["frame"])
    files = meta.get("files")
    if not (files is None or (isinstance(files, dict) and all(isinstance(v, str) for v in files.values()))):
        _refuse(path, "'files' of 'meta' to map names to digests", files)


def _is_words(text: str) -> bool:
    """Whether a text is words of a shell line as `shlex.quote` writes them, and all its parts are."""
    options = (" --changed-to ", " --layout ")
    parts = [text] if len(text) <= MOST_TEXT else [""]
    for option in options:
        parts = [piece for part in parts for piece in part.split(option, 1)]
    try:
        return all(part.strip() and shlex.join(shlex.split(part)) == part for part in parts)
    except ValueError:
        return False


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**53


def check_schema(path: Path, schema: pa.Schema, rules: Mapping[str, Rule]) -> None:
    """Raise CorruptAtlas where a column that we know has another type, or a name comes twice."""
    if len(set(schema.names)) < len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise damaged(path, f"it has two columns {clipped(twice)}")
    for name, rule in rules.items():
        at = schema.get_field_index(name)
        if at >= 0 and not fits(schema.field(at).type, rule):
            _refuse(path, f"column '{name}' to hold {rule.holds}", str(schema.field(at).type), quoted=False)


def check_table(path: Path, table: pa.Table, rules: Mapping[str, Rule], d_model: int, rows: int) -> None:
    """Raise CorruptAtlas where a value of a column that we know is not what it must be, or rows are missing."""
    if table.num_rows != rows:
        raise damaged(path, f"it has {table.num_rows} rows where its end tells of {rows}")
    try:
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, "its values do not decode") from error
    for name in table.column_names:
        if name in rules:
            _check_column(path, name, table.column(name), rules[name], d_model)
    for pole in ("top", "bottom"):
        lengths = [
            _lengths(table.column(name)) for name in LISTS if name.startswith(pole) and name in table.schema.names
        ]
        if any(not np.array_equal(lengths[0], other) for other in lengths[1:]):
            raise damaged(path, f"its lists {pole}, {pole}_id, {pole}_cos differ in length")


def _check_column(path: Path, name: str, column: pa.ChunkedArray, rule: Rule, d_model: int) -> None:
    where = f"column '{name}' to hold {rule.holds}"
    if column.null_count and not rule.missing:
        _refuse(path, where, f"{column.null_count} that are missing", quoted=False)
    if rule.is_list:
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
        if column.null_count:
            _refuse(path, where, f"{column.null_count} that are missing in its lists", quoted=False)
    if rule.words:
        unknown = sorted(set(map(str, column.unique().to_pylist())) - set(rule.words))
        if unknown:
            _refuse(path, where, unknown[0])
    if rule.kind not in ("number", "integer") or pa.types.is_null(column.type):
        return
    values = column.drop_null().to_numpy().astype(np.float64)
    absent = np.isnan(values)
    low, high = rule.bounds(d_model)
    wrong = ~((values >= low) & (values <= high)) & (~absent if rule.missing else True)
    if wrong.any():
        _refuse(path, where + rule.within(d_model), f"{values[wrong][0]:g}", quoted=False)


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    return np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks] or [np.zeros(0)])


def check_places(path: Path, records: Sequence[Mapping[str, Any]], d_model: int) -> None:
    """Raise CorruptAtlas where a place is no address, comes twice, or its sizes or spectrum cannot be."""
    seen = set[str]()
    for record in records:
        site = record["site"]
        if site in seen:
            raise damaged(path, f"it lists the place {clipped(site)} twice")
        seen.add(site)
        if _told(site) != (record["layer"], record["head"], record["kind"]):
            told = f"{clipped(site)} as layer {record['layer']}, head {record['head']}, kind {clipped(record['kind'])}"
            _refuse(path, "places by their addresses", told, quoted=False)
        _check_sizes(path, record, max(MOST_STREAM, d_model + 1))
        _check_spectrum(path, site, np.asarray(record["sigma"], dtype=np.float64), d_model)


def _told(site: str) -> tuple[int | None, int | None, str] | None:
    """Layer, head and kind of an address; None for a text that is none."""
    if head := _HEAD_SITE.fullmatch(site):
        return int(head[1]), int(head[2]), head[3]
    if mlp := _MLP_SITE.fullmatch(site):
        return int(mlp[1]), None, mlp[2]
    return (None, None, site) if _NAMED_SITE.fullmatch(site) else None


def _check_sizes(path: Path, record: Mapping[str, Any], most: int) -> None:
    n, m, inner = (record.get(name) for name in ("n", "m", "inner"))
    sizes = [size for size in (n, m, inner) if size is not None]
    product = record["kind"] in ("ov", "qk") and "inner" in record
    lost = product and (inner is None or inner > MOST_INNER)
    too_long = sizes and len(record["sigma"]) > min(sizes)
    if lost or too_long or (n is not None and m is not None and min(n, m) > most):
        told = f"{n} × {m}, inner {inner}, {len(record['sigma'])} gains"
        _refuse(path, f"sizes that the map {record['site']} can have", told, quoted=False)


def _check_spectrum(path: Path, site: str, sigma: Float[np.ndarray, " r"], d_model: int) -> None:
    if not (np.isfinite(sigma).all() and (sigma >= 0).all() and (sigma <= LARGEST).all()):
        came = f"{sigma[~((sigma >= 0) & (sigma <= LARGEST))][0]:g}"
    elif len(sigma) > d_model + 1:
        came = f"{len(sigma)} of them in a stream of {d_model}"
    elif (np.diff(sigma) > 0).any():
        came = f"{sigma[1:][np.diff(sigma) > 0][0]:g} after a smaller one"
    else:
        return
    _refuse(path, f"sigma of {site} to be finite gains, largest first", came, quoted=False)


def check_units(path: Path, rows: Float[np.ndarray, "n d"]) -> None:
    """Raise CorruptAtlas where a stored direction has no length of one, NaN and infinite ones among them.

    A row of zeros may be: in a frame with biases a direction that is all constant has nothing in the stream.
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    wrong = ~((np.abs(lengths - 1) <= OFF) | (lengths == 0))
    if wrong.any():
        raise damaged(path, f"it holds a direction of length {lengths[wrong][0]:g} where all have length 1")


def _refuse(path: Path, expected: str, came: object, quoted: bool = True) -> NoReturn:
    told = clipped(came) if quoted else str(came)
    raise CorruptAtlas(f"{path.parent}: {path.name}: expected {expected}, got {told}; {AGAIN}")
