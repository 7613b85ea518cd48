"""Claim: the atlas of a GPT-J-6B-shaped checkpoint (d_model 4096, 16 heads of 256, d_mlp 16,384, 50,400 tokens,
untied, float16 shards) is built within 4 GiB of anonymous memory.

The checkpoint is random with falling spectra: every factor's gains fall geometrically by κ = 20 (products by about
100), the same numbers in all layers. 32 dyads per site are kept, token lists are not judged (`--no-scores`: judging
holds four more copies of the vocabulary). Memory does not depend on the number of layers, and every layer takes as
long as the others, so one layer is the default (10 minutes); `--layers 28` makes all of the model and takes 12 GB of
disk.

Peak anonymous memory is RssAnon summed over the process and those it starts, sampled from /proc twenty times a second.
Prints the peak beside the limit and beside what the program said it would need, seconds per layer, and the part of
them that the bare matrix products of the projection take (measured after the run, one thread per worker as in it).
Exits with 1 when the peak exceeds 4 GiB or what was said.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

import covector
from covector.atlas.budget import fitting_workers, needed_bytes
from covector.atlas.plan import Options, units

D, HEADS, D_MLP, VOCABULARY, CONTEXT = 4096, 16, 16384, 50400, 2048
KAPPA, RANK, DRAWS, LIMIT_GIB = 20.0, 32, 2000, 4.0


def graded(rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    """A matrix n × m with gains falling from 1 to 1/κ, in random directions of the short side."""
    short = min(n, m)
    rows = np.linalg.qr(rng.standard_normal((short, short), dtype=np.float32))[0]
    long = rng.standard_normal((max(n, m), short), dtype=np.float32) / np.sqrt(max(n, m), dtype=np.float32)
    made = (long * np.geomspace(1, 1 / KAPPA, short, dtype=np.float32)) @ rows
    return np.ascontiguousarray(made if n >= m else made.T).astype(np.float16)


def checkpoint(folder: Path, layers: int) -> None:
    """Shards of four layers each, linear weights out × in as GPT-J stores them."""
    rng = np.random.default_rng(0)
    square = {f"attn.{n}.weight": graded(rng, D, D) for n in ("q_proj", "k_proj", "v_proj", "out_proj")}
    block = square | {"mlp.fc_in.weight": graded(rng, D_MLP, D), "mlp.fc_out.weight": graded(rng, D, D_MLP)}
    block |= {"mlp.fc_in.bias": np.zeros(D_MLP, np.float16), "mlp.fc_out.bias": np.zeros(D, np.float16)}
    block |= {"ln_1.weight": np.ones(D, np.float16), "ln_1.bias": np.zeros(D, np.float16)}
    table = (0.02 * rng.standard_normal((VOCABULARY, D), dtype=np.float32)).astype(np.float16)
    ends = {"transformer.wte.weight": table, "lm_head.weight": table[::-1].copy()}
    ends |= {"lm_head.bias": np.zeros(VOCABULARY, np.float16)}
    ends |= {"transformer.ln_f.weight": np.ones(D, np.float16), "transformer.ln_f.bias": np.zeros(D, np.float16)}
    shards = [ends]
    for first in range(0, layers, 4):
        some = range(first, min(first + 4, layers))
        shards.append({f"transformer.h.{i}.{name}": value for i in some for name, value in block.items()})
    index = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / name)
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = {"model_type": "gptj", "vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": D, "n_layer": layers}
    (folder / "config.json").write_text(json.dumps(config | {"n_head": HEADS, "rotary_dim": 64, "n_inner": None}))


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process and of those it started; 0 for one that has ended."""
    try:
        told = Path(f"/proc/{pid}/status").read_text().splitlines()
        children = " ".join((task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return 0
    own = sum(int(line.split()[1]) * 1024 for line in told if line.startswith("RssAnon"))
    return own + sum(anonymous(int(child)) for child in children.split())


def watched(words: list[str], parts: Path) -> tuple[int, float, dict[str, float]]:
    """(peak bytes, seconds) of a command, and when each of its parts was there, in seconds."""
    start, peak, there = time.perf_counter(), 0, dict[str, float]()
    process = subprocess.Popen(words)
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        for path in parts.glob("[!.]*.safetensors"):
            there.setdefault(path.stem, time.perf_counter() - start)
        time.sleep(0.05)
    if process.wait() != 0:
        raise SystemExit(f"covector atlas failed with {process.returncode}")
    return peak, time.perf_counter() - start, there


def seconds_per_layer(there: dict[str, float], layers: int) -> float:
    """From the last part before the first layer's to the last layer's: null draws and embeddings stand in front."""
    of_layers = [at for name, at in there.items() if name.startswith("L")]
    before = [at for name, at in there.items() if not name.startswith("L") and at < min(of_layers)]
    return (max(of_layers) - max(before, default=0.0)) / layers


def product_seconds(rows: int) -> float:
    """Of `rows` directions times the vocabulary, by one thread: the median of three blocks."""
    rng = np.random.default_rng(1)
    table, block = (rng.standard_normal((n, D), dtype=np.float32) for n in (VOCABULARY, 512))
    out, took = np.empty((512, VOCABULARY), np.float32), []
    with threadpool_limits(1):
        for _ in range(3):
            start = time.perf_counter()
            np.matmul(block, table.T, out=out)
            took.append(time.perf_counter() - start)
    return sorted(took)[1] * rows / 512


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=1)
    layers = parser.parse_args().layers
    with tempfile.TemporaryDirectory() as name:
        folder, limit = Path(name), int(LIMIT_GIB * 2**30)
        checkpoint(folder, layers)
        model, options = covector.open(folder), Options(rank=RANK, draws=DRAWS, scores=False)
        plan = units(model, options)
        workers = fitting_workers(model, plan, options, 2, limit)
        said = needed_bytes(model, plan, options, workers)
        words = [sys.executable, "-m", "covector", "atlas", str(folder), "--out", str(folder / "j.atlas"), "-q"]
        words += ["--rank", str(RANK), "--memory", f"{LIMIT_GIB}GiB", "--no-scores", "--draws", str(DRAWS)]
        peak, seconds, there = watched([*words, "--workers", str(workers)], folder / "j.atlas" / "parts")
        size = sum(f.stat().st_size for f in (folder / "j.atlas").iterdir()) / 2**20
    layer = seconds_per_layer(there, layers)
    share = product_seconds(4 * D + 2 * RANK) / workers / layer  # both sides of all OV and QK, and the MLP
    print(
        f"{platform.machine()}; {layers} layers, d_model {D}, float16, κ = {KAPPA:g} per factor, rank {RANK}, "
        f"no scores, {workers} workers: {seconds:.0f} s, {layer:.0f} per layer ({share:.0%} of it the bare "
        f"products of the projection), atlas {size:.0f} MiB"
    )
    print(
        f"peak anonymous memory {peak / 2**30:.2f} GiB, {peak / limit:.2f} of the limit of {LIMIT_GIB:g} GiB (at most "
        f"1), {peak / said:.2f} of the {said / 2**30:.2f} GiB it was said to need (at most 1)"
    )
    return int(peak > min(limit, said))


if __name__ == "__main__":
    sys.exit(main())
