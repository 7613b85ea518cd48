"""One attention sublayer in reading order: project, normalise q and k, turn, score, mask, weigh the values, write."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from covector.model.spec import Attention
from covector.run.pieces import Part, need, normalize, softcap, turn

# A tap narrowed to one layer: role and tensor in, the tensor that goes on out.
LayerTap = Callable[[str, Tensor], Tensor]


def visible(
    attn: Attention, length: int, mask: Bool[Tensor, "batch position"] | None, device: torch.device | str
) -> Bool[Tensor, "#batch 1 position position"]:
    """Which keys (columns) each query (row) may look at: causality, window, padding."""
    query = torch.arange(length, device=device)[:, None]
    key = torch.arange(length, device=device)[None, :]
    seen = torch.ones(length, length, dtype=torch.bool, device=device)
    if attn.causal:
        seen = seen & (key <= query)
    if attn.window is not None:
        seen = seen & (query - key < attn.window)
    seen = seen[None, None]
    return seen if mask is None else seen & mask[:, None, None, :]


def project(
    x: Float[Tensor, "batch position d_model"], weight: Tensor, bias: Tensor | None
) -> Float[Tensor, "batch position head d_head"]:
    """x W + b for a head-major weight [head, d_model, d_head] and bias [head, d_head]."""
    out = torch.einsum("bpm,hmd->bphd", x, weight)
    return out if bias is None else out + bias


def write(
    z: Float[Tensor, "batch position head d_head"], weight: Float[Tensor, "head d_head d_model"], bias: Tensor | None
) -> Float[Tensor, "batch position d_model"]:
    """The sum over heads of z W_O, plus b_O."""
    out = torch.einsum("bphd,hdm->bpm", z, weight)
    return out if bias is None else out + bias


def score(
    q: Float[Tensor, "batch position head d_head"], k: Float[Tensor, "batch position kv_head d_head"], attn: Attention
) -> Float[Tensor, "batch head position position"]:
    """``softcap(scale * q·k)``: query head h against key head ``attn.kv_of(h)``."""
    keys = k.repeat_interleave(attn.n_heads // attn.n_kv_heads, dim=2)
    return softcap(attn.scale * torch.einsum("bphd,bkhd->bhpk", q, keys), attn.softcap)


def weigh(
    scores: Float[Tensor, "batch head position position"], seen: Bool[Tensor, "#batch 1 position position"]
) -> Float[Tensor, "batch head position position"]:
    """Softmax over the visible keys.

    A query that may see nothing (padding before the first token) gets equal weights instead of NaN; nothing real
    reads such a position.
    """
    return torch.softmax(scores.masked_fill(~seen, torch.finfo(scores.dtype).min), dim=-1)


def attend(
    x: Float[Tensor, "batch position d_model"],
    attn: Attention,
    part: Part,
    tap: LayerTap,
    *,
    positions: Int[Tensor, "#batch position"],
    mask: Bool[Tensor, "batch position"] | None = None,
) -> Float[Tensor, "batch position d_model"]:
    """What the attention sublayer computes from its (normed) input, hook ``attn_out`` included."""
    q = tap("q", project(x, need(part, "W_Q"), part("b_Q")))
    k = tap("k", project(x, need(part, "W_K"), part("b_K")))
    v = tap("v", project(x, need(part, "W_V"), part("b_V")))
    q = tap("q_turned", _turned(q, "q_norm", attn, part, positions))
    k = tap("k_turned", _turned(k, "k_norm", attn, part, positions))
    scores = tap("scores", score(q, k, attn))
    pattern = tap("pattern", weigh(scores, visible(attn, x.shape[1], mask, x.device)))
    values = v.repeat_interleave(attn.n_heads // attn.n_kv_heads, dim=2)
    z = tap("z", torch.einsum("bhpk,bkhd->bphd", pattern, values))
    return tap("attn_out", write(z, need(part, "W_O"), part("b_O")))


def _turned(x: Tensor, norm: str, attn: Attention, part: Part, positions: Tensor) -> Tensor:
    if attn.qk_norm:
        x = normalize(x, attn.qk_norm, part(f"{norm}.gain"), part(f"{norm}.bias"))
    return turn(x, attn.rotary, positions) if attn.rotary else x
