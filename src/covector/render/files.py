"""Tables as JSON, CSV, Parquet and pandas frames, and back.

JSON and Parquet keep everything but the picture and the line format; CSV keeps the values alone. What a column means
(unit, digits, chance, dtype) and the words of the table travel in `meta["table"]`, in Parquet as schema metadata.
Files are written beside their place and renamed, so a reader never sees half of one.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from covector.errors import BadRequest, BadTable, MissingExtra
from covector.render.column import Column
from covector.render.plain import plain
from covector.render.sheet import Sheet, row_dicts

if TYPE_CHECKING:
    import pandas
    import pyarrow

FORMAT = 1  # of the description under meta["table"]; a later one is refused, not guessed at
RESERVED = "table"  # the key of meta under which the description travels
_SCHEMA_KEY = b"covector"
_WHOLE = re.compile(r"-?[0-9]+")
_REAL = re.compile(r"-?([0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?|inf)")
_INT64_DIGITS = 19  # a shorter whole number fits 64 bits whatever its digits
# The dtypes a file may ask for; numpy knows others (objects, voids of any size) that no table has.
_DTYPE = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")
_MEANING: dict[str, Any] = {"unit": str, "digits": int, "about": str, "chance": float | int | str, "dtype": str}
_WORDS = ("title", "says", "not_says", "next")


def to_json(sheet: Sheet, indent: int | None = None) -> str:
    """One strict JSON object `{"meta": {...}, "rows": [...]}`; NaN and infinities are null.

    `meta["table"]` carries the words of the table and unit, digits, chance level and dtype of each column.
    """
    rows = row_dicts(sheet.columns)
    if any(c.is_number and not np.isfinite(c.numbers).all() for c in sheet.columns):
        rows = plain(rows, "rows")
    text = {"meta": {**sheet.meta, RESERVED: _description(sheet)}, "rows": rows}
    return json.dumps(text, indent=indent, ensure_ascii=False, allow_nan=False)


def to_csv(sheet: Sheet) -> str:
    """The values as RFC 4180 lines under a header; undefined numbers and missing texts are empty, lists JSON."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([c.name for c in sheet.columns])
    writer.writerows(zip(*([_csv_cell(v) for v in c.plain_values()] for c in sheet.columns), strict=True))
    return out.getvalue()


def to_parquet(sheet: Sheet) -> bytes:
    """The columns as a Parquet file: lists stay lists, units are metadata of the fields, meta that of the schema."""
    pa, parquet = _pyarrow()
    fields, arrays = [], []
    for column in sheet.columns:
        array = pa.array(column.values) if column.is_number else _arrow_lists(pa, column)
        about = {"unit": column.unit, "about": column.about}
        fields.append(pa.field(column.name, array.type, metadata={k: v for k, v in about.items() if v}))
        arrays.append(array)
    meta = {**sheet.meta, RESERVED: _description(sheet)}
    schema = pa.schema(fields, metadata={_SCHEMA_KEY: json.dumps(meta, ensure_ascii=False, allow_nan=False)})
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), out)
    return out.getvalue()


def to_pandas(sheet: Sheet) -> "pandas.DataFrame":
    """A pandas frame of the columns, with `meta` in its `attrs`. Raises MissingExtra without pandas."""
    try:
        import pandas as pd
    except ImportError as missing:
        raise MissingExtra("to_pandas needs pandas, not installed here: pip install covector[notebook]") from missing
    values = {c.name: c.numbers.copy() if c.is_number else c.plain_values() for c in sheet.columns}
    frame = pd.DataFrame(values)
    frame.attrs.update(sheet.meta)
    return frame


def save(sheet: Sheet, path: str | Path) -> Path:
    """Write the table to `path` in the format of its suffix (.json, .csv, .parquet) and return the path."""
    path = Path(path)
    suffix = _known_suffix(path)
    if suffix == ".parquet":
        return write_beside(path, to_parquet(sheet))
    text = to_csv(sheet) if suffix == ".csv" else to_json(sheet, indent=1) + "\n"
    return write_beside(path, text.encode())


def read(path: str | Path) -> tuple[tuple[Column, ...], dict, dict]:
    """The columns, the meta and the words (title, says, not_says, next, key) of a saved table.

    A CSV file has neither meta nor words, and its column types are guessed: all numbers or all texts.
    Raises BadTable if the file is not a table of the kind its suffix says.
    """
    path = Path(path)
    reader: Callable = {".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}[_known_suffix(path)]
    try:
        return reader(path)
    except BadTable as error:
        raise BadTable(f"cannot read {path} as a table: {error}") from error
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {_reason(error)}; give the path of a saved table") from error


def write_beside(path: Path, data: bytes) -> Path:
    """Write the bytes to a sibling of `path`, then rename it into place; nobody sees half a file."""
    part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        with part.open("xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise BadRequest(f"cannot write {path}: {_reason(error)}; give a path in a folder you can write") from error
    return path


def _known_suffix(path: Path) -> str:
    if path.suffix.lower() in (".json", ".csv", ".parquet"):
        return path.suffix.lower()
    raise BadRequest(f"a table's file ends in .json, .csv or .parquet, came '{path.name}': give one of these suffixes")


def _description(sheet: Sheet) -> dict:
    """What the values alone do not say, as plain JSON."""
    columns = [
        {"name": c.name, "unit": c.unit, "digits": c.digits, "about": c.about}
        | {"chance": c.chance, "dtype": _dtype(c)}
        for c in sheet.columns
    ]
    words = {word: getattr(sheet, word) for word in _WORDS}
    return plain({"format": FORMAT, **words, "key": sheet.key, "columns": columns})


def _dtype(column: Column) -> str:
    return str(column.numbers.dtype) if column.is_number else "list" if column.is_list else "text"


def _read_json(path: Path) -> tuple[tuple[Column, ...], dict, dict]:
    try:
        whole = json.loads(path.read_bytes(), parse_constant=_not_strict)
    except ValueError as error:
        raise BadTable(f"expected one JSON object with meta and rows, {error}") from error
    if not (isinstance(whole, dict) and isinstance(whole.get("meta"), dict) and isinstance(whole.get("rows"), list)):
        raise BadTable("expected one JSON object with meta (an object) and rows (a list)")
    names = [c["name"] for c in _described(whole["meta"])["columns"]] or list(whole["rows"][0] if whole["rows"] else {})
    if any(not isinstance(row, dict) or set(row) != set(names) for row in whole["rows"]):
        raise BadTable(f"expected rows with the keys {', '.join(names)} throughout")
    values = {name: [row[name] for row in whole["rows"]] for name in names}
    return _assembled(values, whole["meta"])


def _read_csv(path: Path) -> tuple[tuple[Column, ...], dict, dict]:
    try:
        records = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
    except ValueError as error:
        raise BadTable(f"expected UTF-8 text, {error}") from error
    if not records:
        raise BadTable("expected a header line, the file is empty")
    header, rows = records[0], records[1:]
    if len(header) == 1:  # the csv reader gives an empty record for the empty cell of a single column
        rows = [row or [""] for row in rows]
    if any(len(row) != len(header) for row in rows):
        raise BadTable(f"expected {len(header)} cells in every line, as in the header")
    values = {name: _csv_values([row[i] for row in rows]) for i, name in enumerate(header)}
    if len(values) < len(header):
        raise BadTable("expected different names in the header, one stands there twice")
    return _assembled(values, {})


def _read_parquet(path: Path) -> tuple[tuple[Column, ...], dict, dict]:
    pa, parquet = _pyarrow()
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    try:
        table = parquet.read_table(io.BytesIO(path.read_bytes()))
        meta = json.loads((table.schema.metadata or {}).get(_SCHEMA_KEY, b"{}"))
        values = {name: _numpy_or_list(pa, table.column(name)) for name in table.column_names}
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise BadTable(f"expected Parquet columns of numbers, texts or lists, {str(error).splitlines()[0]}") from error
    return _assembled(values, meta)


def _assembled(values: dict, meta: dict) -> tuple[tuple[Column, ...], dict, dict]:
    """Columns with the meaning that `meta["table"]` gives them, the other meta, and the words."""
    described = _described(meta)
    about = {c["name"]: c for c in described["columns"]}
    columns = tuple(_column(name, v, about.get(name, {})) for name, v in values.items())
    words: dict[str, Any] = {word: str(described.get(word) or "") for word in _WORDS}
    words |= {"key": tuple(described.get("key") or ())}
    return columns, {k: v for k, v in meta.items() if k != RESERVED}, words


def _described(meta: object) -> dict:
    """What `meta["table"]` says, once it is known to be well-formed; files are written by anyone."""
    described = (meta.get(RESERVED) if isinstance(meta, dict) else None) or {"columns": []}
    columns = described.get("columns") if isinstance(described, dict) else None
    if not isinstance(columns, list) or not all(isinstance(c, dict) and "name" in c for c in columns):
        raise BadTable('expected meta["table"] to describe the columns by name')
    if described.get("format", FORMAT) != FORMAT:
        raise BadTable(f"it has table format {described['format']}, this version reads {FORMAT}: update covector")
    return described


def _column(name: str, values: np.ndarray | list, about: dict) -> Column:
    for word, kind in _MEANING.items():
        if not isinstance(about.get(word), kind | None):
            raise BadTable(f"expected another kind of '{word}' for column '{name}' than {about[word]!r}")
    dtype = about.get("dtype") or ""
    if isinstance(values, list) and _DTYPE.fullmatch(dtype):
        try:
            values = np.array([math.nan if v is None else v for v in values], dtype=dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadTable(f"expected column '{name}' to hold {dtype}, {error}") from error
    meaning = {k: about[k] for k in ("unit", "digits", "about", "chance") if about.get(k) is not None}
    return Column(name, values, **meaning)


def _not_strict(word: str) -> None:
    raise ValueError(f"came {word}, which strict JSON does not have")


def _csv_cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(plain(value), ensure_ascii=False) if isinstance(value, list) else value


def _csv_values(cells: list[str]) -> list | np.ndarray:
    """All truth values, all whole numbers, all numbers (an empty cell is not defined), all lists, or texts.

    A number is only what `to_csv` would write: tokens like ` 1` and `1_000`, which Python reads as numbers, stay texts.
    """
    if not any(cells):
        return cells
    if set(cells) <= {"true", "false"}:
        return np.array([c == "true" for c in cells])
    if all(map(_WHOLE.fullmatch, cells)) and max(map(len, cells)) < _INT64_DIGITS:
        return np.array([int(c) for c in cells])
    if all(c == "" or _REAL.fullmatch(c) for c in cells):
        return np.array([float(c) if c else math.nan for c in cells])
    if all(c == "" or c.startswith("[") for c in cells):
        try:
            return [json.loads(c) if c else None for c in cells]
        except ValueError:
            return cells  # tokens that begin with a bracket
    return cells


def _arrow_lists(pa: Any, column: Column) -> "pyarrow.Array":
    if not column.is_list:
        return pa.array(column.values, pa.string())
    return pa.array(column.values)


def _numpy_or_list(pa: Any, column: Any) -> np.ndarray | list:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.to_pylist()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return column.to_numpy() if not column.null_count else column.to_pylist()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_list(kind) or pa.types.is_null(kind):
        return column.to_pylist()
    raise BadTable(f"a column has type {kind}: numbers, texts and lists are read")


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as missing:
        raise MissingExtra("Parquet needs pyarrow, which is not installed: pip install pyarrow") from missing
    return pyarrow, pyarrow.parquet


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
