"""Claim: the atlas of a GPT-J-6B-shaped checkpoint (28 layers, d_model 4096, 16 heads of 256, 50,400 tokens, float16
shards) is built within 4 GiB of anonymous memory.

The checkpoint is random with falling spectra: every factor's gains fall geometrically by κ = 20 (products by about
100), the same numbers in all layers (time and memory do not depend on them). 32 dyads per site are kept, token lists
are not judged. Peak anonymous memory is RssAnon, sampled from /proc twenty times a second. `--layers N` makes a
shallower one (28 take 12 GB of disk).

Exits with 1 when the peak exceeds 4 GiB. Prints seconds per layer and the share of the matrix products in them.
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

D, HEADS, D_MLP, VOCABULARY, CONTEXT = 4096, 16, 16384, 50400, 2048
KAPPA, RANK, LIMIT_GIB = 20.0, 32, 4.0


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


def anonymous_peak(words: list[str]) -> tuple[float, float]:
    """(GiB, seconds) of a process, the former sampled from its RssAnon."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(words)
    while process.poll() is None:
        try:
            told = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) for line in told.splitlines() if line.startswith("RssAnon"))])
        time.sleep(0.05)
    if process.wait() != 0:
        raise SystemExit(f"covector atlas failed with {process.returncode}")
    return peak / 2**20, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=28)
    layers = parser.parse_args().layers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint(folder, layers)
        words = [sys.executable, "-m", "covector", "atlas", str(folder), "--out", str(folder / "j.atlas"), "-q"]
        words += ["--rank", str(RANK), "--memory", f"{LIMIT_GIB}GiB", "--no-scores", "--draws", "2000"]
        peak, seconds = anonymous_peak(words)
        size = sum(f.stat().st_size for f in (folder / "j.atlas").iterdir()) / 2**20
    print(
        f"{platform.machine()}; {layers} layers, d_model {D}, float16, κ = {KAPPA:g} per factor, rank {RANK}: "
        f"{seconds:.0f} s ({seconds / layers:.1f} per layer), atlas {size:.0f} MiB, "
        f"peak anonymous memory {peak:.2f} GiB of {LIMIT_GIB}"
    )
    return int(peak > LIMIT_GIB)


if __name__ == "__main__":
    sys.exit(main())
