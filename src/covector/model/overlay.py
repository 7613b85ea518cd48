"""Edited weights: a base, and low-rank changes of a few of its matrices, as another frozen value.

A matrix is never assigned to. `Overlay` computes an edited tensor when it is asked for and hands everything else on,
so no cache of the base can go stale. Changes are kept in factors: W' = W + left·right.

Source: `docs/theory/edits.md`, equations 1–3.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.model.spec import ModelSpec
from covector.model.weights import Weights, frozen

if TYPE_CHECKING:
    from covector.model.opened import Model


@dataclass(frozen=True, eq=False)
class Update:
    """A low-rank change of one canonical matrix: ``W += left @ right``; of its slice ``W[head]`` where `head` is given.

    Raises BadRequest for factors that do not fit each other.
    """

    tensor: str
    left: Float[np.ndarray, "n k"]
    right: Float[np.ndarray, "k m"]
    head: int | None = None

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            object.__setattr__(self, name, frozen(np.asarray(getattr(self, name), dtype=np.float64)))
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise BadRequest(
                f"change of {self.tensor}: expected factors [n, k] and [k, m], got {self.left.shape} and "
                f"{self.right.shape}"
            )

    @property
    def delta(self) -> Float[np.ndarray, "n m"]:
        """The change itself, multiplied out."""
        return self.left @ self.right


@dataclass(frozen=True, eq=False)
class Shift:
    """A change of one bias: ``b += values``; of its row ``b[head]`` where `head` is given."""

    tensor: str
    values: Float[np.ndarray, " m"]
    head: int | None = None


@dataclass(frozen=True)
class Change:
    """What an edit comes to on one model: changes of matrices and of biases, on the weights as they are stored."""

    updates: tuple[Update, ...] = ()
    shifts: tuple[Shift, ...] = ()

    def __add__(self, other: "Change") -> "Change":
        return Change(self.updates + other.updates, self.shifts + other.shifts)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Canonical names of what is changed, each once, in order."""
        return tuple(dict.fromkeys([*(u.tensor for u in self.updates), *(s.tensor for s in self.shifts)]))


@runtime_checkable
class Resolvable(Protocol):
    """What can be laid over a model: an edit."""

    def change(self, model: "Model") -> Change:
        """What it comes to on this model."""
        ...

    def record(self) -> Mapping[str, Any]:
        """What results of the edited model should say of it."""
        ...


@dataclass(frozen=True)
class Overlay:
    """Weights with a change laid over them. Edited tensors come as float64 sums; the others as the base has them.

    An embedding that was tied and is edited (on either side) is untied: the other side stays as it was.
    Raises BadRequest for a change of a tensor that the base has not, or whose factors do not fit it.
    """

    base: Weights
    change: Change

    def __post_init__(self) -> None:
        for update in self.change.updates:
            _check(self.base, update.tensor, update.head, (len(update.left), update.right.shape[1]))
        for shift in self.change.shifts:
            _check(self.base, shift.tensor, shift.head, shift.values.shape)

    @property
    def spec(self) -> ModelSpec:
        """The base's anatomy, untied where an embedding was edited."""
        spec = self.base.spec
        return dataclasses.replace(spec, tied=False) if spec.tied and self._unties else spec

    @property
    def _unties(self) -> bool:
        return not {"W_E", "W_U"}.isdisjoint(self.change.tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        """The canonical array, read-only."""
        array = _read(self.base, name)
        updates = [u for u in self.change.updates if u.tensor == name]
        shifts = [s for s in self.change.shifts if s.tensor == name]
        if not updates and not shifts:
            return array
        made = array.astype(np.float64)
        for update in updates:
            made[... if update.head is None else update.head] += update.delta
        for shift in shifts:
            made[... if shift.head is None else shift.head] += shift.values
        return frozen(made)

    def __contains__(self, name: object) -> bool:
        """Whether the model has such a tensor."""
        return name in self.base or (name == "W_U" and self.base.spec.tied)

    def names(self) -> tuple[str, ...]:
        """Every canonical name."""
        names = self.base.names()
        return names if "W_U" in names or not self.base.spec.tied else (*names, "W_U")

    def stored(self, name: str) -> str:
        """The dtype that the base stores this tensor in: an edit does not undo its rounding."""
        return self.base.stored("W_E" if name == "W_U" and name not in self.base else name)

    def origin(self, name: str) -> tuple[str, str]:
        """The base's stored name, and a hash of its bytes together with the change."""
        stored, digest = self.base.origin("W_E" if name == "W_U" and name not in self.base else name)
        parts = [a for u in self.change.updates if u.tensor == name for a in (u.left, u.right)]
        parts += [s.values for s in self.change.shifts if s.tensor == name]
        if not parts:
            return stored, digest
        made = hashlib.sha256(digest.encode())
        for part in parts:
            made.update(np.ascontiguousarray(part, dtype=np.float64).tobytes())
        return stored, made.hexdigest()

    def position(self, name: str) -> tuple[str, int]:
        """Where the base's tensor stands, for reading files in their order."""
        where = getattr(self.base, "position", None)
        return where(name) if where else ("", 0)

    def release(self, name: str) -> None:
        """Say that a tensor is not needed for now."""
        release = getattr(self.base, "release", None)
        if release:
            release(name)

    def changed(self) -> dict[str, np.ndarray]:
        """The edited tensors whole, by canonical name: what `Runner.edited` takes.

        Both sides of an embedding that the edit unties.
        """
        names = list(self.change.tensors)
        if self.base.spec.tied and self._unties:
            names = list(dict.fromkeys([*names, "W_E", "W_U"]))
        return {name: self[name] for name in names}


def _read(base: Weights, name: str) -> np.ndarray:
    return frozen(base["W_E"].T) if name == "W_U" and name not in base and base.spec.tied else base[name]


def _check(base: Weights, name: str, head: int | None, shape: tuple[int, ...]) -> None:
    if name not in base and not (name == "W_U" and base.spec.tied):
        raise BadRequest(f"edit: expected a tensor of {base.spec.family}, it has no {name}; see Weights.names()")
    here = _read(base, name)
    here = here if head is None else here[head]
    if here.shape != shape:
        raise BadRequest(f"edit of {name}: expected a change of shape {here.shape}, got {shape}")
