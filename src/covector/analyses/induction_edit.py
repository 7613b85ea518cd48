"""The edits that break induction for one token: inputs of heads, their least change, and dampened dyads beside it.

Source: Q14 of the theory page; `docs/theory/edits.md`, equations 16 and 17.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.induction_heads import outputs_of
from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.choosing import LEAST_MU, MOST_MU, proportional
from covector.linalg.least_change import least_rows
from covector.linalg.svd import svd
from covector.model.address import Site
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.strings import passing
from covector.study.edit import Edit
from covector.study.edit_terms import READ, Dyads, Rewrite, Term

LEAST, DYADS = "least", "dyads"
WAYS = (LEAST, DYADS)
_BISECTIONS = 80


@dataclass(frozen=True, eq=False)
class Reads:
    """What the attention of one block reads in strings without repeats: Σ = E[xᵀx] over all places, each token's
    mean input, and each token's Σ alone (for dyads)."""

    moment: Float[np.ndarray, "d_model d_model"]
    means: Float[np.ndarray, "token d_model"]
    rows: Float[np.ndarray, "place d_model"]
    which: Int[np.ndarray, " place"]
    """Index of the token at each place, −1 for the start token."""


def reads_of(
    decoder: Decoder, strings: Int[np.ndarray, "n position"], ids: Int[np.ndarray, " token"], layers: Sequence[int]
) -> dict[int, Reads]:
    """Run the strings once, and collect what every block in `layers` reads through its attention's norm."""
    hooks = {layer: f"L{layer}.attn_normed" for layer in layers}
    parts: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    for cache in passing(decoder, strings, list(hooks.values())):
        for layer, hook in hooks.items():
            parts[layer].append(cache[hook].reshape(-1, cache[hook].shape[-1]))
    place = {int(t): i for i, t in enumerate(ids)}
    which = np.array([place.get(int(t), -1) for t in strings.ravel()])
    if not set(range(len(ids))) <= set(which.tolist()):
        raise BadRequest("expected every token somewhere in the strings, some never occur; ask for more strings")
    found = {}
    for layer, some in parts.items():
        x = np.concatenate(some)
        means = np.stack([x[which == t].mean(axis=0) for t in range(len(ids))])
        found[layer] = Reads(x.T @ x / len(x), means, x, which)
    return found


@dataclass(frozen=True, eq=False)
class Maker:
    """Makes the edit for any of the tokens. ``share``: of its value that is taken away (1 − keep)."""

    model: Model
    heads: tuple[str, ...]
    labels: tuple[str, ...]
    ids: Int[np.ndarray, " token"]
    reads: Mapping[int, Reads]
    share: float
    ridge: float
    way: str

    def edit(self, token: int) -> Edit:
        """The edit for token number `token` of the strings: the same in every head's matrices W_V, or of its dyads."""
        made = [t for site in self._sites() for t in self._terms(site, token)]
        return Edit((tuple(made),), frame="raw")

    def size(self, token: int) -> float:
        """√E‖xΔM‖² over √E‖xM‖², the largest of all heads: how much of what they send is changed in these strings."""
        sizes = []
        for site in self._sites():
            M, r = self.model.map(site), self.reads[_layer(site)]
            w = self._row(_layer(site), token)
            change = float(w @ r.moment @ w) * float(np.sum(M.apply(r.means[token][None]) ** 2))
            whole = float(np.sum(M.apply(r.rows) ** 2)) / len(r.rows)
            sizes.append((change / whole) ** 0.5 if whole > 0 else float("nan"))
        return max(sizes)

    def _sites(self) -> list[Site]:
        """OV of each head; the values of the key/value head where several query heads share it."""
        found: dict[Site, None] = {}
        for head in self.heads:
            at = self.model.site(f"{head}.ov")
            attn = self.model.spec.blocks[_layer(at)].attn
            shared = attn is not None and attn.n_kv_heads < attn.n_heads
            if shared and attn is not None and self.way == LEAST:
                at = self.model.site(f"L{at.layer}K{attn.kv_of(at.head or 0)}.v")
            found[at] = None
        return list(found)

    def _row(self, layer: int, token: int) -> Float[np.ndarray, " d_model"]:
        r = self.reads[layer]
        return least_rows(r.means[token][None], r.moment, self.share, self.ridge)[0]

    def _terms(self, site: Site, token: int) -> list[Term]:
        e = self.reads[_layer(site)].means[token]
        if self.way == LEAST:
            w = self._row(_layer(site), token)
            said = f"the mean input of '{self.labels[token]}'"
            return [Rewrite(str(site), e[None], w[None], said, READ)]
        epsilon = self._dampened(site, token)
        kept = np.flatnonzero(epsilon)
        return [Dyads(str(site), tuple(kept.tolist()), tuple(epsilon[kept].tolist()), self._side(site))]

    def _side(self, site: Site) -> str:
        attn = self.model.spec.blocks[_layer(site)].attn
        return "" if attn is not None and attn.n_kv_heads < attn.n_heads else READ

    def _dampened(self, site: Site, token: int) -> Float[np.ndarray, " r"]:
        """ε of every dyad by F6, μ where E‖xΔM‖² is that of the least change."""
        r, M = self.reads[_layer(site)], self.model.map(site)
        found = svd(M)
        out = outputs_of(self.model, self.ids[[token]])[0]
        related = (found.Vh @ (out / np.linalg.norm(out))) ** 2
        driven = (r.rows @ found.U) ** 2
        own = r.which == token
        target, control, whole = driven[own].mean(axis=0), driven[~own].mean(axis=0), driven.mean(axis=0)
        w = self._row(_layer(site), token)
        wanted = float(w @ r.moment @ w) * float(np.sum(M.apply(r.means[token][None]) ** 2))

        def epsilon(log_mu: float) -> np.ndarray:
            return proportional(related, float(np.exp(log_mu)), 1 - self.share, target, control)

        low, high = float(np.log(LEAST_MU)), float(np.log(MOST_MU))
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            size = float(np.sum(epsilon(middle) ** 2 * found.S**2 * whole))
            low, high = (middle, high) if size > wanted else (low, middle)
        return epsilon((low + high) / 2)


def _layer(site: Site) -> int:
    return site.layer or 0
