"""Claim: patching every head on every prompt costs at most 1.5 times the bare suffix forwards from the patched layers.

A GPT-2 of 6 layers, 8 heads, d_model 256, 5,000 tokens with random weights, 8 pairs of 16 tokens, float32. Interleaved,
one thread, processor time, medians of 9:

* ours: `run.sweep` over all 48 heads: the prefix is read from the clean run, worlds of one layer run together, the
  outputs are read at one position;
* bare: as many forward passes of the same rows from the same layers, nothing patched;
* whole: the same with every forward from the embeddings, as a program without prefixes does it.

Exits with 1 when ours/bare > 1.5. Run: ``python benchmarks/a_patching_sweep_costs_its_suffixes.py``.
"""

import platform
import sys
from statistics import median
from time import process_time

import numpy as np
import torch

import covector
from covector.analyses.patch_places import places_of
from covector.arch.toy import random_model
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.sweep import ROWS, sweep
from covector.study.observable import Observable

LAYERS, HEADS, D_MODEL, VOCABULARY, PAIRS, LENGTH, ROUNDS = 6, 8, 256, 5000, 8, 16, 9
AT_MOST = 1.5


def main() -> int:
    torch.set_num_threads(1)
    weights = random_model(
        n_layers=LAYERS, n_heads=HEADS, d_model=D_MODEL, d_mlp=4 * D_MODEL, n_vocab=VOCABULARY, n_ctx=LENGTH
    )
    model = covector.open(weights)
    decoder = Decoder(weights, torch.float32)
    clean, corrupt = np.random.default_rng(0).integers(0, VOCABULARY, (2, PAIRS, LENGTH))
    base, other = captured(decoder, clean), captured(decoder, corrupt)
    places, at = places_of(weights.spec, "heads"), np.full(PAIRS, LENGTH - 1)
    observable = Observable({"token 3": 1, "token 5": -1}, model)

    def ours() -> None:
        for _ in sweep(decoder, base, other, places, {}, observable, at):
            pass

    def forwards(whole: bool) -> None:
        worlds = max(1, ROWS // (PAIRS * LENGTH))
        for layer in range(LAYERS):
            stream = torch.from_numpy(base["L0.resid_pre" if whole else f"L{layer}.resid_pre"])
            for start in range(0, HEADS, worlds):
                n = min(worlds, HEADS - start)
                with torch.no_grad():
                    decoder.run(
                        resid_in=stream.repeat(n, 1, 1),
                        first=0 if whole else layer,
                        at=torch.from_numpy(np.tile(at, n)),
                    )

    contestants = {"ours": ours, "bare": lambda: forwards(False), "whole": lambda: forwards(True)}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            start = process_time()
            run()
            times[name].append(process_time() - start)
    middle = {name: median(values) for name, values in times.items()}
    ratio = middle["ours"] / middle["bare"]
    print(f"machine: {platform.machine()}, torch {torch.__version__}, 1 thread, processor time, {ROUNDS} rounds")
    told = ", ".join(f"{name} {value:.3f} s" for name, value in middle.items())
    print(f"{len(places)} heads × {PAIRS} prompts of {LENGTH} tokens: {told}")
    print(f"ours/bare {ratio:.2f} (at most {AT_MOST}); whole/ours {middle['whole'] / middle['ours']:.2f}")
    return int(ratio > AT_MOST)


if __name__ == "__main__":
    sys.exit(main())
