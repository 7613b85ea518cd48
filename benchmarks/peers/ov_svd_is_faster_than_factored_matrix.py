"""Claim: all heads' OV are decomposed 2.3 times faster, and a million times more exactly, than by TransformerLens; with
all cores on either side, three times faster.

24 heads of gpt2-medium's shape (d_model 1024, d_head 64), random directions, gains of both factors falling by a factor
of 20. One process, one thread each, processor time, the two taking turns so that a busy neighbour slows both alike:

* TransformerLens: ``FactoredMatrix(W_V, W_O).svd()``, float32, all heads in one call, as its users call it;
* covector: `svds` of the heads as factored maps, float64 throughout, with signs, gaps and storage noise.

Then both with all cores, by the clock, taking turns too: TransformerLens with PyTorch's own threads, covector with one
worker per core and one BLAS thread each, as an atlas is built.

Both are held against the SVD of the dense product in float64. Exits with 1 when the median ratio of the pairs is below
2.3 (target 2.7) or, by the clock, below 3 (target 4), or when covector's gains are not right to 1e-11. What covector
says of each dyad besides (signs, gaps, noise) is part of its time; without it the ratio is printed too. Set up and run
as benchmarks/README.md says.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from statistics import median
from time import perf_counter, process_time, sleep

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from transformer_lens import FactoredMatrix

from covector.linalg.maps import Factored, Space
from covector.linalg.product_svd import by_grams
from covector.linalg.svd import SVD, svds

D_MODEL, D_HEAD, HEADS, PAIRS, CHECKED = 1024, 64, 24, 31, 3
AT_LEAST, TARGET, EXACT = 2.3, 2.7, 1e-11
BY_THE_CLOCK, CLOCK_TARGET = 3.0, 4.0
# Condition of one factor, assumed; the product's is then about 100. From about 1000 on the slower route is taken.
SPREAD = 20.0
RESIDUAL = Space("residual", D_MODEL)


def head(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """W_V and W_O of one head in float32, each with a falling spectrum in directions of its own."""
    rng = np.random.default_rng(seed)
    gains = np.geomspace(1.0, 1 / SPREAD, D_HEAD)

    def frame(n: int) -> np.ndarray:
        return np.linalg.qr(rng.standard_normal((n, D_HEAD)))[0]

    W_V = (frame(D_MODEL) * gains) @ frame(D_HEAD).T
    W_O = frame(D_HEAD) @ (gains[:, None] * frame(D_MODEL).T)
    return W_V.astype(np.float32), W_O.astype(np.float32)


def ours(heads: list[tuple[np.ndarray, np.ndarray]]) -> list[SVD]:
    return svds([Factored(W_V, W_O, RESIDUAL, RESIDUAL) for W_V, W_O in heads])


def theirs(W_V: torch.Tensor, W_O: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return FactoredMatrix(W_V, W_O).svd()


def by_the_clock(
    heads: list[tuple[np.ndarray, np.ndarray]], W_V: torch.Tensor, W_O: torch.Tensor
) -> tuple[list[float], list[float]]:
    """Seconds of TransformerLens and of covector with all cores, taking turns."""
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    seconds: tuple[list[float], list[float]] = ([], [])
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(PAIRS + 1):
            start = perf_counter()
            peer = theirs(W_V, W_O)
            seconds[0].append(perf_counter() - start)
            del peer
            sleep(0.05)  # PyTorch's idle threads spin for a while
            start = perf_counter()
            found = list(pool.map(ours, [heads[i::cores] for i in range(cores)]))
            seconds[1].append(perf_counter() - start)
            del found
    torch.set_num_threads(1)
    return seconds[0][1:], seconds[1][1:]


def errors(U: np.ndarray, S: np.ndarray, exact: tuple[np.ndarray, np.ndarray]) -> tuple[float, float, float]:
    """Largest relative error of a gain, sine of the worst read direction's angle, loss of orthogonality."""
    U, S = U[:, :D_HEAD].astype(np.float64), S[:D_HEAD].astype(np.float64)
    true_U, true_S = exact
    cosine = np.sum(U * true_U, axis=0)
    sine = np.linalg.norm(U - true_U * cosine, axis=0)
    orthogonality = np.abs(U.T @ U - np.eye(D_HEAD)).max()
    return float(np.abs(S / true_S - 1).max()), float(sine.max()), float(orthogonality)


def main() -> int:
    heads = [head(seed) for seed in range(HEADS)]
    W_V, W_O = (torch.from_numpy(np.stack(side)) for side in zip(*heads, strict=True))
    found, peer = ours(heads), theirs(W_V, W_O)  # warm: imports, caches
    seconds: dict[str, list[float]] = {"covector": [], "TransformerLens": []}
    bare = []
    for _ in range(PAIRS):
        # Results are kept until both are done, as whoever asks for all heads keeps them.
        start = process_time()
        peer = theirs(W_V, W_O)
        middle = process_time()
        found = ours(heads)
        end = process_time()
        seconds["TransformerLens"].append(middle - start)
        seconds["covector"].append(end - middle)
        dyads = [by_grams(heads[i : i + 8]) for i in range(0, HEADS, 8)]
        bare.append(process_time() - end)
        del dyads
    worst = {"covector": np.zeros(3), "TransformerLens": np.zeros(3)}
    for i, (left, right) in enumerate(heads[:CHECKED]):
        U, S, _ = np.linalg.svd(left.astype(np.float64) @ right.astype(np.float64))
        exact = U[:, :D_HEAD], S[:D_HEAD]
        worst["covector"] = np.maximum(worst["covector"], errors(found[i].U, found[i].S, exact))
        worst["TransformerLens"] = np.maximum(
            worst["TransformerLens"], errors(peer[0][i].numpy(), peer[1][i].numpy(), exact)
        )
    ratios = [a / b for a, b in zip(seconds["TransformerLens"], seconds["covector"], strict=True)]
    print(
        f"{platform.machine()}, 1 thread, processor time, {PAIRS} pairs; {HEADS} heads of {D_MODEL} x {D_HEAD}; "
        f"transformer-lens {version('transformer-lens')}, torch {torch.__version__}, numpy {np.__version__}"
    )
    for name, values in seconds.items():
        gain, angle, orthogonality = worst[name]
        print(
            f"  {name:15s} {1e3 * median(values):7.1f} ms (min {1e3 * min(values):.1f}); against the dense SVD: gains "
            f"{gain:.0e} relative, read directions {angle:.0e} rad, orthogonality {orthogonality:.0e}"
        )
    print(
        f"  of which the dyads alone, without signs, gaps and noise: {1e3 * median(bare):.1f} ms, "
        f"ratio {median(seconds['TransformerLens']) / median(bare):.2f}"
    )
    print(
        f"  ratio {median(ratios):.2f} (pairs {min(ratios):.2f} to {max(ratios):.2f}; claimed: at least {AT_LEAST}, "
        f"target {TARGET})"
    )
    clocks = by_the_clock(heads, W_V, W_O)
    clock = median(a / b for a, b in zip(*clocks, strict=True))
    print(
        f"  all {os.cpu_count()} cores, by the clock: TransformerLens {1e3 * median(clocks[0]):.1f} ms, covector "
        f"{1e3 * median(clocks[1]):.1f} ms; ratio {clock:.2f} (claimed: at least {BY_THE_CLOCK}, target {CLOCK_TARGET})"
    )
    fast = median(ratios) >= AT_LEAST and clock >= BY_THE_CLOCK
    return 0 if fast and worst["covector"][0] <= EXACT else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        sys.exit(main())
