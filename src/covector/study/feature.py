"""Features: what an observable becomes when it is pulled back along a path.

f.vector · x + f.constant is the path's part of the observable, for x in the space that `hook` names.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest


@dataclass(frozen=True, eq=False)
class Feature:
    """A functional on the stream (one row) with how it was made.

    ``hook``       where it is read: ``L6.attn_in`` is the stream before the norm of block 6's attention
    ``constant``   what biases add along the path, in the observable's units
    ``policy``     the stand-in of every kind of nonlinear piece on the path, in words
    ``norms``      (place, length of the functional there) after each step, from the output down
    ``convention`` how the first norm (the one just above `hook`) was treated
    """

    vector: Float[np.ndarray, " d_model"]
    constant: float
    hook: str
    path: str
    observable: str
    policy: str
    norms: tuple[tuple[str, float], ...] = ()
    convention: str = ""
    origin: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def norm(self) -> float:
        """Euclidean length of the vector."""
        return float(np.linalg.norm(self.vector))

    def of(self, rows: Float[np.ndarray, "*batch d_model"]) -> Float[np.ndarray, "*batch"]:
        """Its reading of rows of that space: x · vector + constant."""
        return rows @ self.vector + self.constant

    def same_space(self, other: "Feature") -> None:
        """Raise BadRequest unless the other is read in the same space."""
        if self.hook != other.hook or self.vector.shape != other.vector.shape:
            raise BadRequest(
                f"expected two features of one space, got {self.path} at {self.hook} and {other.path} at {other.hook}"
            )

    def to_meta(self) -> dict[str, Any]:
        """Everything but the vector, as JSON holds it."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("vector", "origin")}
        return values | {"norms": [list(pair) for pair in self.norms]} | self.origin
