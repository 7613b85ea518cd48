"""An atlas is plain files: other programs read them, ours maps them, and damage is told in one line."""

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file, save_file

import covector
from covector.arch.toy import random_model as toy
from covector.atlas.plan import Options
from covector.building import build_atlas
from covector.errors import CorruptAtlas
from covector.io.atlas import Atlas, write_table, write_vectors

OPTIONS = Options(k=3, draws=20, scores=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas") / "a"
    assert build_atlas(covector.open(toy()), folder, options=OPTIONS, workers=1) is not None
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def same(one: object, other: object) -> bool:
    """Equal values; lists of any library alike, missing ones too."""
    if isinstance(one, list | np.ndarray):
        return len(one) == len(other) and all(map(same, one, other))  # type: ignore[arg-type]
    if one is None or one != one:
        return other is None or other != other
    return one == other


@pytest.mark.parametrize("name", ["index.parquet", "sites.parquet"])
def test_pandas_duckdb_and_polars_read_the_same_table(folder, name):
    ours = parquet.read_table(folder / name).to_pydict()
    frame = pd.read_parquet(folder / name)
    columns = polars.read_parquet(folder / name)
    asked = duckdb.sql(f"select * from '{folder / name}'")
    rows = asked.fetchall()
    assert list(frame.columns) == columns.columns == asked.columns == list(ours)
    assert len(frame) == len(columns) == len(rows)
    for i, column in enumerate(ours):
        assert same(ours[column], list(frame[column])), column
        assert same(ours[column], columns[column].to_list()), column
        assert same(ours[column], [row[i] for row in rows]), column


def test_duckdb_answers_a_question_about_the_whole_model(folder):
    found = duckdb.sql(f"select kind, count(*) n from '{folder}/index.parquet' group by kind order by kind").fetchall()
    counted = pd.read_parquet(folder / "index.parquet").kind.value_counts()
    assert dict(found) == dict(counted)


def test_the_safetensors_library_reads_the_vectors(folder):
    vectors = load_file(folder / "vectors.safetensors")
    atlas = Atlas(folder)
    assert list(vectors) == ["vectors"]
    assert vectors["vectors"].dtype == np.float16
    assert vectors["vectors"].shape == (len(pd.read_parquet(folder / "index.parquet")), 16)
    np.testing.assert_array_equal(vectors["vectors"], atlas.vectors)


def test_vectors_are_mapped_and_cannot_be_written(folder):
    vectors = Atlas(folder).vectors
    owner = vectors
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert not owner.flags.owndata
    assert not vectors.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        vectors[0] = 0


def test_opening_a_large_atlas_reads_no_vector(tmp_path, folder):
    """A sparse file of 64 GiB opens at once: its bytes are looked at where a row is asked for, and there only."""
    large, rows = tmp_path / "large", 2**21
    shutil.copytree(folder, large)
    write_table(large, "index.parquet", pa.table({"sigma": np.zeros(rows, np.float32)}))
    header = json.dumps(
        {"vectors": {"dtype": "F16", "shape": [rows, 2**14], "data_offsets": [0, rows * 2**15]}}
    ).encode()
    header += b" " * (-len(header) % 8)
    with (large / "vectors.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * 2**15)
    manifest = json.loads((large / "manifest.json").read_text()) | {"d_model": 2**14, "directions": rows, "files": {}}
    (large / "manifest.json").write_text(json.dumps(manifest))
    atlas = Atlas(large)
    assert len(atlas) == rows
    assert not atlas.vectors[-1].any()
    (large / "vectors.safetensors").unlink()


def test_vectors_are_streamed_into_a_file_that_the_library_reads(tmp_path):
    blocks = [np.random.default_rng(i).standard_normal((i, 5)).astype(np.float16) for i in (3, 1, 4)]
    write_vectors(tmp_path, iter(blocks), (8, 5))
    np.testing.assert_array_equal(load_file(tmp_path / "vectors.safetensors")["vectors"], np.concatenate(blocks))


def test_columns_are_read_once_and_rows_in_the_order_asked_for(folder):
    atlas, frame = Atlas(folder), pd.read_parquet(folder / "index.parquet")
    assert atlas.column("sigma") is atlas.column("sigma")
    np.testing.assert_array_equal(atlas.column("site"), frame.site)
    assert set(atlas.names) == set(frame.columns)
    which = np.array([7, 0, 7])
    assert [row["dyad"] for row in atlas.rows(which, ["dyad"])] == list(frame.dyad[which])
    assert [site["site"] for site in atlas.sites] == list(pd.read_parquet(folder / "sites.parquet").site)


def test_a_manifest_says_what_it_was_made_from(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["options"]["draws"] == 20
    assert manifest["meta"]["frame"] == "raw"
    assert manifest["directions"] == len(Atlas(folder))
    assert {len(digest) for digest in (*manifest["parts"].values(), *manifest["tensors"].values())} == {64}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


DAMAGES = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "expected an atlas"),
    "manifest cut short": (lambda f: cut(f / "manifest.json"), "does not parse"),
    "manifest is a list": (lambda f: (f / "manifest.json").write_text("[]"), "expected format 1, got list"),
    "manifest of no format": (lambda f: (f / "manifest.json").write_text("{}"), "expected format 1, got none"),
    "later format": (lambda f: (f / "manifest.json").write_text('{"format": 2}'), "expected format 1, got 2"),
    "manifest not text": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), "does not parse"),
    "no index": (lambda f: (f / "index.parquet").unlink(), "expected index.parquet of a complete atlas, it is missing"),
    "no sites": (lambda f: (f / "sites.parquet").unlink(), "expected sites.parquet .* it is missing"),
    "no vectors": (lambda f: (f / "vectors.safetensors").unlink(), "expected vectors.safetensors .* it is missing"),
    "index cut short": (lambda f: cut(f / "index.parquet"), "index.parquet .*no Parquet file, or cut short"),
    "vectors cut short": (lambda f: cut(f / "vectors.safetensors"), "no safetensors file, or cut short"),
    "other tensor": (
        lambda f: save_file({"x": np.zeros((3, 3), np.float16)}, f / "vectors.safetensors"),
        "holds no such float16 rows",
    ),
    "float32 vectors": (
        lambda f: save_file({"vectors": np.zeros((3, 3), np.float32)}, f / "vectors.safetensors"),
        "holds no such float16 rows",
    ),
    "fewer vectors": (
        lambda f: save_file({"vectors": np.zeros((3, 16), np.float16)}, f / "vectors.safetensors"),
        r"expected one vector per row, index.parquet has \d+ and vectors.safetensors 3",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_atlas_is_told_in_one_line(copy, damage):
    harm, said = DAMAGES[damage]
    harm(copy)
    with pytest.raises(CorruptAtlas, match=said) as told:
        Atlas(copy)
    assert "\n" not in str(told.value)


def test_a_damaged_atlas_is_not_taken_for_one_that_can_be_gone_on_with(copy):
    (copy / "index.parquet").unlink()
    with pytest.raises(CorruptAtlas, match="it is missing"):
        build_atlas(covector.open(toy()), copy, options=OPTIONS, workers=1)
