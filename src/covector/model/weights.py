"""Canonical weights: a read-only mapping from names such as ``L3.W_Q`` to arrays in one orientation.

Every matrix is input x output with the head axis first (``W_Q [head, d_model, d_head]``); see ``canonical_axes``.
Values are frozen: arrays come back read-only, and whoever wants other weights makes another `Weights`.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from covector.errors import CheckpointMismatch
from covector.model.spec import MLP, Attention, ModelSpec


@runtime_checkable
class TensorSource(Protocol):
    """Named tensors as a checkpoint stores them; io and tests provide it."""

    @property
    def where(self) -> str:
        """How errors name it."""
        ...

    def names(self) -> tuple[str, ...]:
        """Every tensor name."""
        ...

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Storage dtype and shape of one tensor."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The values; half precisions widened exactly to float32."""
        ...

    def sha256(self, name: str) -> str:
        """Hash of the stored bytes."""
        ...

    def release(self, name: str) -> None:
        """Say that the tensor is not needed for now; arrays handed out stay valid."""
        ...


@runtime_checkable
class Weights(Protocol):
    """Canonical tensors of one model."""

    @property
    def spec(self) -> ModelSpec:
        """The function that they belong to."""
        ...

    def __getitem__(self, name: str) -> np.ndarray:
        """The canonical array, read-only; KeyError when the model has none of that name."""
        ...

    def __contains__(self, name: object) -> bool:
        """Whether the model has such a tensor."""
        ...

    def names(self) -> tuple[str, ...]:
        """Every canonical name, in reading order."""
        ...

    def stored(self, name: str) -> str:
        """The dtype that the checkpoint stores this tensor in (``float16`` …)."""
        ...

    def origin(self, name: str) -> tuple[str, str]:
        """The stored name of a tensor, and the sha256 of its stored bytes."""
        ...


@dataclass(frozen=True)
class ArrayWeights:
    """Canonical weights held in memory (toys, tests, frames with few changes)."""

    spec: ModelSpec
    arrays: Mapping[str, np.ndarray]
    dtypes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Arrays become read-only views: a frozen value cannot be edited behind its back."""
        object.__setattr__(self, "arrays", {k: frozen(a) for k, a in self.arrays.items()})

    def __getitem__(self, name: str) -> np.ndarray:
        """The canonical array, read-only."""
        return self.arrays[name]

    def __contains__(self, name: object) -> bool:
        """Whether the model has such a tensor."""
        return name in self.arrays

    def names(self) -> tuple[str, ...]:
        """Every canonical name."""
        return tuple(self.arrays)

    def stored(self, name: str) -> str:
        """The declared storage dtype, else the array's own."""
        return self.dtypes.get(name, str(self.arrays[name].dtype))

    def origin(self, name: str) -> tuple[str, str]:
        """The name itself, and the sha256 of the values."""
        return name, hashlib.sha256(np.ascontiguousarray(self.arrays[name]).tobytes()).hexdigest()


class Held:
    """Weights that keep what they have handed out, so that a tensor is read and rewritten once; for one piece of work.

    ``of`` are the weights behind it.
    """

    def __init__(self, of: Weights) -> None:
        self.of, self._kept = of, dict[str, np.ndarray]()

    @property
    def spec(self) -> ModelSpec:
        """The function that they belong to."""
        return self.of.spec

    def __getitem__(self, name: str) -> np.ndarray:
        """The canonical array, read-only, from the first time it was asked for."""
        if name not in self._kept:
            self._kept[name] = self.of[name]
        return self._kept[name]

    def __contains__(self, name: object) -> bool:
        """Whether the model has such a tensor."""
        return name in self.of

    def names(self) -> tuple[str, ...]:
        """Every canonical name."""
        return self.of.names()

    def stored(self, name: str) -> str:
        """The storage dtype."""
        return self.of.stored(name)

    def origin(self, name: str) -> tuple[str, str]:
        """The stored name and the sha256 of the stored bytes."""
        return self.of.origin(name)


class ReadOnce:
    """A source that keeps what it has read: a stored tensor with several canonical ones in it is widened once.

    For one piece of work, as `Held`; ``of`` is the source behind it.
    """

    def __init__(self, of: TensorSource) -> None:
        self.of, self.where, self._kept = of, of.where, dict[str, np.ndarray]()

    def names(self) -> tuple[str, ...]:
        """Every tensor name."""
        return self.of.names()

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Storage dtype and shape of one tensor."""
        return self.of.info(name)

    def read(self, name: str) -> np.ndarray:
        """The values, from the first time they were asked for."""
        if name not in self._kept:
            self._kept[name] = self.of.read(name)
        return self._kept[name]

    def sha256(self, name: str) -> str:
        """Hash of the stored bytes."""
        return self.of.sha256(name)

    def release(self, name: str) -> None:
        """Say that the tensor is not needed for now; what was read stays here."""
        self.of.release(name)


def frozen(array: np.ndarray) -> np.ndarray:
    """A read-only view of `array` (no copy)."""
    view = array.view()
    view.flags.writeable = False
    return view


_AXES = {
    "W_Q": "head d_model d_head",
    "W_K": "kv_head d_model d_head",
    "W_V": "kv_head d_model d_head",
    "W_O": "head d_head d_model",
    "b_Q": "head d_head",
    "b_K": "kv_head d_head",
    "b_V": "kv_head d_head",
    "b_O": "d_model",
    "W_in": "d_model d_mlp",
    "W_gate": "d_model d_mlp",
    "W_out": "d_mlp d_model",
    "b_in": "d_mlp",
    "b_gate": "d_mlp",
    "b_out": "d_model",
    "W_E": "token d_model",
    "W_pos": "position d_model",
    "W_U": "d_model token",
    "b_U": "token",
}
_NORM_AXES = {"q_norm": "d_head", "k_norm": "d_head"}
_LAYER = re.compile(r"L(\d+)\.(.+)")
_LABELLED = re.compile(r"(in|out)\.(\w+)\.(W|b|transform\.W|transform\.b|norm\.gain|norm\.bias)")


def canonical_axes(role: str) -> tuple[str, ...]:
    """Axes of a canonical tensor, given its role (``W_Q``, ``attn_norm.gain``, ``in.state.W``) without the layer.

    Raises KeyError for a name that is no role.
    """
    if role in _AXES:
        return tuple(_AXES[role].split())
    if role.endswith((".gain", ".bias")) and "." in role and not role.startswith(("in.", "out.")):
        norm = role.rsplit(".", 1)[0]
        return (_NORM_AXES.get(norm, "d_model"),)
    found = _LABELLED.fullmatch(role)
    if not found:
        raise KeyError(role)
    side, label, kind = found.groups()
    if kind.startswith("transform"):
        return ("d_model_in", "d_model") if kind.endswith("W") else ("d_model",)
    if kind.startswith("norm"):
        return ("d_model",)
    if kind == "b":
        return ("d_model",) if side == "in" else (label,)
    return (label, "d_model") if side == "in" else ("d_model", label)


def split_name(name: str) -> tuple[int | None, str]:
    """``L3.W_Q`` → (3, ``W_Q``); ``W_E`` → (None, ``W_E``)."""
    found = _LAYER.fullmatch(name)
    return (int(found[1]), found[2]) if found else (None, name)


def axis_sizes(spec: ModelSpec, layer: int | None, roles: Iterable[str] = ()) -> dict[str, int]:
    """Size of every axis that the tensors of this layer (or of the whole model) may have.

    An input and an output of one name may differ in size (a padding row, an `=` token): `roles` say whose is meant.
    """
    sizes = {"d_model": spec.d_model, "d_model_in": spec.d_model}
    of_input = any(role == "W_E" or role.startswith("in.") for role in roles)
    inputs, outputs = spec.assembly.inputs, spec.outputs
    for part in (*outputs, *inputs) if of_input else (*inputs, *outputs):
        sizes[part.name] = part.n
    if spec.assembly.time:
        sizes[spec.assembly.time.name] = spec.assembly.time.n
    if layer is not None:
        for sub in spec.blocks[layer].sublayers:
            sizes |= _part_sizes(sub.part)
    return sizes


def _part_sizes(part: Attention | MLP) -> dict[str, int]:
    if isinstance(part, MLP):
        return {"d_mlp": part.d_mlp}
    return {"head": part.n_heads, "kv_head": part.n_kv_heads, "d_head": part.d_head}


def required(spec: ModelSpec) -> Iterator[str]:
    """The canonical tensors without which this anatomy cannot be computed (biases and gains are never required)."""
    for source in (*spec.assembly.inputs, *((spec.assembly.time,) if spec.assembly.time else ())):
        yield "W_E" if source.name == "token" else f"in.{source.name}.W"
    if spec.assembly.positions != "none":
        yield "W_pos"
    for i, block in enumerate(spec.blocks):
        for sub in block.sublayers:
            if isinstance(sub.part, Attention):
                yield from (f"L{i}.{r}" for r in ("W_Q", "W_K", "W_V", "W_O"))
            else:
                yield from (f"L{i}.{r}" for r in (("W_gate",) if sub.part.gated else ()))
                yield from (f"L{i}.{r}" for r in ("W_in", "W_out"))
    for out in spec.outputs:
        yield "W_U" if out.name == "token" else f"out.{out.name}.W"


def check_complete(weights: Weights, where: str) -> None:
    """Raise CheckpointMismatch, naming the tensor, if the anatomy needs a canonical tensor that is not there."""
    for name in required(weights.spec):
        if name not in weights:
            raise CheckpointMismatch(
                f"{where}: expected a tensor for {name}, the anatomy ({weights.spec.family}) needs it and none came; "
                f"check the config against the weights, or declare it in a layout.toml"
            )
