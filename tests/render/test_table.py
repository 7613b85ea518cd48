"""A table is a value: columns that fit together, where they come from, and what they say."""

import dataclasses
import math

import numpy as np
import pytest

from covector.errors import BadRequest, BadTable
from covector.render import Column, Grid, Table


def dyads(**words):
    columns = [
        Column("dyad", np.arange(3)),
        Column("gain", np.array([2.0, 1.0, math.nan]), unit="σ"),
        Column("cos", [0.4, 0.2, 0.1], unit="cos", digits=3, chance="level"),
        Column("level", [0.12, 0.12, 0.11], digits=3),
        Column("tokens", [[" the", "日本"], ["\n"], []]),
    ]
    return Table(columns, {"model": "demo-lm", "seed": np.int64(0)}, **words)


def test_rows_are_plain_python_and_undefined_is_none():
    rows = dyads().rows
    assert rows[0] == {"dyad": 0, "gain": 2.0, "cos": 0.4, "level": 0.12, "tokens": [" the", "日本"]}
    assert rows[2]["gain"] is None
    assert {type(v) for v in rows[0].values()} == {int, float, list}


def test_a_column_is_asked_for_by_name():
    table = dyads()
    assert len(table) == 3
    assert "cos" in table
    assert table["tokens"][1] == ["\n"]
    assert table.column("gain").unit == "σ"
    with pytest.raises(BadTable, match="has no column 'sigma': its columns are dyad, gain, cos, level, tokens"):
        table["sigma"]


def test_columns_do_not_share_memory_with_what_they_were_made_of():
    values = np.array([1.0, 2.0])
    column = Column("gain", values)
    values[0] = 9.0
    assert column.values[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        column.numbers[0] = 9.0


def test_numbers_with_gaps_are_floats_and_texts_with_gaps_keep_none():
    assert Column("p", [0.5, None]).numbers.dtype == np.float64
    assert math.isnan(Column("p", [0.5, None]).numbers[1])
    assert Column("note", ["a", None]).values == ["a", None]
    assert Column("vectors", np.eye(2)).values == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1, "a"], "expects numbers, texts, or lists throughout, came with int, str"),
        ([["a", 1]], "mixes numbers and texts inside its lists"),
        ([{"a": 1}], "came with dict"),
        (np.array(3.0), "expects a row of numbers, texts or lists, came with dtype float64 and shape ()"),
        (np.array([1j]), "came with dtype complex128"),
        ("text", "expects one value per row, came as the single text 'text'"),
    ],
)
def test_values_that_are_no_column_are_refused(values, reason):
    with pytest.raises(BadTable) as error:
        Column("x", values)
    assert reason in str(error.value)


def test_a_cosine_without_its_chance_level_is_refused():
    with pytest.raises(BadTable, match="column 'c' is a cosine without a chance level: give chance="):
        Column("c", [0.4], unit="cos")
    assert Column("c", [0.4], unit="cos", chance=np.float32(0.25)).chance_level == 0.25
    with pytest.raises(BadTable, match="has its chance level in 'level', no column of numbers"):
        Table([Column("c", [0.4], unit="cos", chance="level")])


def test_columns_of_different_length_or_one_name_are_refused():
    with pytest.raises(BadTable, match="have one length, came a 1, b 2"):
        Table([Column("a", [1]), Column("b", [1, 2])])
    with pytest.raises(BadTable, match="'a' is used twice"):
        Table([Column("a", [1]), Column("a", [2])])


def test_a_key_tells_the_rows_apart():
    assert dyads(key="dyad").key == ("dyad",)
    with pytest.raises(BadTable, match="the key names column 'site'"):
        dyads(key="site")
    with pytest.raises(BadTable, match=r"the key \(a\) has two rows with the same values"):
        Table([Column("a", [1, 1])], key="a")


def test_meta_is_plain_and_refused_where_json_cannot_hold_it():
    assert dyads().meta == {"model": "demo-lm", "seed": 0}
    assert type(dyads().meta["seed"]) is int
    with pytest.raises(BadTable, match=r"meta\.policy is a set"):
        Table([], {"policy": {1}})
    with pytest.raises(BadTable, match="meta has the key 'table'"):
        Table([], {"table": 1})


def test_a_selection_is_a_new_table_with_the_same_words():
    table = dyads(title="Dyads", next="covector spectrum demo-lm")
    chosen = table.where(table["cos"] > 0.15)
    assert [row["dyad"] for row in chosen.rows] == [0, 1]
    assert (chosen.title, chosen.next, chosen.meta) == (table.title, table.next, table.meta)
    assert table.take([2, 0])["tokens"] == [[], [" the", "日本"]]
    assert len(table.head(2)) == 2
    assert len(table.head(99)) == 3


@pytest.mark.parametrize(
    ("select", "reason"),
    [
        (lambda t: t.where([True]), "takes 3 truth values, one per row, came bool of shape"),
        (lambda t: t.where(np.array([0, 1, 1])), "came int64"),
        (lambda t: t.take([5]), "has 3 rows, row 5 was asked for"),
        (lambda t: t.take([-4]), "has 3 rows, row -4 was asked for"),
        (lambda t: t.head(-1), "from 0 on, came -1"),
    ],
)
def test_a_selection_outside_the_table_is_refused(select, reason):
    with pytest.raises(BadRequest) as error:
        select(dyads())
    assert reason in str(error.value)


def test_a_selection_keeps_a_picture_only_if_it_is_made_from_the_table():
    grid = Grid(np.eye(3), list("abc"), list("abc"))
    assert dyads(picture=grid).head(2).picture is None

    def picture_of(table):
        return Grid(np.ones((len(table), 1)), ["x"] * len(table), ["y"])

    assert dyads(picture=picture_of).head(2).plot().picture.values.shape == (2, 1)
    with pytest.raises(BadRequest, match="this result has no picture"):
        dyads().plot()


def test_a_table_is_never_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        dyads().title = "other"
