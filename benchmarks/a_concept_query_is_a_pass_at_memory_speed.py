"""Claim: one query against every direction of an atlas is at least 20 times faster than torch's cosine_similarity.

100,000 directions of d_model 1024 in float16, two thirds of a GPT-2-medium atlas (OV, QK and MLP sides: 147,456).
The contestants run interleaved, so a busy neighbour slows all of them alike; wall time, because threads are part of it:

* ours: `covector.linalg.scan.scan` of the float16 rows, one query;
* torch: `torch.nn.functional.cosine_similarity` of all rows, widened to float32 beforehand, with the query;
* numpy: a float32 matrix–vector product of the rows widened beforehand, for orientation: no norms, twice the memory;
* read: a sum over the same bytes, about what memory gives.

Target 50 times, claimed 20: exits with 1 when torch/ours < 20 or a score is off by more than a float32 sum may be.
Run: ``python benchmarks/a_concept_query_is_a_pass_at_memory_speed.py``.
"""

import os
import platform
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter, sleep

import numpy as np
import torch

from covector.linalg.scan import scan

ROWS, D_MODEL, ROUNDS = 100_000, 1024, 9
AT_LEAST, TARGET = 20.0, 50.0


def seconds(run: Callable[[], object]) -> float:
    sleep(0.25)  # idle threads of the contestant before spin, those of OpenBLAS for a tenth of a second
    start = perf_counter()
    run()
    return perf_counter() - start


def main() -> int:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROWS, D_MODEL), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    stored = rows.astype(np.float16)
    wide = stored.astype(np.float32)
    del rows
    query = rng.standard_normal((1, D_MODEL))
    query /= np.linalg.norm(query)
    single = query[0].astype(np.float32)
    torch_rows, torch_query = torch.from_numpy(wide), torch.from_numpy(single)[None]
    words = stored.view(np.int64)
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: scan(stored, query),
        "torch": lambda: torch.nn.functional.cosine_similarity(torch_rows, torch_query),
        "numpy": lambda: wide @ single,
        "read": lambda: np.bitwise_or.reduce(words.ravel()),
    }
    for run in runs.values():  # warm caches, threads and imports
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(seconds(run))
    middle = {name: median(values) for name, values in times.items()}
    error = float(np.abs(scan(stored, query)[:, 0] - wide.astype(np.float64) @ query[0]).max())
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, torch {torch.__version__}")
    print(f"{ROWS:,} directions of {D_MODEL} in float16, one query; scores off by at most {error:.0e}")
    for name, value in middle.items():
        size = stored.nbytes if name in ("ours", "read") else wide.nbytes
        print(f"  {name:6s} {1e3 * value:8.1f} ms (median of {ROUNDS}; {size / value / 1e9:.1f} GB/s)")
    ratio = middle["torch"] / middle["ours"]
    print(f"  torch/ours = {ratio:.1f} (claimed: at least {AT_LEAST:g}; target {TARGET:g})")
    return 0 if ratio >= AT_LEAST and error < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
