"""The anatomy of a transformer as data: sizes, blocks, norms, inputs and outputs, without a family's name in sight.

Everything that changes the function stands here or in a canonical tensor, so that the decoder, the frames and the
circuits need no family-specific code. A block is an ordered list of sublayers; each says how it reads the residual
stream (a norm), what it is, and how it is added back.

Presence of a bias or a gain is a fact of the weights (is the tensor there?), not of the spec.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

NormKind = Literal["layer", "rms"]
Scaling = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Norm:
    """Normalisation of a row: ``layer`` centres it and divides by its standard deviation, ``rms`` only divides.

    ``eps`` is added to the mean square. ``offset`` is what the checkpoint leaves out of its gains (1 for Gemma); the
    canonical gain has it added already, so it is recorded here and never applied again.
    """

    kind: NormKind
    eps: float
    offset: float = 0.0


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: the first ``dim`` coordinates of a head turn by ``position * frequency``.

    ``interleaved`` pairs coordinates (0,1), (2,3)…; otherwise i is paired with i + dim/2. ``scaling`` holds the
    parameters of a long-context rule by name (``linear``: factor; ``llama3``: factor, low, high, original).
    """

    dim: int
    theta: float
    interleaved: bool = False
    rule: Literal["default", "linear", "llama3"] = "default"
    scaling: Scaling = ()

    def frequencies(self) -> tuple[float, ...]:
        """Turning speed of each coordinate pair, radians per position; dim/2 numbers, exact in float64."""
        plain = [self.theta ** (-2 * i / self.dim) for i in range(self.dim // 2)]
        given = dict(self.scaling)
        if self.rule == "default":
            return tuple(plain)
        if self.rule == "linear":
            return tuple(f / given["factor"] for f in plain)
        return tuple(_llama3(f, given) for f in plain)


def _llama3(frequency: float, given: dict[str, float]) -> float:
    """Llama 3.1's rule: long waves are slowed by `factor`, short ones kept, the band between is blended."""
    wave = 2 * math.pi / frequency
    longest = given["original"] / given["low"]
    shortest = given["original"] / given["high"]
    if wave < shortest:
        return frequency
    if wave > longest:
        return frequency / given["factor"]
    kept = (given["original"] / wave - given["low"]) / (given["high"] - given["low"])
    return (1 - kept) * frequency / given["factor"] + kept * frequency


@dataclass(frozen=True)
class Attention:
    """One attention sublayer. Query head h reads key/value head ``h // (n_heads // n_kv_heads)``.

    ``scale`` multiplies q·k; ``softcap`` c replaces a score s by c·tanh(s/c); ``window`` w lets a position see itself
    and the w − 1 before it; ``qk_norm`` normalises q and k per head before they turn.
    """

    n_heads: int
    n_kv_heads: int
    d_head: int
    scale: float
    causal: bool = True
    window: int | None = None
    rotary: Rotary | None = None
    qk_norm: Norm | None = None
    softcap: float | None = None

    def kv_of(self, head: int) -> int:
        """The key/value head that query head `head` reads."""
        return head // (self.n_heads // self.n_kv_heads)


@dataclass(frozen=True)
class MLP:
    """One MLP: ``act(x W_in + b_in) W_out + b_out``; gated ``(act(x W_gate + b_gate) (x W_in + b_in)) W_out + b_out``.

    ``bias_after_gate`` adds b_in to the gated product instead (older TransformerLens agents do).
    """

    d_mlp: int
    activation: str
    gated: bool = False
    bias_after_gate: bool = False


@dataclass(frozen=True)
class Sublayer:
    """What is computed (``part``) and how it hangs on the stream.

    ``reads`` normalises the stream before the part (pre-norm); ``post`` normalises the part's output before it is
    added (sandwich norm); ``after`` normalises the stream after the addition (post-norm, as in BERT); ``scale``
    multiplies the output as it is added.
    """

    part: Attention | MLP
    reads: Norm | None = None
    post: Norm | None = None
    after: Norm | None = None
    scale: float = 1.0

    @property
    def name(self) -> str:
        """``attn`` or ``mlp``: the prefix of its tensors."""
        return "attn" if isinstance(self.part, Attention) else "mlp"


@dataclass(frozen=True)
class Block:
    """An ordered list of sublayers; ``parallel`` ones all read the stream as it enters the block."""

    sublayers: tuple[Sublayer, ...]
    parallel: bool = False

    @property
    def attn(self) -> Attention | None:
        """The attention part, or None for a block without one."""
        return next((s.part for s in self.sublayers if isinstance(s.part, Attention)), None)

    @property
    def mlp(self) -> MLP | None:
        """The MLP part, or None for a block without one."""
        return next((s.part for s in self.sublayers if isinstance(s.part, MLP)), None)

    def sublayer(self, name: str) -> Sublayer | None:
        """The sublayer called ``attn`` or ``mlp``, or None."""
        return next((s for s in self.sublayers if s.name == name), None)


@dataclass(frozen=True)
class Input:
    """One labelled input: ``lookup`` picks a row of its table by index, ``linear`` multiplies a feature vector.

    ``activation`` acts on a linear embedding (none or ``tanh``). ``scale`` multiplies the embedding.
    """

    name: str
    n: int
    kind: Literal["lookup", "linear"]
    scale: float = 1.0
    activation: str | None = None


@dataclass(frozen=True)
class Assembly:
    """How inputs become the first residual stream.

    ``tokens``: one token per position; inputs after the first (BERT's token type) are added, at index 0 unless given.
    ``interleaved``: the inputs of a timestep follow each other, each in a position
    of its own. ``summed``: one position per timestep, the sum of all inputs. ``time`` names the input that is added
    to every position of its timestep. ``positions``: ``learned`` adds W_pos[position + offset], ``zero`` adds
    W_pos[0] everywhere (the Hugging Face decision transformer), ``none`` adds nothing. ``norm`` acts on the result,
    ``norm_before_positions`` says that it acts before W_pos is added.
    """

    mode: Literal["tokens", "interleaved", "summed"]
    inputs: tuple[Input, ...]
    time: Input | None = None
    positions: Literal["learned", "zero", "none"] = "none"
    position_offset: int = 0
    norm: Norm | None = None
    norm_before_positions: bool = False


@dataclass(frozen=True)
class Output:
    """One labelled output head, read from the final stream: ``softcap(scale * (x W + b))`` after its own transform.

    ``transform`` is an activation between a square dense layer and a norm (BERT's masked-LM head); ``at`` names the
    input whose position it is read at (agents: the action at the state token).
    """

    name: str
    n: int
    scale: float = 1.0
    softcap: float | None = None
    activation: str | None = None
    transform: str | None = None
    transform_norm: Norm | None = None
    at: str | None = None


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and anatomy of one model. `n_heads`, `d_head`, `d_mlp` are those of its first block that has them."""

    family: str
    d_model: int
    blocks: tuple[Block, ...]
    assembly: Assembly
    outputs: tuple[Output, ...]
    n_ctx: int
    final_norm: Norm | None = None
    tied: bool = False

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def attention(self) -> Attention | None:
        """The attention of the first block that has one."""
        return next((b.attn for b in self.blocks if b.attn), None)

    @property
    def n_heads(self) -> int:
        """Query heads per block (0 without attention)."""
        return self.attention.n_heads if self.attention else 0

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads per block (0 without attention)."""
        return self.attention.n_kv_heads if self.attention else 0

    @property
    def d_head(self) -> int:
        """Size of one head (0 without attention)."""
        return self.attention.d_head if self.attention else 0

    @property
    def d_mlp(self) -> int:
        """Neurons per MLP (0 without one)."""
        return next((b.mlp.d_mlp for b in self.blocks if b.mlp), 0)

    @property
    def n_vocab(self) -> int:
        """Rows of the token embedding, or of the token output, or 0 for an agent."""
        every = (*self.assembly.inputs, *self.outputs)
        return next((i.n for i in every if i.name == "token"), 0)

    def input(self, name: str) -> Input | None:
        """The input called `name` (time included), or None."""
        time = (self.assembly.time,) if self.assembly.time else ()
        return next((i for i in (*self.assembly.inputs, *time) if i.name == name), None)

    def output(self, name: str) -> Output | None:
        """The output called `name`, or None."""
        return next((o for o in self.outputs if o.name == name), None)

    def norms(self) -> dict[str, Norm]:
        """Every norm by the prefix of its canonical tensors, in reading order."""
        found: dict[str, Norm] = {}
        if self.assembly.norm:
            found["embed_norm"] = self.assembly.norm
        for i, block in enumerate(self.blocks):
            for sub in block.sublayers:
                for role, norm in (("norm", sub.reads), ("post", sub.post), ("after", sub.after)):
                    if norm:
                        found[f"L{i}.{sub.name}_{role}"] = norm
                if isinstance(sub.part, Attention) and sub.part.qk_norm:
                    found[f"L{i}.q_norm"] = found[f"L{i}.k_norm"] = sub.part.qk_norm
        if self.final_norm:
            found["final_norm"] = self.final_norm
        for out in self.outputs:
            if out.transform_norm:
                found[f"out.{out.name}.norm"] = out.transform_norm
        return found

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain data (for JSON and manifests)."""
        return dataclasses.asdict(self)


def input_weight(name: str) -> str:
    """Canonical name of an input's table: ``W_E`` for tokens, ``in.NAME.W`` otherwise."""
    return "W_E" if name == "token" else f"in.{name}.W"


def output_weight(name: str) -> str:
    """Canonical name of an output's matrix: ``W_U`` for tokens, ``out.NAME.W`` otherwise."""
    return "W_U" if name == "token" else f"out.{name}.W"


def output_bias(name: str) -> str:
    """Canonical name of an output's bias: ``b_U`` for tokens, ``out.NAME.b`` otherwise."""
    return "b_U" if name == "token" else f"out.{name}.b"
