"""Small models with every kind of anatomy, random weights for them, and a derivative that does not use autograd."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from covector.model.spec import (
    MLP,
    Assembly,
    Attention,
    Block,
    Input,
    ModelSpec,
    Norm,
    Output,
    Rotary,
    Sublayer,
)
from covector.model.weights import ArrayWeights, axis_sizes, canonical_axes, required, split_name

LAYER, RMS = Norm("layer", 1e-5), Norm("rms", 1e-6)
TOKENS = Assembly("tokens", (Input("token", 11, "lookup"),))
ATTN = Attention(4, 4, 3, 3**-0.5)


def language_model(name: str, *blocks: Block, **changes: object) -> ModelSpec:
    given = {"assembly": TOKENS, "outputs": (Output("token", 11),), "n_ctx": 16, "final_norm": LAYER}
    return ModelSpec(name, 8, blocks, **(given | changes))


def anatomies() -> dict[str, ModelSpec]:
    """One model per kind of anatomy that the spec can say; together they touch every branch of the decoder."""
    pre = Block((Sublayer(ATTN, reads=LAYER), Sublayer(MLP(10, "gelu_new"), reads=LAYER)))
    grouped = Attention(4, 2, 4, 0.4, rotary=Rotary(4, 100.0), qk_norm=RMS, window=3)
    sandwich = Block(
        (
            Sublayer(Attention(2, 1, 6, 0.3, rotary=Rotary(4, 50.0, interleaved=True), softcap=2.0), RMS, post=RMS),
            Sublayer(MLP(10, "gelu_pytorch_tanh", gated=True), RMS, post=RMS, scale=0.7),
        )
    )
    post = Block((Sublayer(Attention(2, 2, 4, 0.5, causal=False), after=LAYER), Sublayer(MLP(10, "gelu"), after=LAYER)))
    both = (
        Input("token", 11, "lookup", scale=2.0),
        Input("type", 2, "lookup"),
    )
    agent = (Input("return", 1, "linear"), Input("state", 5, "linear", activation="tanh"), Input("action", 3, "lookup"))
    actions = (Output("action", 3, activation="tanh", at="state"), Output("state", 5, at="action"))
    stepwise = Input("time", 9, "lookup")
    return {
        "pre-norm, learned positions": language_model(
            "a", pre, pre, assembly=Assembly("tokens", TOKENS.inputs, positions="learned", position_offset=2)
        ),
        "grouped, rotary, q and k norms, window, gated": language_model(
            "b", Block((Sublayer(grouped, reads=RMS), Sublayer(MLP(10, "silu", gated=True), reads=RMS))), final_norm=RMS
        ),
        "sandwich norms, soft caps, scaled sublayer": language_model(
            "c", sandwich, outputs=(Output("token", 11, scale=0.5, softcap=3.0),), final_norm=RMS
        ),
        "post-norm encoder with a transformed head": language_model(
            "d",
            post,
            assembly=Assembly("tokens", both, positions="learned", norm=LAYER),
            outputs=(Output("token", 11, transform="gelu", transform_norm=LAYER),),
            final_norm=None,
        ),
        "parallel, quick gelu": language_model(
            "e", Block((Sublayer(ATTN, reads=LAYER), Sublayer(MLP(10, "quick_gelu"), reads=LAYER)), parallel=True)
        ),
        "no norms, no mlp, tied": language_model("f", Block((Sublayer(ATTN),)), final_norm=None, tied=True),
        "interleaved agent, bias after the gate": language_model(
            "g",
            Block((Sublayer(ATTN, reads=LAYER), Sublayer(MLP(10, "tanh", gated=True, bias_after_gate=True), LAYER))),
            assembly=Assembly("interleaved", agent, stepwise, "zero", norm=LAYER, norm_before_positions=True),
            outputs=actions,
        ),
        "summed agent": language_model(
            "h", pre, assembly=Assembly("summed", agent, stepwise), outputs=(Output("action", 3),)
        ),
    }


def every_name(spec: ModelSpec) -> Iterator[str]:
    """Every canonical tensor that the anatomy can have: what it needs, and all biases and gains."""
    yield from (n for n in required(spec) if not (spec.tied and n == "W_U"))
    for layer, block in enumerate(spec.blocks):
        for sub in block.sublayers:
            roles = ("b_Q", "b_K", "b_V", "b_O") if isinstance(sub.part, Attention) else ("b_in", "b_out")
            gate = ("b_gate",) if isinstance(sub.part, MLP) and sub.part.gated else ()
            yield from (f"L{layer}.{role}" for role in (*roles, *gate))
    yield from (f"{name}.{kind}" for name in spec.norms() for kind in ("gain", "bias"))
    yield from (f"in.{i.name}.b" for i in spec.assembly.inputs if i.kind == "linear")
    for out in spec.outputs:
        yield "b_U" if out.name == "token" else f"out.{out.name}.b"
        yield from (f"out.{out.name}.transform.{kind}" for kind in ("W", "b") if out.transform)


def random_weights(spec: ModelSpec, seed: int = 0) -> ArrayWeights:
    """Standard normal tensors of about unit gain for a spec: gains around 1, everything else around 0."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name in every_name(spec):
        layer, role = split_name(name)
        sizes = {"position": spec.n_ctx + spec.assembly.position_offset} | axis_sizes(spec, layer)
        shape = tuple(sizes[axis] for axis in canonical_axes(role))
        arrays[name] = 0.4 * rng.standard_normal(shape) + (1.0 if name.endswith(".gain") else 0.0)
    return ArrayWeights(spec, arrays)


def richardson(f: Callable[[float], float], step: float = 2e-2) -> float:
    """f'(0) by central differences at halved steps, extrapolated five times: no autograd anywhere."""
    rows = [(f(step / 2**i) - f(-step / 2**i)) / (2 * step / 2**i) for i in range(6)]
    for order in range(1, 6):
        rows = [(4**order * b - a) / (4**order - 1) for a, b in itertools.pairwise(rows)]
    return rows[0]


def directional(f: Callable[[Tensor], Tensor], x: Tensor, seed: int = 0) -> tuple[float, float]:
    """The derivative of a random readout of f along a random direction, by autograd and by differences."""
    draw = torch.Generator().manual_seed(seed)
    along = torch.randn(x.shape, generator=draw, dtype=x.dtype)
    x = x.detach().requires_grad_()
    out = f(x)
    read = torch.randn(out.shape, generator=draw, dtype=out.dtype)
    (gradient,) = torch.autograd.grad((out * read).sum(), x)
    with torch.no_grad():
        measured = richardson(lambda t: float((f(x + t * along) * read).sum()))
    return float((gradient * along).sum()), measured


@pytest.fixture(params=sorted(anatomies()))
def toy(request: pytest.FixtureRequest) -> ArrayWeights:
    return random_weights(anatomies()[request.param])


@pytest.fixture(scope="session")
def toys() -> Callable[[str], ArrayWeights]:
    """The toy whose description begins with these words."""

    def named(words: str) -> ArrayWeights:
        found = {name: spec for name, spec in anatomies().items() if name.startswith(words)}
        (spec,) = found.values()
        return random_weights(spec)

    return named


@pytest.fixture(scope="session")
def slopes() -> Callable[..., tuple[float, float]]:
    return directional
