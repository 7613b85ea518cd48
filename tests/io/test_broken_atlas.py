"""A broken atlas, or a stranger's, is refused in one line wherever it is read; no damage ends in another error."""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import covector
from covector.analyses.compare_atlases import compare_atlases
from covector.analyses.glance import glance
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.building import build_atlas
from covector.cli.main import run
from covector.errors import CorruptAtlas, CovectorError
from covector.io.atlas import INDEX, MANIFEST, SITES, VECTORS, Atlas, write_table, write_vectors
from covector.io.atlas_check import OPTIONS
from covector.io.atlas_columns import ALWAYS, INDEX_RULES, SITE_RULES
from covector.web.app import create_app
from covector.web.bundle import Bundle
from covector.web.jobs import Jobs
from covector.web.shown import Shown

# The line that a person reads; paths of the test folders are a hundred letters of it.
MOST_LETTERS = 300
Manifest = dict[str, Any]
# Always the same examples: they are many, and what they find must be found again.
FUZZ = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judged atlas of 40 directions, heads and embeddings, whose model cannot be opened again."""
    folder = tmp_path_factory.mktemp("broken") / "a"
    model = random_model(n_layers=1, n_heads=2, d_head=4, d_model=8, n_vocab=160)
    build_atlas(covector.open(model), folder, options=Options(("ov", "embed"), k=3, draws=20), workers=1)
    # Without sizes and digests, as older ones are: what is broken below is seen by what it is.
    write_manifest(folder, {**without("files")(read_manifest(folder)), "reference": "no-such-model-here"})
    return folder


@pytest.fixture(scope="module")
def fresh(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Gives a copy to break, each in a folder of its own."""
    base, numbers = tmp_path_factory.mktemp("copies"), count()
    return lambda: Path(shutil.copytree(good, base / str(next(numbers))))


def read_manifest(folder: Path) -> Manifest:
    return json.loads((folder / MANIFEST).read_text())


def write_manifest(folder: Path, values: object) -> None:
    (folder / MANIFEST).write_text(json.dumps(values))


def changed(folder: Path, name: str, column: str, values: object) -> None:
    """Put a column in place of another, or beside them."""
    table = parquet.read_table(folder / name)
    made = values if isinstance(values, pa.Array) else pa.array(values)
    at = table.schema.get_field_index(column)
    put = table.append_column(column, made) if at < 0 else table.set_column(at, column, made)
    write_table(folder, name, put)


def one_value(folder: Path, name: str, column: str, value: object, row: int = 0) -> None:
    """Another value in one row of a column, in the type of the column."""
    held = parquet.read_table(folder / name).column(column)
    values = held.to_pylist()
    values[row] = value
    changed(folder, name, column, pa.array(values, held.type))


def use(folder: Path, other: Path | None = None) -> None:
    """All that reads an atlas without its model; results are strict JSON without infinities."""
    atlas = Atlas(folder)
    compared = [] if other is None else [compare_atlases(atlas, other), compare_atlases(other, folder)]
    tables = [glance(atlas), *compared]
    for table in tables:
        json.loads(table.to_json(), parse_constant=pytest.fail)
        assert not any(np.isinf(c.numbers).any() for c in table.columns if c.is_number)
    bundle = Bundle(atlas)
    bundle.warm()
    json.dumps(bundle.part("overview"), allow_nan=False).encode()
    rows = atlas.rows(np.arange(len(atlas)))
    assert all(math.isfinite(row["sigma"]) and row["site"] for row in rows)
    assert np.isfinite(atlas.units(np.arange(len(atlas)))).all()


def refusal(folder: Path, other: Path | None = None) -> str:
    """The line that a broken atlas is refused with; empty where it is used like any other."""
    try:
        use(folder, other)
    except CovectorError as error:
        said = str(error)
        assert said
        assert "\n" not in said
        assert len(said) < MOST_LETTERS, said
        return said
    return ""


def test_the_atlas_that_is_broken_below_is_whole(good):
    assert refusal(good, good) == ""
    assert set(Atlas(good).names) == set(INDEX_RULES), "a column without a rule is not looked at"
    assert set(ALWAYS) <= set(INDEX_RULES)
    assert set(parquet.read_schema(good / SITES).names) == set(SITE_RULES)
    assert set(OPTIONS) == {field.name for field in dataclasses.fields(Options)}


def without(key: str) -> Callable[[Manifest], Manifest]:
    return lambda m: {k: v for k, v in m.items() if k != key}


def nested(levels: int) -> Any:
    return {} if not levels else {"a": nested(levels - 1)}


MANIFESTS: dict[str, tuple[Callable[[Manifest], object], str]] = {
    "a list": (lambda m: [m], "expected format 1, got list"),
    "a number": (lambda m: 3, "expected format 1, got int"),
    "newer": (lambda m: {**m, "format": 2}, "expected format 1, got 2; a newer covector made it: update this one"),
    "older": (lambda m: {**m, "format": 0}, "expected format 1, got 0; build it again"),
    "a format that equals one": (lambda m: {**m, "format": True}, "expected format 1, got True"),
    "too deep": (lambda m: {**m, "more": nested(40)}, "does not parse .'it is more than 32 levels deep"),
    "far too deep": (lambda m: json.loads("{}"), "does not parse .'it is more than 32 levels deep"),
    "an infinite number": (lambda m: {**m, "more": math.inf}, "does not parse"),
    "half a character": (lambda m: {**m, "more": "\ud800"}, "does not parse"),
    "complete in words": (lambda m: {**m, "complete": "no"}, "expected a complete atlas, this one is being built"),
    "parts as a number": (lambda m: {**m, "complete": False, "parts": 3}, "expected 'parts' to be a mapping, got 3"),
    "no meta": (without("meta"), "it has no 'meta'"),
    "empty meta": (lambda m: {**m, "meta": {}}, "expected 'meta' to name the model in a text, got None"),
    "a model that is no text": (lambda m: {**m, "meta": {**m["meta"], "model": 3}}, "name the model in a text, got 3"),
    "no frame": (lambda m: {**m, "meta": without("frame")(m["meta"])}, "'meta' to name the frame in a text"),
    "a frame with a command": (lambda m: {**m, "meta": {**m["meta"], "frame": "raw; rm x"}}, "a frame such as raw"),
    "files as a list": (lambda m: {**m, "meta": {**m["meta"], "files": [1]}}, "'files' of 'meta' to map names"),
    "no reference": (without("reference"), "it has no 'reference'"),
    "an open quote": (lambda m: {**m, "reference": "it's"}, "'reference' to be words that open a model"),
    "a reference with a command": (lambda m: {**m, "reference": "gpt2; rm x"}, "words that open a model, quoted"),
    "options as a list": (lambda m: {**m, "options": []}, "expected 'options' to be a mapping, got"),
    "an unknown option": (lambda m: {**m, "options": {**m["options"], "to": 1}}, "its options have an unknown 'to'"),
    "a rank of zero": (lambda m: {**m, "options": {**m["options"], "rank": 0}}, "the option 'rank' to be null or a w"),
    "another width": (lambda m: {**m, "d_model": 9}, "'d_model' to be the width of the vectors, 8, got 9"),
    "a width in words": (lambda m: {**m, "d_model": "8"}, "'d_model' to be the width of the vectors, 8, got '8'"),
    "other directions": (lambda m: {**m, "directions": 1}, "'directions' to be the number of vectors, "),
    "digests as numbers": (lambda m: {**m, "tensors": {"a": 1}}, "a digest in 'tensors' of 'a', got 1"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_is_broken_is_refused_on_opening(fresh, name):
    change, said = MANIFESTS[name]
    folder = fresh()
    write_manifest(folder, change(read_manifest(folder)))
    if name == "far too deep":
        (folder / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(CorruptAtlas, match=said) as told:
        Atlas(folder)
    assert len(str(told.value)) < MOST_LETTERS
    assert refusal(folder) == str(told.value)


def some_vectors(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    rows = change(np.array(Atlas(folder).vectors))
    write_vectors(folder, [rows], rows.shape)  # type: ignore[arg-type]


def with_first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(rows: np.ndarray) -> np.ndarray:
        rows[0, 0] = value
        return rows

    return change


def linked(folder: Path, name: str) -> None:
    elsewhere = folder.with_name(f"{folder.name}.{name}")
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)


def without_column(folder: Path, name: str, column: str) -> None:
    write_table(folder, name, parquet.read_table(folder / name).drop_columns([column]))


def swapped(folder: Path) -> None:
    held = parquet.read_table(folder / SITES).column("sigma").to_pylist()
    changed(folder, SITES, "sigma", [held[0][::-1], *held[1:]])


def sized(folder: Path, name: str, value: int) -> None:
    changed(folder, SITES, name, [value] * len(Atlas(folder).sites))


def doubled(folder: Path) -> None:
    table = parquet.read_table(folder / INDEX)
    columns = [*table.columns, table.column("sigma")]
    write_table(folder, INDEX, pa.Table.from_arrays(columns, names=[*table.column_names, "sigma"]))


def flipped(folder: Path, name: str) -> None:
    """Nonsense in the middle of a file, whose end is as it was."""
    content = bytearray((folder / name).read_bytes())
    middle = len(content) // 3
    content[middle : middle + 200] = bytes(range(200))
    (folder / name).write_bytes(content)


def more_rows(folder: Path, name: str) -> None:
    table = parquet.read_table(folder / name)
    write_table(folder, name, pa.concat_tables([table, table.slice(0, 1)]))


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / INDEX).unlink(), "index.parquet of a complete atlas, it is missing"),
    "a folder as index": (lambda f: ((f / INDEX).unlink(), (f / INDEX).mkdir()), "it is no plain file"),
    "a pipe as manifest": (lambda f: ((f / MANIFEST).unlink(), os.mkfifo(f / MANIFEST)), "it is no plain file"),
    "a link elsewhere": (lambda f: linked(f, INDEX), "index.parquet .* it is a link to a place outside the folder"),
    "a link as manifest": (lambda f: linked(f, MANIFEST), "it is a link to a place outside the folder"),
    "index with nonsense": (lambda f: flipped(f, INDEX), "index.parquet of a complete atlas, it(s values do| does)"),
    "one row more": (lambda f: more_rows(f, INDEX), r"expected one vector per row, index.parquet has \d+ and vec"),
    "a place twice": (lambda f: more_rows(f, SITES), "it lists the place 'embed' twice"),
    "a column twice": (doubled, "it has two columns 'sigma'"),
    "vectors of another width": (lambda f: some_vectors(f, lambda v: v[:, :5]), "'d_model' to be the width of the v"),
    "no vectors": (lambda f: write_vectors(f, [], (0, 8)), "expected one vector per row"),
    "a vector of NaN": (lambda f: some_vectors(f, with_first(np.nan)), "it holds a direction of length nan where all"),
    "an infinite vector": (lambda f: some_vectors(f, with_first(np.inf)), "it holds a direction of length inf"),
    "a long vector": (lambda f: some_vectors(f, with_first(100)), "it holds a direction of length 100"),
    **{
        f"no column {column}": (lambda f, column=column: without_column(f, INDEX, column), f"the column '{column}'")
        for column in ("site", "side", "dyad", "sigma", "p_dir", "q_dir", "label", "top", "top_cos", "bottom_id")
    },
    **{
        f"no column {column} of places": (
            lambda f, column=column: without_column(f, SITES, column), f"sites.parquet .*it lacks the column '{column}'"
        )
        for column in SITE_RULES if column != "noise"
    },
    "gains as texts": (lambda f: changed(f, INDEX, "sigma", ["x"] * len(Atlas(f))), "'sigma' to hold numbers, got st"),
    "dyads as fractions": (lambda f: changed(f, INDEX, "dyad", [0.5] * len(Atlas(f))), "whole numbers, got double"),
    "lists as texts": (lambda f: changed(f, INDEX, "top", ["x"] * len(Atlas(f))), "lists of text, got string"),
    "a negative dyad": (lambda f: one_value(f, INDEX, "dyad", -1), "'dyad' to hold whole numbers from 0 to 8, got -1"),
    "a dyad beyond its place": (lambda f: one_value(f, INDEX, "dyad", 8), "a direction .*dyad '8'. that its place"),
    "a kind of another place": (lambda f: one_value(f, INDEX, "kind", "qk"), "a direction .*'qk'.* that its place in"),
    "a place that is not listed": (lambda f: one_value(f, INDEX, "site", "L9H9.ov"), "names the place 'L9H9.ov' that"),
    "a missing place": (lambda f: one_value(f, INDEX, "site", None), "'site' to hold text, got 1 that are missing"),
    "another side": (lambda f: one_value(f, INDEX, "side", "left"), "'side' to hold read or write .*, got 'left'"),
    "a missing label": (lambda f: one_value(f, INDEX, "label", None), "'label' to hold text, got 1 that are missing"),
    "missing labels": (lambda f: one_value(f, INDEX, "top", None), "'top' to hold lists of text, got 1 that are miss"),
    "a label of none": (lambda f: one_value(f, INDEX, "top", ["a", None, "b"]), "got 1 that are missing in its lists"),
    "fewer labels": (lambda f: one_value(f, INDEX, "top", ["a"]), "its lists top, top_id, top_cos differ in length"),
    "a label's number below 0": (lambda f: one_value(f, INDEX, "top_id", [-1, 0, 1]), "'top_id' .* got -1"),
    "a cosine of NaN": (lambda f: one_value(f, INDEX, "top_cos", [math.nan] * 3), "'top_cos' to hold .*, got nan"),
    "a cosine of 9e9": (lambda f: one_value(f, INDEX, "top_cos", [9e9] * 3), "'top_cos' to hold .*, got 9e.09"),
    "a gain of NaN": (lambda f: one_value(f, INDEX, "sigma", math.nan), "'sigma' to hold numbers .*, got nan"),
    "a negative gain": (lambda f: one_value(f, INDEX, "sigma", -1.0), "'sigma' to hold numbers .*, got -1"),
    "a chance of two": (lambda f: one_value(f, INDEX, "p_dir", 2.0), "'p_dir' to hold numbers from 0 to 1, got 2"),
    "an infinite score": (lambda f: one_value(f, INDEX, "zeta", math.inf), "'zeta' to hold numbers .*, got inf"),
    "a place that is no address": (lambda f: one_value(f, SITES, "site", "<b>"), "by their addresses, got '<b>' as"),
    "a place of another layer": (lambda f: one_value(f, SITES, "layer", 3), "expected places by their addresses, got"),
    "a spectrum of NaN": (lambda f: one_value(f, SITES, "sigma", [math.nan]), "'sigma' to hold lists .*got nan"),
    "a negative spectrum": (lambda f: one_value(f, SITES, "sigma", [-2.0]), "sigma of embed to be finite .*got -2"),
    "a spectrum upside down": (swapped, "sigma of embed to be finite gains, largest first, got .* after a smaller"),
    "a spectrum too long": (lambda f: one_value(f, SITES, "sigma", [1.0] * 99), "sizes that the map embed can have"),
    "no size": (lambda f: sized(f, "n", 0), "'n' to hold whole numbers from 1 to"),
    "a huge size": (lambda f: sized(f, "m", 2**40), "'m' to hold whole numbers from 1 to 1.67772e.07, got 1.09951e"),
    "no inner size": (lambda f: one_value(f, SITES, "inner", None, 3), "sizes that the map L0H1.ov can have, got"),
    "a huge inner size": (lambda f: sized(f, "inner", 10**6), "sizes that the map L0H0.ov can have, got"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_broken_are_refused_by_name(fresh, name):
    harm, said = FILES[name]
    folder = fresh()
    harm(folder)
    with pytest.raises(CorruptAtlas, match=said):
        use(folder)
    assert refusal(folder)


@pytest.mark.parametrize("name", ["a vector of NaN", "a negative dyad", "a place that is not listed", "no column side"])
def test_a_comparison_and_a_search_refuse_it_too(fresh, good, capsys, name):
    harm, said = FILES[name]
    folder = fresh()
    harm(folder)
    with pytest.raises(CorruptAtlas, match=said):
        compare_atlases(good, folder)
    assert run(["search", str(folder), "--like", "L0H0.ov:0"]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert told.err.startswith("covector: ")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("name", ["a pipe as manifest", "a place twice", "a label of none", "no column sigma"])
def test_a_report_is_refused_in_one_line(fresh, tmp_path, capsys, name):
    folder = fresh()
    FILES[name][0](folder)
    assert run(["report", str(folder), "--out", str(tmp_path / "r.html"), "-q"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("name", ["a cosine of NaN", "a place that is not listed", "a huge size", "no column top"])
def test_the_server_answers_with_the_line_and_no_failure_of_its_own(fresh, name):
    folder = fresh()
    FILES[name][0](folder)
    jobs = Jobs()
    try:
        client = TestClient(create_app(Shown(str(folder)), jobs))
        paths = ("state", "overview", "parts/directions", "parts/labels", "parts/spectra", "directions/0")
        answers = [client.get(f"/api/{path}") for path in paths]
    finally:
        jobs.close()
    assert {a.status_code for a in answers} <= {200, 400}
    lines = [a.json()["detail"] for a in answers if a.status_code == 400]
    assert lines
    assert all(str(folder) in line and len(line) < MOST_LETTERS for line in lines)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@FUZZ
@given(data=st.data())
def test_any_manifest_is_read_or_refused(fresh, data):
    folder = fresh()
    values = read_manifest(folder)
    at: Any = values
    key = data.draw(st.sampled_from(sorted(at)))
    while isinstance(at[key], dict) and at[key] and data.draw(st.booleans()):
        at = at[key]
        key = data.draw(st.sampled_from(sorted(at)))
    if data.draw(st.integers(0, 4)) == 0:
        del at[key]
    else:
        at[key] = data.draw(JSON)
    write_manifest(folder, values)
    refusal(folder)
    shutil.rmtree(folder)


ODD = {
    "number": (0.0, -0.0, 1.0, -1.0, 1e-320, 1e40, -1e308, math.nan, math.inf, -math.inf, None),
    "integer": (0, 1, -1, 7, 8, 255, 2**16, 2**31 - 1, -(2**31), None),
    "text": ("", "L0H0.ov", "L0H9.ov", "embed", "qk", "write", "token_in", "\x1b[31m", "a" * 5000, None),
    "flag": (True, False, None),
}
TYPES = (pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.string(), pa.large_string(), pa.binary(),
         pa.bool_(), pa.list_(pa.string()), pa.large_list(pa.float32()), pa.null(), pa.date32())  # fmt: skip


@FUZZ
@given(data=st.data())
def test_any_column_is_read_or_refused(fresh, good, data):
    folder = fresh()
    name, rules = data.draw(st.sampled_from([(INDEX, INDEX_RULES), (SITES, SITE_RULES)]))
    column = data.draw(st.sampled_from(sorted(rules)))
    held = parquet.read_table(folder / name).column(column)
    rule = rules[column]
    if data.draw(st.integers(0, 3)) == 0:
        kind = data.draw(st.sampled_from(TYPES))
        changed(folder, name, column, pa.nulls(len(held), kind))
    else:
        values = held.to_pylist()
        odd = st.sampled_from(ODD[rule.kind])
        for row in data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3)):
            values[row] = data.draw(st.none() | st.lists(odd, max_size=12)) if rule.is_list else data.draw(odd)
        changed(folder, name, column, pa.array(values, held.type))
    refusal(folder, good if data.draw(st.integers(0, 29)) == 0 else None)
    shutil.rmtree(folder)


@FUZZ
@given(name=st.sampled_from([MANIFEST, INDEX, SITES, VECTORS]), cut=st.floats(0, 1), flips=st.lists(st.floats(0, 1)))
def test_any_bytes_are_read_or_refused(fresh, name, cut, flips):
    folder = fresh()
    content = bytearray((folder / name).read_bytes())
    for share in flips:
        content[int(share * (len(content) - 1))] ^= 0x55
    (folder / name).write_bytes(content if cut > 0.5 else content[: int(2 * cut * len(content))])
    refusal(folder)
    shutil.rmtree(folder)
