"""A score split into parts that sum to it: by dyads of the head's QK, by upstream writers, and by pairs of them.

Every part comes twice: in the score itself, and in the contrast, the score less the mean score of the other keys
weighted by how they share the rest of the attention.

Source: `docs/theory/attend.md`, equations 2–11.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from covector.axes import Float
from covector.linalg import chance
from covector.linalg.bilinear import contributing, contributing_in_turned_bases, largest_in_turned_bases, turned_size
from covector.linalg.firing import level
from covector.linalg.svd import SVD
from covector.propagation.scores import HeadScore
from covector.propagation.writers import Writer, writers

LEVEL = 0.05
# How much of the dyads' contrast a contributing set has to reach.
SHARE = 0.9
BIASES = {"q": "b_Q", "k": "b_K"}


@dataclass(frozen=True, eq=False)
class Glance:
    """A query position that looks at a key position. ``weights`` are +1 at the key, −(share of the rest) elsewhere."""

    head: HeadScore
    t: int
    s: int

    @cached_property
    def weights(self) -> Float[np.ndarray, " position"]:
        """What each key's score counts in the contrast; sums to 0."""
        made = -self.head.others(self.t, self.s)
        made[self.s] = 1.0
        return made

    @property
    def plain(self) -> Float[np.ndarray, " position"]:
        """What each key's score counts in the score itself."""
        made = np.zeros(len(self.head.read))
        made[self.s] = 1.0
        return made

    @cached_property
    def raw(self) -> Float[np.ndarray, " position"]:
        """Scores with every key before the soft-cap."""
        head = self.head
        q = head.query(head.read)[self.t] + head.constant("q")[self.t]
        return head.meets(q, head.key(head.read) + head.constant("k"))

    @property
    def score(self) -> float:
        """The score, before the soft-cap."""
        return float(self.raw[self.s])

    @property
    def contrast(self) -> float:
        """The score less the weighted mean of the others."""
        return float(self.raw @ self.weights)

    @property
    def weight(self) -> float:
        """The attention weight."""
        return float(self.head.pattern[self.t, self.s])

    @property
    def rank(self) -> int:
        """How many visible keys score as high or higher, this one included."""
        seen = self.head.scores[self.t][self.head.seen[self.t]]
        return int(np.sum(seen > self.head.scores[self.t, self.s])) + 1

    @property
    def keys(self) -> int:
        """How many keys the query may look at."""
        return int(self.head.seen[self.t].sum())


@dataclass(frozen=True)
class Row:
    """One part: where it belongs, its name, what it adds to the score and to the contrast, and a level of chance.

    ``more`` holds what only some splits have.
    """

    name: str
    score: float
    contrast: float
    side: str = ""
    chance: float = float("nan")
    p: float = float("nan")
    more: tuple[float, ...] = (float("nan"),) * 3


@dataclass(frozen=True, eq=False)
class DyadSplit:
    """The dyads at the glance's offset, a row each, and the rows of what biases bring.

    ``needed`` dyads reach `SHARE` of the contrast that all dyads bring, ``usual`` (median) in random bases of the same
    query space, and ``p`` is the chance that such a basis needs no more.
    """

    dyads: SVD
    rows: tuple[Row, ...]
    level: float
    needed: int
    usual: float
    p: float


def by_dyads(glance: Glance, *, draws: int, seed: int) -> DyadSplit:
    """A row per dyad (more: σ with the score's scale, query coefficient, key coefficient), then the constants.

    score = σ · query · key. In the contrast the other keys stand at other offsets: dyad i is there what the query
    brings along uᵢ. The row ``other offsets`` is what that leaves out, where the head's matrices are short of rank.
    """
    head, t, s = glance.head, glance.t, glance.s
    found = head.at_offset(t - s)
    x, y = head.read[t], head.read[s]
    a, b = x @ found.U * head.held("q")[t], found.Vh @ y * head.held("k")[s]
    # What each read direction's query would score with every key: rows of queries, one per dyad.
    asks = head.turned_by(found.U.T @ head.weight("q"), t)
    keys = head.key(head.read)
    offers = head.meets(asks[:, None], keys[None]) @ glance.weights
    scores, contrasts = found.S * a * b, a * offers
    null = largest_in_turned_bases(a, offers, draws=draws, seed=seed) if len(a) else np.zeros(draws)
    p = np.asarray(chance.monte_carlo_p(np.abs(contrasts), null).value).reshape(-1)
    bar = level(null)
    rows = [
        Row(f"dyad {i}", float(scores[i]), float(contrasts[i]), "", bar, float(p[i]),
            (float(found.S[i]), float(a[i]), float(b[i])))
        for i in range(found.rank)
    ]  # fmt: skip
    if found.rank < head.attn.d_head:
        rest = head.turned_by(((x - found.U @ (found.U.T @ x)) @ head.weight("q"))[None], t)[0] * head.held("q")[t]
        each = head.meets(rest, keys)
        rows.append(Row("other offsets", float(each[s]), float(each @ glance.weights)))
    needed, usual, fewer = _needed(a, offers, draws, seed)
    return DyadSplit(found, (*rows, *_constants(glance)), bar, needed, usual, fewer)


def _needed(
    a: Float[np.ndarray, " r"], offers: Float[np.ndarray, " r"], draws: int, seed: int
) -> tuple[int, float, float]:
    """How many dyads reach `SHARE` of their sum, the median in turned bases, and the chance that these need no more."""
    if not len(a):
        return 0, 0.0, 1.0
    needed = int(contributing(a * offers, SHARE))
    null = contributing_in_turned_bases(a, offers, share=SHARE, draws=draws, seed=seed)
    return needed, float(np.median(null)), float((1 + np.sum(null <= needed)) / (1 + draws))


def _constants(glance: Glance) -> Iterator[Row]:
    """What the constants of queries and keys bring, where there are any."""
    head, t = glance.head, glance.t
    parts = {side: (read(head.read), head.constant(side)) for side, read in (("q", head.query), ("k", head.key))}
    named = [("query × b_K", 0, 1, ("k",)), ("b_Q × key", 1, 0, ("q",)), ("b_Q × b_K", 1, 1, ("q", "k"))]
    for name, which_q, which_k, needs in named:
        if all(head.has_constant(side) for side in needs):
            each = head.meets(parts["q"][which_q][t], parts["k"][which_k])
            yield Row(name, float(each[glance.s]), float(each @ glance.weights))


def by_writers(glance: Glance) -> list[Row]:
    """A row per writer on the query side, and one per writer on the key side; each side sums to the score.

    ``chance`` is the size that no row of that side exceeds (95 %) if what it writes is turned at random in the stream
    behind the norm, all positions together (exact law for one position, its second moment otherwise).
    """
    head, t = glance.head, glance.t
    every = list(writers(head.linear, head.c))
    q = head.query(head.read)[t] + head.constant("q")[t]
    k = head.key(head.read) + head.constant("k")
    tau = float(chance.threshold(head.read.shape[1], len(every)))
    return [*_query_side(glance, every, k, tau), *_key_side(glance, every, q, tau)]


def _query_side(glance: Glance, every: Sequence[Writer], k: np.ndarray, tau: float) -> Iterator[Row]:
    head, t = glance.head, glance.t
    plain, against = k[glance.s], glance.weights @ k
    # The contrast as a functional on what the query reads.
    f = head.weight("q") @ head.unturned_by(against, t) * head.attn.scale * head.held("q")[t]
    for w in every:
        q = head.query(w.rows)[t]
        size = float(np.linalg.norm(w.rows[t]) * np.linalg.norm(f))
        yield Row(w.name, float(head.meets(q, plain)), float(head.meets(q, against)), "query", tau * size)
    if head.has_constant("q"):
        b = head.constant("q")[t]
        yield Row("b_Q", float(head.meets(b, plain)), float(head.meets(b, against)), "query")


def _key_side(glance: Glance, every: Sequence[Writer], q: np.ndarray, tau: float) -> Iterator[Row]:
    head, counted = glance.head, np.flatnonzero(glance.weights)
    weights = glance.weights[counted]
    back = np.stack([head.unturned_by(q, int(s)) for s in counted]) * head.held("k")[counted, None]
    functionals = weights[:, None] * head.attn.scale * (back @ head.weight("k").T)
    for w in every:
        each = head.meets(q, head.key(w.rows))
        size = turned_size(np.ascontiguousarray(w.rows[counted]), functionals)
        yield Row(w.name, float(each[glance.s]), float(each @ glance.weights), "key", tau * size)
    if head.has_constant("k"):
        each = head.meets(q, head.constant("k"))
        yield Row("b_K", float(each[glance.s]), float(each @ glance.weights), "key")


def by_pairs(glance: Glance, top: int) -> list[Row]:
    """The `top` pairs (query writer × key writer) with the largest |contrast|, and one row for all others.

    ``chance`` as in `by_writers`, for the query writer turned at random, over all pairs.
    """
    head, t, s = glance.head, glance.t, glance.s
    names: dict[str, list[str]] = {"q": [], "k": []}
    queries, keys, against, sizes = [], [], [], []
    for w in writers(head.linear, head.c):
        k = head.key(w.rows)
        queries.append(head.query(w.rows)[t])
        sizes.append(float(np.linalg.norm(w.rows[t])))
        keys.append(k[s])
        against.append(glance.weights @ k)
        for side in "qk":
            names[side].append(w.name)
    for side in "qk":
        if head.has_constant(side):
            names[side].append(BIASES[side])
    if head.has_constant("q"):
        queries.append(head.constant("q")[t])
        sizes.append(float("nan"))
    if head.has_constant("k"):
        keys.append(head.constant("k")[s])
        against.append(glance.weights @ head.constant("k"))
    Q, K, C = np.array(queries), np.array(keys), np.array(against)
    score, contrast = head.attn.scale * Q @ K.T, head.attn.scale * Q @ C.T
    back = np.stack([head.unturned_by(c, t) for c in C]) @ head.weight("q").T
    lengths = np.linalg.norm(back, axis=1) * head.attn.scale * head.held("q")[t]
    bars = float(chance.threshold(head.read.shape[1], contrast.size)) * np.outer(sizes, lengths)
    order = np.argsort(-np.abs(contrast), axis=None, kind="stable")
    rows = []
    for flat in order[:top]:
        i, j = divmod(int(flat), contrast.shape[1])
        rows.append(Row(names["k"][j], float(score[i, j]), float(contrast[i, j]), names["q"][i], float(bars[i, j])))
    rest = order[top:]
    if len(rest):
        rows.append(Row(f"{len(rest)} other pairs", float(score.flat[rest].sum()), float(contrast.flat[rest].sum())))
    return rows


def by_keys(glance: Glance) -> list[Row]:
    """A row per visible key: its score and contrast against the others (more: weight, rank, nothing)."""
    head, t = glance.head, glance.t
    found = []
    for s in np.flatnonzero(head.seen[t]):
        here = Glance(head, t, int(s))
        found.append(Row(str(s), here.score, here.contrast, more=(here.weight, float(here.rank), float("nan"))))
    return found


Split = Callable[..., list[Row]]
