"""Claim: an atlas costs the same per layer and the same per head, however many there are.

Random GPT-2-shaped checkpoints (d_model 256, 8 heads, vocabulary 8192) of 1, 2, 4, 8 and 16 layers; and two layers of
4, 8, 16 and 32 heads of 32 dimensions, attention alone, the width of the stream unchanged. One worker, processor time,
the median of three passes over all points in turn, after one atlas that is not counted. Prints both curves, each with
the line through it (least squares of relative errors: what is fixed, as null draws and embeddings, and what each layer
or head adds), the point furthest from the line, and each point over the one of half its size. What is fixed makes the
first of these ratios smaller than 2. Exits with 1 when doubling costs more than 2.4 times as much.
"""

import json
import platform
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
from safetensors.numpy import save_file

import covector
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.model.weights import ArrayWeights

D, VOCABULARY, D_HEAD = 256, 8192, 32
LAYERS, HEADS, PASSES = (1, 2, 4, 8, 16), (4, 8, 16, 32), 3
WHAT, EVERYTHING = ("layers", "heads a layer"), ("ov", "qk", "mlp")
MOST = 2.4


def checkpoint(folder: Path, layers: int, heads: int) -> Path:
    """A GPT-2 checkpoint in Hugging Face layout."""
    rng = np.random.default_rng(layers * 100 + heads)
    d = heads * D_HEAD
    tensors = {"wte.weight": rng.standard_normal((VOCABULARY, d)), "wpe.weight": rng.standard_normal((64, d))}
    tensors |= {"ln_f.weight": np.ones(d), "ln_f.bias": np.zeros(d)}
    for i in range(layers):
        tensors |= {
            f"h.{i}.ln_1.weight": np.ones(d), f"h.{i}.ln_1.bias": np.zeros(d),
            f"h.{i}.ln_2.weight": np.ones(d), f"h.{i}.ln_2.bias": np.zeros(d),
            f"h.{i}.attn.c_attn.weight": rng.standard_normal((d, 3 * d)), f"h.{i}.attn.c_attn.bias": np.zeros(3 * d),
            f"h.{i}.attn.c_proj.weight": rng.standard_normal((d, d)), f"h.{i}.attn.c_proj.bias": np.zeros(d),
            f"h.{i}.mlp.c_fc.weight": rng.standard_normal((d, 4 * d)), f"h.{i}.mlp.c_fc.bias": np.zeros(4 * d),
            f"h.{i}.mlp.c_proj.weight": rng.standard_normal((4 * d, d)), f"h.{i}.mlp.c_proj.bias": np.zeros(d),
        }  # fmt: skip
    folder.mkdir()
    save_file({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in tensors.items()}, folder / "model.safetensors")
    config = {"model_type": "gpt2", "vocab_size": VOCABULARY, "n_positions": 64, "n_embd": d, "n_layer": layers}
    (folder / "config.json").write_text(json.dumps(config | {"n_head": heads}))
    return folder


def many_heads(heads: int) -> ArrayWeights:
    """Two layers of so many heads, in the families whose heads are not cut from the width of the stream."""
    return random_model(
        seed=heads, n_layers=2, d_model=D, n_heads=heads, d_head=D_HEAD, d_mlp=0, n_vocab=VOCABULARY, n_ctx=64
    )


def cost(model: Path | ArrayWeights, out: Path, kinds: tuple[str, ...]) -> float:
    """Processor seconds of the atlas of a model."""
    start = process_time()
    covector.build_atlas(model, out, options=Options(kinds=kinds, draws=50), workers=1)
    return process_time() - start


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        of_layers = {n: checkpoint(root / f"l{n}", n, 8) for n in LAYERS}
        of_heads = {n: many_heads(n) for n in HEADS}
        seconds: dict[tuple[str, int], list[float]] = {}
        cost(of_layers[1], root / "warm.atlas", EVERYTHING)
        for turn in range(PASSES):
            for n, model in of_layers.items():
                took = cost(model, root / f"l{n}.{turn}.atlas", EVERYTHING)
                seconds.setdefault(("layers", n), []).append(took)
            for n, model in of_heads.items():
                took = cost(model, root / f"h{n}.{turn}.atlas", ("ov", "qk"))
                seconds.setdefault(("heads a layer", n), []).append(took)
    print(
        f"{platform.machine()}, 1 worker, processor time; vocabulary {VOCABULARY}; medians of {PASSES} passes over all "
        "points in turn"
    )
    curves = {what: {n: median(took) for (of, n), took in seconds.items() if of == what} for what in WHAT}
    failed = [steep(what, curve) for what, curve in curves.items()]
    return int(any(failed))


def steep(what: str, curve: dict[int, float]) -> bool:
    """Print a curve with its line; whether doubling costs more than allowed."""
    numbers, medians = np.array(list(curve)), np.array(list(curve.values()))
    slope, fixed = np.polyfit(numbers, medians, 1, w=1 / medians)
    off = medians / (fixed + slope * numbers) - 1
    worst = int(np.abs(off).argmax())
    print(f"  {what}: " + ", ".join(f"{n}: {s:.2f} s" for n, s in curve.items()))
    print(f"    line: {fixed:.2f} s + {slope:.3f} s for each; furthest from it {off[worst]:+.1%} (at {numbers[worst]})")
    ratios = {n: curve[n] / curve[n // 2] for n in curve if n // 2 in curve and n > 2}
    print("    doubled: " + ", ".join(f"{r:.2f} (to {n})" for n, r in ratios.items()) + f" (at most {MOST})")
    return max(ratios.values()) > MOST


if __name__ == "__main__":
    sys.exit(main())
