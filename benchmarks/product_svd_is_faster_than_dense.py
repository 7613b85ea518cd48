"""Claim: heads' SVDs from their thin factors are a hundred times faster than from the dense product, one thread each.

Heads of gpt2-medium's shape (d_model 1024, d_head 64) and, fifty times faster, of gpt2's (768), float32 weights,
factors with a decade of spread. The contestants run interleaved, so a busy neighbour slows all of them alike, and are
timed in processor time:

* ours: `svds` of twelve heads at once, float64, all 64 dyads with signs, gaps and noise, per head;
* one: `svd(Factored)` of each head by itself, told beside it;
* dense: the product and its SVD in float32 by `torch.linalg.svd`, as published notebooks call it; beside it, without a
  claim, LAPACK's gesdd by SciPy and `numpy.linalg.svd` (which computes in float64);
* QR both: Householder QR of both factors in float64 and an SVD of the 64 x 64 core, vectors multiplied out.

Targets 180 and 70. Exits with 1 when dense/ours is below 100 or 50, or qr/ours below 1.
Run: ``python benchmarks/product_svd_is_faster_than_dense.py``.
"""

import platform
import sys
from collections.abc import Callable
from statistics import median
from time import process_time

import numpy as np
import scipy.linalg
import torch
from threadpoolctl import threadpool_limits

from covector.linalg.maps import Factored, Space
from covector.linalg.svd import svd, svds

D_HEAD, HEADS = 64, 12
ROUNDS = 9
# Width → name, least and aimed-at ratio to the dense product.
SHAPES = {1024: ("gpt2-medium", 100.0, 180.0), 768: ("gpt2", 50.0, 70.0)}
QR_AT_LEAST = 1.0


def head(seed: int, d_model: int) -> tuple[np.ndarray, np.ndarray]:
    """W_V and W_O whose small directions lie across all of the head's coordinates; condition 12 each, 100 together."""
    rng = np.random.default_rng(seed)
    spread = np.geomspace(1.0, 1 / 12, D_HEAD)

    def frame(n: int) -> np.ndarray:
        return np.linalg.qr(rng.standard_normal((n, D_HEAD)))[0]

    W_V = (frame(d_model) * spread) @ frame(D_HEAD)
    W_O = frame(D_HEAD) @ (spread[:, None] * frame(d_model).T)
    return W_V.astype(np.float32), W_O.astype(np.float32)


Head = tuple[np.ndarray, np.ndarray]


def factored(W_V: np.ndarray, W_O: np.ndarray) -> Factored:
    residual = Space("residual", len(W_V))
    return Factored(W_V, W_O, residual, residual)


def ours(heads: list[Head]) -> list[np.ndarray]:
    return [found.S for found in svds([factored(*head) for head in heads])]


def one(heads: list[Head]) -> list[np.ndarray]:
    return [svd(factored(*head)).S for head in heads]


def dense_torch(heads: list[Head]) -> list[np.ndarray]:
    return [torch.linalg.svd(torch.from_numpy(W_V) @ torch.from_numpy(W_O))[1].numpy() for W_V, W_O in heads]


def dense_scipy(heads: list[Head]) -> list[np.ndarray]:
    return [scipy.linalg.svd(W_V @ W_O, lapack_driver="gesdd")[1] for W_V, W_O in heads]


def dense_numpy(heads: list[Head]) -> list[np.ndarray]:
    return [np.linalg.svd(W_V @ W_O)[1] for W_V, W_O in heads]


def qr_both(heads: list[Head]) -> list[np.ndarray]:
    gains = []
    for W_V, W_O in heads:
        Q_V, R_V = np.linalg.qr(W_V.astype(np.float64))
        Q_O, R_O = np.linalg.qr(W_O.astype(np.float64).T)
        left, S, right = np.linalg.svd(R_V @ R_O.T)
        _ = Q_V @ left, right @ Q_O.T
        gains.append(S)
    return gains


def seconds(run: Callable[[list[Head]], object], heads: list[Head]) -> float:
    """Processor seconds per head."""
    start = process_time()
    run(heads)
    return (process_time() - start) / len(heads)


def compare(d_model: int) -> bool:
    """Time one shape, print, and say whether every minimum is met."""
    name, least, target = SHAPES[d_model]
    heads = [head(seed, d_model) for seed in range(HEADS)]
    fast, dense = (ours, one, qr_both), (dense_torch, dense_scipy, dense_numpy)
    times: dict[str, list[float]] = {run.__name__: [] for run in (*fast, *dense)}
    for run in fast:  # warm caches and imports
        run(heads)
    dense_torch(heads[:1])
    for round_ in range(ROUNDS):
        for run in fast:
            times[run.__name__].append(seconds(run, heads))
        for run in dense:
            times[run.__name__].append(seconds(run, heads[round_ : round_ + 1]))
    middle = {name: median(values) for name, values in times.items()}
    ratio = middle["dense_torch"] / middle["ours"]
    qr = middle["qr_both"] / middle["ours"]
    error = max(float(np.abs(a - b).max() / b[-1]) for a, b in zip(ours(heads), qr_both(heads), strict=True))
    print(
        f"{name}: d_model {d_model}, d_head {D_HEAD}, {HEADS} heads; gains agree with QR to {error:.0e} of the smallest"
    )
    for run, value in middle.items():
        print(f"  {run:14s} {1e3 * value:9.2f} ms per head (median of {len(times[run])})")
    print(f"  dense_torch/ours = {ratio:.0f} (claimed: at least {least:g}, target {target:g})")
    print(f"  qr/ours = {qr:.2f} (claimed: at least {QR_AT_LEAST:g})")
    return ratio >= least and qr >= QR_AT_LEAST and error < 1e-11


def main() -> int:
    versions = f"numpy {np.__version__}, scipy {scipy.__version__}, torch {torch.__version__}"
    print(f"machine: {platform.machine()}, {versions}, 1 thread, processor time, {ROUNDS} rounds")
    good = [compare(d_model) for d_model in SHAPES]
    return 0 if all(good) else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        sys.exit(main())
