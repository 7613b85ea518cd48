"""Toys: tiny models made in memory, random or with circuits planted in them, for tests and docs.

``random_model``  any anatomy with seeded random weights.
``planted``       a random model in which one OV or MLP output map has known singular triples: it reads token a and
                  writes token b with gain σ, and nothing else.
``induction``     two attention layers that copy: a previous-token head, and a head that finds what followed the
                  current token earlier. All of its weights are written down, none is random.

Toys come in float64, so that identities hold to rounding, and are no family: nothing reads them from a folder.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from covector.arch.toy_ioi import indirect_object
from covector.errors import BadRequest, BadSite
from covector.model.address import site as parse_site
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
    output_bias,
)
from covector.model.weights import ArrayWeights, axis_sizes, canonical_axes, required, split_name

LAYER_NORM = Norm("layer", 1e-5)
RMS_NORM = Norm("rms", 1e-6)
# Gains are drawn around 1, biases around 0, with this standard deviation: enough that forgetting one shows.
SPREAD = 0.3
# Score of a wanted key above all others in `induction`: e⁻⁴⁰ is below the rounding of float64.
SHARPNESS = 40.0


@dataclass(frozen=True)
class Plant:
    """One planted dyad: what reads token `read` writes token `write`, multiplied by `gain`."""

    read: int
    write: int
    gain: float


def random_model(
    *,
    seed: int = 0,
    n_layers: int = 2,
    d_model: int = 16,
    n_heads: int = 4,
    n_kv_heads: int | None = None,
    d_head: int | None = None,
    d_mlp: int = 24,
    activation: str = "gelu",
    gated: bool = False,
    norm: Norm | None = LAYER_NORM,
    placement: Literal["pre", "post", "sandwich"] = "pre",
    parallel: bool = False,
    causal: bool = True,
    window: int | None = None,
    rotary: Rotary | None = None,
    qk_norm: Norm | None = None,
    n_vocab: int = 23,
    n_ctx: int = 24,
    positions: Literal["learned", "zero", "none"] = "learned",
    agent: Literal["interleaved", "summed"] | None = None,
    tied: bool = False,
    biases: bool = True,
) -> ArrayWeights:
    """A model of this anatomy with random weights; the same seed gives the same bytes.

    ``n_heads=0`` leaves out attention, ``d_mlp=0`` the MLPs, ``norm=None`` every norm. ``agent`` replaces tokens by
    return, state, action and timestep. Columns of a matrix have about unit norm, so activations neither grow nor fade.
    """
    reads, post, after = {"pre": (norm, None, None), "post": (None, None, norm), "sandwich": (norm, norm, None)}[
        placement
    ]
    parts: list[Attention | MLP] = []
    if n_heads:
        d_head = d_head or d_model // n_heads
        parts.append(
            Attention(n_heads, n_kv_heads or n_heads, d_head, d_head**-0.5, causal, window, rotary, qk_norm=qk_norm)
        )
    if d_mlp:
        parts.append(MLP(d_mlp, activation, gated))
    block = Block(tuple(Sublayer(part, reads, post, after) for part in parts), parallel)
    token = Assembly("tokens", (Input("token", n_vocab, "lookup"),))
    assembly, outputs = agent_streams(agent) if agent else (token, (Output("token", n_vocab),))
    spec = ModelSpec(
        family="toy",
        d_model=d_model,
        blocks=(block,) * n_layers,
        assembly=replace(assembly, positions=positions),
        outputs=outputs,
        n_ctx=n_ctx,
        final_norm=norm if placement != "post" else None,
        tied=tied and not agent,
    )
    return random_weights(spec, seed=seed, biases=biases)


def agent_streams(
    mode: Literal["interleaved", "summed"], *, n_states: int = 5, n_actions: int = 3, n_steps: int = 30
) -> tuple[Assembly, tuple[Output, ...]]:
    """Inputs and outputs of a small agent. The action is read at the state's position, the state at the action's."""
    inputs = (Input("return", 1, "linear"), Input("state", n_states, "linear"), Input("action", n_actions, "linear"))
    at_state, at_action = ("state", "action") if mode == "interleaved" else (None, None)
    outputs = (Output("action", n_actions, at=at_state), Output("state", n_states, at=at_action))
    return Assembly(mode, inputs, time=Input("timestep", n_steps, "lookup")), outputs


def random_weights(spec: ModelSpec, *, seed: int = 0, biases: bool = True) -> ArrayWeights:
    """Random arrays for every canonical tensor of an anatomy; without `biases` no bias at all, not even a norm's."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name in _names(spec, biases):
        layer, role = split_name(name)
        sizes = axis_sizes(spec, layer) | {"position": spec.n_ctx + spec.assembly.position_offset}
        shape = [sizes[axis] for axis in canonical_axes(role)]
        if role.endswith(".gain"):
            arrays[name] = 1 + SPREAD * rng.standard_normal(shape)
        elif role.startswith("b_") or role.endswith((".b", ".bias")):
            arrays[name] = SPREAD * rng.standard_normal(shape)
        else:
            arrays[name] = rng.standard_normal(shape) / math.sqrt(shape[-2])
    if spec.tied:
        arrays["W_U"] = arrays["W_E"].T
    return ArrayWeights(spec, arrays)


def _names(spec: ModelSpec, biases: bool) -> Iterator[str]:
    """Canonical names that an anatomy may have, in a fixed order."""
    for name in required(spec):
        if not (name == "W_U" and spec.tied):
            yield name
    for prefix, norm in spec.norms().items():
        yield f"{prefix}.gain"
        if biases and norm.kind == "layer":
            yield f"{prefix}.bias"
    for out in spec.outputs:
        if out.transform:
            yield f"out.{out.name}.transform.W"
    if biases:
        yield from _bias_names(spec)


def _bias_names(spec: ModelSpec) -> Iterator[str]:
    yield from (f"in.{source.name}.b" for source in spec.assembly.inputs if source.kind == "linear")
    for i, block in enumerate(spec.blocks):
        if block.attn:
            yield from (f"L{i}.{role}" for role in ("b_Q", "b_K", "b_V", "b_O"))
        if block.mlp:
            gate = ("b_gate",) if block.mlp.gated else ()
            yield from (f"L{i}.{role}" for role in (*gate, "b_in", "b_out"))
    for out in spec.outputs:
        yield output_bias(out.name)
        if out.transform:
            yield f"out.{out.name}.transform.b"


def planted(
    plants: Sequence[Plant],
    site: str = "L0H0.ov",
    *,
    seed: int = 0,
    n_vocab: int = 12,
    d_model: int = 16,
    d_head: int = 8,
    d_mlp: int = 24,
    n_layers: int = 1,
    n_heads: int = 2,
) -> ArrayWeights:
    """A norm-free model whose map at `site` is exactly Σ gain · e_read ⊗ e_write, e the orthonormal token embeddings.

    So its singular values are the gains, its read directions the rows `read` of W_E, its write directions the columns
    `write` of W_U (equal to W_E's rows). At an ``.mlp.out`` the read directions are neurons, one per plant in order,
    and W_in feeds neuron i from token `read`, so that under ReLU the block does the same thing. Everything else is
    random; the planted head or MLP has no bias. Raises BadSite for other kinds of sites, BadRequest for plants that do
    not fit or that share a token (their map would have other singular triples).
    """
    model = random_model(
        seed=seed,
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_head,
        d_mlp=d_mlp,
        activation="relu",
        norm=None,
        n_vocab=n_vocab,
        positions="none",
        biases=False,
    )
    at = parse_site(site, model.spec)
    if at.kind not in ("ov", "out"):
        raise BadSite(f"expected an .ov or .mlp.out site to plant in, got '{site}'")
    _check(plants, n_vocab, d_model, d_head if at.kind == "ov" else d_mlp)
    tokens = np.linalg.qr(np.random.default_rng(seed).standard_normal((d_model, n_vocab)))[0].T
    gains = np.array([p.gain for p in plants])[:, None]
    reads, writes = tokens[[p.read for p in plants]], gains * tokens[[p.write for p in plants]]
    arrays = dict(model.arrays) | {"W_E": tokens, "W_U": tokens.T}
    into, out = ("W_V", "W_O") if at.kind == "ov" else ("W_in", "W_out")
    head = () if at.head is None else (at.head,)
    arrays[f"L{at.layer}.{into}"] = _put(arrays[f"L{at.layer}.{into}"], head, reads.T)
    arrays[f"L{at.layer}.{out}"] = _put(arrays[f"L{at.layer}.{out}"], head, writes)
    return ArrayWeights(replace(model.spec, tied=True), arrays)


def _check(plants: Sequence[Plant], n_vocab: int, d_model: int, room: int) -> None:
    shared = len({p.read for p in plants}) < len(plants) or len({p.write for p in plants}) < len(plants)
    outside = any(not 0 <= t < n_vocab for p in plants for t in (p.read, p.write))
    if not 0 < len(plants) <= room or shared or outside or n_vocab > d_model:
        raise BadRequest(
            f"expected 1 to {room} plants with distinct tokens below {n_vocab} in a stream of at least that width, "
            f"got {len(plants)} in d_model = {d_model}: {list(plants)}; change the plants or the sizes"
        )


def _put(array: np.ndarray, at: tuple[int, ...], corner: np.ndarray) -> np.ndarray:
    """A copy of `array` whose matrix at `at` is `corner`, padded with zeros."""
    new = array.copy()
    new[at] = 0
    new[at][: corner.shape[0], : corner.shape[1]] = corner
    return new


def induction(n_vocab: int = 9, n_ctx: int = 24) -> ArrayWeights:
    """Two attention layers that copy: after … A B … A they predict B.

    Token 0 starts every sequence and does not come again (the first position sees only itself, so token 0 is the one
    that seems to precede itself). L0H0 attends to the position before and writes down its token; L1H0 attends to where
    the token before is the current one, and writes the token it finds there to the output. The logit of the predicted
    token is 1, others 0, if the current one has occurred once before; with several occurrences their successors share
    the 1, and with none L1H0 attends everywhere alike.
    """
    # Four orthogonal parts of the stream; their rows are its directions.
    token, position, before, out = np.split(np.eye(3 * n_vocab + n_ctx), np.cumsum([n_vocab, n_ctx, n_vocab]))
    d_model, d_head = token.shape[1], max(n_vocab, n_ctx)
    attn = Sublayer(Attention(1, 1, d_head, scale=1.0))
    spec = ModelSpec(
        family="toy",
        d_model=d_model,
        blocks=(Block((attn,)),) * 2,
        assembly=Assembly("tokens", (Input("token", n_vocab, "lookup"),), positions="learned"),
        outputs=(Output("token", n_vocab),),
        n_ctx=n_ctx,
    )

    def wide(rows: np.ndarray) -> np.ndarray:
        """Rows (directions of the stream) as a matrix d_model × d_head of one head."""
        return np.pad(rows.T, ((0, 0), (0, d_head - len(rows))))[None]

    arrays = {
        "W_E": token,
        "W_pos": position,
        # Position p asks for p − 1; position 0 asks for nothing and sees itself alone.
        "L0.W_Q": SHARPNESS * wide(position[1:]),
        "L0.W_K": wide(position),
        "L0.W_V": wide(token),
        "L0.W_O": wide(before).swapaxes(1, 2),
        "L1.W_Q": SHARPNESS * wide(token),
        "L1.W_K": wide(before),
        "L1.W_V": wide(token),
        "L1.W_O": wide(out).swapaxes(1, 2),
        "W_U": out.T,
    }
    return ArrayWeights(spec, arrays)


def _animals() -> tuple[ArrayWeights, tuple[str, ...]]:
    labels = (" cat", " meow", " dog", " bark", " cow", " moo", " the", " a", " and", " of", " to", " in")
    return planted([Plant(0, 1, 3.0), Plant(2, 3, 2.0), Plant(4, 5, 1.0)], "L0H1.ov"), labels


def _copier() -> tuple[ArrayWeights, tuple[str, ...]]:
    return induction(), ("<start>", *(f" {letter}" for letter in "abcdefgh"))


# Ready toys, opened by name: weights and token labels. ``toy``: head L0H1 reads an animal and writes its sound.
TOYS: Mapping[str, Callable[[], tuple[ArrayWeights, tuple[str, ...]]]] = {
    "toy": _animals,
    "toy-induction": _copier,
    "toy-ioi": indirect_object,
}
