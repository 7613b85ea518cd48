"""Tables as JSON, CSV, Parquet and pandas frames, and back."""

import dataclasses
import json
import math
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from covector.errors import BadRequest, BadTable, MissingExtra
from covector.render import Column, Table, load

TABLE = Table(
    [
        Column("site", ["L9H6.ov", "L9H6.ov", "L9H7.ov"]),
        Column("dyad", np.arange(3, dtype=np.int32), about="counted from the strongest"),
        Column("gain", np.array([2.5, math.nan, 0.5], dtype=np.float32), unit="σ", digits=2),
        Column("cos", [0.4, 0.2, 1e-12], unit="cos", chance="level"),
        Column("level", [0.12, 0.12, 0.11], digits=3),
        Column("is_block", [True, False, False]),
        Column("tokens", [[" the", "日本", "\n"], [], ['"', ",", "="]]),
        Column("scores", [[0.5, 0.25, 1.0], [], [1.0, 2.0, 3.0]]),
        Column("note", ['a,b\n"c"', None, " x"]),
    ],
    {"model": "demo-lm", "files": {"model.safetensors": "sha256:ab"}, "seed": 7, "null": {"kind": "haar", "n": 512}},
    title="Dyads of L9H6",
    says="It says.",
    not_says="It does not say.",
    next="covector spectrum demo-lm L9H6.ov",
    key=("site", "dyad"),
)


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_a_saved_table_comes_back_whole(tmp_path, suffix):
    back = load(TABLE.save(tmp_path / f"dyads.{suffix}"))
    assert back.rows == TABLE.rows
    for word in ("meta", "title", "says", "not_says", "next", "key", "names"):
        assert getattr(back, word) == getattr(TABLE, word)
    for ours, theirs in zip(TABLE.columns, back.columns, strict=True):
        assert dataclasses.replace(ours, values=[]).__dict__ == dataclasses.replace(theirs, values=[]).__dict__
        assert getattr(ours.values, "dtype", list) == getattr(theirs.values, "dtype", list)


def test_csv_keeps_the_values_and_guesses_their_kind(tmp_path):
    back = load(TABLE.save(tmp_path / "dyads.csv"))
    assert back.meta == {}
    assert back.names == TABLE.names
    for ours, theirs in zip(TABLE.rows, back.rows, strict=True):
        assert {**ours, "note": ours["note"] or ""} == theirs


def test_csv_tokens_that_only_python_reads_as_numbers_stay_texts(tmp_path):
    tokens = [" 1", "1_000", "nan", "१", "1e5 "]
    for token in tokens:
        table = Table([Column("token", [token])])
        assert load(table.save(tmp_path / "t.csv"))["token"] == [token]


def test_json_is_one_strict_object_with_meta_and_rows():
    def refuse(word):
        raise AssertionError(word)

    table = Table([Column("x", [1.0, math.nan, math.inf]), Column("v", [[math.nan], [1.0], []])], {"model": "m"})
    whole = json.loads(table.to_json(), parse_constant=refuse)
    assert list(whole) == ["meta", "rows"]
    assert [row["x"] for row in whole["rows"]] == [1.0, None, None]
    assert whole["rows"][0]["v"] == [None]
    assert whole["meta"]["model"] == "m"


def test_json_says_what_each_column_means():
    described = json.loads(TABLE.to_json())["meta"]["table"]
    assert described["says"] == "It says."
    assert described["columns"][3] == {
        "name": "cos",
        "unit": "cos",
        "digits": None,
        "about": "",
        "chance": "level",
        "dtype": "float64",
    }


def test_parquet_carries_units_lists_and_meta_for_every_reader(tmp_path):
    schema = pa.parquet.read_schema(TABLE.save(tmp_path / "t.parquet"))
    assert schema.field("gain").metadata == {b"unit": "σ".encode()}
    assert schema.field("tokens").type == pa.list_(pa.string())
    assert json.loads(schema.metadata[b"covector"])["model"] == "demo-lm"


def test_the_same_table_gives_the_same_bytes(tmp_path):
    for suffix in ("json", "csv", "parquet"):
        first = TABLE.save(tmp_path / f"a.{suffix}").read_bytes()
        assert first == TABLE.save(tmp_path / f"b.{suffix}").read_bytes()


def test_an_empty_table_comes_back_empty(tmp_path):
    empty = TABLE.where(np.zeros(3, dtype=bool))
    for suffix in ("json", "csv", "parquet"):
        back = load(empty.save(tmp_path / f"e.{suffix}"))
        assert (back.rows, back.names) == ([], TABLE.names)


def test_pandas_gets_the_columns_and_the_meta():
    frame = TABLE.to_pandas()
    assert list(frame.columns) == list(TABLE.names)
    assert frame["gain"].dtype == np.float32
    assert frame.attrs["model"] == "demo-lm"
    frame.loc[0, "gain"] = 9.0
    assert TABLE["gain"][0] == 2.5


@pytest.mark.parametrize(
    ("module", "use", "advice"),
    [
        ("pandas", lambda path: TABLE.to_pandas(), r"pip install covector\[notebook\]"),
        ("pyarrow", lambda path: TABLE.save(path / "t.parquet"), "pip install pyarrow"),
    ],
)
def test_a_missing_extra_says_what_to_install(monkeypatch, tmp_path, module, use, advice):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=advice):
        use(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(monkeypatch, tmp_path):
    path = TABLE.save(tmp_path / "t.json")
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("covector.render.files.os.fsync", fail)
    with pytest.raises(BadRequest, match=r"cannot write .*t.json: no space left on device; give a path"):
        TABLE.head(1).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


def test_a_suffix_without_a_format_is_refused(tmp_path):
    with pytest.raises(BadRequest, match=r"ends in \.json, \.csv or \.parquet, came 't.pickle'"):
        TABLE.save(tmp_path / "t.pickle")
    with pytest.raises(BadRequest, match="ends in"):
        load(tmp_path / "t")


def test_a_path_that_cannot_be_read_or_written_is_named(tmp_path):
    with pytest.raises(BadRequest, match=r"cannot read .*none.json: no such file"):
        load(tmp_path / "none.json")
    with pytest.raises(BadRequest, match=r"cannot read .*none.parquet: no such file"):
        load(tmp_path / "none.parquet")
    with pytest.raises(BadRequest, match=r"cannot write .*none"):
        TABLE.save(tmp_path / "none" / "t.csv")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.json", b"[]", "one JSON object with meta"),
        ("t.json", b'{"meta": {}, "rows": [{"a": NaN}]}', "came NaN, which strict JSON does not have"),
        ("t.json", b'{"meta": {}, "rows": [{"a": 1}, {"b": 1}]}', "rows with the keys a throughout"),
        (
            "t.json",
            b'{"meta": {"table": {"format": 9, "columns": []}}, "rows": []}',
            "table format 9, this version reads 1",
        ),
        ("t.json", b'{"meta": {"table": [1]}, "rows": []}', "describe the columns by name"),
        (
            "t.json",
            b'{"meta": {"table": {"columns": [{"name": "a", "digits": "x"}]}}, "rows": [{"a": 1}]}',
            "another kind of 'digits' for column 'a' than 'x'",
        ),
        (
            "t.json",
            b'{"meta": {"table": {"columns": [{"name": "a", "dtype": "int8"}]}}, "rows": [{"a": "x"}]}',
            "expected column 'a' to hold int8",
        ),
        ("t.json", b"\xff", "one JSON object"),
        ("t.csv", b"", "the file is empty"),
        ("t.csv", b"a,b\r\n1\r\n", "2 cells in every line"),
        ("t.csv", b"a,a\r\n1,2\r\n", "one stands there twice"),
        ("t.csv", b"\xff\xfe", "expected UTF-8"),
        ("t.parquet", b"PAR1", "expected Parquet columns"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name_and_reason(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadTable) as error:
        load(path)
    assert str(error.value).startswith(f"cannot read {path} as a table: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
