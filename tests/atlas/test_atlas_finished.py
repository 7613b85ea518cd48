"""A finished atlas: by whomever it was finished, of which checkpoint, and whether its files are what was built."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import covector
from covector.arch.family import families
from covector.atlas import build as builder
from covector.atlas.build import Shard
from covector.atlas.plan import Options
from covector.atlases import model_of, open_atlas, trace
from covector.building import build_atlas
from covector.changes import changed
from covector.cli.main import run
from covector.errors import BadRank, BadRequest, CorruptAtlas
from covector.io import atlas_parts, safetensors_file
from covector.io.atlas_check import DEFAULTS
from covector.io.unchanged import ChangedSince
from random_checkpoints import random_tensors

OPTIONS = Options(k=4, draws=40, scores=False)


def saved(folder: Path, seed: int = 0, **config: object) -> Path:
    """A tiny GPT-2 of two layers on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"n_layer": 2, **config}
    tensors = {n: a.astype(np.float32) for n, a in random_tensors(families()["gpt2"], seed, **config).items()}
    save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**families()["gpt2"].tiny(), **config}))
    return folder


def retrained(folder: Path, *parts: str) -> None:
    """Other values in the tensors whose names hold one of `parts`; the header stays."""
    tensors = load_file(folder / "model.safetensors")
    hit = [name for name in tensors if any(part in name for part in parts)]
    assert hit
    save_file(tensors | {name: tensors[name] + np.float32(0.5) for name in hit}, folder / "model.safetensors")


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "a"
    assert build_atlas(model, folder, options=OPTIONS, workers=1) is not None
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.mark.parametrize("moment", ["before the file", "before its bytes", "before its name"])
def test_a_builder_overtaken_while_it_writes_a_part_opens_what_the_other_made(
    model, whole, tmp_path, monkeypatch, moment
):
    """The other one assembles and clears the parts away in the middle of a write."""
    real, folder, calls = atlas_parts.written, tmp_path / "a", []

    @contextlib.contextmanager
    def written(path: Path) -> Iterator[Path]:
        calls.append(path)
        ours = len(calls) == 4

        def overtake() -> None:
            if ours:
                calls.extend([path] * 100)
                assert build_atlas(model, folder, options=OPTIONS, workers=1) is not None

        if moment == "before the file":
            overtake()
        with real(path) as beside:
            if moment == "before its bytes":
                overtake()
            yield beside
            if moment == "before its name":
                overtake()

    monkeypatch.setattr(atlas_parts, "written", written)
    assert build_atlas(model, folder, options=OPTIONS, workers=1) is not None
    assert len(calls) > 100
    assert content(folder) == content(whole)


def test_a_failure_that_nobody_has_made_good_is_told(model, tmp_path, monkeypatch):
    def full(*_):
        raise BadRequest("the disk is full")

    monkeypatch.setattr(builder, "write_part", full)
    with pytest.raises(BadRequest, match="the disk is full"):
        build_atlas(model, tmp_path / "a", options=OPTIONS, workers=1)


@pytest.mark.parametrize("frame", ["raw", "folded"])
def test_a_tensor_that_was_trained_since_is_refused_when_it_is_read(tmp_path, frame):
    path = saved(tmp_path / "m")
    build_atlas(path, tmp_path / "a", options=OPTIONS, frame=frame, workers=1)
    atlas = open_atlas(tmp_path / "a")
    want = np.array(model_of(atlas).map("L1H0.ov").dense())
    retrained(path, "h.0.attn")
    opened = model_of(atlas)  # the same header
    np.testing.assert_array_equal(opened.map("L1H0.ov").dense(), want)
    with pytest.raises(
        ChangedSince, match=r"tensor '.*h\.0\.attn.*' of .* has other values now; build the atlas again"
    ):
        opened.map("L0H1.ov")
    retrained(path, "wte")
    with pytest.raises(BadRequest, match=r"'.*wte.weight' .* has other values now"):
        _ = model_of(atlas).bases["token_in"].vectors


def test_a_search_that_needs_no_model_goes_without_one_that_was_trained_since(tmp_path):
    path = saved(tmp_path / "m")
    build_atlas(path, tmp_path / "a", options=OPTIONS, workers=1)
    retrained(path, "h.", "wte")
    vector = np.random.default_rng(0).standard_normal(open_atlas(tmp_path / "a").manifest["d_model"])
    found = trace(tmp_path / "a", vector)
    path.rename(tmp_path / "gone")
    assert trace(tmp_path / "a", vector).rows == found.rows


def test_each_tensor_is_hashed_once_in_a_process(model, whole, monkeypatch):
    asked: list[str] = []
    real = safetensors_file.SafetensorsFile.sha256

    def counted(self: safetensors_file.SafetensorsFile, name: str) -> str:
        asked.append(name)
        return real(self, name)

    atlas = open_atlas(whole)
    _ = model_of(atlas).bases["token_in"].vectors
    monkeypatch.setattr(safetensors_file.SafetensorsFile, "sha256", counted)
    _ = model_of(atlas).bases["token_in"].vectors
    assert asked == []
    _ = model_of(atlas).map("L1H1.qk").dense()
    first = len(asked)
    _ = model_of(atlas).map("L1H1.qk").dense()
    assert len(asked) == first <= 2


def test_both_sides_of_a_change_are_compared(tmp_path):
    old, new = saved(tmp_path / "old"), saved(tmp_path / "new", seed=1)
    build_atlas(changed(covector.open(old), new), tmp_path / "a", options=OPTIONS, workers=1)
    atlas = open_atlas(tmp_path / "a")
    model_of(atlas).map("L0H0.ov")
    retrained(new, "h.0.attn")
    with pytest.raises(ChangedSince, match=r"h\.0\.attn"):
        model_of(atlas).map("L0H0.ov").dense()
    retrained(old, "wte")
    with pytest.raises(ChangedSince, match="wte"):
        _ = model_of(atlas).bases["token_in"].vectors


def swapped(folder: Path) -> None:
    rows = load_file(folder / "vectors.safetensors")["vectors"]
    content = (folder / "vectors.safetensors").read_bytes()
    size, at = rows[0].nbytes, len(content) - rows.nbytes
    (folder / "vectors.safetensors").write_bytes(
        content[:at] + content[at + size : at + 2 * size] + content[at : at + size] + content[at + 2 * size :]
    )


def flipped(folder: Path, name: str, at: int) -> None:
    content = bytearray((folder / name).read_bytes())
    content[at] ^= 1
    (folder / name).write_bytes(content)


HARMS = {
    "two rows exchanged": (swapped, "vectors.safetensors"),
    "a bit of a vector": (lambda f: flipped(f, "vectors.safetensors", -3), "vectors.safetensors"),
    "a bit of the index": (lambda f: flipped(f, "index.parquet", 2000), "index.parquet"),
    "a bit of the sites": (lambda f: flipped(f, "sites.parquet", 200), "sites.parquet"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_finished_atlas_that_was_damaged_is_refused_when_it_is_built_again(model, copy, capsys, harm):
    change, name = HARMS[harm]
    change(copy)
    words = ["atlas", str(model), "--out", str(copy), "-k", "4", "--draws", "40", "--no-scores", "--workers", "1"]
    assert run(words) == 2
    said = capsys.readouterr().err
    assert f"expected {name} of a complete atlas, its content is not what was built" in said
    assert "copy it again, or remove the folder and build it anew" in said
    assert said.count("\n") == 1


def test_a_finished_atlas_says_that_its_files_were_compared(model, copy, capsys):
    words = ["atlas", str(model), "--out", str(copy), "-k", "4", "--draws", "40", "--no-scores", "--workers", "1"]
    assert run(words) == 0
    assert "complete already, its files are what was built" in capsys.readouterr().out
    manifest = json.loads((copy / "manifest.json").read_text())
    for name, told in manifest.pop("files").items():
        assert told["bytes"] == (copy / name).stat().st_size
        assert told["sha256"] == hashlib.sha256((copy / name).read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert run(words) == 0
    assert "complete already, it has no digests of its files" in capsys.readouterr().out


def test_a_file_of_another_size_is_refused_on_opening(copy):
    with (copy / "index.parquet").open("r+b") as file:
        whole = file.read()
        file.seek(0)
        file.write(whole[:4] + b"\x00" * 5 + whole[4:])
    with pytest.raises(CorruptAtlas, match=r"index.parquet of a complete atlas, it has [\d,]+ bytes where [\d,]+ were"):
        open_atlas(copy)


@pytest.mark.parametrize(
    "files", [3, [], {"index.parquet": 3}, {"../x": {"bytes": 1, "sha256": ""}}, {"index.parquet": {"bytes": "1"}}]
)
def test_digests_that_are_none_are_refused(copy, files):
    manifest = json.loads((copy / "manifest.json").read_text()) | {"files": files}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptAtlas, match=r"in 'files' of|'files' to"):
        open_atlas(copy)


def test_an_atlas_of_a_folder_finds_its_checkpoint_from_anywhere(tmp_path, monkeypatch):
    saved(tmp_path / "my model")
    monkeypatch.chdir(tmp_path)
    build_atlas("my model", "a", options=OPTIONS, workers=1)
    monkeypatch.chdir("/")
    assert model_of(open_atlas(tmp_path / "a")).spec.n_layers == 2
    assert str(tmp_path / "my model") in open_atlas(tmp_path / "a").manifest["reference"]


def test_names_of_bundled_models_and_of_the_hub_stay_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "toy").mkdir()
    monkeypatch.chdir(tmp_path)
    build_atlas("toy", "a", options=Options(("ov",), k=3, draws=20, scores=False), workers=1)
    assert open_atlas("a").manifest["reference"] == "toy"


@pytest.mark.slow
@pytest.mark.parametrize("complete", [True, False])
def test_the_same_checkpoint_in_another_spelling_or_place_goes_on(tmp_path, monkeypatch, complete):
    saved(tmp_path / "m")
    shutil.copytree(tmp_path / "m", tmp_path / "mounted" / "m2")
    monkeypatch.chdir(tmp_path)
    for spelled in ("./m", str(tmp_path / "m"), "mounted/m2"):
        shutil.rmtree("a", ignore_errors=True)
        shard = Shard(1, 1) if complete else Shard(1, 2)
        build_atlas("m", "a", options=OPTIONS, workers=1, shard=shard)
        kept = set(content(tmp_path / "a"))
        computed: list[str] = []
        again = build_atlas(spelled, "a", options=OPTIONS, workers=1, progress=lambda *t, to=computed: to.append(t[3]))
        assert again is not None
        assert not {f"parts/{name}.safetensors" for name in computed} & kept


def test_another_checkpoint_of_the_same_shape_does_not_take_the_folder_over(tmp_path):
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two", seed=1)
    build_atlas(one, tmp_path / "a", options=OPTIONS, workers=1, shard=Shard(1, 2))
    before = content(tmp_path / "a")
    with pytest.raises(BadRequest, match=r"holds an atlas of another model, .*one'; this one is .*two': other tens"):
        build_atlas(two, tmp_path / "a", options=OPTIONS, workers=1)
    assert content(tmp_path / "a") == before


def test_another_model_is_told_first_and_which(model, copy):
    with pytest.raises(BadRequest) as told:
        build_atlas("toy", copy, options=Options(("ov",), draws=100), frame="raw", workers=1)
    assert str(told.value).startswith(f"{copy} holds an atlas of another model, '{model}' (family 'gpt2'")
    assert "this one is 'toy'" in str(told.value)
    assert "choose another --out, or remove that folder" in str(told.value)


def test_options_are_refused_before_anything_is_written(tmp_path, capsys):
    for words, said in (
        (["--seed", "-1"], "expected a seed of 0 or more"),
        (["--draws", "1"], "at least 20 draws, got 1"),
    ):
        assert run(["atlas", "toy", "--out", str(tmp_path / "a"), *words]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "a").exists()
    with pytest.raises(BadRank):
        Options(rank=0)


def test_an_option_that_an_atlas_lacks_is_what_it_is_by_default(model, copy):
    assert Options().to_dict() == DEFAULTS
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["options"]["rotations"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert open_atlas(copy).manifest["options"]["rotations"] == 1
    assert build_atlas(model, copy, options=OPTIONS, workers=1) is not None


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("words", [["atlas", "toy", "--out", "FOLDER"], ["search", "FOLDER", "'a'"]])
def test_a_folder_that_may_not_be_read_is_told_by_the_system(copy, capsys, words):
    copy.chmod(0)
    try:
        assert run([str(copy) if word == "FOLDER" else word for word in words]) == 2
    finally:
        copy.chmod(0o755)
    assert "Permission denied" in capsys.readouterr().err


def test_a_system_that_refuses_to_look_is_told_in_one_line(copy, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", str(copy))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", refused)
        with pytest.raises(BadRequest, match="the system says 'Permission denied'; choose another --out"):
            build_atlas("toy", copy, workers=1)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "lstat", refused)
        with pytest.raises(CorruptAtlas, match="the system says 'Permission denied'"):
            open_atlas(copy)
