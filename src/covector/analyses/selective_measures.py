"""Selective induction measured: every token's edit, laid over the model in turn, on every token.

Every other token is taken as the target in turn, which says what such an edit does to tokens that it is not about.

Source: Q14 of the theory page; `docs/theory/edits.md`, equations 16–19.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.induction_edit import LEAST, WAYS, Maker, reads_of
from covector.analyses.induction_heads import HeadEvidence, head_evidence, named_heads, require
from covector.analyses.induction_strings import (
    distinct,
    labels_of,
    length_for,
    pool_of,
    repeats,
    start_of,
    twice,
)
from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.linalg.chance.streams import generator
from covector.linalg.interval import half_width
from covector.linalg.selectivity import TENTH
from covector.model.opened import Model
from covector.model.overlay import Change
from covector.run.decoder import Decoder
from covector.run.edit_runs import begins, decoder_of, drifts
from covector.run.edited import laid_over
from covector.run.neutral import Neutral, neutral_text
from covector.run.strings import Rows, answers, outside, rows_of
from covector.study.edit import Edit

# Every edit is measured on all tokens where there are no more than these; else on its own, the target and some others.
ALL, OTHERS = 42, 20
# Strings without repeats: rows of Σ per dimension, times that a token is seen, and the most strings.
ROWS_PER_DIMENSION, SEEN, MOST_STRINGS = 20, 60, 3000
TWICE = 64
# Numbers of the streams that are held at a time: 2^24 doubles are 128 MB.
ENTRIES = 2**24
Tick = Callable[[int, int, float, str], None]


@dataclass(frozen=True, eq=False)
class Setup:
    """Everything that is decided before the measuring: tokens, heads, edits. ``target``: index among ``labels``."""

    model: Model
    decoder: Decoder
    ids: Int[np.ndarray, " token"]
    labels: tuple[str, ...]
    target: int | None
    start: tuple[int, ...]
    length: int
    heads: tuple[str, ...]
    evidence: HeadEvidence
    maker: Maker
    pairs: int
    draws: int
    seed: int
    neutral: Neutral | None
    given: tuple[str, ...]

    def edit(self, token: int) -> Edit:
        """The edit for a token, by its index."""
        return self.maker.edit(token)


@dataclass(frozen=True, eq=False)
class Found:
    """What every edit (first axis) does to tokens (second axis); NaN where it was not measured.

    ``p`` [token] and ``as_a_p``: probability of the right answer in the model as it is. ``fall``: fall of p(B) where
    the token is B, ``logit`` the fall of its logit against the mean of the other tokens', ``as_a`` the fall of the
    answer's probability where the token is A; ``each`` are the falls string by string [edit, token, string].
    ``next``: rise of the token's loss (nats) where it is next in strings without repeats; ``kl`` mean KL there.
    """

    setup: Setup
    p: Float[np.ndarray, " token"]
    as_a_p: Float[np.ndarray, " token"]
    each: Float[np.ndarray, "edit token string"]
    logits: Float[np.ndarray, "edit token string"]
    as_a: Float[np.ndarray, "edit token string"]
    next: Float[np.ndarray, "edit token"]
    kl: Float[np.ndarray, " edit"]
    text_kl: Float[np.ndarray, " edit"]
    text_loss: Float[np.ndarray, " edit"]

    @property
    def fall_as_a(self) -> Float[np.ndarray, "edit token"]:
        """Mean fall of p of what followed, where the token is A and the answer is not the edit's own token."""
        seen = np.isfinite(self.as_a)
        return np.divide(np.where(seen, self.as_a, 0).sum(axis=2), seen.sum(axis=2), where=seen.any(axis=2),
                         out=np.full(seen.shape[:2], np.nan))  # fmt: skip

    @property
    def copied(self) -> Bool[np.ndarray, " token"]:
        """Which tokens the model as it is copies: p(B) above a guess's, and at least `TENTH` of the median token's."""
        return (self.p > self.guess * (1 + 1e-6)) & (self.p >= TENTH * np.median(self.p))

    @property
    def guess(self) -> float:
        """p of a token where all are equally likely."""
        return 1 / self.setup.model.spec.n_vocab

    def interval(
        self, edit: Int[np.ndarray, " k"], token: Int[np.ndarray, " k"]
    ) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """95 % intervals of `fall` over strings, cut at what p(B) can fall and rise by."""
        each = self.each[edit, token]
        mean, half, p = each.mean(axis=-1), half_width(each), self.p[token]
        return np.maximum(mean - half, p - 1), np.minimum(mean + half, p)

    @property
    def fall(self) -> Float[np.ndarray, "edit token"]:
        """Mean fall of p(B) at the second A."""
        return self.each.mean(axis=2)


def set_up(
    model: Model,
    token: str | None = None,
    *,
    heads: Sequence[str] = (),
    tokens: Sequence[str] = (),
    pairs: int = 32,
    keep: float = 0.0,
    draws: int = 200,
    way: str = LEAST,
    neutral: dict[str, list[str]] | None = None,
    start: str = "auto",
    length: int | None = None,
    ridge: float = 1e-6,
    dtype: str = "float64",
    seed: int = 0,
) -> Setup:
    """Resolve the options of `selective_induction`; see there."""
    _check(pairs, keep, draws, way, ridge)
    _check_model(model)
    raw = model.framed("raw")
    decoder = decoder_of(raw, dtype)
    begin = start_of(raw, start)
    text = None if neutral is None else neutral_text(raw, neutral)
    ids = pool_of(raw, token, tokens, draws, None if text is None else _counts(raw, text))
    n = length_for(raw, len(ids), begin, length)
    rng = generator(seed, "induction fit")
    d = raw.spec.d_model
    count = min(MOST_STRINGS, max(-(-ROWS_PER_DIMENSION * d // n), -(-SEEN * len(ids) // n)))
    layers = [i for i, block in enumerate(raw.spec.blocks) if block.attn]
    reads = reads_of(decoder, distinct(ids, begin, count, n, rng), ids, layers)
    half = min(n, (raw.spec.n_ctx - len(begin)) // 2)
    said_twice = twice(ids, begin, TWICE, half, generator(seed, "induction twice"))
    means = {layer: r.means for layer, r in reads.items()}
    evidence = head_evidence(raw, decoder, said_twice, half, ids, means, draws=max(draws, 200), seed=seed)
    chosen = named_heads(raw, heads) if heads else require(evidence)
    labels = tuple(labels_of(raw)[i] for i in ids)
    maker = Maker(raw, chosen, labels, ids, reads, 1 - keep, ridge, way)
    return Setup(raw, decoder, ids, labels, None if token is None else 0, tuple(begin), n, chosen, evidence, maker,
                 pairs, draws, seed, text, tuple(tokens))  # fmt: skip


def measure(setup: Setup, progress: Tick | None = None) -> Found:
    """Lay every token's edit over the model in turn, and run the strings."""
    changes = [setup.edit(t).change(setup.model) for t in range(len(setup.ids))]
    first = begins(setup.model.spec, changes)
    wanted = _wanted(setup)
    n, seen = len(setup.ids), (lambda *_: None) if progress is None else progress
    p, as_a_p = np.zeros((2, n))
    each, logits, as_a = np.full((3, n, n, setup.pairs), np.nan)
    size = max(1, ENTRIES // (2 * setup.pairs * (setup.length + 2) * setup.model.spec.d_model))
    for begin in range(0, n, size):
        group = np.arange(begin, min(begin + size, n))
        rows = _rows(setup, group, first)
        every = np.arange(len(rows.at)).reshape(len(group), 2, setup.pairs)
        before, logit = (x.reshape(every.shape) for x in answers(setup.decoder, rows, setup.ids, every.ravel(), first))
        p[group], as_a_p[group] = before.mean(axis=2).T
        for i, change in enumerate(changes):
            here = np.flatnonzero(wanted[i, group])
            if not len(here):
                continue
            some = every[here]
            edited = laid_over(setup.decoder, change)
            after, moved = (x.reshape(some.shape) for x in answers(edited, rows, setup.ids, some.ravel(), first))
            each[i, group[here]], as_a[i, group[here]] = np.moveaxis(before[here] - after, 1, 0)
            logits[i, group[here]] = (logit[here] - moved)[:, 0]
            as_a[i, group[here]] = np.where(rows.answer[some[:, 1]] == setup.ids[i], np.nan, as_a[i, group[here]])
            seen(i + 1, n, (begin + len(group) * (i + 1) / n) / (n + 1), f"the edit for {setup.labels[i]}")
    following, kl = outside(setup.decoder, _unrepeated(setup), setup.ids, len(setup.start), changes, first)
    text = _on_text(setup, changes, first)
    seen(n, n, 1.0, "strings without repeats")
    return Found(setup, p, as_a_p, each, logits, as_a, following, kl, *text)


def _check(pairs: int, keep: float, draws: int, way: str, ridge: float) -> None:
    if pairs < 4:
        raise BadRequest(f"--pairs: expected at least 4 strings per token, got {pairs}")
    if not 0 <= keep < 1:
        raise BadRequest(f"--keep: expected a share from 0 (all taken away) to below 1 (none), got {keep:g}")
    if draws < 19:
        raise BadRequest(f"--draws: expected at least 19 other tokens, so that p can be .05, got {draws}")
    if way not in WAYS:
        raise BadRequest(f"--way: expected {' or '.join(WAYS)}, got '{way}'")
    if not ridge >= 0:
        raise BadRequest(f"--ridge: expected 0 or more, got {ridge:g}")


def _check_model(model: Model) -> None:
    spec = model.spec
    if spec.assembly.mode != "tokens" or spec.output("token") is None:
        raise BadRequest(f"{model.name} predicts no tokens from tokens: expected a language model")
    if not all(block.attn.causal for block in spec.blocks if block.attn):
        raise BadRequest(f"{model.name} sees the tokens to come: expected a causal model, which has to copy to predict")


def _wanted(setup: Setup) -> Bool[np.ndarray, "edit token"]:
    """Which tokens every edit is measured on: its own, the target, and `OTHERS` others."""
    n = len(setup.ids)
    if n <= ALL:
        return np.ones((n, n), dtype=bool)
    found = np.eye(n, dtype=bool)
    if setup.target is not None:
        found[:, setup.target] = True
    for t in range(n):
        others = np.flatnonzero(~found[t])
        found[t, generator((setup.seed, t), "induction others").choice(others, OTHERS, replace=False)] = True
    return found


def _rows(setup: Setup, group: Int[np.ndarray, " k"], first: int | None) -> Rows:
    """Strings of some tokens: those where it is B, then those where it is A, token by token."""
    made = [repeats(setup.ids, setup.start, int(setup.ids[t]), setup.pairs, setup.length, (setup.seed, int(t)), role)
            for t in group for role in "BA"]  # fmt: skip
    tokens, at, answer = (np.concatenate(parts) for parts in zip(*((m.tokens, m.at, m.b) for m in made), strict=True))
    return rows_of(setup.decoder, tokens, at, answer, first)


def _unrepeated(setup: Setup) -> Int[np.ndarray, "n position"]:
    """Strings without repeats to measure on, in which every token is seen about `pairs` times."""
    count = min(MOST_STRINGS, -(-setup.pairs * len(setup.ids) // setup.length))
    return distinct(setup.ids, setup.start, count, setup.length, generator(setup.seed, "induction outside"))


def _on_text(
    setup: Setup, changes: Sequence[Change], first: int | None
) -> tuple[Float[np.ndarray, " edit"], Float[np.ndarray, " edit"]]:
    """Mean KL and rise of the loss on the neutral text, for the target (for all, where there is none)."""
    kl, loss = np.full((2, len(changes)), np.nan)
    if setup.neutral is None:
        return kl, loss
    some = list(range(len(changes))) if setup.target is None else [setup.target]
    found = drifts(setup.decoder, setup.neutral, [changes[i] for i in some], first, lambda _: None)
    kl[some], loss[some] = found[0].mean(axis=1), np.nanmean(found[1], axis=1)
    return kl, loss


def _counts(model: Model, text: Neutral) -> Int[np.ndarray, " token"]:
    seen = np.concatenate([b[k] for b, k in zip(text.batches, text.kept, strict=True)])
    return np.bincount(seen, minlength=len(labels_of(model)))
