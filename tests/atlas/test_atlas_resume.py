"""Same request, same bytes: whoever computes the parts, in whatever order, however often it is interrupted."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import covector
from covector.arch.family import families
from covector.arch.toy import random_model as toy
from covector.atlas.build import Shard
from covector.atlas.parts import MAKES
from covector.atlas.plan import Options, units
from covector.atlases import open_atlas
from covector.building import build_atlas
from covector.cli.main import run
from covector.engine import Dask
from covector.errors import BadRequest, CorruptAtlas
from covector.io.atlas import write_vectors
from covector.io.atlas_parts import read_part
from random_checkpoints import random_tensors

OPTIONS = Options(k=4, draws=40)


def saved(folder: Path, seed: int = 0) -> Path:
    """A tiny GPT-2 on disk, float32."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: a.astype(np.float32) for n, a in random_tensors(families()["gpt2"], seed, n_layer=2).items()}
    save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**families()["gpt2"].tiny(), "n_layer": 2}))
    return folder


def content(folder: Path) -> dict[str, str]:
    """Every file of a folder, hidden ones too, and the digest of its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted build by one thread."""
    folder = tmp_path_factory.mktemp("reference") / "a"
    assert build_atlas(model, folder, options=OPTIONS, workers=1) is not None
    return folder


@pytest.fixture(scope="module")
def third(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas with a third of its parts."""
    return begun(model, tmp_path_factory.mktemp("third") / "a")


@pytest.fixture(scope="module")
def reference(whole: Path) -> dict[str, str]:
    """The bytes of an uninterrupted build by one thread."""
    found = content(whole)
    assert set(found) == {"manifest.json", "vectors.safetensors", "index.parquet", "sites.parquet"}
    return found


def plan(model: Path) -> list[str]:
    return [unit.name for unit in units(covector.open(model), OPTIONS)]


def test_parts_that_an_older_version_left_are_computed_again(model, reference, tmp_path, monkeypatch):
    """They hold fewer arrays than this one makes."""
    monkeypatch.setattr("covector.atlas.parts.MAKES", MAKES - 1)
    assert build_atlas(model, tmp_path / "a", options=OPTIONS, workers=1, shard=Shard(1, 3)) is None
    monkeypatch.undo()
    assert sorted(goes_on(model, tmp_path / "a")) == sorted(plan(model))
    assert content(tmp_path / "a") == reference


@pytest.mark.identity("SV-37")
def test_two_threads_write_what_one_writes(model, reference, tmp_path):
    build_atlas(model, tmp_path / "a", options=OPTIONS, workers=2)
    assert content(tmp_path / "a") == reference


@pytest.mark.slow
def test_processes_write_what_a_thread_writes(model, reference, tmp_path):
    build_atlas(model, tmp_path / "a", options=OPTIONS, on="processes", workers=2)
    assert content(tmp_path / "a") == reference


@pytest.fixture(scope="module")
def cluster() -> Iterator[Dask]:
    """Two workers of a Dask cluster in this process, reached over loopback."""
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp"
        )
        client = distributed.Client(cluster)
        yield Dask(client)
        client.close()
        cluster.close()


@pytest.mark.filterwarnings("ignore")
def test_the_workers_of_a_dask_cluster_write_what_a_thread_writes(model, reference, tmp_path, cluster):
    build_atlas(model, tmp_path / "a", options=OPTIONS, on=cluster)
    assert content(tmp_path / "a") == reference


@pytest.mark.identity("SV-37")
@pytest.mark.slow
def test_another_recipe_or_weight_gives_another_artefact_and_the_same_ones_the_same(model, reference, tmp_path):
    """In the manifest always; in the numbers too for one weight, of which a single bit is another."""
    for i, other in enumerate([{"k": 5}, {"draws": 41}, {"seed": 1}, {"rank": 1}, {}]):
        build_atlas(model, tmp_path / str(i), options=Options(**({"k": 4, "draws": 40} | other)), workers=1)
        found = content(tmp_path / str(i))
        assert (found == reference) == (not other)
        assert (found["manifest.json"] == reference["manifest.json"]) == (not other)
    changed = shutil.copytree(model, tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in tensors if name.endswith("h.1.mlp.c_proj.weight"))
    moved = tensors[name].copy()
    largest = np.unravel_index(np.abs(moved).argmax(), moved.shape)
    moved[largest] = np.nextafter(moved[largest], np.float32(np.inf))
    save_file(tensors | {name: moved}, changed / "model.safetensors")
    build_atlas(changed, tmp_path / "bit", options=OPTIONS, workers=1)
    found = content(tmp_path / "bit")
    assert found["manifest.json"] != reference["manifest.json"]
    assert found["sites.parquet"] != reference["sites.parquet"]


def test_a_model_in_memory_cannot_travel_to_processes(tmp_path):
    with pytest.raises(BadRequest, match="expected a model by name or folder for processes and clusters"):
        build_atlas(toy(), tmp_path / "a", on="processes", workers=1)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_shards_in_any_order_in_one_folder_give_the_same_bytes(model, reference, tmp_path, order):
    done = [build_atlas(model, tmp_path / "a", options=OPTIONS, workers=1, shard=Shard(i, 3)) for i in order]
    assert done[0] is None
    assert done[1] is None
    assert done[2] is not None
    assert content(tmp_path / "a") == reference


@pytest.mark.parametrize("manifest", [True, False])
def test_parts_of_shards_made_apart_are_copied_together_and_finished(model, reference, tmp_path, manifest):
    """Into one of their folders, or into one that holds nothing else; under another name of the checkpoint too."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(model, copy)
    for i, where in ((1, model), (2, copy), (3, model)):
        assert build_atlas(where, tmp_path / f"s{i}", options=OPTIONS, workers=1, shard=Shard(i, 3)) is None
    folder = tmp_path / "s1" if manifest else tmp_path / "new"
    for i in (2, 3) if manifest else (1, 2, 3):
        shutil.copytree(tmp_path / f"s{i}/parts", folder / "parts", dirs_exist_ok=True)
    computed = []
    build_atlas(model, folder, options=OPTIONS, workers=1, progress=lambda *told: computed.append(told[3]))
    assert computed == [""]
    assert content(folder) == reference


def test_every_unit_is_in_one_shard_and_shares_outside_are_refused(model):
    whole = units(covector.open(model), OPTIONS)
    for of in (1, 2, 3, 40):
        shares = [unit for i in range(1, of + 1) for unit in Shard(i, of).mine(whole)]
        assert sorted(u.name for u in shares) == sorted(u.name for u in whole)
    for wrong in ((0, 3), (4, 3)):
        with pytest.raises(BadRequest, match="expected a shard such as 3/8"):
            Shard(*wrong)


def begun(model: Path, folder: Path) -> Path:
    """An atlas with a third of its parts."""
    assert build_atlas(model, folder, options=OPTIONS, workers=1, shard=Shard(1, 3)) is None
    return folder


def goes_on(model: Path, folder: Path) -> list[str]:
    """Finish it; the parts that were computed."""
    computed: list[str] = []
    build_atlas(model, folder, options=OPTIONS, workers=1, progress=lambda *told: computed.append(told[3]))
    return computed[1:]


def test_a_rerun_computes_what_is_missing_and_no_more(model, third, reference, tmp_path):
    folder = shutil.copytree(third, tmp_path / "a")
    assert sorted(goes_on(model, folder)) == sorted(set(plan(model)) - set(plan(model)[::3]))
    assert content(folder) == reference


@pytest.mark.parametrize("damage", ["cut short", "flipped", "empty", "garbage", "other digest"])
def test_a_damaged_part_is_computed_again(model, third, reference, tmp_path, damage):
    folder = shutil.copytree(third, tmp_path / "a")
    path = sorted((folder / "parts").iterdir())[0]
    whole = path.read_bytes()
    middle = len(whole) - 40
    made = {
        "cut short": whole[:-7],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
        "garbage": b"\x00" * 200,
        "other digest": whole.replace(b"sha256", b"sha255", 1),
    }
    path.write_bytes(made[damage])
    assert path.stem in goes_on(model, folder)
    assert content(folder) == reference


def test_files_that_a_killed_write_left_are_cleared_away(model, third, reference, tmp_path):
    folder = shutil.copytree(third, tmp_path / "a")
    for stray in (".manifest.json.0a1b2c3d.part", ".index.parquet.00ff00ff.part", "parts/.L0.mlp.safetensors.1.part"):
        (folder / stray).write_bytes(b"half")
    goes_on(model, folder)
    assert content(folder) == reference


def test_a_beginning_that_was_killed_before_its_manifest_goes_on(model, reference, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/.manifest.json.0a1b2c3d.part").write_text("{")
    goes_on(model, tmp_path / "a")
    assert content(tmp_path / "a") == reference


def test_parts_left_in_a_complete_atlas_are_cleared_away(model, whole, reference, tmp_path):
    shutil.copytree(whole, tmp_path / "a")
    (tmp_path / "a/parts").mkdir()
    (tmp_path / "a/parts/L0.mlp.safetensors").write_bytes(b"late")
    assert goes_on(model, tmp_path / "a") == []
    assert content(tmp_path / "a") == reference


@pytest.mark.slow
@pytest.mark.parametrize("options", [Options(k=4, draws=40, rank=1), Options(k=4, draws=40, seed=1)])
def test_parts_of_another_request_are_not_used(model, third, reference, tmp_path, options):
    """Copied between folders they look alike: same names, right digests."""
    assert build_atlas(model, tmp_path / "other", options=options, workers=1, shard=Shard(2, 3)) is None
    folder = shutil.copytree(third, tmp_path / "a")
    for path in (tmp_path / "other/parts").iterdir():
        shutil.copy(path, folder / "parts")
    assert sorted(goes_on(model, folder)) == sorted(set(plan(model)) - set(plan(model)[::3]))
    assert content(folder) == reference


@pytest.mark.identity("SV-37")
@pytest.mark.slow
def test_parts_of_a_checkpoint_that_was_trained_since_are_not_used(tmp_path):
    """Same names, same shapes, same header: only the values tell."""
    model = saved(tmp_path / "m", seed=0)
    header = covector.open(model).meta["files"]
    folder = begun(model, tmp_path / "a")
    saved(model, seed=1)
    assert covector.open(model).meta["files"] == header
    assert sorted(goes_on(model, folder)) == sorted(plan(model))
    build_atlas(model, tmp_path / "b", options=OPTIONS, workers=1)
    assert content(folder) == content(tmp_path / "b")


def test_a_change_of_the_vocabulary_alone_makes_every_score_stale(tmp_path):
    model = saved(tmp_path / "m")
    folder = begun(model, tmp_path / "a")
    tensors = load_file(model / "model.safetensors")
    table = next(name for name in tensors if name.endswith("wte.weight"))
    save_file(tensors | {table: tensors[table][::-1].copy()}, model / "model.safetensors")
    assert sorted(goes_on(model, folder)) == sorted(plan(model))


@pytest.mark.identity("SV-37")
def test_the_atlas_of_a_checkpoint_that_was_trained_since_is_refused(tmp_path):
    model = saved(tmp_path / "m", seed=0)
    build_atlas(model, tmp_path / "a", options=OPTIONS, workers=1)
    before = content(tmp_path / "a")
    saved(model, seed=1)
    with pytest.raises(BadRequest, match=r"whose tensor '.*weight' had other values"):
        build_atlas(model, tmp_path / "a", options=OPTIONS, workers=1)
    assert content(tmp_path / "a") == before


def test_a_complete_atlas_is_opened_at_once_and_left_alone(model, whole, reference, tmp_path):
    shutil.copytree(whole, tmp_path / "a")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    told = []
    again = build_atlas(model, tmp_path / "a", options=OPTIONS, workers=1, progress=lambda *t: told.append(t))
    assert again is not None
    assert told == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == times
    assert content(tmp_path / "a") == reference


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"options": Options(k=5, draws=40)}, r"holds an atlas with k = 4, expected 5"),
        ({"options": Options(k=4, draws=40, rank=3)}, r"holds an atlas with rank = None, expected 3"),
        ({"options": Options(("ov",), k=4, draws=40)}, r"holds an atlas with kinds = \['ov', 'qk', 'mlp', 'embed'\]"),
        ({"options": OPTIONS, "frame": "folded"}, r"holds an atlas with frame = 'raw', expected 'folded'"),
    ],
)
@pytest.mark.identity("SV-37")
@pytest.mark.parametrize("complete", [True, False])
def test_another_request_in_the_same_folder_is_refused_by_name(model, whole, third, tmp_path, changed, said, complete):
    folder = shutil.copytree(whole if complete else third, tmp_path / "a")
    before = content(folder)
    with pytest.raises(BadRequest, match=said):
        build_atlas(model, folder, workers=1, **changed)
    assert content(folder) == before


def test_another_model_in_the_same_folder_is_refused(model, third, tmp_path):
    folder = shutil.copytree(third, tmp_path / "a")
    with pytest.raises(BadRequest, match="holds an atlas of another model"):
        build_atlas("toy", folder, options=OPTIONS, workers=1)


def test_a_folder_or_file_of_somebody_else_is_refused_and_left_alone(model, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/diary.txt").write_text("mine")
    with pytest.raises(BadRequest, match="expected a new or empty folder"):
        build_atlas(model, tmp_path / "notes", options=OPTIONS)
    assert content(tmp_path / "notes") == {"diary.txt": hashlib.sha256(b"mine").hexdigest()}
    with pytest.raises(BadRequest, match="expected a folder, found a file"):
        build_atlas(model, tmp_path / "notes/diary.txt", options=OPTIONS)
    (tmp_path / "empty").mkdir()
    assert build_atlas(model, tmp_path / "empty", options=OPTIONS, workers=1) is not None


def test_an_incomplete_atlas_does_not_open(model, third, tmp_path):
    folder = shutil.copytree(third, tmp_path / "a")
    n = len(plan(model))
    with pytest.raises(CorruptAtlas, match=rf"being built \({-(-n // 3)} of {n} parts\); run the same covector atlas"):
        open_atlas(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(CorruptAtlas, match=r"expected an atlas \(a folder with manifest.json\)"):
        open_atlas(tmp_path / "none")


def test_a_damaged_part_of_another_shard_is_named(model, third, tmp_path):
    folder = shutil.copytree(third, tmp_path / "a")
    damaged = folder / "parts" / f"{plan(model)[0]}.safetensors"
    damaged.write_bytes(b"rubbish")
    assert build_atlas(model, folder, options=OPTIONS, workers=1, shard=Shard(2, 3)) is None
    with pytest.raises(CorruptAtlas, match=r"expected part null.* missing, damaged or of another one"):
        build_atlas(model, folder, options=OPTIONS, workers=1, shard=Shard(3, 3))
    assert build_atlas(model, folder, options=OPTIONS, workers=1) is not None


@pytest.mark.slow
def test_two_builders_at_once_in_one_folder_do_no_harm(model, reference, tmp_path):
    """Whole builds, shards, in one new folder, several times: all end well, the bytes are those of one."""
    for attempt, shares in enumerate([((1, 1), (1, 1)), ((1, 2), (2, 2)), ((1, 1), (2, 2))]):
        folder, failures, built = tmp_path / str(attempt), [], []

        def one(share: tuple[int, int], folder: Path = folder, failures: list = failures, built: list = built) -> None:
            try:
                built.append(build_atlas(model, folder, options=OPTIONS, workers=1, shard=Shard(*share)))
            except Exception as error:
                failures.append(error)

        both = [threading.Thread(target=one, args=(share,)) for share in shares]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert failures == []
        assert any(built)
        assert content(folder) == reference


def test_who_comes_second_to_the_end_finds_the_atlas(model, third, reference, tmp_path, monkeypatch):
    """The other process assembles, says so and clears the parts away while this one is in the middle of it."""
    from covector.atlas import build as module

    folder = shutil.copytree(third, tmp_path / "a")
    assemble, nested = module.assemble, []

    def overtaken(*arguments, **named):
        if not nested:
            nested.append(True)
            assert build_atlas(model, folder, options=OPTIONS, workers=1) is not None
        return assemble(*arguments, **named)

    monkeypatch.setattr(module, "assemble", overtaken)
    assert build_atlas(model, folder, options=OPTIONS, workers=1) is not None
    assert content(folder) == reference


def test_a_failing_assembly_is_told_and_goes_on_later(model, reference, tmp_path, monkeypatch):
    from covector.atlas import assemble as module

    def full(*_):
        raise BadRequest("the disk is full")

    monkeypatch.setattr(module, "write_vectors", full)
    with pytest.raises(BadRequest, match="the disk is full"):
        build_atlas(model, tmp_path / "a", options=OPTIONS, workers=1)
    monkeypatch.setattr(module, "write_vectors", write_vectors)
    assert goes_on(model, tmp_path / "a") == []
    assert content(tmp_path / "a") == reference


COMMAND = [sys.executable, "-m", "covector", "atlas"]
WORDS = ["-k", "4", "--draws", "40"]


def started(model: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    words = [*COMMAND, str(model), "--out", str(folder), *WORDS, *more]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_parts(folder: Path, at_least: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while len(list((folder / "parts").glob("[!.]*"))) < at_least and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_at_any_moment_the_rest_is_finished_later_with_the_same_bytes(model, reference, tmp_path):
    chance = random.Random(0)
    for parts in (0, 1, 4):
        process = started(model, tmp_path / "a", "--workers", "1")
        wait_for_parts(tmp_path / "a", parts, process)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.communicate()
    assert run(["atlas", str(model), "--out", str(tmp_path / "a"), *WORDS, "--workers", "1", "-q"]) == 0
    assert content(tmp_path / "a") == reference


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
def test_shards_killed_at_any_moment_are_finished_later_in_any_order_with_the_same_bytes(
    model, reference, tmp_path, together
):
    """One after the other, or all three at once: each is killed after a few of its parts, then run to its end."""
    chance, folder, order, killed = random.Random(3 + together), tmp_path / "a", [1, 2, 3], 0
    for _ in range(2):
        chance.shuffle(order)
        for group in [order] if together else [[i] for i in order]:
            there = len(list((folder / "parts").glob("[!.]*")))
            running = [started(model, folder, "--workers", "1", "--shard", f"{i}/3") for i in group]
            wait_for_parts(folder, there + chance.randint(1, 2), running[0])
            time.sleep(chance.uniform(0, 0.02))
            for process in running:
                process.kill()
            for process in running:
                process.communicate()
                killed += process.returncode != 0
            assert not (folder / "index.parquet").exists() or content(folder) == reference
    assert killed
    chance.shuffle(order)
    for i in order:
        assert (
            run(["atlas", str(model), "--out", str(folder), *WORDS, "--workers", "1", "--shard", f"{i}/3", "-q"]) == 0
        )
    assert content(folder) == reference


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_ctrl_c_says_that_it_goes_on_and_the_same_command_does(tmp_path, engine):
    model = saved(tmp_path / "m")
    process = started(model, tmp_path / "a", "--workers", "1", "--engine", engine)
    wait_for_parts(tmp_path / "a", 1, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    if process.returncode != 0:  # it may have been done already
        assert process.returncode == 130
        assert "covector: interrupted; the same command goes on where it stopped" in said
        assert "Traceback" not in said
    assert run(["atlas", str(model), "--out", str(tmp_path / "a"), *WORDS, "--workers", "1", "-q"]) == 0
    assert open_atlas(tmp_path / "a")


def test_numbers_of_the_manifest_are_those_of_the_files(model, reference, tmp_path):
    build_atlas(model, tmp_path / "a", options=OPTIONS, workers=1, shard=Shard(1, 2))
    parts = {name: part.sha256 for name in plan(model) if (part := read_part(tmp_path / "a", name))}
    atlas = build_atlas(model, tmp_path / "a", options=OPTIONS, workers=1)
    assert atlas is not None
    assert parts.items() <= atlas.manifest["parts"].items()
    assert atlas.manifest["directions"] == len(atlas)
    stored = load_file(model / "model.safetensors")
    for name, digest in atlas.manifest["tensors"].items():
        assert hashlib.sha256(stored[name].tobytes()).hexdigest() == digest
