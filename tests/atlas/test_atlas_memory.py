"""--memory: refused before anything is written, and an upper bound of what a build takes; each tensor is read once."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import covector
from covector.arch.adapter import AdaptedWeights, adapt
from covector.arch.config import Config
from covector.arch.family import families
from covector.arch.words import declared_shape, parse
from covector.atlas.budget import KEPT_BYTES, fitting_workers, needed_bytes, needed_terms, table_bytes
from covector.atlas.decompose import together
from covector.atlas.plan import Options, tensors_of, units
from covector.building import build_atlas
from covector.cli.main import run
from covector.errors import BadRequest
from covector.io.tensors import ArrayTensors, open_folder
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.model.weights import axis_sizes
from random_checkpoints import random_model, random_tensors

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
    """And no empty one: at most 2.5 times the peak (of all routes of a decomposition the largest is counted)."""
    model, options = covector.open(moderate[dtype], frame=frame), Options(k=5, draws=1000, scores=scores)
    plan = units(model, options)
    told = needed_bytes(model, plan, options, workers, apart=engine == "processes")
    peak = measured(tmp_path, moderate[dtype], frame, engine, workers, options)
    print(f"{dtype} {frame} {engine} {workers}: {peak / 2**20:.0f} of {told / 2**20:.0f} MiB")
    assert peak <= told <= 2.5 * peak


UNITS = """
import ctypes, gc, sys, threading, time
import covector
from covector.atlas.budget import KEPT_BYTES, judging_bytes, table_bytes, unit_bytes
from covector.atlas.build import _preload, compute
from covector.atlas.plan import Options, units

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.001)

model, options = covector.open(sys.argv[1]), eval(sys.argv[2])
plan = units(model, options)
watcher = threading.Thread(target=watch)
watcher.start()
peak = before = anonymous()
_preload(model, plan, options)
print("preload", peak - before, KEPT_BYTES + table_bytes(model, plan) + sum(judging_bytes(model, plan, options)))
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
print("tables", anonymous() - before, KEPT_BYTES + table_bytes(model, plan) + judging_bytes(model, plan, options)[0])
for unit in plan:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    peak = before = anonymous()
    compute(model, unit, options)
    print(unit.name, peak - before, unit_bytes(model, unit, options))
done = True
"""
# A head of 128 of 1024 dimensions, an MLP whose squares d x d are 8 MB each.
WIDE = {"n_embd": 1024, "n_layer": 1, "n_head": 8, "n_inner": None, "vocab_size": 20_000, "n_positions": 64}


def with_gains(rng: np.random.Generator, rows: int, columns: int, gains: np.ndarray) -> np.ndarray:
    """A matrix of these gains, in random directions."""
    left, right = (np.linalg.qr(rng.standard_normal((n, len(gains))))[0] for n in (rows, columns))
    return (left * gains) @ right.T


@pytest.fixture(scope="module")
def steep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-J's layout, nothing fused. W_in has few strong dyads and goes by QR, W_out many; half precision."""
    folder, rng = tmp_path_factory.mktemp("steep"), np.random.default_rng(0)
    tensors = random_tensors(families()["gptj"], **WIDE)
    name = {key: next(n for n in tensors if n.endswith(f"{key}.weight")) for key in ("fc_in", "fc_out")}
    few = np.concatenate([np.ones(8), np.geomspace(5e-3, 2e-3, 1016)])
    tensors[name["fc_in"]] = with_gains(rng, 4096, 1024, few)
    tensors[name["fc_out"]] = with_gains(rng, 1024, 4096, np.geomspace(1, 0.1, 1024))
    save_file({n: np.ascontiguousarray(a, dtype=np.float16) for n, a in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**families()["gptj"].tiny(), **WIDE}))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, and asks glibc to give back memory")
@pytest.mark.parametrize("scores", [False, True])
def test_what_a_unit_is_said_to_take_is_what_it_takes(tmp_path, steep, scores):
    """Never less, and at most half as much again, the 64 MiB for small things not counted; a Gram takes less than QR.

    Arrays from 1 MiB on are mapped one by one, as larger models have theirs from 32 MiB on whatever the setting: they
    go back to the system when they are freed, and holes between them count for nothing.
    """
    words = [sys.executable, "-c", UNITS, str(steep), repr(Options(rank=16, draws=250, scores=scores))]
    mapped = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    told = subprocess.run(words, check=True, capture_output=True, text=True, env=mapped).stdout
    print(told)
    found = {name: (int(took), int(said)) for name, took, said in (line.split() for line in told.splitlines())}
    assert set(found) == {
        "preload", "tables", "null.token_in", "null.token_out",
        "L0.ov", "L0.qk", "L0.mlp.in", "L0.mlp.out", "embed", "unembed"
    }  # fmt: skip
    for name, (took, said) in found.items():
        assert took <= said, name
        assert said - KEPT_BYTES <= (1.5 if name != "L0.mlp.out" else 2.5) * took, name


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, and asks glibc to give back memory")
def test_a_head_as_wide_as_the_model_takes_no_more_than_is_said(tmp_path):
    """Its r x r work is as large as its vectors; 1280 is not a power of two, so that inverses are padded the most."""
    sizes = WIDE | {"n_embd": 1280, "n_head": 1, "n_inner": 64, "vocab_size": 500}
    tensors, rng = random_tensors(families()["gptj"], **sizes), np.random.default_rng(0)
    for name in [n for n in tensors if n.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "out_proj")]:
        tensors[name] = with_gains(rng, 1280, 1280, np.geomspace(1, 0.7, 1280))
    arrays = {n: np.ascontiguousarray(a, dtype=np.float32) for n, a in tensors.items()}
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**families()["gptj"].tiny(), **sizes}))
    words = [sys.executable, "-c", UNITS, str(tmp_path), repr(Options(("ov", "qk"), rank=16, draws=250, scores=False))]
    mapped = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    told = subprocess.run(words, check=True, capture_output=True, text=True, env=mapped).stdout
    print(told)
    found = {name: (int(took), int(said)) for name, took, said in (line.split() for line in told.splitlines())}
    for name in ("L0.ov", "L0.qk"):
        took, said = found[name]
        assert took <= said - KEPT_BYTES, name


def shaped(family: str, dtype: str = "float16", **config: int | None) -> Model:
    """A model of these sizes without its values: every tensor is one number, repeated."""
    tensors = families()[family].tensors(values := Config({**families()[family].tiny(), **config}))
    spec, arrays = families()[family].spec(values), {}
    for pattern, words in tensors.items():
        layout = parse(words, default_role="")
        for layer in range(spec.n_layers) if "{i}" in pattern else (None,):
            sizes = axis_sizes(spec, layer, layout.roles)
            name = pattern.split(" | ")[0].replace("{i}", str(layer))
            arrays[name] = np.broadcast_to(np.ones((), dtype), declared_shape(layout, sizes))
    weights = adapt(spec, tensors, ArrayTensors(arrays), prefixes=families()[family].prefixes)
    return Model("shapes", weights, weights, Frame())


@pytest.mark.slow
@pytest.mark.parametrize("scores", [False, True])
def test_a_model_of_six_billion_fits_in_four_gib(scores):
    """GPT-J-6B, in half precision, whatever its spectra are, lists judged or not; a table more would be too much."""
    sizes = {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50_400, "n_positions": 2048}
    model, options = shaped("gptj", **sizes, n_inner=None), Options(rank=32, scores=scores)
    plan = units(model, options)
    assert len(plan) == 2 + 2 + 28 * 4
    table, matrix = 4 * 50_400 * 4096, 4 * 16_384 * 4096
    assert 4 * 2**30 - 2 * table < needed_bytes(model, plan, options, 1) <= 4 * 2**30
    wide = shaped("gptj", "float32", **sizes, n_inner=None)  # mapped, not widened: its tables cost nothing
    spared = needed_bytes(model, plan, options, 1) - needed_bytes(wide, units(wide, options), options, 1)
    assert spared == 2 * table + matrix


def names(model: Model) -> list[str]:
    return [unit.name for unit in units(model, OPTIONS) if not unit.basis]


@pytest.mark.parametrize(
    ("family", "of_a_layer"),
    [
        ("gptj", ["ov", "qk", "mlp.in", "mlp.out"]),
        ("llama", ["ov", "qk", "mlp.in", "mlp.gate", "mlp.out"]),
        ("gpt2", ["ov+L0.qk", "mlp.in", "mlp.out"]),  # q|k|v in one tensor
        ("phi3", ["ov+L0.qk", "mlp.in+L0.mlp.gate", "mlp.out"]),  # gate|in as well
    ],
)
def test_what_is_stored_together_is_one_unit_and_nothing_else_is(family, of_a_layer):
    model = random_model(family)
    assert sorted(n for n in names(model) if n.startswith("L0.")) == sorted(f"L0.{n}" for n in of_a_layer)
    assert isinstance(model.stored, AdaptedWeights)
    read = [{model.stored.place(t).tensor for t in unit.tensors} for unit in units(model, OPTIONS)]
    assert all(not one & other for i, one in enumerate(read) for other in read[:i])


def test_a_frame_that_reads_three_matrices_for_each_keeps_them_together():
    """conjecture2022 takes a mean over W_Q, W_K and W_V off each, also where they are stored apart."""
    plain = random_model("gptj")
    framed = plain.framed("conjecture2022")
    assert "L0.ov" in names(plain)
    assert "L0.ov+L0.qk" in names(framed)
    only = next(u for u in units(framed, Options(("ov",))) if u.name == "L0.ov")
    assert set(only.tensors) == {"L0.W_V", "L0.W_O", "L0.W_Q", "L0.W_K"}
    assert {"q_proj", "k_proj"} <= {name.split(".")[-2] for name in tensors_of(framed, only)}


def test_a_bias_that_a_map_takes_over_makes_it_stale():
    """Behind a gate the read bias is a constant of the output: `+bias` adds it to that of W_out."""
    model = random_model("gptj").framed("folded+bias")
    out = next(unit for unit in units(model, OPTIONS) if unit.name == "L0.mlp.out")
    assert any("fc_in.bias" in name for name in tensors_of(model, out))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gptj", "gpt2"])
def test_heads_a_few_at_a_time_give_the_atlas_of_all_at_once(tmp_path, monkeypatch, family):
    """Vectors, lists and cosines to the bit; what is summed over blocks (p_svd) to rounding in float32."""
    from covector.atlas import decompose as module

    tables = []
    for name, rows in (("all", 10**6), ("few", 1)):
        monkeypatch.setattr(module, "ROWS", rows)
        assert build_atlas(random_model(family), tmp_path / name, options=OPTIONS, workers=1) is not None
        vectors = (tmp_path / name / "vectors.safetensors").read_bytes()
        tables.append((pd.read_parquet(tmp_path / name / "index.parquet"), vectors))
    (one, vectors), (other, again) = tables
    assert vectors == again
    summed = [
        "p_svd",
        "q_svd",
        "p_coherence_svd",
        "z_coherence_svd",
        "p_coherence_pooled",
        "q_coherence_svd",
        "svd_specific",
    ]
    pd.testing.assert_frame_equal(one.drop(columns=summed), other.drop(columns=summed), check_exact=True)
    pd.testing.assert_frame_equal(one[summed], other[summed], rtol=1e-5)


def test_a_run_of_heads_is_of_one_kind_and_as_long_as_their_size_says():
    model = shaped("gptj", n_embd=1024, n_layer=1, n_head=8, n_inner=None)
    for unit in units(model, OPTIONS):
        runs = list(together(model, unit))
        assert [site for _, sites in runs for site in sites] == list(unit.sites)
        assert [first for first, _ in runs] == [sum(len(s) for _, s in runs[:i]) for i in range(len(runs))]
        assert all(len({site.kind for site in sites}) == 1 for _, sites in runs)
    of_heads = next(unit for unit in units(model, OPTIONS) if unit.name == "L0.ov")
    assert [len(sites) for _, sites in together(model, of_heads)] == [8]
    wider = shaped("gptj", n_embd=2048, n_layer=1, n_head=8, n_inner=None)
    of_heads = next(unit for unit in units(wider, OPTIONS) if unit.name == "L0.ov")
    assert [len(sites) for _, sites in together(wider, of_heads)] == [4, 4]


def test_too_little_memory_is_refused_before_anything_is_written(tmp_path, moderate, capsys):
    out = tmp_path / "a"
    for engine in ("threads", "processes"):
        words = ["atlas", str(moderate["float32"]), "--out", str(out), "--memory", "100MiB", "--engine", engine]
        assert run(words) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"covector: --memory 100 MiB is too little for {moderate['float32']}: expected at least")
        assert "programs " in said
        assert "units at work " in said
        assert said.endswith("; allow more\n"), "nothing else makes it fit into so little"
        assert not out.exists()


def test_what_a_refusal_advises_fits(tmp_path, moderate):
    """Its terms add up to what it asks for; --rank or --no-scores is named where it would do, and then it does."""
    model = covector.open(moderate["float32"])
    plan = units(model, OPTIONS)
    assert sum(needed_terms(model, plan, OPTIONS, 1).values()) == needed_bytes(model, plan, OPTIONS, 1)
    lighter = replace(OPTIONS, scores=False)
    memory = needed_bytes(model, plan, lighter, 1)
    assert memory < needed_bytes(model, plan, OPTIONS, 1)
    with pytest.raises(BadRequest, match=r"; allow more or .*--no-scores \(\d+\)$") as told:
        fitting_workers(model, plan, OPTIONS, 1, memory)
    assert ("--rank 32" in str(told.value)) == (needed_bytes(model, plan, replace(OPTIONS, rank=32), 1) <= memory)
    assert fitting_workers(model, plan, lighter, 1, memory) == 1
    with pytest.raises(BadRequest, match=r"PyTorch 300\); allow more or --device cpu"):
        fitting_workers(model, plan, OPTIONS, 1, needed_bytes(model, plan, OPTIONS, 1), beside=300 * 2**20)


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


@pytest.mark.slow
def test_arrays_of_one_unit_are_not_kept_for_the_next(tmp_path, monkeypatch):
    """Memory is that of the units under way: what a unit held is gone when the next begins."""
    import gc
    import weakref

    from covector.atlas import decompose as module

    alive, made = [], []
    held = module._held

    def watched(model, unit):
        gc.collect()
        alive.append(sum(reference() is not None for reference in made))
        view = held(model, unit)
        made.append(weakref.ref(view.stored))
        return view

    monkeypatch.setattr(module, "_held", watched)
    build_atlas(saved(tmp_path / "m"), tmp_path / "a", options=OPTIONS, workers=1)
    assert len(alive) > 4
    assert max(alive) <= 1
