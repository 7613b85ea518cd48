"""A model with places of fewer dyads, on a text and on prompts: KL, loss and an observable against the unchanged one.

What comes before the first touched block is the same for every change: it is run once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from covector.axes import Float, Int
from covector.linalg.svd import SVD, svd
from covector.model.address import Site
from covector.model.opened import Model
from covector.model.reduction import replaced
from covector.run.decoder import Decoder
from covector.run.prompts import Pair, batches
from covector.run.text import text_ids, windows
from covector.study.observable import Observable

# Positions of the text that are read: the standard error of a mean KL of 0.1 nats is then about 0.005.
MOST_TOKENS = 2048


@dataclass(frozen=True, eq=False)
class Measured:
    """Of one changed model: KL from the unchanged one and change of the loss, nats per token by window; the effect."""

    kl: Float[np.ndarray, " window"]
    loss: Float[np.ndarray, " window"]
    effect: float = float("nan")


@dataclass(frozen=True, eq=False)
class ReductionBench:
    """The unchanged model on a text and on prompts, and from which block on it has to be run again."""

    model: Model
    decoder: Decoder
    sites: tuple[Site, ...]
    tokens: tuple[Int[np.ndarray, "batch position"], ...]
    pairs: tuple[Pair, ...]
    observable: Observable | None
    at: str

    @cached_property
    def found(self) -> dict[Site, SVD]:
        """Every dyad of every site."""
        return {site: svd(self.model.map(site)) for site in self.sites}

    @cached_property
    def first(self) -> int | None:
        """The first block that is touched; None where the embeddings are."""
        layers = [site.layer for site in self.sites if site.layer is not None]
        return min(layers) if len(layers) == len(self.sites) else None

    @cached_property
    def starts(self) -> list[torch.Tensor | None]:
        """The stream that enters the first touched block, per batch of the text."""
        return [self._stream(tokens) for tokens in self.tokens]

    @cached_property
    def plain(self) -> list[torch.Tensor]:
        """Log-probabilities of the unchanged model."""
        return [self._log_p(self.decoder, i) for i in range(len(self.tokens))]

    @cached_property
    def unchanged(self) -> float:
        """The observable of the unchanged model, mean over prompts."""
        return self._observed(self.decoder)

    @property
    def loss(self) -> float:
        """Loss of the unchanged model, nats per token."""
        return float(np.mean(np.concatenate([_loss(p, t) for p, t in zip(self.plain, self.tokens, strict=True)])))

    def changes(self, cores: Mapping[Site, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays that these cores replace."""
        made: dict[str, np.ndarray] = {}
        for site, core in cores.items():
            made = replaced(self.model.weights, site, self.found[site], core, made)
        return made

    def measured(self, cores: Mapping[Site, np.ndarray]) -> Measured:
        """What the model does with these cores."""
        kl, more = [], []
        with self.decoder.edited(self.changes(cores)) as edited:
            for i, tokens in enumerate(self.tokens):
                other, plain = self._log_p(edited, i), self.plain[i]
                kl.append((plain.exp() * (plain - other)).sum(-1).mean(-1).clamp(min=0).cpu().numpy())
                more.append(_loss(other, tokens) - _loss(plain, tokens))
            effect = self._observed(edited) - self.unchanged if self.observable else float("nan")
        return Measured(np.concatenate(kl), np.concatenate(more), effect)

    def _stream(self, tokens: np.ndarray) -> torch.Tensor | None:
        if not self.first:
            return None
        hook = f"L{self.first}.resid_pre"
        with torch.no_grad():
            return self.decoder.run(torch.from_numpy(tokens), capture=[hook]).cache[hook]

    def _log_p(self, decoder: Decoder, i: int) -> torch.Tensor:
        start = self.starts[i]
        with torch.no_grad():
            if start is None:
                run = decoder.run(torch.from_numpy(self.tokens[i]))
            else:
                run = decoder.run(resid_in=start, first=self.first or 0)
        return run.logits.double().log_softmax(-1)

    def _observed(self, decoder: Decoder) -> float:
        """Mean over prompts, clean − corrupt where they differ."""
        if self.observable is None:
            return float("nan")
        values = []
        for batch in batches(self.pairs):
            compared = any(p.clean != p.corrupt for p in batch.pairs)
            at = torch.from_numpy(batch.at(self.at))
            sides = []
            for tokens in (batch.clean, batch.corrupt)[: 1 + compared]:
                with torch.no_grad():
                    run = decoder.run(torch.from_numpy(tokens), at=at)
                output = run.outputs[self.observable.output][:, 0].double().cpu().numpy()
                sides.append(self.observable.of(output))
            values.append(sides[0] - sides[1] if compared else sides[0])
        return float(np.concatenate(values).mean())


def _loss(log_p: torch.Tensor, tokens: Int[np.ndarray, "batch position"]) -> Float[np.ndarray, " batch"]:
    """−log p of the token that follows, mean over each window."""
    following = torch.from_numpy(np.ascontiguousarray(tokens[:, 1:]))[..., None].to(log_p.device)
    return -log_p[:, :-1].gather(-1, following)[..., 0].mean(-1).cpu().numpy()


def first_tokens(model: Model, text: str) -> tuple[Int[np.ndarray, "batch position"], ...]:
    """Windows of the text, `MOST_TOKENS` of it; a short one that is left over is not taken, unless it is all."""
    found, read = [], 0
    for some in windows(model, text_ids(model, text)):
        if read >= MOST_TOKENS:
            break
        found.append(some.tokens)
        read += some.tokens.size
    whole = [tokens for tokens in found if tokens.shape[1] == found[0].shape[1]]
    return tuple(whole)
