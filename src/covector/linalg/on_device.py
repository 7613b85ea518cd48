"""Products with a vocabulary on a graphics card: where most of the time of an atlas without judged lists goes.

Inside `products_on` the scores that `topk` screens are multiplied there in float32, and everything that is decided is
still decided here, in float64: lists and cosines are the same to the last bit. What is *summed* from screened scores
(p_svd) may differ in the last digits of float32.

The bound of `topk` holds for float32 products in any order of summation, so not for the shortcuts that cards offer
(TensorFloat-32 keeps ten digits): they are turned off, and a card that takes them all the same is refused.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest, MissingExtra
from covector.linalg.half import is_fixed

if TYPE_CHECKING:
    import torch

# Multiplications below which sending directions and fetching scores costs more than it saves.
LEAST = 1e8
# Entries sent at a time.
PIECE = 2**22
# Shapes of the trial, and the roundoff of float32.
TRIAL, FINE = (64, 128, 512), 2.0**-24
# What the drivers of NVIDIA's and AMD's cards put there; asked before torch, which takes seconds to import.
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/proc/driver/nvidia/version")


class Card:
    """A device and the tables that lie on it; for several threads at a time."""

    def __init__(self, device: str) -> None:
        self.device = _there(device)
        self._tables: dict[int, torch.Tensor] = {}
        self._making = threading.Lock()
        self._check()

    def multiply(
        self,
        directions: Float[np.ndarray, "r d"],
        tokens: Float[np.ndarray, "n d"],
        lengths: Float[np.ndarray, " n"] | None,
        out: Float[np.ndarray, "r n"],
    ) -> None:
        """``directions @ tokens.T`` over the lengths, all float32, into `out`."""
        import torch

        with exact_float32():
            table = self._table(tokens)
            scores = torch.from_numpy(directions).to(self.device) @ table.T
            if lengths is not None:
                scores /= torch.from_numpy(lengths).to(self.device)
            torch.from_numpy(out).copy_(scores)

    def _table(self, tokens: np.ndarray) -> "torch.Tensor":
        """The tokens over there; those that cannot change stay for as long as they are here."""
        import torch

        def sent() -> torch.Tensor:
            there = torch.empty(tokens.shape, dtype=torch.float32, device=self.device)
            step = max(1, PIECE // tokens.shape[1])
            room = np.empty((min(step, len(tokens)), tokens.shape[1]), np.float32)
            for start in range(0, len(tokens), step):
                part = room[: len(tokens) - start]
                part[...] = tokens[start : start + step]
                there[start : start + step].copy_(torch.from_numpy(part))
            return there

        if not is_fixed(tokens):
            return sent()
        with self._making:
            found = self._tables.get(id(tokens))
            if found is None:
                self._tables[id(tokens)] = found = sent()
                weakref.finalize(tokens, self._tables.pop, id(tokens), None)  # another may get its number
            return found

    def _check(self) -> None:
        """Products of 1 + 2⁻¹²: ten digits round it to 1, and all errors go one way."""
        rows, d, n = TRIAL
        almost = np.full((max(rows, n), d), 1 + 2.0**-12, np.float32)
        out = np.empty((rows, n), np.float32)
        self.multiply(almost[:rows], almost[:n], None, out)
        exact = d * (1 + 2.0**-12) ** 2
        if np.abs(out - exact).max() > d * FINE * exact:
            raise BadRequest(
                f"--device {self.device}: expected float32 products, came coarser ones (TensorFloat-32 or half "
                "precision, by some setting of torch or its driver); turn that off, or use --device cpu"
            )


_card: ContextVar[Card | None] = ContextVar("_card", default=None)


@contextmanager
def products_on(card: Card | None) -> Iterator[None]:
    """Within the block large products of `topk` in this thread are made there; None: here."""
    token = _card.set(card)
    try:
        yield
    finally:
        _card.reset(token)


def card_for(rows: int, tokens: Float[np.ndarray, "n d"]) -> Card | None:
    """The card, if there is one in use and so many directions against these tokens are worth the way there."""
    worth = tokens.dtype == np.float32 and float(rows) * tokens.size >= LEAST
    return _card.get() if worth else None


@cache
def card(device: str) -> Card | None:
    """The card of that name, once per process; None for ``cpu``. Raises BadRequest for one that is not there."""
    return None if device == "cpu" else Card(device)


def a_card() -> str:
    """``cuda`` where a driver is there and torch finds a card through it, else ``cpu``. Imports torch only then."""
    if not any(Path(driver).exists() for driver in DRIVERS):
        return "cpu"
    try:
        import torch
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def _there(device: str) -> str:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(
            f"--device {device} needs PyTorch: expected the package torch, it is missing; pip install 'covector[run]', "
            "or use --device cpu"
        ) from error
    kind = device.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadRequest(
            f"--device {device}: expected a graphics card, torch {torch.__version__} finds none here; use --device cpu"
        )
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadRequest(
            f"--device: expected auto, cpu, cuda or cuda:N of a card that is there, came '{device}'"
        ) from error
    return device


@contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 products of torch without shortcuts, whatever is set outside."""
    import torch

    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)
