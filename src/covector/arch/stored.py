"""The way back: canonical values into the tensors that a checkpoint stores, by the same words that read them.

A layout only splits, picks and transposes, so a cut of a stored array is a view of it, and writing goes through.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from covector.arch.adapter import AdaptedWeights
from covector.arch.words import cut
from covector.axes import Int
from covector.errors import BadRequest
from covector.model.weights import axis_sizes, split_name


def put(weights: AdaptedWeights, name: str, values: np.ndarray, stored: np.ndarray) -> None:
    """Write a canonical tensor into a writable stored array, in place; a gain's offset is taken off. Exact."""
    layer, role = split_name(name)
    view = cut(weights.place(name).layout, role, stored, axis_sizes(weights.spec, layer, (role,)))
    assert np.shares_memory(view, stored), "a layout in words only splits and transposes"
    norm = weights.spec.norms().get(name.removesuffix(".gain")) if name.endswith(".gain") else None
    view[...] = np.asarray(values, dtype=np.float64) - (norm.offset if norm else 0.0)


def stored_values(weights: AdaptedWeights, changed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The stored tensors, float64, with these canonical tensors in them; by stored name.

    A ``W_U`` that was tied is left out: it has no place of its own yet.
    """
    made: dict[str, np.ndarray] = {}
    for name, values in changed.items():
        if name == "W_U" and weights.spec.tied:
            continue
        tensor = weights.place(name).tensor
        if tensor not in made:
            made[tensor] = weights.source.read(tensor).astype(np.float64)
        put(weights, name, values, made[tensor])
    return made


@dataclass(frozen=True, eq=False)
class Seats:
    """Where the entries [i, j] of a canonical matrix (inputs x outputs) stand in the stored one.

    ``inputs[i]`` and ``outputs[j]`` are places along the stored axes of inputs and outputs, whose lengths are
    ``n_inputs`` and ``n_outputs``; ``inputs_first`` says that the file has the inputs' axis first (Conv1D, x @ W) and
    not last (Linear, x @ Wᵀ).
    """

    tensor: str
    inputs: Int[np.ndarray, " n"]
    outputs: Int[np.ndarray, " m"]
    n_inputs: int
    n_outputs: int
    inputs_first: bool


def seats(weights: AdaptedWeights, name: str, head: int | None = None) -> Seats:
    """The seats of a matrix in a block (its slice `head` where given). Raises BadRequest for one that is not stored as
    a matrix."""
    place = weights.place(name)
    layer, role = split_name(name)
    shape = weights.source.info(place.tensor)[1]
    if len(shape) != 2:
        raise BadRequest(f"{name}: expected a matrix, '{place.tensor}' is stored with shape {tuple(shape)}")
    sizes = axis_sizes(weights.spec, layer, (role,))
    places = [
        np.broadcast_to(np.arange(n).reshape(form), shape) for n, form in zip(shape, ((-1, 1), (1, -1)), strict=True)
    ]
    row, column = (cut(place.layout, role, here, sizes) for here in places)
    row, column = (row, column) if head is None else (row[head], column[head])
    # Along its first axis the canonical matrix moves along the file's rows, or along its columns.
    if len(row) > 1 and (row[:, 0] == row[0, 0]).all():
        return Seats(place.tensor, column[:, 0].copy(), row[0].copy(), shape[1], shape[0], False)
    return Seats(place.tensor, row[:, 0].copy(), column[0].copy(), shape[0], shape[1], True)
