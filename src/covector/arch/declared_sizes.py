"""Sizes of the axes that words declare, from the shapes of the stored tensors; only what follows, never a guess.

Every axis of every stored tensor gives one equation: the product of its declared parts is its length. An axis declared
alone gives its size; ``(head d_head)`` gives one size once the other is known. What two tensors say differently, and
what no tensor says, is refused.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from covector.arch.words import Layout, parse
from covector.errors import BadLayout, CheckpointMismatch
from covector.model.weights import TensorSource, canonical_axes

# An axis of a block (its number, head) or of the whole model (None, d_model), (None, in.state).
Axis = tuple[int | None, str]

_OF_A_BLOCK = ("head", "kv_head", "d_head", "d_mlp")
_OF_THE_MODEL = {"d_model": "d_model", "d_model_in": "d_model", "position": "position"}
# Roles without a prefix that say which side of the model an axis called `token` belongs to.
_SIDES = {"W_E": "in", "W_U": "out", "b_U": "out"}
# How the sizes are called in [anatomy].
STATED = {"n_heads": "head", "n_kv_heads": "kv_head", "d_head": "d_head", "d_mlp": "d_mlp"}


@dataclass(frozen=True)
class Found:
    """A stored tensor that the declaration names: the pattern it fits, its block, its layout and stored shape."""

    tensor: str
    pattern: str
    layer: int | None
    layout: Layout
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """Sizes by axis, each with the tensor (or the key) that said so."""

    by_axis: Mapping[Axis, tuple[int, str]]

    def get(self, axis: str, layer: int | None = None) -> int | None:
        """The size, or None if nothing says it."""
        return self.by_axis.get((layer, axis), (None, ""))[0]


def parsed(words: Mapping[str, str], where: str) -> dict[str, Layout]:
    """Every pattern's layout. Raises BadLayout with the tensor's name added."""
    layouts = {}
    for pattern, text in words.items():
        try:
            layouts[pattern] = parse(text, default_role=pattern.rsplit(".", 1)[-1])
        except BadLayout as error:
            raise BadLayout(f"{where}: [tensors] '{pattern}': {error}") from None
        for role in layouts[pattern].roles:
            _check_block(pattern, role, where)
    return layouts


def find(layouts: Mapping[str, Layout], source: TensorSource) -> tuple[Found, ...]:
    """Every stored tensor that a pattern names, in the order of the declaration, then of the blocks."""
    names = source.names()
    found = []
    for pattern, layout in layouts.items():
        shape = re.compile(re.escape(pattern).replace(r"\{i\}", r"(\d+)", 1).replace(r"\{i\}", r"\1"))
        hits = [(int(hit.group(1)) if hit.groups() else None, name) for name in names if (hit := shape.fullmatch(name))]
        for layer, tensor in sorted(hits, key=lambda hit: -1 if hit[0] is None else hit[0]):
            found.append(Found(tensor, pattern, layer, layout, source.info(tensor)[1]))
    return tuple(found)


def solve(found: Iterable[Found], stated: Mapping[Axis, int], n_layers: int, where: str) -> Sizes:
    """Every size that follows from `stated` and from the shapes.

    Raises CheckpointMismatch, naming the tensor, if a shape contradicts the words or another tensor.
    """
    known = {axis: (size, f"[anatomy] {_key(axis[1])}") for axis, size in stated.items()}
    open_ = [e for f in found if not f.layout.ignored for e in _equations(f, where)]
    while True:
        left = [e for e in open_ if not e.settle(known, where)]
        if len(left) == len(open_):
            break
        open_ = left
    for layer in range(n_layers):
        if (layer, "head") in known:
            known.setdefault((layer, "kv_head"), known[layer, "head"])
    return Sizes(known)


@dataclass(frozen=True)
class _Equation:
    """constant · Π factors = length, for one axis of one stored tensor."""

    found: Found
    place: int
    constant: int
    factors: tuple[Axis, ...]
    length: int

    def settle(self, known: dict[Axis, tuple[int, str]], where: str) -> bool:
        """Add the one unknown factor to `known`, or check that all agree; False while two are unknown."""
        unknown = [axis for axis in self.factors if axis not in known]
        product = self.constant
        for axis in self.factors:
            product *= known[axis][0] if axis in known else 1
        if len(unknown) > 1:
            return False
        if (self.length % product) if unknown else (self.length != product):
            raise CheckpointMismatch(self._refusal(known, where))
        if unknown:
            known[unknown[0]] = (self.length // product, f"'{self.found.tensor}'")
        return True

    def _refusal(self, known: Mapping[Axis, tuple[int, str]], where: str) -> str:
        says = ", ".join(f"{a[1]} = {known[a][0]} ({known[a][1]})" for a in self.factors if a in known)
        given = f"{self.constant} stacked" if self.constant > 1 else ""
        return (
            f"{where}: tensor '{self.found.tensor}' has shape {self.found.shape}, the words "
            f"'{_plain(self.found.layout)}' read its axis {self.place} as {' · '.join(a[1] for a in self.factors)}; "
            f"expected {', '.join(filter(None, (says, given)))}, got {self.length}; correct the words or the sizes"
        )


def _equations(found: Found, where: str) -> Iterable[_Equation]:
    dims = found.layout.dims
    if len(dims) != len(found.shape):
        raise CheckpointMismatch(
            f"{where}: tensor '{found.tensor}' has shape {found.shape}, the words '{_plain(found.layout)}' name "
            f"{len(dims)} axes; name each axis of the file once, with parentheses around those laid into one"
        )
    if 0 in found.shape:
        raise CheckpointMismatch(
            f"{where}: tensor '{found.tensor}' has shape {found.shape}, it is empty; declare it \"-\""
        )
    for place, (dim, length) in enumerate(zip(dims, found.shape, strict=True)):
        product, *others = dim.parts
        if others:
            continue  # a sum of products: checked against the sizes when the layout is applied
        constant = max(1, len(product.roles)) if product.stack is not None else 1
        axes = [axis for axis in product.axes if axis not in ("[]", "_")]
        for factors in _meanings(axes, found):
            yield _Equation(found, place, constant, factors, length)


def _meanings(axes: list[str], found: Found) -> Iterable[tuple[Axis, ...]]:
    """The axes as every role of the tensor understands them: ``token`` of an input or an output, whose ``head``."""
    return dict.fromkeys(tuple(_meaning(axis, role, found.layer) for axis in axes) for role in found.layout.roles)


def _meaning(axis: str, role: str, layer: int | None) -> Axis:
    if axis == "head" and "kv_head" in canonical_axes(role):
        return layer, "kv_head"
    if axis in _OF_A_BLOCK:
        return layer, axis
    if axis in _OF_THE_MODEL:
        return None, _OF_THE_MODEL[axis]
    return None, f"{_SIDES.get(role) or role.split('.')[0]}.{axis}"


def _check_block(pattern: str, role: str, where: str) -> None:
    """A role of a block needs ``{i}`` in the tensor's name, and only such a role may have it."""
    of_model = role in ("W_E", "W_pos", "W_U", "b_U") or role.startswith(("in.", "out.", "final_norm.", "embed_norm."))
    if of_model and "{i}" in pattern:
        raise BadLayout(
            f"{where}: [tensors] '{pattern}': {role} exists once in a model, not in block {{i}}; remove {{i}}"
        )
    if not of_model and "{i}" not in pattern:
        raise BadLayout(
            f"{where}: [tensors] '{pattern}': {role} belongs to a block; write {{i}} where the block's number stands"
        )


def _key(axis: str) -> str:
    return next((key for key, name in STATED.items() if name == axis), axis)


def _plain(layout: Layout) -> str:
    return layout.words.removesuffix("?").strip()
