"""Directions of a model that an edit of a concept may change, and how much of each is the concept.

Source: F3 and F6 of the theory page; `docs/theory/edits.md`, equation 12.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from covector.analyses.choose_wish import SITES
from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.span import span
from covector.linalg.svd import svd
from covector.model.address import Site
from covector.model.circuits import side_centred
from covector.model.opened import Model
from covector.model.overlay import Change
from covector.study.concept import Concept, concept, direction
from covector.study.edit import Edit
from covector.study.edit_carry import carried
from covector.study.edit_operators import Operator
from covector.study.edit_sides import Target, own_side, target
from covector.study.edit_terms import WRITE
from covector.study.expression import parse

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Candidates:
    """Dyads of several sites, side by side: place, gain, written row, and aᵢ = ‖C vᵢ‖² for the concept's rows C.

    ``words`` name the concept, ``meant`` is a sentence on how its words became directions where that is not plain.
    ``tau`` is the cosine that the best of as many random directions reaches in 5 % of draws; ``p`` each one's own, and
    ``q`` Benjamini–Hochberg over all of them.
    """

    model: Model
    concept: Float[np.ndarray, "k d"]
    words: str
    sites: tuple[Site, ...]
    site: Int[np.ndarray, " n"]
    dyad: Int[np.ndarray, " n"]
    gains: Float[np.ndarray, " n"]
    rows: Float[np.ndarray, "n d"]
    related: Float[np.ndarray, " n"]
    tau: float
    p: Float[np.ndarray, " n"]
    meant: str = ""

    def __len__(self) -> int:
        """How many."""
        return len(self.gains)

    @property
    def beyond(self) -> Bool[np.ndarray, " n"]:
        """Which are related to the concept beyond chance: q ≤ 0.05."""
        return self.q <= ALPHA

    @cached_property
    def q(self) -> Float[np.ndarray, " n"]:
        """p corrected for the number of directions looked at."""
        return chance.bh(self.p)

    def address(self, i: int) -> str:
        """``L3H1.ov:2``."""
        return f"{self.sites[self.site[i]]}:{self.dyad[i]}"

    def edit(self, epsilon: Float[np.ndarray, " n"]) -> Edit:
        """The edit with these ε, one term a site; dyads with ε 0 are left out. Raises BadRequest where all are 0."""
        terms = []
        for s in np.unique(self.site[epsilon != 0]):
            here = np.flatnonzero((self.site == s) & (epsilon != 0))
            by_dyad = {int(self.dyad[i]): float(epsilon[i]) for i in here}
            terms += Edit.dyads(str(self.sites[s]), by_dyad).steps[0]
        return Edit((tuple(terms),))

    def erasing(self, epsilon: float) -> Edit:
        """M(I + ε CᵀC) at every site: the concept's span itself weakened, whatever the dyads are."""
        terms = [Edit.within(str(site), self.concept, epsilon, said=self.words).steps[0][0] for site in self.sites]
        return Edit((tuple(terms),))

    def pieces(self, which: Iterable[int] | Int[np.ndarray, " k"]) -> list[Change]:
        """What ε = 1 of each of these dyads comes to on the stored weights."""
        found = []
        for i in which:
            row = self.rows[i : i + 1]
            found.append(carried(self.model, [(self._target(int(self.site[i])), Operator(row, row))]))
        return found

    def changed_by(self, epsilon: Float[np.ndarray, " n"]) -> Change:
        """What all ε together come to; the same as ``edit(epsilon).change(model)``, without new decompositions."""
        laid = []
        for s in np.unique(self.site[epsilon != 0]):
            here = np.flatnonzero((self.site == s) & (epsilon != 0))
            laid.append((self._target(int(s)), Operator(self.rows[here], epsilon[here, None] * self.rows[here])))
        return carried(self.model, laid)

    def _target(self, site: int) -> Target:
        return target(self.model.stored.spec, self.sites[site], WRITE)

    def written(self, epsilon: Float[np.ndarray, " n"]) -> float:
        """‖M'Cᵀ‖_F / ‖MCᵀ‖_F over all sites: how much of the concept is still written, for inputs of all kinds."""
        before = np.sum(self.gains**2 * self.related)
        return float(np.sqrt(np.sum((self.gains * (1 + epsilon)) ** 2 * self.related) / before)) if before else 1.0


def candidates(
    model: Model, concepts: str | Sequence[str] | Float[np.ndarray, "k d"], sites: Sequence[str] = SITES
) -> Candidates:
    """Every dyad of the sites beside a concept: texts of weighted tokens (several span a subspace), or vectors.

    Raises BadRequest for sites that do not write to the stream, for a concept that is null, and what `concept`,
    `Model.sites` raise.
    """
    rows, words, meant = _concept(model, concepts)
    found = tuple(dict.fromkeys(s for pattern in sites for s in model.sites(pattern)))
    for one in found:
        if own_side(one) != WRITE or one.layer is None:
            raise BadRequest(
                f"--sites {one}: expected maps inside blocks that write to the stream (L*H*.ov, L*.mlp.out), this one "
                "does not; name its edit by hand"
            )
    each = [svd(model.map(one), stream_only=True) for one in found]
    d = model.spec.d_model - any(side_centred(model.stored.spec, model.frame, s, True) for s in found)
    V = np.concatenate([x.Vh for x in each])
    related = np.minimum(np.sum((V @ rows.T) ** 2, axis=1), 1.0)
    tau = float(chance.threshold(d, len(V), ALPHA, len(rows)))
    return Candidates(
        model, rows, words, found, np.repeat(np.arange(len(found)), [x.rank for x in each]),
        np.concatenate([np.arange(x.rank) for x in each]), np.concatenate([x.S for x in each]), V, related, tau,
        np.asarray(chance.tail(np.sqrt(related), d, len(rows))), meant,
    )  # fmt: skip


def _concept(
    model: Model, concepts: str | Sequence[str] | Float[np.ndarray, "k d"]
) -> tuple[Float[np.ndarray, "k d"], str, str]:
    """Orthonormal rows, the concept in words, and how these became directions."""
    if isinstance(concepts, np.ndarray):
        rows, words, told = np.atleast_2d(concepts.astype(np.float64)), "the given directions", ""
    else:
        texts = [concepts] if isinstance(concepts, str) else list(concepts)
        basis = model.bases[f"{model.spec.outputs[0].name}_out"]
        meant = [concept(parse(text), model, basis) for text in texts]
        rows = np.stack([direction(m.weights, basis) for m in meant])
        words, told = ", ".join(m.words for m in meant), _told(meant)
    if not len(rows) or not np.isfinite(rows).all() or rows.shape[1] != model.spec.d_model or not rows.any():
        raise BadRequest(f"expected concepts as rows of width {model.spec.d_model}, got shape {np.shape(rows)}")
    return span(rows), words, told


def _told(concepts: Sequence[Concept]) -> str:
    """How texts of several tokens became directions: nothing where each is one token."""
    sizes = [len(one.weights) for one in concepts]
    if len(sizes) == 1 and sizes[0] > 1:
        return (
            f"The concept is one direction, the weighted sum of {sizes[0]} tokens; a --concept each keeps all of them."
        )
    if max(sizes) == 1:
        return ""
    each = ", ".join(f"{n} tokens" if n > 1 else "1 token" for n in sizes)
    return f"The concept is the span of {len(sizes)} directions, each a weighted sum ({each})."
