"""The alphabet of shape strings, in one place.

Shapes are written in signatures as ``Float[np.ndarray, "head d_model d_head"]``; matrices are stored input x output
and rows are vectors, ``x @ W``. The letters below are the only ones used.

========== ==================================================================
letter     axis
========== ==================================================================
d_model    the residual stream
d_head     one attention head
d_mlp      neurons of an MLP
head       query heads
kv_head    key/value heads (fewer than ``head`` when heads are grouped)
token      the vocabulary (or any labelled dictionary: actions, states)
position   places in a sequence
n, m       read and write side of a map
d          a space whose name does not matter here
r          rank: dyads, directions
k          a number of winners
draws      repetitions of a simulation
batch      anything that rides along
========== ==================================================================

The shapes are checked where jaxtyping is loaded before this package, as the test-suite does. Elsewhere a shape string
costs nothing: building the checked types takes a tenth of the command line's second.
"""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Int, Integer
else:

    class _Unchecked:
        """`Float[np.ndarray, "n m"]` is plain ``np.ndarray`` when nobody checks shapes."""

        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Bool = Float = Int = Integer = _Unchecked

Vector = Float[np.ndarray, " d"]
Vectors = Float[np.ndarray, "r d"]
Matrix = Float[np.ndarray, "n m"]

__all__ = ["Bool", "Float", "Int", "Integer", "Matrix", "Vector", "Vectors"]
