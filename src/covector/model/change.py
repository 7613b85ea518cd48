"""A change of weights, opened as a model is: the map at every site is ΔM = M' − M, read against the old model's bases.

So whatever reads a model's weights (`covector svd`, an atlas and its search) reads what a fine-tune, an edit or an
adapter changed. Nothing can be run: a change of weights is no function.
"""

import dataclasses
import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from covector.errors import BadRequest, CheckpointMismatch
from covector.linalg.change import difference
from covector.linalg.maps import Dense, Factored, Map
from covector.model.address import Site, named_sites
from covector.model.bases import Bases, Basis
from covector.model.circuits import map_at
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.model.spec import ModelSpec
from covector.model.weights import Weights, frozen

# Between the words that open the old model and those that open the new one, where a result records both.
CHANGED_TO = " --changed-to "


@dataclass(frozen=True)
class ChangeWeights:
    """Canonical tensors as differences, in float64; those of both sides as ``base.NAME`` and ``other.NAME``."""

    base: Weights
    other: Weights

    @property
    def spec(self) -> ModelSpec:
        """The anatomy of both."""
        return self.base.spec

    def __getitem__(self, name: str) -> np.ndarray:
        """What was added to a tensor; read-only."""
        side, dot, rest = name.partition(".")
        if dot and side in ("base", "other"):
            return getattr(self, side)[rest]
        return frozen(self.other[name].astype(np.float64) - self.base[name])

    def __contains__(self, name: object) -> bool:
        """Whether both models have such a tensor."""
        side, dot, rest = str(name).partition(".")
        if dot and side in ("base", "other"):
            return rest in getattr(self, side)
        return name in self.base and name in self.other

    def names(self) -> tuple[str, ...]:
        """Every canonical name of the old model."""
        return self.base.names()

    def stored(self, name: str) -> str:
        """The dtype that the old checkpoint stores the tensor in."""
        side, dot, rest = name.partition(".")
        if dot and side in ("base", "other"):
            return getattr(self, side).stored(rest)
        return self.base.stored(name)

    def origin(self, name: str) -> tuple[str, str]:
        """The stored name of a tensor, and one digest of both sides' bytes."""
        side, dot, rest = name.partition(".")
        if dot and side in ("base", "other"):
            stored, digest = getattr(self, side).origin(rest)
            return f"{side}.{stored}", digest
        (stored, one), (_, two) = self.base.origin(name), self.other.origin(name)
        return stored, hashlib.sha256(f"{one} {two}".encode()).hexdigest()


class _Side:
    """The weights of one side, through whatever keeps those of a change."""

    def __init__(self, of: Weights, side: str) -> None:
        self.of, self.side = of, side

    @property
    def spec(self) -> ModelSpec:
        return self.of.spec

    def __getitem__(self, name: str) -> np.ndarray:
        return self.of[f"{self.side}.{name}"]

    def __contains__(self, name: object) -> bool:
        return f"{self.side}.{name}" in self.of

    def names(self) -> tuple[str, ...]:
        return self.of.names()

    def stored(self, name: str) -> str:
        return self.of.stored(f"{self.side}.{name}")

    def origin(self, name: str) -> tuple[str, str]:
        return self.of.origin(f"{self.side}.{name}")


class _OldBases(Bases):
    """The bases of the old model, their tensors named as a change names them."""

    def _make(self, name: str, centred: bool = False) -> Basis:
        found = super()._make(name, centred)
        return dataclasses.replace(found, tensors=tuple(f"base.{t}" for t in found.tensors))


@dataclass(frozen=True)
class ChangeModel(Model):
    """What changed between two models of one anatomy, in one frame. Made by `change`.

    ``exact``: the new model is the old one plus a given change (an adapter), so storage rounded no part of it.
    """

    base: Model | None = field(default=None, repr=False)
    other: Model | None = field(default=None, repr=False)
    exact: bool = False

    @cached_property
    def bases(self) -> Bases:
        """The old model's labelled directions."""
        return _OldBases(_Side(self.weights, "base"), self.labels)

    def map(self, address: str | Site) -> Dense | Factored:
        """ΔM at a site, in factors where the site's map is."""
        base, other = self.sides(address)
        return difference(other, base, stored="float64" if self.exact else None)

    def sides(self, address: str | Site) -> tuple[Map, Map]:
        """The old and the new map at a site."""
        base, other = (map_at(_Side(self.weights, side), self.site(address)) for side in ("base", "other"))
        return base, other

    def framed(self, name: str | Frame) -> "ChangeModel":
        """The change between the two models in another frame. Raises UnknownFrame, FrameUnavailable."""
        base, other = both(self)
        return change(base.framed(name), other.framed(name), exact=self.exact)

    def hash_ahead(self) -> None:
        """Begin to hash the old model's token tables."""
        both(self)[0].hash_ahead()


def both(model: ChangeModel) -> tuple[Model, Model]:
    """(old, new) model of a change."""
    if model.base is None or model.other is None:
        raise BadRequest("expected a change made of two models, came one without; make it with covector.diff")
    return model.base, model.other


def change(base: Model, other: Model, *, exact: bool = False) -> ChangeModel:
    """The change from `base` to `other`, in the frame of `base`.

    Raises CheckpointMismatch, naming what differs, unless both have one anatomy and the same tensors; BadRequest for a
    frame with biases, whose maps are not linear in the weights alone.
    """
    if base.frame.bias:
        raise BadRequest(
            f"expected a frame without bias for a change, got {base.frame}; biases are listed by themselves"
        )
    check_same(base, other)
    other = other if other.frame == base.frame else other.framed(base.frame)
    stored, weights = ChangeWeights(base.stored, other.stored), ChangeWeights(base.weights, other.weights)
    identity = {**base.identity, "files": _files(base, other), "other": {"model": other.name, **other.identity}}
    return ChangeModel(
        f"{base.name} → {other.name}",
        stored,
        weights,
        base.frame,
        base.labels,
        base.vocabulary,
        identity,
        f"{base.words}{CHANGED_TO}{other.typed or shlex.quote(other.name)}",
        base=base,
        other=other,
        exact=exact,
    )


def _files(base: Model, other: Model) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side, model in (("base", base), ("other", other)):
        files: Mapping[str, Any] = dict(model.identity.get("files") or {})
        found |= {f"{side}/{name}": digest for name, digest in files.items()}
    return found


def check_same(base: Model, other: Model) -> None:
    """Raise CheckpointMismatch, naming what differs, unless two models have one anatomy and the same tensors."""
    one, two = base.stored.spec, other.stored.spec
    for name, old, new in _anatomy(one, two):
        if old != new:
            raise CheckpointMismatch(
                f"{base.name} and {other.name}: expected two checkpoints of one anatomy, {name} is {old} in the first "
                f"and {new} in the second; compare a model with one that was trained from it"
            )
    missing = set(base.stored.names()) ^ set(other.stored.names())
    if missing:
        name = min(missing)
        has, lacks = (base.name, other.name) if name in base.stored else (other.name, base.name)
        raise CheckpointMismatch(
            f"{base.name} and {other.name}: expected the same tensors in both, {name} is in {has} and not in {lacks}; "
            "compare checkpoints of one anatomy"
        )
    for name in ("W_E", "W_pos", "W_U"):
        if name in base.stored and base.stored[name].shape != other.stored[name].shape:
            raise CheckpointMismatch(
                f"{base.name} and {other.name}: expected tensors of one size, {name} is {base.stored[name].shape} in "
                f"the first and {other.stored[name].shape} in the second; cut or pad the vocabulary first"
            )


def _anatomy(one: ModelSpec, two: ModelSpec) -> list[tuple[str, object, object]]:
    """Pairs of what must agree, the plainest first."""
    sizes = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_mlp", "n_vocab", "tied")
    pairs: list[tuple[str, object, object]] = [(name, getattr(one, name), getattr(two, name)) for name in sizes]
    pairs += [("the sites outside the blocks", named_sites(one), named_sites(two))]
    pairs += [(f"block {i}", a, b) for i, (a, b) in enumerate(zip(one.blocks, two.blocks, strict=False))]
    pairs += [(name, getattr(one, name), getattr(two, name)) for name in ("final_norm", "assembly", "outputs")]
    return pairs
