"""Tensor layouts declared in words: which axis of a stored tensor is which, and which canonical tensors it holds.

    "W_E: token d_model"                                   one tensor, its axes in file order
    "(W_Q: head d_head) d_model"                           a composed axis, slowest part first
    "d_model ([b_Q b_K b_V] head d_head)"                  several tensors stacked along an axis of their own
    "(W_Q: head d_head | W_K: kv_head d_head | W_V: kv_head d_head) d_model"   laid one after the other
    "attn_norm.gain+mlp_norm.gain: d_model"                one tensor that plays two roles (a shared norm)
    "W_in: d_mlp d_model ?"                                a tensor that may be absent
    "-"                                                    ignored on purpose (mask buffers, recomputed tables)

Reading splits composed axes, picks, and transposes: never a reshape across an axis that was not declared composed.
``_`` is an axis of size one.
"""

import re
from dataclasses import dataclass

import numpy as np

from covector.errors import BadLayout, CheckpointMismatch
from covector.model.weights import canonical_axes

_TOKEN = re.compile(r"\[|\]|\(|\)|\||\?|[\w.]+(?:\+[\w.]+)*:?|\S")
_NAME = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class Product:
    """Axes that one file axis is composed of, slowest first; ``stack`` is where a bracket stands, or None."""

    axes: tuple[str, ...]
    roles: tuple[str, ...] = ()
    stack: int | None = None


@dataclass(frozen=True)
class Dim:
    """One axis of the stored tensor: alternatives laid one after the other (usually a single one)."""

    parts: tuple[Product, ...]


@dataclass(frozen=True)
class Layout:
    """A parsed layout: the file's axes, and every canonical role found in it."""

    words: str
    dims: tuple[Dim, ...]
    roles: tuple[str, ...]
    optional: bool = False

    @property
    def ignored(self) -> bool:
        """Whether the words say that the tensor is not used."""
        return not self.roles


@dataclass(frozen=True)
class Pick:
    """How to cut one canonical tensor out of a stored one: the index of the alternative, and of the stack, per axis."""

    role: str
    axis: int | None
    part: int
    slot: int


def parse(words: str, default_role: str = "") -> Layout:
    """The layout that `words` describe; `default_role` is used where no role is named. Raises BadLayout."""
    tokens = _TOKEN.findall(words)
    optional = "?" in tokens
    tokens = [t for t in tokens if t != "?"]
    if tokens == ["-"]:
        return Layout(words, (), (), optional)
    reader = _Reader(words, tokens)
    lead = reader.role()
    dims = []
    while reader.more:
        dims.append(reader.dim())
    roles = [r for d in dims for p in d.parts for r in p.roles]
    if not roles:
        roles = (lead or default_role).split("+")
        if roles == [""]:
            raise BadLayout(f"layout '{words}': expected a role such as 'W_Q:', none came; write 'W_Q: {words}'")
    layout = Layout(words, tuple(dims), tuple(roles), optional)
    _check(layout)
    return layout


class _Reader:
    """Recursive descent over the tokens of one layout."""

    def __init__(self, words: str, tokens: list[str]) -> None:
        self.words, self.tokens, self.at = words, tokens, 0

    @property
    def more(self) -> bool:
        return self.at < len(self.tokens)

    @property
    def ahead(self) -> str:
        return self.tokens[self.at] if self.more else ""

    def take(self, wanted: str | None = None) -> str:
        token = self.ahead
        if not token or (wanted and token != wanted):
            raise BadLayout(
                f"layout '{self.words}': expected '{wanted or 'an axis'}', got '{token or 'the end'}'; "
                "docs/layouts.md has the grammar"
            )
        self.at += 1
        return token

    def role(self) -> str:
        return self.take()[:-1] if self.ahead.endswith(":") else ""

    def dim(self) -> Dim:
        if self.ahead != "(":
            return Dim((self._product({"", "(", ")", "|"}, one=True),))
        self.take("(")
        parts = [self._product({")", "|"})]
        while self.ahead == "|":
            self.take("|")
            parts.append(self._product({")", "|"}))
        self.take(")")
        return Dim(tuple(parts))

    def _product(self, stop: set[str], one: bool = False) -> Product:
        lead = self.role()
        axes: list[str] = []
        roles: list[str] = [lead] if lead else []
        stack = None
        while self.ahead not in stop:
            if self.ahead == "[":
                if stack is not None or lead:
                    raise BadLayout(f"layout '{self.words}': expected one [stack] and no role beside it in one axis")
                stack, found = len(axes), self._stack()
                roles = found
                axes.append("[]")
            else:
                axes.append(self._axis())
            if one:
                break
        if not axes:
            raise BadLayout(f"layout '{self.words}': expected an axis name, got '{self.ahead or 'the end'}'")
        return Product(tuple(axes), tuple(roles), stack)

    def _stack(self) -> list[str]:
        self.take("[")
        roles = []
        while self.ahead != "]":
            roles.append(self._axis())
        self.take("]")
        return roles

    def _axis(self) -> str:
        token = self.take()
        if not _NAME.fullmatch(token):
            raise BadLayout(f"layout '{self.words}': expected an axis name, got '{token}'")
        return token


def _check(layout: Layout) -> None:
    """Every role exists, appears once, and finds each of its canonical axes exactly once. Raises BadLayout."""
    if len(set(layout.roles)) != len(layout.roles):
        raise BadLayout(f"layout '{layout.words}': a role appears twice; each canonical tensor is stored once")
    for role in layout.roles:
        try:
            wanted = canonical_axes(role)
        except KeyError:
            raise BadLayout(
                f"layout '{layout.words}': expected a canonical tensor (W_Q, b_O, attn_norm.gain, in.state.W, …), "
                f"got '{role}'; see docs/layouts.md for the list"
            ) from None
        came = [a for a in _axes_of(layout, role) if a not in ("[]", "_")]
        if sorted(came) != sorted(wanted):
            raise BadLayout(
                f"layout '{layout.words}': {role} has axes {' '.join(wanted)}, the words give {' '.join(came)}; "
                "name each axis once, in file order"
            )


def _picks(layout: Layout, role: str) -> Pick:
    for axis, dim in enumerate(layout.dims):
        for part, product in enumerate(dim.parts):
            if role in product.roles:
                slot = product.roles.index(role) if product.stack is not None else -1
                return Pick(role, axis, part, slot)
    return Pick(role, None, 0, -1)


def _axes_of(layout: Layout, role: str) -> list[str]:
    pick = _picks(layout, role)
    axes: list[str] = []
    for place, dim in enumerate(layout.dims):
        axes += _named(dim.parts[pick.part if place == pick.axis else 0], role)
    return axes


def _named(product: Product, role: str) -> list[str]:
    """The axes of a product as `role` calls them: ``head`` in a stack of q, k and v is k's and v's ``kv_head``."""
    grouped = "kv_head" in canonical_axes(role)
    return ["kv_head" if grouped and axis == "head" else axis for axis in product.axes]


def _length(product: Product, sizes: dict[str, int]) -> int | None:
    """Length of a composed axis, or None if it has an axis of unknown size."""
    total = 1
    for axis in product.axes:
        size = len(product.roles) if axis == "[]" else 1 if axis == "_" else sizes.get(axis)
        if size is None:
            return None
        total *= size
    return total


def declared_shape(layout: Layout, sizes: dict[str, int]) -> tuple[int | None, ...]:
    """The shape that the words and the config give the stored tensor; None where the config does not say."""
    shape: list[int | None] = []
    for dim in layout.dims:
        lengths = [_length(p, sizes) for p in dim.parts]
        known = [n for n in lengths if n is not None]
        shape.append(sum(known) if len(known) == len(lengths) else None)
    return tuple(shape)


def check_shape(layout: Layout, name: str, shape: tuple[int, ...], sizes: dict[str, int], where: str) -> None:
    """Raise CheckpointMismatch, with both shapes and the words, unless the stored shape is the declared one."""
    want = declared_shape(layout, sizes)
    fits = len(want) == len(shape) and all(w is None or w == s for w, s in zip(want, shape, strict=True))
    if not fits:
        text = ", ".join("any" if w is None else str(w) for w in want)
        raise CheckpointMismatch(
            f"{where}: cannot read {', '.join(layout.roles)}: tensor '{name}' has shape {tuple(shape)}, "
            f"the layout '{layout.words}' and the config give ({text}); is this the config of another model?"
        )


def cut(layout: Layout, role: str, stored: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
    """The canonical tensor `role` out of the stored array: split, pick, transpose. A view wherever NumPy allows one.

    Exact. Assumes that `check_shape` has passed.
    """
    pick = _picks(layout, role)
    array = stored
    shape: list[int] = []
    index: list[slice | int] = []
    axes: list[str] = []
    for place, dim in enumerate(layout.dims):
        chosen = pick.part if place == pick.axis else 0
        product = dim.parts[chosen]
        if len(dim.parts) > 1:
            lengths = [_length(p, sizes) or 0 for p in dim.parts]
            start = sum(lengths[:chosen])
            array = array[(slice(None),) * place + (slice(start, start + lengths[chosen]),)]
        length = array.shape[place]
        for axis in _named(product, role):
            size = len(product.roles) if axis == "[]" else 1 if axis == "_" else sizes.get(axis, -1)
            shape.append(length if len(product.axes) == 1 else size)
            index.append(pick.slot if axis == "[]" else 0 if axis == "_" else slice(None))
            axes += [] if axis in ("[]", "_") else [axis]
    picked = array.reshape(shape)[tuple(index)]
    return picked.transpose([axes.index(a) for a in canonical_axes(role)])
