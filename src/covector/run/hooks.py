"""Hook points: the named tensors of a forward pass, the same for every family, and the tap that reads or replaces them.

A hook point is a place in the computation where one tensor passes. Capturing it returns the tensor, intervening
replaces it, and everything after it is computed from the replacement. The list below is the only one; docs and errors
are made from it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor

from covector.errors import BadRequest
from covector.model.spec import MLP, Attention, Block, ModelSpec

Intervention = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Hook:
    """One hook point: its name (``L{i}.`` stands before those of a block), its axes, and what passes there."""

    name: str
    axes: str
    meaning: str


STREAM = "batch position d_model"
HEADS = "batch position head d_head"
KV_HEADS = "batch position kv_head d_head"
PAIRS = "batch head position position"
NEURONS = "batch position d_mlp"

BEFORE = (Hook("resid_in", STREAM, "the assembled stream: embeddings, time, positions, embedding norm"),)
ATTN = (
    Hook("attn_in", STREAM, "the stream as the attention sublayer reads it, before its norm"),
    Hook("attn_normed", STREAM, "what W_Q, W_K and W_V multiply; attn_in itself where no norm reads"),
    Hook("q", HEADS, "queries, bias included, before the q norm and before they turn"),
    Hook("k", KV_HEADS, "keys, bias included, before the k norm and before they turn"),
    Hook("v", KV_HEADS, "values, bias included"),
    Hook("q_turned", HEADS, "queries as they meet the keys: after the q norm and the rotary turn"),
    Hook("k_turned", KV_HEADS, "keys as they meet the queries: after the k norm and the rotary turn"),
    Hook("scores", PAIRS, "scale * q·k, soft-capped, before the mask; rows are queries"),
    Hook("pattern", PAIRS, "attention weights: rows are queries and sum to 1"),
    Hook("z", HEADS, "pattern times values, per head: what W_O multiplies"),
    Hook("attn_out", STREAM, "the sum of all heads plus b_O, before a post norm"),
    Hook("attn_added", STREAM, "what the sublayer adds to the stream: attn_out after its post norm, scaled"),
)
MLP_HOOKS = (
    Hook("mlp_in", STREAM, "the stream as the MLP sublayer reads it, before its norm"),
    Hook("mlp_normed", STREAM, "what W_in and W_gate multiply; mlp_in itself where no norm reads"),
    Hook("gate", NEURONS, "x W_gate + b_gate before its activation; gated MLPs only"),
    Hook("mlp_pre", NEURONS, "x W_in + b_in: the pre-activation, or the linear branch of a gated MLP"),
    Hook("mlp_post", NEURONS, "what W_out multiplies: the activation, or the gated product"),
    Hook("mlp_out", STREAM, "mlp_post W_out + b_out, before a post norm"),
    Hook("mlp_added", STREAM, "what the sublayer adds to the stream: mlp_out after its post norm, scaled"),
)
RESID_PRE = Hook("resid_pre", STREAM, "the stream as it enters the block")
RESID_MID = Hook("resid_mid", STREAM, "the stream between two sublayers (after a post-norm); not in parallel blocks")
RESID_POST = Hook("resid_post", STREAM, "the stream as it leaves the block")
AFTER = (
    Hook("final_normed", STREAM, "the last stream after the final norm: what the outputs read"),
    Hook("logits", "batch position token", "the token output, scaled and soft-capped"),
    Hook("out.NAME", "batch position n", "any other labelled output, after its activation"),
)
HOOKS = (*BEFORE, RESID_PRE, *ATTN, RESID_MID, *MLP_HOOKS, RESID_POST, *AFTER)


def output_hook(name: str) -> str:
    """Hook name of an output: ``logits`` for tokens, ``out.NAME`` otherwise."""
    return "logits" if name == "token" else f"out.{name}"


def hook_names(spec: ModelSpec) -> tuple[str, ...]:
    """Every hook point that a model of this anatomy has, in the order of the computation."""
    names = ["resid_in"]
    for layer, block in enumerate(spec.blocks):
        names += [f"L{layer}.{name}" for name in _block_hooks(block)]
    return (*names, "final_normed", *(output_hook(out.name) for out in spec.outputs))


def _block_hooks(block: Block) -> list[str]:
    names = ["resid_pre"]
    for place, sub in enumerate(block.sublayers):
        if place and not block.parallel:
            names.append("resid_mid")
        names += [h.name for h in (ATTN if isinstance(sub.part, Attention) else _mlp_hooks(sub.part))]
    return [*names, "resid_post"]


def _mlp_hooks(part: MLP) -> tuple[Hook, ...]:
    return MLP_HOOKS if part.gated else tuple(h for h in MLP_HOOKS if h.name != "gate")


def select(patterns: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """The hook points that `patterns` name; ``*`` stands for any text (``L*.z``).

    Raises BadRequest, with the near names, for a pattern that fits none.
    """
    patterns, known = ((patterns,) if isinstance(patterns, str) else tuple(patterns)), tuple(names)
    found: set[str] = set()
    for pattern in patterns:
        fits = [n for n in known if fnmatchcase(n, pattern)]
        if not fits:
            raise _unknown(pattern, known, "capture")
        found.update(fits)
    return frozenset(found)


def _unknown(name: str, known: tuple[str, ...], what: str) -> BadRequest:
    tail = name.rsplit(".", 1)[-1]
    near = [n for n in known if n.rsplit(".", 1)[-1] == tail] or [n for n in known if n[:3] == name[:3]]
    return BadRequest(
        f"{what}: expected a hook point of this model, got '{name}'; it has {', '.join((near or list(known))[:8])} …"
    )


@dataclass(frozen=True)
class Tap:
    """What happens at the hook points of one run: replace where asked, keep where asked.

    Call it with a name and the tensor that passes; the tensor that goes on comes back. What is kept is the tensor
    after the intervention.
    """

    wanted: frozenset[str] = frozenset()
    intervene: Mapping[str, Intervention] = field(default_factory=dict)
    cache: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """The tensor that goes on. Raises BadRequest if an intervention changes the shape."""
        change = self.intervene.get(name)
        if change is not None:
            before, value = value.shape, change(value)
            if value.shape != before:
                raise BadRequest(
                    f"intervene at {name}: expected a tensor of shape {tuple(before)} back, got {tuple(value.shape)}; "
                    "replace the whole tensor, unchanged where nothing is meant"
                )
        if name in self.wanted:
            self.cache[name] = value
        return value


def tap(names: Iterable[str], capture: Iterable[str] = (), intervene: Mapping[str, Intervention] | None = None) -> Tap:
    """The tap of one run over a model with these hook points. Raises BadRequest for a name that is none of them."""
    known = tuple(names)
    changes = dict(intervene or {})
    for name in changes:
        if name not in known:
            raise _unknown(name, known, "intervene")
    return Tap(select(capture, known), changes)
