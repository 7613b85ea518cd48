"""Where a vector is added to a running model, and which component reads it first.

A vector added to the stream goes straight on to the output, and into every component behind. The functional on the
place where it is added splits accordingly, exactly: a direct part, and for each component behind the part that enters
there first, whatever happens to it later.

Source: `docs/theory/steering.md`, equation 6.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest, BadSite
from covector.model.spec import ModelSpec
from covector.propagation.anatomy import Component, components
from covector.propagation.linearised import Functional, Linearised

STREAMS = ("resid_pre", "resid_mid", "resid_post")
READS = ("attn_in", "mlp_in")
_SPOT = re.compile(r"L(\d+)\.(\w+)", re.IGNORECASE)


@dataclass(frozen=True)
class Spot:
    """A hook point of the stream at which a vector is added.

    ``state`` is the state of the stream that it changes; for ``attn_in`` and ``mlp_in``, which change what one
    sublayer reads and nothing else, the state that it reads, and ``reader`` is its name (``L2.attn``).
    """

    layer: int
    role: str
    state: int
    reader: str | None = None

    @property
    def hook(self) -> str:
        """The hook point."""
        return f"L{self.layer}.{self.role}"

    def __str__(self) -> str:
        return self.hook


def spot_of(text: str, spec: ModelSpec) -> Spot:
    """The spot that ``L9.resid_pre`` means.

    Raises BadRequest for text that names none, BadSite for one that the model lacks or, in a block that normalises
    after the addition, for what a single sublayer reads.
    """
    found = _SPOT.fullmatch(text.strip())
    if not found or found[2].lower() not in (*STREAMS, *READS):
        raise BadRequest(f"expected a place such as L9.resid_pre ({', '.join((*STREAMS, *READS))}), got '{text}'")
    layer, role = int(found[1]), found[2].lower()
    if layer >= spec.n_layers:
        raise BadSite(f"{text} is outside the model: layers run 0–{spec.n_layers - 1}")
    here = [c for c in components(spec) if c.layer == layer]
    if role in READS:
        reader = next((c for c in here if role == f"{c.sub.name}_in"), None)
        if reader is None:
            raise BadSite(f"{text}: block {layer} has no {role.removesuffix('_in')}; it has {_names(here)}")
        if reader.sub.after:
            raise BadSite(f"{text}: block {layer} normalises behind the addition; expected a place in the stream")
        return Spot(layer, role, reader.reads, reader.name)
    if role == "resid_mid" and (len(here) != 2 or spec.blocks[layer].parallel):
        raise BadSite(f"{text}: block {layer} has no place between two sublayers; use resid_pre or resid_post")
    state = {"resid_pre": here[0].reads, "resid_mid": here[0].writes, "resid_post": here[-1].writes}[role]
    return Spot(layer, role, state)


def on_spot(linear: Linearised, start: Functional, spot: Spot) -> Functional:
    """A functional on the last state as one on what is added at a spot, through all paths."""
    every = linear.adjoint(start)
    if spot.reader is None:
        return every[spot.state]
    c = next(c for c in linear.components if c.name == spot.reader)
    return linear.pull(linear.before(every[c.writes], c.writes), c)


def direct(linear: Linearised, start: Functional, spot: Spot) -> Functional:
    """The part of `on_spot` that no component reads: straight through the stream."""
    if spot.reader is not None:
        return np.zeros_like(start)
    return _carried(linear, start, linear.end, spot.state)


def first_readers(
    linear: Linearised, start: Functional, spot: Spot, delta: Float[np.ndarray, "batch position d_model"]
) -> Iterator[tuple[Component | None, str, Float[np.ndarray, "batch head"]]]:
    """What an added `delta` brings, by the component that reads it first: (component, kind, value per head).

    Kinds are ``direct`` (no component), ``mlp``, and ``v``, ``q``, ``k`` of attentions; an MLP counts as one head. The
    values sum to the functional's on `delta`, which for secant stand-ins is the difference of the outputs.
    """
    yield None, "direct", np.sum(direct(linear, start, spot) * delta, axis=(1, 2))[:, None]
    every = linear.adjoint(start)
    for c in linear.components:
        if c.reads < spot.state or spot.reader not in (None, c.name):
            continue
        G = linear.out(linear.before(every[c.writes], c.writes), c)
        if c.mlp:
            yield c, "mlp", _value(linear, linear.read(linear.through_mlp(G, c), c), c, spot, delta)[:, None]
            continue
        pulled = linear.heads(G, c)
        for kind in "vqk":
            weights, of = linear.head_weight(c, kind), pulled.of(kind)
            each = [_value(linear, linear.read(of[:, :, h] @ W.T, c), c, spot, delta) for h, W in enumerate(weights)]
            yield c, kind, np.stack(each, axis=1)


def _value(linear: Linearised, F: Functional, c: Component, spot: Spot, delta: np.ndarray) -> np.ndarray:
    return np.sum(_carried(linear, F, c.reads, spot.state) * delta, axis=(1, 2))


def _carried(linear: Linearised, F: Functional, state: int, to: int) -> Functional:
    """A functional on a state as one on an earlier state, through the stream alone."""
    for s in range(state, to, -1):
        F = linear.before(F, s)
    return F


def _names(found: list[Component]) -> str:
    return " and ".join(c.sub.name for c in found) or "nothing"
