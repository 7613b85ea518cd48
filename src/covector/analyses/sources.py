"""The vectors that tokens are to a head: the embedding, or what the first MLP has made of it.

A head of block 0 reads embeddings; a later one reads a stream to which the first MLP has added its reading of the
token. In a model with tied embeddings the two can differ in sign: a head that copies what it reads then seems to
suppress the bare embedding. Source: MAPS (E' = MLP₀ of the embedding); theory page, §1.6.
"""

from functools import cached_property

import numpy as np

from covector.axes import Bool, Float
from covector.model.bases import Basis
from covector.model.opened import Model

# Rows of the vocabulary per product.
ROWS = 8192


class Sources:
    """Source vectors by layer: one basis for all (given by name), or ``auto``."""

    def __init__(self, model: Model, basis: str = "auto") -> None:
        """Look the bases up. Raises UnknownBasis."""
        self.model = model
        plain = model.bases[model.bases.default("read") if basis == "auto" else basis]
        behind = basis == "auto" and plain.name == "token_in" and "token_in_mlp0" in model.bases
        self.first = plain
        self.later = model.bases["token_in_mlp0"] if behind and model.frame.preserving else plain
        self._between: dict[tuple[str, str], np.ndarray] = {}

    def of(self, layer: int) -> Basis:
        """The vectors that heads of this layer are shown."""
        return self.first if layer == 0 else self.later

    @property
    def names(self) -> list[str]:
        """Names of the bases in use, the first block's first."""
        return list(dict.fromkeys([self.first.name, self.later.name]))

    @property
    def words(self) -> str:
        """The choice as a title says it."""
        if self.first is self.later:
            return f"sources {self.first.name}"
        return f"sources {self.first.name} (block 0), {self.later.name}"

    @property
    def tensors(self) -> tuple[str, ...]:
        """Canonical tensors that the vectors come from."""
        return tuple(dict.fromkeys([*self.first.tensors, *self.later.tensors]))

    @cached_property
    def usable(self) -> Bool[np.ndarray, " token"]:
        """Which labels have a vector in every basis in use."""
        return self.first.usable if self.first is self.later else self.first.usable & self.later.usable

    def outputs(self) -> Basis | None:
        """The output basis whose labels are the sources' own; None where inputs and outputs are different things."""
        if not self.first.name.startswith("token_in") or "token_out" not in self.model.bases:
            return None
        target = self.model.bases["token_out"]
        return target if target.labels == self.first.labels else None

    def between(self, layer: int, target: Basis) -> Float[np.ndarray, "d d"]:
        """T = W_U·E', [written direction, read direction], over labels that both sides have a vector for; made once."""
        source = self.of(layer)
        key = (source.name, target.name)
        if key not in self._between:
            both = np.flatnonzero(self.usable & target.usable)
            total = np.zeros((target.vectors.shape[1], source.vectors.shape[1]))
            for start in range(0, len(both), ROWS):
                rows = both[start : start + ROWS]
                total += target.vectors[rows].T.astype(np.float64) @ source.vectors[rows].astype(np.float64)
            self._between[key] = total
        return self._between[key]
