"""What a sweep stands on: all dyads of the sites, a metric in two halves, runs that start at the changed block.

Source: `docs/theory/edits.md`, equations 8, 9 and 23.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from covector.analyses.choose_candidates import Candidates, candidates
from covector.analyses.choose_metric import Metric, on_prompts, split
from covector.analyses.choose_wish import SITES
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.interval import half_width
from covector.model.address import Site
from covector.model.opened import Model
from covector.model.overlay import Change, Update
from covector.run.decoder import Decoder
from covector.run.edit_runs import begins, decoder_of
from covector.run.edited import gradients, laid_over
from covector.run.prompts import Pair
from covector.study.observable import Observable

# Tokens that run together.
TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Started:
    """A metric whose runs begin at the first changed block, with the clean stream that enters it."""

    metric: Metric
    streams: Mapping[int, tuple[Tensor, ...]]
    at: tuple[Tensor | None, ...]

    def of(self, change: Change | None = None) -> Float[np.ndarray, " cluster"]:
        """The value for each cluster, as `Metric.of`."""
        m = self.metric
        decoder = m.decoder if change is None else laid_over(m.decoder, change)
        first = None if change is None else begins(decoder.spec, [change])
        total = np.zeros(len(m.shares))
        with torch.no_grad():
            for i, (tokens, weights, own) in enumerate(zip(m.tokens, m.weights, m.clusters, strict=True)):
                if first is not None and first in self.streams:
                    run = decoder.run(resid_in=self.streams[first][i], first=first, at=self.at[i])
                else:
                    run = decoder.run(torch.from_numpy(np.array(tokens)), at=self.at[i])
                value = (run.logits @ torch.from_numpy(m.functional).to(run.logits)).double().cpu().numpy()
                whole = weights if self.at[i] is None else weights.sum(axis=1, keepdims=True)
                np.add.at(total, own, (value * whole).sum(axis=-1))
        return total / m.shares

    def laid(
        self, site: Site, lefts: Float[np.ndarray, "k n r"], rights: Float[np.ndarray, "k r d"]
    ) -> Float[np.ndarray, "k cluster"]:
        """The value for each cluster with W + leftₖ rightₖ in what writes for one site: many changes in one run.

        What the matrix reads is not changed, so its output gets (x·left)·right; the same as `of` of each change.
        """
        m, decoder, layer = self.metric, self.metric.decoder, site.layer or 0
        source, place = ("z", "attn_out") if site.kind == "ov" else ("mlp_post", "mlp_out")
        found = np.zeros((len(lefts), len(m.shares)))
        for i, (tokens, weights, own) in enumerate(zip(m.tokens, m.weights, m.clusters, strict=True)):
            stream, at = self.streams[layer][i], self.at[i]
            with torch.no_grad():
                hook = f"L{layer}.{source}"
                x = decoder.run(torch.from_numpy(np.array(tokens)), capture=[hook]).cache[hook]
                x = x[..., site.head, :] if site.kind == "ov" else x
                step = max(1, TOKENS // tokens.size)
                for first in range(0, len(lefts), step):
                    left, right = (torch.from_numpy(a[first : first + step].copy()).to(x) for a in (lefts, rights))
                    more = torch.einsum("btn,knr,krd->kbtd", x, left, right).flatten(0, 1)
                    run = decoder.run(
                        resid_in=stream.repeat(len(left), 1, 1), first=layer,
                        at=None if at is None else at.repeat(len(left)),
                        intervene={f"L{layer}.{place}": lambda value, more=more: value + more},
                    )  # fmt: skip
                    value = (run.logits @ torch.from_numpy(m.functional).to(run.logits)).double().cpu().numpy()
                    whole = weights if at is None else weights.sum(axis=1, keepdims=True)
                    each = (value.reshape(len(left), len(tokens), -1) * whole).sum(axis=-1)
                    for k, row in enumerate(each):
                        np.add.at(found[first + k], own, row)
        return found / m.shares

    def mean(self, values: Float[np.ndarray, " cluster"]) -> float:
        """The metric, of its values for each cluster."""
        return self.metric.mean(values)

    def interval(self, values: Float[np.ndarray, " cluster"]) -> tuple[float, float, float]:
        """The mean over clusters by their shares, and its 95 % interval (Student's t, linearised shares)."""
        mean, n = self.mean(values), len(values)
        half = float(half_width(n * self.metric.shares * (values - mean)))
        return mean, mean - half, mean + half

    def gradients(self, tensors: Sequence[str]) -> dict[str, Float[np.ndarray, "..."]]:
        """∂ metric / ∂ W of stored tensors, one backward pass a batch. Exact to rounding."""
        m = self.metric
        total: dict[str, np.ndarray] = {}
        for tokens, weights, at in zip(m.tokens, m.weights, self.at, strict=True):
            whole = weights if at is None else weights.sum(axis=1, keepdims=True)

            def value(decoder: Decoder, tokens=tokens, whole=whole, at=at) -> Tensor:
                logits = decoder.run(torch.from_numpy(np.array(tokens)), at=at).logits
                read = logits @ torch.from_numpy(m.functional).to(logits)
                return (read * torch.from_numpy(whole).to(logits)).sum()[None]

            (found,) = gradients(m.decoder, value, tensors)
            total = {name: total.get(name, 0.0) + found[name] for name in tensors}
        return total

    def second(self, hooks: Sequence[str]) -> dict[str, Float[np.ndarray, "..."]]:
        """E[xᵀx] of what passes at hook points, over the places that the metric can see: [n, n], or [head, n, n]."""
        total: dict[str, np.ndarray] = {}
        count = 0
        causal = all(b.attn.causal for b in self.metric.decoder.spec.blocks if b.attn)
        for tokens, weights in zip(self.metric.tokens, self.metric.weights, strict=True):
            last = weights.shape[1] - 1 - np.argmax((weights != 0)[:, ::-1], axis=1)
            seen = np.arange(weights.shape[1]) <= (last[:, None] if causal else weights.shape[1])
            with torch.no_grad():
                cache = self.metric.decoder.run(torch.from_numpy(np.array(tokens)), capture=list(hooks)).cache
            for hook in hooks:
                x = cache[hook].double().cpu().numpy()[seen]
                gram = x.T @ x if x.ndim == 2 else np.einsum("nhi,nhj->hij", x, x, optimize=True)
                total[hook] = total.get(hook, 0.0) + gram
            count += int(seen.sum())
        return {hook: gram / count for hook, gram in total.items()}


def started(metric: Metric, layers: Sequence[int]) -> Started:
    """Run the metric's rows once and keep the streams that enter these blocks."""
    wanted = sorted(set(layers))
    kept: dict[int, list[Tensor]] = {layer: [] for layer in wanted}
    at: list[Tensor | None] = []
    for tokens, weights in zip(metric.tokens, metric.weights, strict=True):
        with torch.no_grad():
            hooks = [f"L{layer}.resid_pre" for layer in wanted]
            cache = metric.decoder.run(torch.from_numpy(np.array(tokens)), capture=hooks).cache
        for layer, hook in zip(wanted, hooks, strict=True):
            kept[layer].append(cache[hook])
        read = weights != 0
        at.append(torch.from_numpy(np.argmax(read, axis=1)) if (read.sum(axis=1) == 1).all() else None)
    return Started(metric, {layer: tuple(x) for layer, x in kept.items()}, tuple(at))


def check_raw(model: Model) -> None:
    """Raise BadRequest for a frame other than raw, in which dyads and random changes are not of the stored matrices."""
    if str(model.frame) != "raw":
        raise BadRequest(
            f"sweep: expected --frame raw, got {model.frame}: it removes dyads of the stored matrices, and its random "
            f"changes are matched on what those give; covector edit --frame {model.frame} measures dyads of that frame"
        )


@dataclass(frozen=True, eq=False)
class Ground:
    """All dyads of the sites, and the metric: ``chosen`` to select by, ``held`` to measure on, no name in common."""

    model: Model
    found: Candidates
    chosen: Started
    held: Started

    @property
    def words(self) -> str:
        """What is measured."""
        return self.chosen.metric.words

    @property
    def decoder(self) -> Decoder:
        """The reference decoder of the stored weights."""
        return self.chosen.metric.decoder


def metric_of(
    model: Model, observed: Metric | Observable | str, prompts: Sequence[Pair] = (), *, at: str = "end",
    dtype: str = "float64",
) -> Metric:  # fmt: skip
    """The metric as it is, or an observable on prompts. Raises BadRequest for one without prompts, or an agent's."""
    if isinstance(observed, Metric):
        return observed
    observable = Observable.parse(observed, model) if isinstance(observed, str) else observed
    if observable.output != "token":
        raise BadRequest("sweep: expected an observable of tokens; other outputs need their environment, not prompts")
    if not prompts:
        raise BadRequest("expected prompts, got none; give --template and --fill, or --prompts FILE")
    return on_prompts(decoder_of(model, dtype), observable, prompts, at)


def grounds(
    model: Model,
    metric: Metric,
    sites: Sequence[str] = SITES,
    concepts: str | Sequence[str] | None = None,
) -> Ground:
    """Everything decided before the long work. Without concepts, `related` is to what the metric reads of the stream.

    Raises BadRequest for another frame than raw, what `candidates` raises, and for fewer than two names or windows.
    """
    check_raw(model)
    halves = split(metric)
    asked = read_by(model, metric) if concepts is None else concepts
    found = candidates(model, asked, sites)
    layers = [s.layer for s in found.sites if s.layer is not None]
    return Ground(model, found, *(started(half, layers) for half in halves))


def read_by(model: Model, metric: Metric) -> Float[np.ndarray, "1 d"]:
    """What the metric reads of the final stream, without its norm: Σ weight of token · its row of W_U."""
    return (metric.functional @ model.bases["token_out"].vectors)[None].astype(np.float64)


def tensor_of(ground: Ground, site: int) -> tuple[str, int | None]:
    """The matrix that writes for a site, and its slice."""
    one = ground.found.sites[site]
    return f"L{one.layer}.{'W_O' if one.kind == 'ov' else 'W_out'}", one.head if one.kind == "ov" else None


def hook_of(ground: Ground, site: int) -> str:
    """What that matrix reads."""
    one = ground.found.sites[site]
    return f"L{one.layer}.{'z' if one.kind == 'ov' else 'mlp_post'}"


def matrix_of(ground: Ground, site: int) -> Float[np.ndarray, "n d"]:
    """W_O of the head, or W_out, as stored; float64."""
    tensor, head = tensor_of(ground, site)
    array = ground.model.stored[tensor]
    return (array if head is None else array[head]).astype(np.float64)


def whole(ground: Ground, site: int) -> Change:
    """All that a site writes removed: W_O of the head, or W_out, set to zero; what biases give to it included."""
    tensor, head = tensor_of(ground, site)
    matrix = matrix_of(ground, site)
    return Change((Update(tensor, -matrix, np.eye(matrix.shape[1]), head),))


def effect(started: Started, base: Float[np.ndarray, " cluster"], change: Change) -> Float[np.ndarray, " cluster"]:
    """Change of the metric of every cluster."""
    return started.of(change) - base
