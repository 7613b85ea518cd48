"""Claim: `covector svd` answers in under a second on a GPT-2-medium-sized checkpoint, and needs little more memory than
its vocabulary: process start to printed table, two cores, page cache warm, modules compiled, as after a first run.

Floor: reading W_E once (206 MB) and one product of 10 directions with it, for both sides, in NumPy in this process.
Weights are random with GPT-2's shapes (no real checkpoint is needed for time and memory).
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

D, LAYERS, HEADS, VOCABULARY, CONTEXT = 1024, 24, 16, 50257, 1024
LIMIT_SECONDS = 1.0
TARGET_SECONDS = 0.5  # what is aimed at; the claim does not fail for it
# Above the stored table that is read (206 MB) the process may hold: interpreter and libraries (about 60 MB), unit
# vectors (206 MB), one block of scores (64 MB), and slack for the allocator.
LIMIT_MIB = 500
RUNS = 9
# The high-water mark of this process alone: ru_maxrss would count what its parent held when it was forked.
PEAK = (
    "import sys; from covector.cli.main import run; run(sys.argv[1:]);"
    "print(*[l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')], file=sys.stderr)"
)


def checkpoint(folder: Path) -> None:
    """A float32 checkpoint of GPT-2 medium's shapes: 1.4 GB, one layer's random numbers used for all."""
    rng = np.random.default_rng(0)
    block = {
        "ln_1.weight": np.ones(D), "ln_1.bias": np.zeros(D), "ln_2.weight": np.ones(D), "ln_2.bias": np.zeros(D),
        "attn.c_attn.weight": 0.02 * rng.standard_normal((D, 3 * D)), "attn.c_attn.bias": np.zeros(3 * D),
        "attn.c_proj.weight": 0.02 * rng.standard_normal((D, D)), "attn.c_proj.bias": np.zeros(D),
        "mlp.c_fc.weight": 0.02 * rng.standard_normal((D, 4 * D)), "mlp.c_fc.bias": np.zeros(4 * D),
        "mlp.c_proj.weight": 0.02 * rng.standard_normal((4 * D, D)), "mlp.c_proj.bias": np.zeros(D),
    }  # fmt: skip
    block = {k: v.astype(np.float32) for k, v in block.items()}
    tensors = {f"h.{i}.{name}": value for i in range(LAYERS) for name, value in block.items()}
    tensors["wte.weight"] = (0.02 * rng.standard_normal((VOCABULARY, D))).astype(np.float32)
    tensors["wpe.weight"] = (0.01 * rng.standard_normal((CONTEXT, D))).astype(np.float32)
    tensors |= {"ln_f.weight": np.ones(D, np.float32), "ln_f.bias": np.zeros(D, np.float32)}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors")
    config = {"model_type": "gpt2", "vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": D, "n_layer": LAYERS}
    (folder / "config.json").write_text(json.dumps(config | {"n_head": HEADS}))


def floor() -> float:
    """Seconds for one pass over the vocabulary per side, without any statistics."""
    table = np.random.default_rng(1).standard_normal((VOCABULARY, D), dtype=np.float32)
    rows = np.random.default_rng(2).standard_normal((10, D), dtype=np.float32)
    start = time.perf_counter()
    for _ in range(2):
        norms = np.sqrt(np.einsum("td,td->t", table, table))
        (rows @ table.T / norms).max(axis=1)
    return time.perf_counter() - start


def main() -> int:
    """Print seconds, the floor, their ratio and peak memory; 1 when a limit is missed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint(folder)
        words = [sys.executable, "-m", "covector", "svd", str(folder), "L22H10", "-q"]
        seconds = []
        # Compiled modules of its own, whatever this shell says about writing them.
        there = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        there["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=there)
            seconds.append(time.perf_counter() - start)
        del seconds[0]
        told = subprocess.run([sys.executable, "-c", PEAK, *words[3:]], check=True, capture_output=True, text=True)
        peak = int(told.stderr.split()[-1]) / 1024
        least = floor()
    middle = statistics.median(seconds)
    reached = "reached" if middle <= TARGET_SECONDS else "not reached"
    sys.stdout.write(
        f"{platform.machine()}, {RUNS} runs: median {middle:.2f} s (min {min(seconds):.2f}), "
        f"limit {LIMIT_SECONDS} s, target {TARGET_SECONDS} s: {reached}; "
        f"floor {least:.2f} s, ratio {middle / least:.1f}; peak {peak:.0f} MiB of {LIMIT_MIB}\n"
    )
    return 0 if middle <= LIMIT_SECONDS and peak <= LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
