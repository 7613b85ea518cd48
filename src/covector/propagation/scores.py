"""One head's attention score as a bilinear form of what its query and its keys read, at one prompt.

z[t, s] = scale · q(t)·k(s), both as they meet: projected, biased, normalised where q and k have a norm (its scale held
at the prompt, so that the value is exact and the form linear), turned to their positions. Between two positions the
form is a matrix of the offset alone, times the two held scales: its dyads are those of the head at that offset.

Source: `docs/theory/attend.md`, equations 1, 2, 5.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from covector.axes import Float
from covector.linalg.maps import Factored
from covector.linalg.svd import SVD, svd
from covector.model.circuits import coarsest, residual
from covector.model.rotary import turn
from covector.model.spec import Attention
from covector.propagation.anatomy import Component
from covector.propagation.linearised import Linearised, visible
from covector.propagation.writers import Rows

OfHead = Float[np.ndarray, "position d_head"]


@dataclass(frozen=True, eq=False)
class HeadScore:
    """The scores of head `head` of attention `c` at the first run's first prompt."""

    linear: Linearised
    c: Component
    head: int

    @property
    def attn(self) -> Attention:
        """The attention that the head is one of."""
        assert self.c.attn is not None
        return self.c.attn

    @property
    def kv(self) -> int:
        """The key/value head that it reads."""
        return self.attn.kv_of(self.head)

    @cached_property
    def read(self) -> Rows:
        """What queries and keys are made from: the stream behind the norm."""
        return self._at("attn_normed")

    @cached_property
    def seen(self) -> np.ndarray:
        """[position, position]: which keys a query may look at."""
        return visible(self.attn, len(self.read))

    @cached_property
    def scores(self) -> Float[np.ndarray, "position position"]:
        """The scores as the model has them, soft-capped."""
        return self._at("scores")[self.head]

    @cached_property
    def pattern(self) -> Float[np.ndarray, "position position"]:
        """The attention weights."""
        return self._at("pattern")[self.head]

    def others(self, t: int, s: int) -> Float[np.ndarray, " position"]:
        """How a query's attention is spread over the keys that are not s: weights that sum to 1.

        From the scores, so that it is defined where all of the attention is on s. All zeros where there is no other.
        """
        rest = self.seen[t].copy()
        rest[s] = False
        if not rest.any():
            return np.zeros(len(rest))
        z = np.where(rest, self.scores[t], -np.inf)
        weight = np.exp(z - z.max())
        return weight / weight.sum()

    def query(self, rows: Rows) -> OfHead:
        """A part of what is read [position, d_model] as a part of the queries, constants left out."""
        return self._turned(rows @ self.weight("q") * self.held("q")[:, None])

    def key(self, rows: Rows) -> OfHead:
        """The same for keys."""
        return self._turned(rows @ self.weight("k") * self.held("k")[:, None])

    def constant(self, side: str) -> OfHead:
        """What biases (and the bias of a q or k norm) bring to queries (``q``) or keys (``k``), turned."""
        return self._turned(self._bias(side) * self.held(side)[:, None] + self._norm_bias(side))

    def has_constant(self, side: str) -> bool:
        """Whether there is any."""
        return bool(self._bias(side).any() or self._norm_bias(side).any())

    def meets(self, q: Float[np.ndarray, "*#batch d_head"], k: Float[np.ndarray, "*#batch d_head"]) -> np.ndarray:
        """The scores of queries with keys, both turned: scale · q·k, batch by batch."""
        return np.asarray(self.attn.scale * np.sum(q * k, axis=-1))

    def at_offset(self, offset: int) -> SVD:
        """Dyads of the form between a query and a key that stands `offset` positions before it, score scale included.

        Biases and the held scales of q and k norms are left out; the gains of those norms are in.
        """
        A = self.attn.scale * self.turned_by(self.weight("q"), offset)
        stream = residual(self.linear.spec)
        at = (self.c.hook("W_Q"), self.c.hook("W_K"))
        return svd(Factored(A, self.weight("k").T, stream, stream, coarsest(self.linear.weights, *at)))

    def turned_by(self, rows: Float[np.ndarray, "n d_head"], position: int) -> Float[np.ndarray, "n d_head"]:
        """Rows of one head turned as if they stood at one position."""
        return turn(rows[None], self.attn.rotary, np.array([position]))[0]

    def unturned_by(self, row: Float[np.ndarray, " d_head"], position: int) -> Float[np.ndarray, " d_head"]:
        """One row turned back."""
        return turn(row[None, None], self.attn.rotary, np.array([position]), back=True)[0, 0]

    def weight(self, side: str) -> Float[np.ndarray, "d_model d_head"]:
        """W_Q or W_K of this head; behind a q or k norm's centring and gain, without its scale."""
        return self._through_norm(self.linear.need(self.c.hook(f"W_{side.upper()}"))[self._index(side)], side)

    def held(self, side: str) -> Float[np.ndarray, " position"]:
        """1/σ of the q or k norm at every position; ones without a norm."""
        norm = self.attn.qk_norm
        if norm is None:
            return np.ones(len(self.read))
        x = self._at(side)[:, self._index(side)]
        x = x - x.mean(axis=-1, keepdims=True) if norm.kind == "layer" else x
        return 1 / np.sqrt(np.mean(x * x, axis=-1) + norm.eps)

    def _through_norm(self, rows: np.ndarray, side: str) -> np.ndarray:
        norm = self.attn.qk_norm
        if norm is None:
            return rows
        rows = rows - rows.mean(axis=-1, keepdims=True) if norm.kind == "layer" else rows
        gain = self.linear.part(self.c.hook(f"{side}_norm.gain"))
        return rows if gain is None else rows * gain

    def _bias(self, side: str) -> Float[np.ndarray, " d_head"]:
        bias = self.linear.part(self.c.hook(f"b_{side.upper()}"))
        return np.zeros(self.attn.d_head) if bias is None else self._through_norm(bias[self._index(side)], side)

    def _norm_bias(self, side: str) -> Float[np.ndarray, " d_head"]:
        bias = self.linear.part(self.c.hook(f"{side}_norm.bias")) if self.attn.qk_norm else None
        return np.zeros(self.attn.d_head) if bias is None else bias

    def _turned(self, rows: OfHead) -> OfHead:
        return turn(rows[:, None], self.attn.rotary, np.arange(len(rows)))[:, 0]

    def _index(self, side: str) -> int:
        return self.head if side == "q" else self.kv

    def _at(self, role: str) -> np.ndarray:
        return self.linear.runs[0][self.c.hook(role)][0]
