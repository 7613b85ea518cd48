"""The runner: what runs a model, whoever computes it, with one list of hook points and one contract."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from covector.errors import BadRequest
from covector.model.spec import ModelSpec
from covector.model.weights import Weights
from covector.run.hooks import Intervention

Inputs = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class Run:
    """What one forward pass gave.

    ``outputs`` holds every output head at every position [batch, position, n]; ``resid_final`` is the last stream
    after the final norm [batch, position, d_model]; ``cache`` holds what was captured, by hook name.
    """

    outputs: Mapping[str, Tensor]
    resid_final: Tensor
    cache: Mapping[str, Tensor]

    @property
    def logits(self) -> Tensor:
        """The token output [batch, position, token]; KeyError for a model without one."""
        return self.outputs["token"]


@runtime_checkable
class Runner(Protocol):
    """Runs a model: the reference decoder and the transformers runner fulfil this, and a contract test compares them.

    ``hooks`` are the hook points that can be captured, ``changeable`` those at which it can intervene. Captured tensors
    have its ``dtype`` and lie on its ``device``.
    """

    spec: ModelSpec

    @property
    def dtype(self) -> torch.dtype:
        """The precision that it computes in."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hook points that `capture` accepts, in the order of the computation."""
        ...

    @property
    def changeable(self) -> tuple[str, ...]:
        """The hook points that `intervene` accepts."""
        ...

    def run(
        self,
        inputs: Inputs,
        *,
        mask: Tensor | None = None,
        capture: Iterable[str] = (),
        intervene: Mapping[str, Intervention] | None = None,
    ) -> Run:
        """One forward pass; see `Decoder.run` for the shapes. Leaves the model as it was."""
        ...

    def edited(self, changes: Mapping[str, np.ndarray]) -> AbstractContextManager["Runner"]:
        """A context in which these canonical tensors are others; on leaving it the model is bitwise as before."""
        ...


def check_changes(weights: Weights, changes: Mapping[str, np.ndarray]) -> None:
    """Raise BadRequest unless every change names a canonical tensor of the model and has its shape."""
    for name, array in changes.items():
        tied = name == "W_U" and weights.spec.tied
        if name not in weights and not tied:
            raise BadRequest(f"edit: expected a canonical tensor of this model, got '{name}'; see Weights.names()")
        shape = weights["W_E"].T.shape if tied else weights[name].shape
        if shape != array.shape:
            raise BadRequest(
                f"edit of {name}: expected shape {shape}, got {tuple(array.shape)}; "
                "give the whole tensor in canonical axes"
            )
