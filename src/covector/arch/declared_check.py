"""The [check] table of a layout.toml: which recorded tensors are inputs, which are what the model must compute.

[check.inputs]
state = "image: batch time x y channel -> batch time channel x y"
time = "timesteps"
[check.expected]
"out.action" = "action_logits"
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covector.arch.declared_keys import Declaration
from covector.errors import BadLayout, CheckpointMismatch

DEFAULT_FILE = "check.safetensors"
# Axes of an input that stay apart: batch and position (or time); what follows is one feature axis.
KEPT = 2


@dataclass(frozen=True)
class Pairs:
    """Where recorded pairs lie, and which tensor is what; ``inputs`` and ``expected`` by input and hook name."""

    file: str
    inputs: Mapping[str, str]
    expected: Mapping[str, str]


def recorded_names(given: Declaration, where: str) -> Pairs | None:
    """The pairs that a declaration names, or None when it names none. Raises BadLayout when a half is missing."""
    if not given.check:
        return None
    inputs, expected = given.check.get("inputs", {}), given.check.get("expected", {})
    if not inputs or not expected:
        raise BadLayout(f"{where}: [check] needs both [check.inputs] and [check.expected]; see docs/layouts.md")
    file = given.check.get("file", DEFAULT_FILE)
    if Path(file).name != file:
        raise BadLayout(f"{where}: [check] file: expected a file name beside the weights, got '{file}'; move it there")
    return Pairs(file, inputs, expected)


def arranged(words: str, tensors: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    """The recorded tensor that `words` name, its axes reordered and those after the second flattened.

    Raises CheckpointMismatch when it is not recorded, BadLayout when axes before and after the arrow differ.
    """
    name, _, axes = words.partition(":")
    if name.strip() not in tensors:
        raise CheckpointMismatch(f"{where}: expected a recorded tensor '{name.strip()}', found {', '.join(tensors)}")
    array = tensors[name.strip()]
    if not axes.strip():
        return array
    before, arrow, after = (part.split() for part in axes.partition("->"))
    if not arrow or sorted(before) != sorted(after) or len(before) != array.ndim or len(set(before)) != len(before):
        raise BadLayout(
            f"{where}: '{words}': expected the {array.ndim} axes of '{name.strip()}' by name, an arrow, and the same "
            "axes in the wanted order; see docs/layouts.md"
        )
    turned = array.transpose([before.index(axis) for axis in after])
    return turned.reshape(*turned.shape[:KEPT], -1) if turned.ndim > KEPT else turned
