"""What a sublayer reads, as the sum of what every component before it has written: each part through the held norms.

A norm on the way, its scale held at the run, is linear but for its bias: x ↦ γ⊙(xP)/σ + β. So what each component
adds goes through the norms behind it by itself, every β is a part of its own, and the parts sum to what is read, to
rounding.

Source: `docs/theory/attend.md`, equations 3, 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.model.spec import Norm
from covector.propagation.anatomy import Component
from covector.propagation.linearised import Linearised

Rows = Float[np.ndarray, "position d_model"]


@dataclass(frozen=True, eq=False)
class Writer:
    """One part of what is read behind the norm [position, d_model]: ``L3H1``, ``L3.mlp``, ``embed``, ``L3.b_O``.

    ``constant`` says that it is a bias: of an output (``L3.b_O``) or of a norm (``L5.attn_norm.bias``).
    """

    name: str
    rows: Rows
    constant: bool = False


def writers(linear: Linearised, c: Component, prompt: int = 0) -> Iterator[Writer]:
    """Everything that component `c` reads behind its norm, part by part; norms held at the first run's `prompt`.

    The sum over all is the hook ``attn_normed`` (``mlp_normed``) to rounding. Parts come in the order in which they
    are written. Where tokens have learned positions and no norm acts on the embeddings, ``pos`` is a part of its own.
    """
    held = _Held(linear, prompt)
    for writer, state in _added(held, c.reads):
        yield Writer(writer.name, held.read(held.carried(writer.rows, state, c.reads), c), writer.constant)
    bias = linear.part(f"L{c.layer}.{c.sub.name}_norm.bias") if c.sub.reads else None
    if bias is not None:
        yield Writer(f"L{c.layer}.{c.sub.name}_norm.bias", np.broadcast_to(bias, held.shape), True)


def _added(held: "_Held", state: int) -> Iterator[tuple[Writer, int]]:
    """Every part of the sums that make the states up to `state`, with the state in whose sum it first stands."""
    linear = held.linear
    yield from ((writer, 0) for writer in _embedded(held))
    for s in range(1, state + 1):
        for c in linear.components:
            if c.writes == s:
                yield from ((writer, s) for writer in _written(held, c))
        after = held.after(s)
        bias = linear.part(f"L{after.layer}.{after.sub.name}_after.bias") if after else None
        if after is not None and bias is not None:
            # It is added behind the norm of state s, so the next norm that it meets is that of s + 1.
            yield Writer(f"L{after.layer}.{after.sub.name}_after.bias", np.broadcast_to(bias, held.shape), True), s + 1


def _embedded(held: "_Held") -> Iterator[Writer]:
    stream, assembly = held.at("resid_in"), held.linear.spec.assembly
    if assembly.mode == "tokens" and assembly.positions == "learned" and assembly.norm is None:
        first = assembly.position_offset
        places = held.linear.need("W_pos")[first : first + len(stream)]
        yield Writer("embed", stream - places)
        yield Writer("pos", places)
    else:
        yield Writer("embed", stream)


def _written(held: "_Held", c: Component) -> Iterator[Writer]:
    """What a component adds to the stream: head by head, an MLP whole, biases apart."""
    linear = held.linear
    if c.mlp:
        yield Writer(c.name, held.out(held.at(c.hook("mlp_out")), c))
    else:
        z, W_O = held.at(c.hook("z")), linear.need(c.hook("W_O"))
        for h in range(len(W_O)):
            yield Writer(f"L{c.layer}H{h}", held.out(z[:, h] @ W_O[h], c))
        b_O = linear.part(c.hook("b_O"))
        if b_O is not None:
            yield Writer(c.hook("b_O"), held.out(np.broadcast_to(b_O, held.shape), c), True)
    bias = linear.part(f"L{c.layer}.{c.sub.name}_post.bias") if c.sub.post else None
    if bias is not None:
        yield Writer(f"L{c.layer}.{c.sub.name}_post.bias", np.broadcast_to(bias * c.sub.scale, held.shape), True)


class _Held:
    """The norms of a model with their scales held at one prompt of a run, applied to a part of what they read."""

    def __init__(self, linear: Linearised, prompt: int) -> None:
        self.linear, self.prompt = linear, prompt
        self.shape = self.at("resid_in").shape

    def at(self, hook: str) -> np.ndarray:
        """What passed a hook."""
        return self.linear.runs[0][hook][self.prompt]

    def after(self, state: int) -> Component | None:
        """The component whose norm acts on the sum that makes a state, if one does."""
        return next((c for c in self.linear.components if c.writes == state and c.sub.after), None)

    def out(self, rows: Rows, c: Component) -> Rows:
        """A part of a component's output as it is added: through its post norm and scale."""
        name = c.sub.name
        return self._norm(rows, c.sub.post, f"L{c.layer}.{name}_post", c.hook(f"{name}_out")) * c.sub.scale

    def read(self, rows: Rows, c: Component) -> Rows:
        """A part of the state that a component reads, behind its norm."""
        name = c.sub.name
        return self._norm(rows, c.sub.reads, f"L{c.layer}.{name}_norm", c.hook(f"{name}_in"))

    def carried(self, rows: Rows, state: int, to: int) -> Rows:
        """A part of the sum that makes a state, as a part of a later state: through the norms that act on sums."""
        for s in range(state, to + 1):
            c = self.after(s)
            if c is not None:
                name = c.sub.name
                hooks = c.hook(f"{name}_in"), c.hook(f"{name}_added")
                rows = self._norm(rows, c.sub.after, f"L{c.layer}.{name}_after", *hooks)
        return rows

    def _norm(self, rows: Rows, norm: Norm | None, name: str, *point: str) -> Rows:
        if norm is None:
            return rows
        x = sum((self.at(hook) for hook in point[1:]), self.at(point[0]))
        return held_norm(rows, x, norm, self.linear.part(f"{name}.gain"))


def held_norm(
    part: Float[np.ndarray, "*batch d"],
    x: Float[np.ndarray, "*batch d"],
    norm: Norm,
    gain: Float[np.ndarray, " d"] | None,
) -> Float[np.ndarray, "*batch d"]:
    """A norm with its scale held at x, on a part of x, bias left out: γ⊙(part P)/σ(x). Exact; float64."""
    centred = [y - y.mean(axis=-1, keepdims=True) if norm.kind == "layer" else y for y in (part, x)]
    out = centred[0] / np.sqrt(np.mean(centred[1] ** 2, axis=-1, keepdims=True) + norm.eps)
    return out if gain is None else out * gain
