"""Semantic heads: which heads have more significant directions than a random spread gives, and does packing follow?

Nearly every head of a trained model has one significant direction, so having one tells nothing. A head counts as
semantic here when it has more of them than if as many were spread at random over the directions of all heads. That is
relative to the model: never are all heads semantic, and none is where all have the same share.

Source: Q5(a) of the theory page; `docs/theory/studies.md`, equations 32–33.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

from covector.analyses.studies.directions import Directions, of_p
from covector.axes import Bool, Float, Int
from covector.linalg.chance.families import bh
from covector.linalg.trials.ranks import rank_correlation_interval

ALPHA = 0.05
# So many layers are told one by one in a sentence.
TOLD = 8


@dataclass(frozen=True, eq=False)
class SemanticHeads:
    """Heads with their layer: `hits` of their `of` directions are significant; q of more than a random spread."""

    names: np.ndarray
    layer: Int[np.ndarray, " m"]
    hits: Int[np.ndarray, " m"]
    of: Int[np.ndarray, " m"]
    q: Float[np.ndarray, " m"]

    @property
    def found(self) -> Bool[np.ndarray, " m"]:
        """Which heads are semantic: q < .05."""
        return self.q < ALPHA

    def among(self, layer: int) -> "SemanticHeads":
        """The heads of one layer, judged as they were among all."""
        at = self.layer == layer
        return SemanticHeads(self.names[at], self.layer[at], self.hits[at], self.of[at], self.q[at])


def semantic_heads(
    places: Directions, at: Bool[np.ndarray, " n"], significant: Bool[np.ndarray, " n"]
) -> SemanticHeads:
    """The heads among the directions `at`, with how many of theirs are significant and q against a random spread.

    p of a head is the upper tail of the hypergeometric law: K significant of N directions, m of them the head's.
    q is Benjamini–Hochberg over the heads.
    """
    among = np.flatnonzero(at & places.is_head)
    heads = np.array([str(site).partition(".")[0] for site in places.site[among]], dtype=object)
    names, first, unit = np.unique(heads, return_index=True, return_inverse=True)
    of = np.bincount(unit, minlength=len(names))
    hits = np.bincount(unit[significant[among]], minlength=len(names))
    p = np.asarray(hypergeom.sf(hits - 1, len(among), hits.sum(), of), dtype=np.float64)
    layer = places.layer[among][first] if len(among) else np.zeros(0, np.int64)
    return SemanticHeads(names, layer, hits, of, bh(p) if len(p) else p)


@dataclass(frozen=True)
class OverLayers:
    """Rank correlation of two things over `n` layers, its two-sided p by shuffled layers, the least that p can be."""

    n: int
    rank: float
    p: float
    least: float


def over_layers(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], *, seed: int = 0) -> OverLayers:
    """Spearman's correlation over layers with both values (NaN is left out), p over all orders for up to 7 layers.

    Above 7 layers orders are drawn. `least` is what p would be if both went in the same, or the opposite, order: with
    four layers without ties 2/24. All three are NaN for fewer than three layers or where one of the two is constant.
    """
    there = np.isfinite(x) & np.isfinite(y)
    a, b = x[there], y[there]
    if len(a) < 3:
        return OverLayers(len(a), float("nan"), float("nan"), float("nan"))
    found = rank_correlation_interval(a, b, np.zeros(len(a), np.int64), seed=seed)
    up, down = np.sort(a), np.sort(b)
    best = [rank_correlation_interval(up, y, np.zeros(len(a), np.int64), seed=seed).p for y in (down, down[::-1])]
    return OverLayers(len(a), found.value, found.p, min(best))


def of_heads(heads: SemanticHeads) -> str:
    """How many heads are semantic and in which layers, as a sentence."""
    said = (
        f"{int(heads.found.sum())} of {len(heads.names)} heads are semantic: more of their directions are significant "
        "than if they were spread at random over all heads' (q < .05)"
    )
    layers = np.unique(heads.layer)
    counts = [(layer, heads.among(layer)) for layer in layers.tolist()]
    if len(layers) < 2 or not heads.found.any():
        return f"{said}."
    if len(layers) <= TOLD:
        told = ", ".join(f"L{layer} {int(one.found.sum())} of {len(one.names)}" for layer, one in counts)
        return f"{said}; {told}."
    layer, most = max(counts, key=lambda pair: int(pair[1].found.sum()))
    none = sum(not one.found.any() for _, one in counts)
    return (
        f"{said}; most in L{layer} ({int(most.found.sum())} of {len(most.names)}), none in {none} of {len(layers)} "
        "layers."
    )


def of_relation(found: OverLayers, largest: OverLayers) -> str:
    """Whether layers with more semantic heads are packed otherwise, as a sentence that says what p can tell."""
    if found.n < 3:
        return "Fewer than three layers have a packing: too few for a correlation over layers."
    if found.rank != found.rank:
        return f"Over {found.n} layers the share of semantic heads does not vary: nothing to correlate."
    said = (
        f"Over {found.n} layers the share of semantic heads and packing (rms |cos| over that of random sets) have rank "
        f"correlation {found.rank:+.2f} ({of_p(found.p)}), with the largest |cos| {largest.rank:+.2f} "
        f"({of_p(largest.p)})"
    )
    if not found.least < ALPHA:
        return f"{said}. So few layers cannot tell: no p of theirs can be below {found.least:.3f}."
    if not found.p < ALPHA:
        return f"{said}: no relation beyond chance."
    return f"{said}: layers with more semantic heads are packed {'closer' if found.rank > 0 else 'more loosely'}."
