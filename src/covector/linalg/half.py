"""Candidates for extremes from bfloat16 products, where a processor multiplies such numbers twice as fast as float32.

Nothing is decided here. A vector may be left out only if a bound on its true score says so; `topk` scores candidates in
float64 and looks at everything again where the bound does not suffice. So the answer is that of float64, to the last
bit, whether this is used or not, and it is used where it pays: many directions, a processor with bfloat16 products, and
torch, which multiplies them.

The bound. Stored is b = bfloat16(c), c = t − m, with t a vector (over its length, if lengths are given) and m any
vector at all: it adds the same q·m to every score, so it changes no order, and the mean leaves the least to be rounded.
For a unit direction q, rounded to p,

    |q·c − p·b| ≤ ‖q − p‖·‖b‖ + ‖c − b‖                      (1)

with all four norms measured, not assumed: about 0.75·2⁻⁸·‖c‖, where the worst case of rounding is 2·2⁻⁸·‖c‖. To it come
d + 4 roundings of float32 within the product and one of its result to bfloat16. With u = 2⁻⁸ a score that is shown as s
is at most s + u·|s|; no vector that is left out is shown above the last candidate.

Source: the idea, with the worst case of rounding for its bound, is common in retrieval; Higham, "Accuracy and Stability
of Numerical Algorithms" (2002), §3.1, for the sum.
"""

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_info

from covector.axes import Bool, Float, Int
from covector.linalg.grouped import largest_in_groups

if TYPE_CHECKING:
    import torch

# Unit roundoffs: bfloat16 keeps eight binary digits, float32 twenty-four.
COARSE, FINE = 2.0**-8, 2.0**-24
# Entries converted at a time, which fit a core's cache, and vectors whose mean is m.
BLOCK, SAMPLE = 2**18, 2048
# Directions from which a table of half precision pays for being made.
ROWS = 256
# Multiplications of a call from which a table pays; and those of all calls so far from which importing torch does: it
# costs as long as they took, about two seconds.
WORK, WITHOUT_TORCH = 1e10, 2e11
# How much faster than float32 products of bfloat16 must be; and sizes of the trial, of a few hundredths of a second.
FASTER, TRIAL = 1.5, (256, 1024, 4096)
# Norms outside of this range could overflow or vanish when squared in float32.
SAFE = (1e-15, 1e15)

_done = 0.0
_forbidden = ContextVar("_forbidden", default=False)


@contextmanager
def only_float32() -> Iterator[None]:
    """Within the block no table of half precision is made by this thread: where memory is counted."""
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


def pays(rows: int, n: int, d: int) -> bool:
    """Whether so many directions against so many vectors are screened sooner in bfloat16 on this machine.

    Torch is not imported for little: not before this process was asked for as much as its import costs.
    """
    global _done
    work = float(rows) * n * d
    if _forbidden.get() or rows < ROWS or work < WORK:
        return False
    _done += work
    there = "torch" in sys.modules or (_done >= WITHOUT_TORCH and find_spec("torch") is not None)
    return there and is_quick()


@cache
def is_quick() -> bool:
    """Whether products of bfloat16 are as exact as their bound says and 1.5 times as fast as float32, by trial."""
    import torch

    rows, d, n = TRIAL
    rng = np.random.default_rng(0)
    one, other = (rng.standard_normal(shape, dtype=np.float32) for shape in ((rows, d), (n, d)))
    p, b = torch.from_numpy(one).bfloat16(), torch.from_numpy(other).bfloat16()
    exact = p[:8].double() @ b.double().T
    size = torch.linalg.vector_norm(p[:8].double(), dim=1)[:, None] * torch.linalg.vector_norm(b.double(), dim=1)
    with _threads_of_blas():
        found = (p @ b.T)[:8].double()
        times = [(_seconds(lambda: one @ other.T), _seconds(lambda: p @ b.T)) for _ in range(3)]
    within = bool(((found - exact).abs() <= COARSE * found.abs() + (d + 4) * 2 * FINE * size).all())
    return within and min(t for t, _ in times) > FASTER * min(t for _, t in times)


@dataclass(frozen=True, eq=False)
class Shown:
    """Scores of some unit directions as bfloat16 shows them, and how far from the truth they may be.

    places   the shown scores as whole numbers in their order, one column per vector of the table
    moved    q·m per row: to be added to what is shown
    doubt    per row how far (1) and the sum can have moved a score
    """

    places: Int[np.ndarray, "r n"]
    moved: Float[np.ndarray, " r"]
    doubt: Float[np.ndarray, " r"]

    def best(self, wanted: int, sign: int) -> tuple[Int[np.ndarray, "r m"], Float[np.ndarray, " r"]]:
        """The columns of the `wanted` largest of ``sign · score`` per row, and what all others are at most."""
        found, values = largest_in_groups(self.places, wanted, sign)
        last = sign * _as_scores(sign * values[:, -1])
        return found, sign * self.moved + last + COARSE * np.abs(last) + self.doubt

    def reaching(self, row: int, least: float, sign: int) -> Int[np.ndarray, " m"]:
        """All columns of a row in which ``sign · score`` may be `least` or more."""
        if not np.isfinite(least):
            return np.arange(self.places.shape[1])
        shown = least - sign * self.moved[row] - self.doubt[row]
        place = _place_below(shown / (1 + np.copysign(COARSE, shown)))
        return np.flatnonzero(self.places[row] >= place if sign > 0 else self.places[row] <= _mirrored(place))


@dataclass(frozen=True, eq=False)
class HalfTable:
    """Vectors in bfloat16. See the head of this file; `table` makes one.

    ids      rows of the table it was made from
    tokens   b [n, d], a torch tensor
    mean     m, float64
    longest, rest   the largest ‖b‖ and ‖c − b‖, from above (the second with what float32 loses of c)
    spread   root mean square of b·p over unit p spread evenly: what a score is like
    """

    ids: Int[np.ndarray, " n"]
    tokens: "torch.Tensor"
    mean: Float[np.ndarray, " d"]
    longest: float
    rest: float
    spread: float

    def wanted(self, k: int) -> int:
        """How many candidates mostly hold the k best with a margin as wide as the bound; 0 where nothing is sure.

        For scores that fall off as those of Gaussians do. A guess: rows that it does not fit are looked at again.
        """
        if not SAFE[0] < self.longest < SAFE[1]:
            return 0
        margin = (0.4 * COARSE * self.longest + self.rest) / self.spread
        tail = np.sqrt(2 * np.log(max(len(self.ids) / k, 2.0)))
        return int(1.3 * k * np.exp(min(margin * (tail + margin), 20.0))) + 4

    def room(self, rows: int) -> "torch.Tensor":
        """Memory for the products of so many directions."""
        import torch

        return torch.empty((rows, len(self.ids)), dtype=torch.bfloat16)

    def shown(self, directions: Float[np.ndarray, "r d"], room: "torch.Tensor") -> Shown:
        """The scores of these unit directions, in `room`."""
        import torch

        with _threads_of_blas():
            rounded = torch.from_numpy(directions.astype(np.float32)).bfloat16()
            products = torch.mm(rounded, self.tokens.T, out=room[: len(rounded)])
        places = products.view(torch.int16).numpy()
        for row in places:  # numbers in the order of the scores: of negative ones all digits but the sign are turned
            row ^= (row >> 15) & 0x7FFF
        lost = np.linalg.norm(directions - rounded.double().numpy(), axis=1)
        sums = 2 * (directions.shape[1] + 4) * FINE * self.longest
        return Shown(places, directions @ self.mean, lost * self.longest + self.rest + sums)


def table(
    vectors: Float[np.ndarray, "n d"], keep: Bool[np.ndarray, " n"] | None, lengths: Float[np.ndarray, " n"] | None
) -> HalfTable:
    """The kept vectors, over their lengths if there are any, in bfloat16: two bytes per entry.

    The last one is held for as long as its vectors are, if neither those nor the other arrays can be written to.
    """
    given = [array for array in (vectors, keep, lengths) if array is not None]
    if not all(is_fixed(array) for array in given):
        return _table(vectors, keep, lengths)
    key = tuple(0 if array is None else id(array) for array in (vectors, keep, lengths))
    with _making:
        found = _held.get(key)
        if found is None:
            _held.clear()
            _held[key] = found = _table(vectors, keep, lengths)
            for array in given:  # another may get its number
                weakref.finalize(array, _held.pop, key, None)
        return found


def is_fixed(array: np.ndarray) -> bool:
    """Whether nobody can write to an array: neither it nor one that it is a view of."""
    at: object = array
    while isinstance(at, np.ndarray):
        if at.flags.writeable:
            return False
        at = at.base
    return at is None or memoryview(at).readonly  # type: ignore[arg-type]


_held: dict[tuple[int, ...], HalfTable] = {}
_making = Lock()


def _table(vectors: np.ndarray, keep: np.ndarray | None, lengths: np.ndarray | None) -> HalfTable:
    import torch

    ids = np.arange(len(vectors)) if keep is None else np.flatnonzero(keep)

    n, d = len(ids), vectors.shape[1]
    scale = None if lengths is None else lengths[ids].astype(np.float32)[:, None]

    def part(some: slice, out: np.ndarray) -> np.ndarray:
        every = len(ids) == len(vectors)
        rows = out[: len(ids[some])]
        rows[...] = vectors[some] if every else vectors[ids[some]]
        return rows if scale is None else np.divide(rows, scale[some], out=rows)

    step = max(1, BLOCK // d)
    rows, back = np.empty((step, d), np.float32), torch.empty((step, d))
    spaced = slice(None, None, -(-n // SAMPLE))
    mean = part(spaced, np.empty((SAMPLE, d), np.float32)).mean(axis=0, dtype=np.float64).astype(np.float32)
    tokens, squares = torch.empty((n, d), dtype=torch.bfloat16), np.empty((4, n))
    with _threads_of_blas(), np.errstate(all="ignore"):  # what is not finite has a length that is not, and is told
        for start in range(0, n, step):
            some = slice(start, min(start + step, n))
            c = part(some, rows)
            squares[0, some] = np.vecdot(c, c)
            c -= mean
            squares[1, some] = np.vecdot(c, c)
            b = back[: len(c)].copy_(tokens[some].copy_(torch.from_numpy(c))).numpy()
            squares[2, some] = np.vecdot(b, b)
            c -= b
            squares[3, some] = np.vecdot(c, c)
    whole, centred, longest, rest = np.sqrt(squares.max(axis=1)) * (1 + d * 2 * FINE)
    lost = 3 * FINE * (whole + centred)  # a division, a difference, and the mean's own place
    spread = float(np.sqrt(squares[1].mean() / d))
    return HalfTable(ids, tokens, mean.astype(np.float64), longest, rest + lost, max(spread, sys.float_info.min))


def _as_scores(places: np.ndarray) -> np.ndarray:
    """The bfloat16 numbers that have these places in their order, in float64."""
    turned = places.astype(np.int16)
    bits = (turned ^ ((turned >> 15) & 0x7FFF)).view(np.uint16)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _place_below(score: float) -> int:
    """The place of a bfloat16 number that is not above `score`, and next to it."""
    bits = np.nextafter(np.float32(score), np.float32(-np.inf)).view(np.uint32) >> np.uint32(16)
    # The digits that are dropped take a negative number up, towards zero: one place further down.
    magnitude, negative = int(bits) & 0x7FFF, int(bits) >> 15
    return -magnitude - 2 if negative else magnitude


def _mirrored(place: int) -> int:
    """The place of the negative of a number: +0 has the place 0, −0 the place −1."""
    return -place - 1


def _seconds(work: object) -> float:
    start = perf_counter()
    work()  # type: ignore[operator]
    return perf_counter() - start


@contextmanager
def _threads_of_blas() -> Iterator[None]:
    """Torch with as many threads as BLAS has: one where workers share the cores."""
    import torch

    before = torch.get_num_threads()
    now = max((lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"), default=before)
    torch.set_num_threads(now)
    try:
        yield
    finally:
        torch.set_num_threads(before)
