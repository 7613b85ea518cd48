"""Claim: the ten highest and ten lowest tokens of every direction cost 1.3 times the bare product at d = 768, 1.15
times at d = 2048, and at most 1/1.4 of what materialising all scores and sorting both ends out of them costs.

512 random directions against 50,257 float32 tokens. One thread, processor time, the contestants taking turns:

* bare: ``directions @ tokens.T``, nothing else;
* ours: `covector.linalg.topk.poles` in float32, as in an atlas: both poles, exact to float64, 128 MB of scores a time;
* naive: all scores at once, `argpartition` at both ends (as NumPy users write it).

Exits with 1 when a median ratio misses. Targets: 1.15 and 1.08.
"""

import platform
import sys
from statistics import median
from time import process_time

import numpy as np
from threadpoolctl import threadpool_limits

from covector.linalg.half import only_float32
from covector.linalg.topk import poles

TOKENS, DIRECTIONS, K, ROUNDS = 50257, 512, 10, 9
# d: (at most this many times the bare product, target)
LIMITS = {768: (1.3, 1.15), 2048: (1.15, 1.08)}
FASTER_THAN_NAIVE = 1.4


def seconds(work: object) -> float:
    start = process_time()
    work()  # type: ignore[operator]
    return process_time() - start


def measure(d: int) -> tuple[float, float, float]:
    """Median ratios ours/bare and naive/ours, and the bare product's GFLOP/s."""
    rng = np.random.default_rng(d)
    tokens = rng.standard_normal((TOKENS, d), dtype=np.float32)
    tokens.flags.writeable = False  # as a model's are
    directions = rng.standard_normal((DIRECTIONS, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    narrow = directions.astype(np.float32)

    def naive() -> None:
        scores = narrow @ tokens.T
        order = np.argpartition(scores, (K - 1, TOKENS - K), axis=1)
        for ids in (order[:, :K], order[:, -K:]):
            np.sort(np.take_along_axis(scores, ids, axis=1), axis=1)

    contestants = {"bare": lambda: narrow @ tokens.T, "ours": lambda: poles(directions, tokens, K), "naive": naive}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for work in contestants.values():
        work()
    for _ in range(ROUNDS):
        for name, work in contestants.items():
            times[name].append(seconds(work))
    over_bare = median(a / b for a, b in zip(times["ours"], times["bare"], strict=True))
    over_ours = median(a / b for a, b in zip(times["naive"], times["ours"], strict=True))
    return over_bare, over_ours, 2e-9 * TOKENS * DIRECTIONS * d / median(times["bare"])


def main() -> int:
    failed = False
    told = f"{platform.machine()}, 1 thread, processor time, {ROUNDS} rounds"
    print(f"{told}; {DIRECTIONS} × {TOKENS}, top {K} of both poles")
    for d, (limit, target) in LIMITS.items():
        over_bare, over_ours, speed = measure(d)
        failed |= over_bare > limit or over_ours < FASTER_THAN_NAIVE
        print(
            f"  d = {d}: {over_bare:.3f} of the bare product ({speed:.0f} GFLOP/s; at most {limit}, target {target}); "
            f"{over_ours:.2f} times faster than naive (at least {FASTER_THAN_NAIVE})"
        )
    return int(failed)


if __name__ == "__main__":
    with threadpool_limits(1), only_float32():
        sys.exit(main())
