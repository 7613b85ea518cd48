"""Claim: an atlas costs the same per layer and the same per head, however many there are.

Random GPT-2-shaped checkpoints (d_model 256, 8 heads, vocabulary 8192) of 2, 4, 8 and 16 layers; then two layers of 4,
8, 16 and 32 heads of 32 dimensions, attention alone, the width of the stream unchanged. One worker, processor time.
What depends on neither (null draws, embeddings) makes the first ratios smaller than 2. Prints both curves and exits
with 1 when doubling costs more than 2.4 times as much.
"""

import json
import platform
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from time import process_time

import numpy as np
from safetensors.numpy import save_file

import covector
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.model.weights import ArrayWeights

D, VOCABULARY, D_HEAD = 256, 8192, 32
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
    failed = False
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        everything = ("ov", "qk", "mlp")
        base = cost(checkpoint(root / "base", 1, 8), root / "base.atlas", everything)
        print(f"{platform.machine()}, 1 worker, processor time; vocabulary {VOCABULARY}; one layer {base:.2f} s")
        layers = [cost(checkpoint(root / f"l{n}", n, 8), root / f"l{n}.atlas", everything) for n in (2, 4, 8, 16)]
        print("  layers 2, 4, 8, 16: " + ", ".join(f"{s:.2f} s" for s in layers))
        failed |= steep(layers)
        heads = [cost(many_heads(n), root / f"h{n}.atlas", ("ov", "qk")) for n in (4, 8, 16, 32)]
        print("  heads a layer 4, 8, 16, 32: " + ", ".join(f"{s:.2f} s" for s in heads))
        failed |= steep(heads)
    return int(failed)


def steep(seconds: list[float]) -> bool:
    """Whether doubling costs more than allowed, between the longer runs, where what is fixed no longer counts."""
    ratios = [b / a for a, b in pairwise(seconds)]
    print("  each over the one before: " + ", ".join(f"{r:.2f}" for r in ratios) + f" (at most {MOST})")
    return max(ratios) > MOST


if __name__ == "__main__":
    sys.exit(main())
