"""What an edit is chosen by: an observable on prompts, or how much a text's logits say a concept.

A metric is linear in logits, has a value for each cluster (names of prompts, windows of text), and a slope in every
direction that may be changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.linalg.interval import half_width
from covector.model.opened import Model
from covector.model.overlay import Change
from covector.run.clusters import cluster_by
from covector.run.decoder import Decoder
from covector.run.edited import laid_over, slopes
from covector.run.neutral import Neutral
from covector.run.prompts import Pair, batches
from covector.study.concept import concept
from covector.study.expression import parse
from covector.study.observable import Observable


@dataclass(frozen=True, eq=False)
class Metric:
    """Rows of tokens in batches, where each row's outputs count, the functional on them, and each row's cluster.

    The metric is Σ weights · (logits @ functional) over all batches; ``shares`` says what each cluster counts in it,
    ``kept`` which tokens are the rows' own where some are filled up at their end.
    """

    decoder: Decoder
    words: str
    functional: Float[np.ndarray, " token"]
    tokens: tuple[Int[np.ndarray, "_ _"], ...]
    weights: tuple[Float[np.ndarray, "_ _"], ...]
    clusters: tuple[Int[np.ndarray, " _"], ...]
    shares: Float[np.ndarray, " cluster"]
    kept: tuple[Bool[np.ndarray, "_ _"], ...] = ()

    def of(self, change: Change | None = None) -> Float[np.ndarray, " cluster"]:
        """The value for each cluster, with a change in the weights."""
        decoder = self.decoder if change is None else laid_over(self.decoder, change)
        total = np.zeros(len(self.shares))
        with torch.no_grad():
            for tokens, weights, clusters in zip(self.tokens, self.weights, self.clusters, strict=True):
                np.add.at(total, clusters, self._values(decoder, tokens, weights).sum(-1).cpu().numpy())
        return total / self.shares

    def mean(self, values: Float[np.ndarray, " cluster"]) -> float:
        """The metric, of its values for each cluster."""
        return float(values @ self.shares)

    def half(self, values: Float[np.ndarray, " c"]) -> float:
        """Half the 95 % interval of `mean`, over clusters that count as much as their shares; NaN for one."""
        return float(half_width(len(values) * self.shares * (values - self.mean(values))))

    def slopes(self, pieces: Sequence[Change]) -> Float[np.ndarray, " k"]:
        """Its derivative in the dose of every piece, at the unedited model: one backward pass a batch."""
        total = np.zeros(len(pieces))
        for tokens, weights in zip(self.tokens, self.weights, strict=True):
            total += slopes(self.decoder, lambda d, t=tokens, w=weights: self._values(d, t, w).sum()[None], pieces)[0]
        return total

    def _values(
        self, decoder: Decoder, tokens: Int[np.ndarray, "batch position"], weights: Float[np.ndarray, "batch position"]
    ) -> torch.Tensor:
        logits = decoder.run(torch.from_numpy(np.array(tokens))).logits
        return (logits @ torch.from_numpy(self.functional).to(logits)) * torch.from_numpy(weights).to(logits)


def on_prompts(decoder: Decoder, observable: Observable, pairs: Sequence[Pair], at: str = "end") -> Metric:
    """An observable where prompts are read; where pairs compare two prompts, its gap, clean − corrupt.

    Every name counts the same, whatever the number of its prompts.
    """
    cluster = cluster_by(pairs)
    names = [cluster(pair) for pair in pairs]
    order = list(dict.fromkeys(names))
    two = any(p.clean != p.corrupt for p in pairs)
    tokens, weights, clusters = [], [], []
    for batch in batches(pairs):
        mine = [cluster(p) for p in batch.pairs]
        share = np.array([1 / (len(order) * names.count(name)) for name in mine])
        for side, sign in ((batch.clean, 1.0), (batch.corrupt, -1.0))[: 1 + two]:
            ids = np.asarray(side)
            where = np.zeros(ids.shape)
            where[np.arange(len(ids)), batch.at(at)] = sign * share
            tokens.append(ids)
            weights.append(where)
            clusters.append(np.array([order.index(name) for name in mine]))
    words = f"{observable}{' (clean − corrupt)' if two else ''}"
    shares = np.full(len(order), 1 / len(order))
    return Metric(decoder, words, observable.vector, tuple(tokens), tuple(weights), tuple(clusters), shares)


def on_text(
    decoder: Decoder, words: str, functional: Float[np.ndarray, " token"], text: Neutral, before: Sequence[int] = ()
) -> Metric:
    """The mean of a functional of the logits over a text's tokens, or those alone that stand before one of `before`.

    Windows are the clusters; those without such a token are left out. Raises BadRequest where none is left.
    """
    tokens, weights, clusters, own_tokens, at = [], [], [], [], 0
    for ids, kept in zip(text.batches, text.kept, strict=True):
        windows = text.window[at : at + int(kept.sum())][np.cumsum(kept.sum(axis=1)) - 1]
        at += int(kept.sum())
        here = kept.astype(np.float64)
        if len(before):
            here = np.zeros(ids.shape)
            here[:, :-1] = kept[:, :-1] & kept[:, 1:] & np.isin(ids[:, 1:], list(before))
        rows = here.any(axis=1)
        if rows.any():
            tokens.append(ids[rows])
            weights.append(here[rows])
            clusters.append(windows[rows])
            own_tokens.append(kept[rows])
    if not tokens:
        raise BadRequest(f"{words}: expected a text in which the concept occurs, this one has none of its tokens")
    total = sum(float(where.sum()) for where in weights)
    weights = [where / total for where in weights]
    _, numbers, counts = np.unique(np.concatenate(clusters), return_inverse=True, return_counts=True)
    each = tuple(np.split(numbers, np.cumsum([len(c) for c in clusters])[:-1]))
    shares = np.zeros(len(counts))
    for where, own in zip(weights, each, strict=True):
        np.add.at(shares, own, where.sum(axis=1))
    return Metric(decoder, words, functional, tuple(tokens), tuple(weights), each, shares, tuple(own_tokens))


def concept_logits(model: Model, concepts: Sequence[str], decoder: Decoder, text: Neutral) -> Metric:
    """Mean logit of the concept's tokens less the mean of all, where one of them comes next; else over all tokens."""
    basis, functional, ids = model.bases["token_out"], np.zeros(model.spec.n_vocab), []
    for one in concepts:
        weights = concept(parse(one), model, basis).weights
        total = sum(abs(w) for w in weights.values())
        for i, weight in weights.items():
            functional[i] += weight / total
            ids += [i] if weight > 0 else []
    centred = functional - functional.mean()
    windows = sum(bool(np.isin(row[1:], ids).any()) for rows in text.batches for row in rows)
    if windows < 2:  # it hardly occurs: how much the text's logits say it anywhere
        return on_text(decoder, "logit of the concept, all over the text", centred, text)
    return on_text(decoder, "logit of the concept before its tokens", centred, text, ids)


def halves(text: Neutral) -> tuple[Neutral, Neutral]:
    """Every other window of a text, and the rest: one to choose by, one to certify on."""
    rows = [(b, r) for b, kept in enumerate(text.kept) for r in range(len(kept))]
    return _some(text, rows[::2]), _some(text, rows[1::2])


def _some(text: Neutral, rows: list[tuple[int, int]]) -> Neutral:
    batches_, kept_, keep, at = [], [], [], 0
    for b, kept in enumerate(text.kept):
        mine = [r for own, r in rows if own == b]
        own = np.zeros(kept.shape, dtype=bool)
        own[mine] = kept[mine]
        keep.append(own[kept])
        at += int(kept.sum())
        if mine:
            batches_.append(text.batches[b][mine])
            kept_.append(kept[mine])
    where = np.concatenate(keep)
    return Neutral(tuple(batches_), tuple(kept_), text.topics, text.topic[where], text.window[where])


def split(metric: Metric) -> tuple[Metric, Metric]:
    """Every other cluster, and the rest: one to choose by, one to measure on. Raises BadRequest for fewer than two."""
    if len(metric.shares) < 2:
        raise BadRequest(
            f"{metric.words}: expected at least two names of prompts (or windows of text), one to choose by and one to "
            f"measure on, got {len(metric.shares)}"
        )
    return _of_clusters(metric, 0), _of_clusters(metric, 1)


def _of_clusters(metric: Metric, parity: int) -> Metric:
    mine = np.flatnonzero(np.arange(len(metric.shares)) % 2 == parity)
    share = metric.shares[mine].sum()
    tokens, weights, clusters, kept = [], [], [], []
    for i, (ids, where, own) in enumerate(zip(metric.tokens, metric.weights, metric.clusters, strict=True)):
        rows = np.isin(own, mine)
        if rows.any():
            tokens.append(ids[rows])
            weights.append(where[rows] / share)
            clusters.append(np.searchsorted(mine, own[rows]))
            kept += [metric.kept[i][rows]] if metric.kept else []
    made = (tuple(tokens), tuple(weights), tuple(clusters), metric.shares[mine] / share, tuple(kept))
    return Metric(metric.decoder, metric.words, metric.functional, *made)
