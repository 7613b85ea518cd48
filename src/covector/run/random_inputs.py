"""Random inputs that a model accepts: what proofs and traces run on when nobody brings prompts."""

import torch
from torch import Tensor

from covector.model.spec import Input, ModelSpec

# Long enough that every head has something to choose from, short enough for a 7B model in float64 on a CPU.
_USUAL = 12
# A window longer than this is not worth the quadratic cost of passing it in a proof.
_LONGEST = 512


def proof_length(spec: ModelSpec) -> int:
    """Positions of a proof: 12, or just past the longest local window (of at most 512), and within the context."""
    windows = [b.attn.window for b in spec.blocks if b.attn and b.attn.window]
    passed = [w + 3 for w in windows if w <= _LONGEST]
    return min(spec.n_ctx, max([_USUAL, *passed]))


def unexercised(spec: ModelSpec, length: int) -> tuple[str, ...]:
    """What a run over `length` positions cannot show about this anatomy, in words; empty when nothing is left out."""
    windows = {b.attn.window for b in spec.blocks if b.attn and b.attn.window and b.attn.window >= length}
    return tuple(f"a window of {w} is not reached by {length} positions" for w in sorted(windows))


def random_inputs(spec: ModelSpec, *, length: int, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Inputs by name: uniform indices for lookups, standard normal vectors for linear inputs (float64).

    `length` counts positions; an interleaved agent gets as many whole timesteps as fit, at least one.
    """
    draw = torch.Generator().manual_seed(seed)
    assembly = spec.assembly
    steps = max(1, length // len(assembly.inputs)) if assembly.mode == "interleaved" else length
    sources = (*assembly.inputs, *((assembly.time,) if assembly.time else ()))
    return {source.name: _draw(source, batch, steps, draw) for source in sources}


def _draw(source: Input, batch: int, steps: int, draw: torch.Generator) -> Tensor:
    if source.kind == "lookup":
        return torch.randint(source.n, (batch, steps), generator=draw)
    return torch.randn(batch, steps, source.n, generator=draw, dtype=torch.float64)
