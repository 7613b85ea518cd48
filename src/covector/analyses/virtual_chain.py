"""A model's heads as a chain for data-free paths: norms folded into the factors, scales left out.

Source: `docs/theory/observables.md`, equation 11.
"""

import numpy as np

from covector.analyses.propagate import DATA_FREE
from covector.linalg.virtual import Chain, Crossing, Layer, compress
from covector.model.opened import Model
from covector.model.spec import Norm
from covector.propagation.anatomy import Component
from covector.propagation.linearised import Linearised


def chain_of(model: Model) -> tuple[Chain, list[str]]:
    """Every head through its values (attending fully to one place), and its name; float64.

    A functional on the last state goes in (`Linearised.unread`), functionals before the norm of a head come out: the
    norm above a head and post norms keep gain and centring and lose their scale, as in `propagate` without runs. Heads
    of one layer do not feed each other. Costs one QR per key/value head; memory about that of W_V and W_O in float64.
    """
    linear = Linearised(model.weights, (), DATA_FREE)
    state, layers, names = linear.end, list[Layer](), list[str]()
    for c in reversed(linear.components):
        if c.attn is None:
            continue
        crossed = tuple(norm for s in range(state, c.reads, -1) for norm in _after(linear, s))
        layers.insert(0, _layer(linear, c, crossed))
        names = [f"L{c.layer}H{h}" for h in range(c.attn.n_heads)] + names
        state = c.reads
    return Chain(tuple(layers)), names


def _after(linear: Linearised, state: int) -> list[Crossing]:
    """The norm that acts on the sum which makes a state (post-norm blocks)."""
    found = [c for c in linear.components if c.writes == state and c.sub.after]
    return [_crossing(linear, c.sub.after, f"L{c.layer}.{c.sub.name}_after") for c in found[:1] if c.sub.after]


def _crossing(linear: Linearised, norm: Norm, name: str) -> Crossing:
    return Crossing(linear.part(f"{name}.gain"), norm.kind == "layer")


def _layer(linear: Linearised, c: Component, crossed: tuple[Crossing, ...]) -> Layer:
    at, attn = f"L{c.layer}.", c.attn
    assert attn is not None
    V, O = linear.need(at + "W_V"), linear.need(at + "W_O") * c.sub.scale  # noqa: E741
    if c.sub.post:  # v ↦ ((v ⊙ γ)P) Oᵀ = v (OP ⊙ γ)ᵀ
        post = _crossing(linear, c.sub.post, f"{at}attn_post")
        O = O - O.mean(axis=-1, keepdims=True) if post.centre else O  # noqa: E741
        O = O if post.gain is None else O * post.gain  # noqa: E741
    if c.sub.reads:
        V = _crossing(linear, c.sub.reads, f"{at}attn_norm").pull(V.swapaxes(1, 2)).swapaxes(1, 2)
    return compress(np.ascontiguousarray(V), O, [attn.kv_of(h) for h in range(attn.n_heads)], crossed)
