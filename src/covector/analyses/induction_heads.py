"""Induction heads: they look at what followed the current token before, and send what they read there to the output.

Source: Elhage et al. 2021, Olsson et al. 2022; Q14 of the theory page; `docs/theory/edits.md`, equation 19.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from covector.analyses.each_head import each_layer
from covector.axes import Float, Int
from covector.errors import BadSite, FrameUnavailable
from covector.linalg import chance
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.retrieval import reaches_own
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.strings import passing

LEVEL = 0.05
# A head that pays less of its attention than this to the token behind the earlier one is no induction head, however
# far beyond chance it is.
LEAST = 0.2


@dataclass(frozen=True, eq=False)
class HeadEvidence:
    """Every head's two scores. ``looks``: mean attention at the token behind the earlier same one, ``looks_level`` what
    the best head has at places drawn (95 %), ``p`` against that. ``copies``: share of tokens whose value is highest at
    themselves, ``q`` Benjamini–Hochberg over heads, against ``chance``."""

    names: tuple[str, ...]
    looks: Float[np.ndarray, " h"]
    looks_level: float
    p: Float[np.ndarray, " h"]
    copies: Float[np.ndarray, " h"]
    chance: float
    q: Float[np.ndarray, " h"]

    @property
    def found(self) -> tuple[str, ...]:
        """Heads that do both beyond chance, and look there with at least `LEAST` of their attention."""
        both = (self.p <= LEVEL) & (self.looks >= LEAST) & (self.q <= LEVEL)
        return tuple(name for name, yes in zip(self.names, both, strict=True) if yes)


def head_evidence(
    model: Model,
    decoder: Decoder,
    said_twice: Int[np.ndarray, "n position"],
    period: int,
    ids: Int[np.ndarray, " token"],
    means: Mapping[int, Float[np.ndarray, "token d_model"]],
    *,
    draws: int,
    seed: Seed,
) -> HeadEvidence:
    """Scores of all heads. `said_twice` ends with two copies of `period` tokens; `means` are the mean inputs of the
    tokens `ids` at the attention of every block. Costs one run and two small products per head."""
    looks, null = _looks(decoder, said_twice, period, draws, seed)
    names, copies = _copies(model, ids, means)
    n = len(ids)
    p = (1 + np.sum(null[:, None] >= looks, axis=0)) / (1 + len(null))
    hits = stats.binom.sf(np.round(copies * n) - 1, n, 1 / n)
    return HeadEvidence(
        tuple(names), looks, float(np.quantile(null, 1 - LEVEL)), p, copies, 1 / n, chance.bh(np.asarray(hits))
    )


def outputs_of(model: Model, ids: Int[np.ndarray, " token"]) -> Float[np.ndarray, "token d_model"]:
    """What the output reads for each token, the final norm's gain in it where the norm can be folded."""
    try:
        view = model.framed("folded")
    except FrameUnavailable:
        view = model
    return view.bases["token_out"].vectors[ids].astype(np.float64)


def named_heads(model: Model, heads: Sequence[str]) -> tuple[str, ...]:
    """Addresses of heads, checked, in the model's order. Raises BadSite."""
    wanted = [model.site(f"{h}.ov") for h in heads]
    return tuple(f"L{s.layer}H{s.head}" for s in sorted(set(wanted), key=lambda s: (s.layer or 0, s.head or 0)))


def require(evidence: HeadEvidence) -> tuple[str, ...]:
    """The heads that were found. Raises BadSite, naming the best, where there is none."""
    if not evidence.found:
        best = int(np.argmax(evidence.looks))
        raise BadSite(
            f"expected induction heads, found none: {evidence.names[best]} looks there most "
            f"({evidence.looks[best]:.2f} of its attention, at least {LEAST} wanted) and copies "
            f"{evidence.copies[best]:.0%} of tokens (chance {evidence.chance:.0%}); name heads with --heads, or other "
            "tokens with --tokens"
        )
    return evidence.found


def _looks(
    decoder: Decoder, tokens: Int[np.ndarray, "n position"], period: int, draws: int, seed: Seed
) -> tuple[Float[np.ndarray, " h"], Float[np.ndarray, " draws"]]:
    """Mean attention from the second half to what followed the first time; the best head's at places drawn."""
    hooks = [f"L{i}.pattern" for i, block in enumerate(decoder.spec.blocks) if block.attn]
    length = tokens.shape[1]
    queries = np.arange(length - period, length - 1)
    rng = generator(seed, "induction places")
    own, null, count = 0.0, 0.0, len(tokens) * len(queries)
    for cache in passing(decoder, tokens, hooks):
        A = np.concatenate([cache[h] for h in hooks], axis=1)[:, :, queries]
        own = own + A[:, :, np.arange(len(queries)), queries - period + 1].sum(axis=(0, 2))
        i, j = np.arange(len(A))[:, None], np.arange(len(queries))[None]
        drawn = rng.integers(queries + 1, size=(draws, len(A), len(queries)))
        null = null + np.stack([A[i, :, j, at].sum(axis=(0, 1)) for at in drawn])
    return np.asarray(own) / count, np.max(np.asarray(null) / count, axis=1)


def _copies(
    model: Model, ids: Int[np.ndarray, " token"], means: Mapping[int, Float[np.ndarray, "token d_model"]]
) -> tuple[list[str], Float[np.ndarray, " h"]]:
    """Share of the tokens whose mean input, less the mean of all, is sent to their own output among theirs."""
    outputs = outputs_of(model, ids)
    names: list[str] = []
    shares = []
    for layer in each_layer(model.framed("raw")):
        e = means[layer.layer]
        hit = reaches_own((e - e.mean(axis=0)) @ layer.A, layer.B, outputs, np.arange(len(ids)), 1)
        names += layer.names()
        shares.append(hit.high.mean(axis=1))
    if not names:
        raise BadSite(f"expected a model with attention heads, {model.name} ({model.spec.family}) has none")
    return names, np.concatenate(shares)
