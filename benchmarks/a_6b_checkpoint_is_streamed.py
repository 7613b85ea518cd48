"""Claim: of a GPT-J-6B-shaped float16 checkpoint, every direction that a head reads or writes gets its tokens within
2.5 GB of anonymous memory, and 85 % of the processor time goes into products with the vocabulary and choosing tokens.

The checkpoint is that of `a_6b_checkpoint_fits_in_4_gib.py` (d_model 4096, 16 heads of 256, 50,400 tokens, untied,
float16, gains falling by κ = 20). `--layers` of it are made (2; all 28 take 12 GB of disk), and its OV circuits are
decomposed whole: 256 dyads per head, both sides, ten tokens of both poles each, p_svd of all. One worker, so that
processor time is what the work costs however busy the machine is; layers have nothing of each other in memory, and each
costs as much as the one before, which the program prints: the whole model is 28 times that.

A process of its own builds the atlas. Its peak is RssAnon, sampled twenty times a second. Exits with 1 when it is above
2.5 GB, when the share is below 85 %, or when a layer costs 1.25 times another. Targets: 2 GB and 93 %.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import thread_time
from typing import Any

from a_6b_checkpoint_fits_in_4_gib import HEADS, VOCABULARY, D, checkpoint, watched

import covector
from covector.atlas import decompose as pipeline
from covector.atlas.build import build, compute
from covector.atlas.plan import Options, Unit
from covector.engine import engine
from covector.io.atlas_parts import Part

LIMIT_GB, TARGET_GB, LEAST, TARGET, SPREAD, LAYERS = 2.5, 2.0, 0.85, 0.93, 1.25, 28


def built(folder: Path) -> None:
    """Build the atlas and leave in the folder what each layer cost: (all, of which with the vocabulary), in seconds."""
    model, options = covector.open(folder), Options(kinds=("ov",), scores=False, draws=1000)
    spent, layers = {"vocabulary": 0.0}, list[tuple[float, float]]()
    poles: Callable[..., Any] = pipeline.poles

    def timed(*args: Any, see: Callable[..., None] | None = None, **named: Any) -> Any:
        aside = 0.0

        def seen(*shown: Any) -> None:
            nonlocal aside
            begun = thread_time()
            see(*shown)  # type: ignore[misc]
            aside += thread_time() - begun

        start = thread_time()
        found = poles(*args, see=seen if see else None, **named)
        spent["vocabulary"] += thread_time() - start - aside
        return found

    def work(unit: Unit) -> Part:
        before, start = spent["vocabulary"], thread_time()
        part = compute(model, unit, options)
        if unit.sites:
            layers.append((thread_time() - start, spent["vocabulary"] - before))
        return part

    pipeline.poles = timed  # type: ignore[assignment]
    build(model, folder / "j.atlas", options, engine=engine("threads", 1), work=work)
    (folder / "spent.json").write_text(json.dumps(layers))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--of", type=Path, help="build the atlas of this checkpoint, as this program does by itself")
    chosen = parser.parse_args()
    if chosen.of:
        built(chosen.of)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint(folder, chosen.layers)
        peak, _, _ = watched([sys.executable, __file__, "--of", name], folder / "j.atlas" / "parts")
        layers: list[tuple[float, float]] = json.loads((folder / "spent.json").read_text())
    every = [seconds for seconds, _ in layers]
    share = sum(part for _, part in layers) / sum(every)
    print(
        f"{platform.machine()}; {len(layers)} layers of {HEADS} heads, d_model {D}, {VOCABULARY} tokens, float16; OV, "
        "all dyads, both sides, 1 worker, processor time"
    )
    print(f"  per layer: {', '.join(f'{s:.1f}' for s in every)} s (at most {SPREAD} of each other); {LAYERS} layers: "
          f"{LAYERS * sum(every) / len(every) / 60:.0f} minutes of one core")  # fmt: skip
    print(
        f"  products with the vocabulary and choosing tokens: {share:.1%} (at least {LEAST:.0%}, target {TARGET:.0%})"
    )
    print(f"  peak anonymous memory {peak / 1e9:.2f} GB (at most {LIMIT_GB}, target {TARGET_GB})")
    return int(peak > LIMIT_GB * 1e9 or share < LEAST or max(every) > SPREAD * min(every))


if __name__ == "__main__":
    sys.exit(main())
