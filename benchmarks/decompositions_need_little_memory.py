"""Claim: the singular vectors of all heads of gpt2-medium need 64 MB above what they fill themselves, and the top
tokens of all 24,576 of them 256 MB above directions, vocabulary and lists.

Random float32 weights of gpt2-medium's shape (24 layers of 16 heads, 1024 x 64, 50,257 tokens), one thread, each of
these in a process of its own, so that no memory that an earlier one gave back can hide what it takes:

* layers: `svds` of a layer's heads after another, as an atlas does it, from a model that was opened; all are kept;
* careful: a layer whose heads are too ill-conditioned for Grams and take pivoted QR and Jacobi;
* float32: `poles` of all directions in one call, ten tokens of both poles each;
* bfloat16: the same with candidates from half precision, where the processor multiplies that quickly (else this is
  said, and nothing is claimed). PyTorch is imported before; what that takes is told beside it.

Judged is the peak that the kernel keeps (VmHWM, set back by /proc/self/clear_refs; it misses no moment) above what was
resident before and above the results: it counts NumPy's arrays, PyTorch's, and what LAPACK and BLAS take for
themselves, with pages of libraries that are touched for the first time. Beside it stands tracemalloc's peak, NumPy's
arrays alone, which is the same on every machine. Control: 64 MB held during one of the 24 layers, once as an array and
once from C's malloc, as LAPACK's work space is, must raise the first reading by 64 MB each, the second by the array.

Targets: 25 and 210 MB. MB are millions of bytes. Exits with 1 above a limit or when the control is off by more than
3 MB. Needs Linux.
"""

import argparse
import ctypes
import json
import platform
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import covector
from covector.arch.toy import random_model
from covector.linalg import half
from covector.linalg.maps import Factored, Space
from covector.linalg.svd import SVD, svds
from covector.linalg.topk import poles

D, D_HEAD, HEADS, LAYERS, VOCABULARY, K = 1024, 64, 16, 24, 50257, 10
MB = 10**6
# Limit and target in MB, by case.
CASES = {
    "layers": (64, 25),
    "careful": (64, 25),
    "float32": (256, 210),
    "bfloat16": (256, 210),
}
PLANTED, OFF = 64 * MB, 3 * MB
# Layer in which the control plants its block; the factors' gains fall by so much where they are too much for Grams.
AT, ILL = 12, 1e5
residual = Space("residual", D)
Arrays = list[np.ndarray]


def resident() -> dict[str, int]:
    """Bytes that are resident (VmRSS), and the most that were (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}


def measured(steps: Iterable[Arrays]) -> list[int]:
    """Peaks above what there was before and above the results so far: the kernel's, and tracemalloc's.

    Step by step, for what a step takes would be lost under results that come later. The kernel's is always against what
    was resident before the first step: what an earlier step gave back and left resident counts, and is used again.
    """
    tracemalloc.start()
    before, traced = resident()["VmRSS"], tracemalloc.get_traced_memory()[0]
    most, there = [0, 0], 0
    kept: Arrays = []
    clear()
    for results in steps:
        kept += results
        there += sum(array.nbytes for array in results)
        peaks = resident()["VmHWM"] - before, tracemalloc.get_traced_memory()[1] - traced
        most = [max(old, peak - there) for old, peak in zip(most, peaks, strict=True)]
        clear()
    tracemalloc.stop()
    return most


def clear() -> None:
    """Begin both peaks anew."""
    Path("/proc/self/clear_refs").write_text("5")
    tracemalloc.reset_peak()


def arrays_of(found: list[SVD]) -> Arrays:
    return [array for each in found for array in (each.U, each.S, each.Vh)]


def held_by(plant: str) -> AbstractContextManager[None]:
    """A block of memory for as long as the context lasts, all of it written to."""
    return {"": nullcontext, "array": _Array, "malloc": _Malloc}[plant]()


class _Array(AbstractContextManager[None]):
    def __enter__(self) -> None:
        self.block = np.ones(PLANTED, np.uint8)

    def __exit__(self, *_: object) -> None:
        del self.block


class _Malloc(AbstractContextManager[None]):
    def __enter__(self) -> None:
        libc = self.libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        self.block = libc.malloc(PLANTED)
        ctypes.memset(self.block, 1, PLANTED)

    def __exit__(self, *_: object) -> None:
        self.libc.free(self.block)


def of_layers(plant: str) -> list[int]:
    model = covector.open(random_model(n_layers=LAYERS, d_model=D, n_heads=HEADS, d_mlp=0, n_vocab=64))

    def steps() -> Iterator[Arrays]:
        for layer in range(LAYERS):
            with held_by(plant if layer == AT else ""):
                maps = [model.map(f"L{layer}H{head}") for head in range(HEADS)]
                found = svds([m for m in maps if isinstance(m, Factored)])
            yield arrays_of(found)

    return measured(steps())


def of_ill_conditioned() -> list[int]:
    rng = np.random.default_rng(0)
    heads = [ill_conditioned(rng) for _ in range(HEADS)]
    return measured(arrays_of(svds(some)) for some in (heads,))


def ill_conditioned(rng: np.random.Generator) -> Factored:
    """A head with random factors, the first of them ill-conditioned however its columns are scaled."""
    W_V, W_O = rng.standard_normal((D, D_HEAD)), rng.standard_normal((D_HEAD, D))
    W_V = (W_V * np.geomspace(1, 1 / ILL, D_HEAD)) @ np.linalg.qr(rng.standard_normal((D_HEAD, D_HEAD)))[0]
    return Factored(W_V.astype(np.float32), W_O.astype(np.float32), residual, residual)


def of_tokens(allowed: Callable[[], AbstractContextManager[None]]) -> list[int]:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((VOCABULARY, D), dtype=np.float32)
    tokens.flags.writeable = False  # as a model's are
    directions = rng.standard_normal((LAYERS * HEADS * D_HEAD, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def steps() -> Iterator[Arrays]:
        if allowed is half.only_float32 or half.is_quick():
            with allowed():
                found = poles(directions, tokens, K)
            yield [found.top, found.top_score, found.bottom, found.bottom_score]

    return measured(steps())


def of_case(case: str, plant: str) -> list[int]:
    """In a process of its own: both peaks, and for bfloat16 what importing PyTorch takes; nothing without it."""
    few = [Factored(np.eye(8), np.eye(8), Space("residual", 8), Space("residual", 8))] * 2
    svds(few)  # imports what is imported late
    if case == "layers":
        return of_layers(plant)
    if case == "careful":
        return of_ill_conditioned()
    poles(np.eye(8), np.eye(8), 1)
    if case == "float32":
        return of_tokens(half.only_float32)
    if find_spec("torch") is None:
        return [0, 0]
    before = resident()["VmRSS"]
    import torch  # noqa: F401

    imported = resident()["VmRSS"] - before
    return [*of_tokens(nullcontext), imported]


def peaks(case: str, plant: str = "") -> list[int]:
    words = [sys.executable, __file__, "--of", case, "--plant", plant]
    told = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(told.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--of", choices=CASES, help="print the peaks of this case, as this program does by itself")
    parser.add_argument("--plant", default="", help="with --of layers: hold a block meanwhile, array or malloc")
    chosen = parser.parse_args()
    if chosen.of:
        with threadpool_limits(1):
            print(json.dumps(of_case(chosen.of, chosen.plant)))
        return 0
    print(
        f"{platform.machine()}, numpy {np.__version__}, 1 thread; gpt2-medium: {LAYERS * HEADS} heads of "
        f"{D} x {D_HEAD}, {VOCABULARY} tokens; peak above inputs and results, in MB"
    )
    failed, base = False, [0, 0]
    for case, (limit, target) in CASES.items():
        found = peaks(case)
        if not any(found[:2]):
            print(f"  {case:9s} bfloat16 is not 1.5 times as fast as float32 here: not used, nothing to claim")
            continue
        base = found if case == "layers" else base
        failed |= found[0] > limit * MB
        beside = f"; importing PyTorch took {found[2] / MB:.0f} before" if len(found) > 2 else ""
        print(
            f"  {case:9s} {found[0] / MB:6.1f} (at most {limit}, target {target}); NumPy's arrays alone "
            f"{found[1] / MB:6.1f}{beside}"
        )
    for plant, seen in (("array", True), ("malloc", False)):
        more = [a - b for a, b in zip(peaks("layers", plant), base, strict=True)]
        wanted = PLANTED, PLANTED if seen else 0
        failed |= any(abs(a - b) > OFF for a, b in zip(more, wanted, strict=True))
        print(
            f"  control: {PLANTED / MB:.0f} MB by {plant:6s} in one layer: {more[0] / MB:+6.1f} (expected "
            f"{wanted[0] / MB:.0f}); NumPy's arrays {more[1] / MB:+6.1f} (expected {wanted[1] / MB:.0f})"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
