"""--memory: refused before anything is written, and an upper bound of what a build takes; each tensor is read once."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import covector
from covector.arch.adapter import AdaptedWeights, adapt
from covector.arch.config import Config
from covector.arch.family import families
from covector.atlas.budget import fitting_workers, needed_bytes, table_bytes
from covector.atlas.plan import Options, units
from covector.building import build_atlas
from covector.cli.main import run
from covector.errors import BadRequest
from covector.io.tensors import open_folder
from covector.model.frames import Frame
from covector.model.opened import Model
from random_checkpoints import random_tensors

OPTIONS = Options(k=5, draws=100)
SIZES = {"n_embd": 256, "n_layer": 1, "n_head": 4, "n_inner": None, "vocab_size": 20_000, "n_positions": 64}


def saved(folder: Path, dtype: str = "float32", **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(families()["gpt2"], **config)
    save_file({n: np.ascontiguousarray(a, dtype=dtype) for n, a in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**families()["gpt2"].tiny(), **config}))
    return folder


@pytest.fixture(scope="module")
def moderate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """20,000 tokens in 256 dimensions: a table of 20 MB, blocks of 64 MB."""
    return {dtype: saved(tmp_path_factory.mktemp(dtype), dtype, **SIZES) for dtype in ("float32", "float16")}


PROGRAM = """
import sys, threading, time
from pathlib import Path
import covector
from covector.atlas.plan import Options
from covector.building import build_atlas

def anonymous(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0

def family():
    tasks = Path("/proc/self/task").iterdir()
    pids = " ".join((task / "children").read_text() for task in tasks).split()
    return ["self", *pids]

peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, sum(map(anonymous, family())))
        time.sleep(0.002)

if __name__ == "__main__":
    model, out, frame, engine, workers, options = sys.argv[1:]
    watcher = threading.Thread(target=watch)
    watcher.start()
    build_atlas(model, out, frame=frame, options=eval(options), on=engine, workers=int(workers))
    done = True
    watcher.join()
    print(peak)
"""


def measured(tmp_path: Path, model: Path, frame: str, engine: str, workers: int, options: Options) -> int:
    """Peak of the anonymous resident memory, summed over the process and those it started, sampled every 2 ms."""
    (tmp_path / "program.py").write_text(PROGRAM)
    words = [sys.executable, tmp_path / "program.py", model, tmp_path / "a", frame, engine, str(workers), repr(options)]
    return int(subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("dtype", "frame", "engine", "workers", "scores"),
    [
        ("float16", "raw", "threads", 2, False),
        ("float16", "gauge_fixed", "threads", 1, True),
        ("float32", "raw", "processes", 2, False),
    ],
)
def test_the_estimate_is_an_upper_bound_of_what_a_build_takes(
    tmp_path, moderate, dtype, frame, engine, workers, scores
):
    """And no empty one: at most four times the peak (blocks and LAPACK's work arrays are counted at their largest)."""
    model, options = covector.open(moderate[dtype], frame=frame), Options(k=5, draws=1000, scores=scores)
    plan = units(model, options)
    told = needed_bytes(model, plan, options, workers, apart=engine == "processes")
    peak = measured(tmp_path, moderate[dtype], frame, engine, workers, options)
    print(f"{dtype} {frame} {engine} {workers}: {peak / 2**20:.0f} of {told / 2**20:.0f} MiB")
    assert peak <= told <= 4 * peak


def test_too_little_memory_is_refused_before_anything_is_written(tmp_path, moderate, capsys):
    out = tmp_path / "a"
    for engine in ("threads", "processes"):
        words = ["atlas", str(moderate["float32"]), "--out", str(out), "--memory", "100MiB", "--engine", engine]
        assert run(words) == 2
        said = capsys.readouterr().err
        assert said.startswith(
            f"covector: --memory 0.10 GiB is too little for {moderate['float32']}: expected at least"
        )
        assert "allow more, or lower --rank" in said
        assert not out.exists()


def test_the_memory_asked_for_is_enough(tmp_path):
    """What the refusal says is what is then accepted."""
    model = covector.open(saved(tmp_path / "m"))
    plan = units(model, OPTIONS)
    least = needed_bytes(model, plan, OPTIONS, 1)
    with pytest.raises(BadRequest, match="is too little"):
        build_atlas(model, tmp_path / "a", options=OPTIONS, workers=2, memory=least - 1)
    assert build_atlas(model, tmp_path / "a", options=OPTIONS, workers=2, memory=least) is not None


def test_as_many_workers_as_fit_are_used(moderate):
    model = covector.open(moderate["float32"])
    plan = units(model, OPTIONS)
    for apart in (False, True):
        needs = [needed_bytes(model, plan, OPTIONS, n, apart=apart) for n in range(1, 9)]
        assert needs == sorted(needs)
        for n, need in enumerate(needs, 1):
            assert fitting_workers(model, plan, OPTIONS, 8, need, apart=apart) == n
        assert fitting_workers(model, plan, OPTIONS, 3, 2**50, apart=apart) == 3


def test_memory_is_for_processes_that_the_command_starts(tmp_path):
    class Cluster:
        workers, shares_memory = 1, True

        def run(self, function, tasks):
            return iter(())

    with pytest.raises(BadRequest, match="give its workers their limits where they are started"):
        build_atlas(covector.open("toy"), tmp_path / "a", on=Cluster(), memory=2**40)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("text", ["much", "4 apples", "-1GiB", "1e9"])
def test_sizes_that_are_none_are_refused(tmp_path, text, capsys):
    assert run(["atlas", "demo-lm", "--out", str(tmp_path / "a"), "--memory", text]) == 2
    assert "expected a size such as 4GiB or 500MiB" in capsys.readouterr().err


def test_a_rewritten_or_widened_vocabulary_counts_and_a_mapped_one_does_not(moderate):
    raw = {name: covector.open(folder) for name, folder in moderate.items()}
    table = 4 * 20_000 * 256
    plans = {name: units(model, OPTIONS) for name, model in raw.items()}
    of_lengths = table_bytes(raw["float32"], plans["float32"])
    assert of_lengths < 0.2 * table
    assert table_bytes(raw["float16"], plans["float16"]) == table + of_lengths  # tied: widened once
    assert raw["float16"].bases["token_in"].vectors is raw["float16"].bases["token_out"].vectors
    folded = covector.open(moderate["float32"], frame="folded")
    assert table_bytes(folded, units(folded, OPTIONS)) > 2 * table


class Counted:
    """A source that notes what is read, and in which order."""

    def __init__(self, of) -> None:
        self.of, self.where, self.headers, self.read_names = of, of.where, of.headers, []

    def __getattr__(self, name):
        return getattr(self.of, name)

    def read(self, name):
        self.read_names.append(name)
        return self.of.read(name)


@pytest.mark.parametrize("frame", ["raw", "gauge_fixed"])
def test_each_stored_tensor_is_read_once_and_in_the_order_of_the_file(tmp_path, frame):
    """A fused q|k|v too. Only a table that is a basis as well is read a second time, when it is decomposed itself."""
    folder = saved(tmp_path / "m")
    family, config = families()["gpt2"], Config(families()["gpt2"].tiny())
    source = Counted(open_folder(folder))
    weights = adapt(family.spec(config), family.tensors(config), source, prefixes=family.prefixes)
    assert isinstance(weights, AdaptedWeights)
    model = Model("counted", weights, weights, Frame())
    model = model if frame == "raw" else model.framed(frame)
    source.read_names.clear()
    build_atlas(model, tmp_path / "a", options=Options(k=5, draws=20, scores=False), workers=1)
    matrices = [name for name in source.read_names if name.endswith(".weight") and "ln" not in name]
    tables = {name: times for name, times in Counter(matrices).items() if name.startswith(("wte", "transformer.wte"))}
    # A framed W_U is made of W_E again, and centred bases of the plain ones.
    assert 1 <= sum(tables.values()) <= (2 if frame == "raw" else 6)
    assert {name: times for name, times in Counter(matrices).items() if times > 1 and name not in tables} == {}
    blocks = [source.position(name) for name in matrices if ".h." in f".{name}"]
    firsts = [min(source.position(n) for n in source.names() if f"h.{i}.{part}." in n and n.endswith("weight"))
              for i in range(3) for part in ("attn", "mlp")]  # fmt: skip
    begun = [at for at in blocks if at in firsts]
    assert begun == sorted(begun)


def test_arrays_of_one_unit_are_not_kept_for_the_next(tmp_path, monkeypatch):
    """Memory is that of the units under way: what a unit held is gone when the next begins."""
    import gc
    import weakref

    from covector.atlas import decompose as module

    alive, made = [], []
    held = module._held

    def watched(model):
        gc.collect()
        alive.append(sum(reference() is not None for reference in made))
        view = held(model)
        made.append(weakref.ref(view.stored))
        return view

    monkeypatch.setattr(module, "_held", watched)
    build_atlas(saved(tmp_path / "m"), tmp_path / "a", options=OPTIONS, workers=1)
    assert len(alive) > 4
    assert max(alive) <= 1
