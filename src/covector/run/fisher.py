"""The Gauss–Newton Gram of a change: how the KL to the unedited model grows, to second order, in the doses.

F = E_n[Jₙᵀ(diag pₙ − pₙpₙᵀ)Jₙ], Jₙ the derivative of the logits at position n in the doses;
KL(base ‖ dosed) = ½ tᵀFt + O(t³).

Source: F7 of the theory page; `docs/theory/edits.md`, equation 14.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from covector.axes import Float
from covector.model.overlay import Change
from covector.run.decoder import Decoder
from covector.run.edited import dosed, first_block
from covector.run.neutral import Neutral

# Entries of all derivatives of one batch that are held at once: 2^26 doubles are 512 MB.
HELD = 2**26


def gauss_newton(
    decoder: Decoder, pieces: Sequence[Change], text: Neutral, tick: Callable[[int], None] = lambda _: None
) -> Float[np.ndarray, "k k"]:
    """F over the tokens of a text, one backward pass per piece and batch. Exact to rounding.

    `tick` is told the tokens of every pass.
    """
    total, count = np.zeros((len(pieces), len(pieces))), 0
    whole = Change(sum((p.updates for p in pieces), ()), sum((p.shifts for p in pieces), ()))
    first = first_block(decoder.spec, whole)
    for tokens, kept in zip(text.batches, text.kept, strict=True):
        step = max(1, HELD // (len(pieces) * tokens.shape[1] * decoder.spec.n_vocab))
        for at in range(0, len(tokens), step):
            some, own = torch.from_numpy(tokens[at : at + step].copy()), torch.from_numpy(kept[at : at + step].copy())
            total += _gram(decoder, pieces, some, own, first, tick)
            count += int(own.sum())
    return total / count


def _gram(
    decoder: Decoder, pieces: Sequence[Change], tokens: Tensor, kept: Tensor, first: int, tick: Callable[[int], None]
) -> Float[np.ndarray, "k k"]:
    here = 0 < first < decoder.spec.n_layers
    with torch.no_grad():
        stream = decoder.run(tokens, capture=[f"L{first}.resid_pre"]).cache[f"L{first}.resid_pre"] if here else None

    doses = torch.zeros(len(pieces), dtype=decoder.dtype, device=decoder.device, requires_grad=True)
    made = dosed(decoder, pieces, doses)
    run = made.run(tokens) if stream is None else made.run(resid_in=stream, first=first)
    plain = run.logits[kept]
    # Jᵀu is linear in u: its derivatives in u are the rows of Jᵀ, one backward pass each.
    u = torch.zeros_like(plain, requires_grad=True)
    (back,) = torch.autograd.grad(plain, doses, u, create_graph=True)
    rows = []
    for one in back:
        rows.append(torch.autograd.grad(one, u, retain_graph=True)[0])
        tick(tokens.numel())
    plain = plain.detach()
    J, p = torch.stack(rows), plain.double().softmax(-1)
    mean = torch.einsum("knv,nv->kn", J.double(), p)
    gram = torch.einsum("knv,nv,lnv->kl", J.double(), p, J.double()) - mean @ mean.T
    return gram.cpu().numpy()
