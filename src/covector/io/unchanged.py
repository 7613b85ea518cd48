"""Tensors compared with recorded digests when they are first read: whether a checkpoint is still what it was.

The header of a weight file says names and shapes; a model that was trained further has the same one. So each tensor
that is asked for is hashed before it is handed out, once per process, file size and time of change: what a request does
not read costs nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covector.errors import BadRequest
from covector.io.tensors import TensorInfo
from covector.model.weights import Held, TensorSource, Weights

Seen = tuple[tuple[tuple[str, int, int], ...], str, str]
# Tensors that this process found unchanged: (files behind them as they were, name, digest).
_found: set[Seen] = set()


class ChangedSince(BadRequest):
    """A tensor is not what it was when something was made from it."""


class Unchanged:
    """A source that compares every tensor that it reads with `digests` (stored name → sha256), where one is there.

    `refusal` is said, with the name of the tensor in place of {}, where it is another one: ChangedSince.
    """

    def __init__(self, of: TensorSource, digests: Mapping[str, str], refusal: str) -> None:
        self.of, self.digests, self.refusal = of, digests, refusal
        self._own: set[Seen] = set()

    @property
    def where(self) -> str:
        """The source in words."""
        return self.of.where

    def names(self) -> tuple[str, ...]:
        """Every tensor name."""
        return self.of.names()

    def info(self, name: str) -> TensorInfo:
        """Storage dtype and shape of one tensor."""
        return TensorInfo(*self.of.info(name))

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor that is unchanged, as far as is known. Raises ChangedSince."""
        wanted = self.digests.get(name)
        if wanted is not None:
            files = _as_they_are(getattr(self.of, "files", ()))
            found, seen = _found if files else self._own, (files, name, wanted)
            if seen not in found and self.of.sha256(name) != wanted:
                raise ChangedSince(self.refusal.replace("{}", name))
            found.add(seen)
        return self.of.read(name)

    def sha256(self, name: str) -> str:
        """Hash of the stored bytes."""
        return self.of.sha256(name)

    def release(self, name: str) -> None:
        """Say that the tensor is not needed for now."""
        self.of.release(name)

    def __getattr__(self, name: str) -> Any:
        """What else the source has: its files, where a tensor stands in them."""
        if name == "of":  # while it is being made
            raise AttributeError(name)
        return getattr(self.of, name)


class UnchangedWeights(Held):
    """The same for canonical weights that are made from several sources (a change between two models)."""

    def __init__(self, of: Weights, digests: Mapping[str, str], refusal: str) -> None:
        super().__init__(of)
        self.digests, self.refusal = digests, refusal
        self._unchanged: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        """The canonical array of an unchanged tensor. Raises ChangedSince."""
        # One side's tensor by itself is recorded where it is a basis, else the digest of both.
        for asked in (name, name.partition(".")[2]):
            if asked in self._unchanged or asked not in self.of:
                continue
            stored, digest = self.of.origin(asked)
            if self.digests.get(stored, digest) != digest:
                raise ChangedSince(self.refusal.replace("{}", stored))
            self._unchanged.add(asked)
        return self.of[name]


def _as_they_are(files: tuple[Path, ...]) -> tuple[tuple[str, int, int], ...]:
    """Files with their sizes and times of change."""
    told = [(path, path.stat()) for path in files]
    return tuple((str(path.absolute()), about.st_size, about.st_mtime_ns) for path, about in told)
