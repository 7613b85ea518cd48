"""Is the singular basis of a head special, or would any orthonormal basis of the same subspace read as well?

Every head of an atlas was judged beside random bases of its own read and written subspace. If the singular basis is
nothing special, it and a random basis are exchangeable: of a singular and a random direction either is as often the
more coherent one, and p-values within the subspace show no excess of small ones.

Source: Q18 of the theory page; `docs/theory/studies.md`, equations 4–7.
"""

import shlex
from dataclasses import dataclass

import numpy as np

from covector.analyses.studies.below import below_picture
from covector.analyses.studies.directions import adjusted, directions, judged, of_p, told_of, unit_means
from covector.analyses.studies.study import Study
from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.signed_rank import SignedRank, signed_rank
from covector.linalg.chance.uniformity import Excess, excess_of_small
from covector.render import Column, Curve, Table

ALPHA = 0.05
# A superiority whose interval stays this near ½ is one that no reader of lists would notice.
NEAR = 0.05


@dataclass(frozen=True, eq=False)
class Within:
    """One kind, side and score of all heads against random bases of their subspaces."""

    kind: str
    side: str
    score: str
    p: Float[np.ndarray, " n"]
    heads: int
    excess: Excess
    superior: SignedRank | None
    small_null: float


def basis(atlas: Atlas) -> Table:
    """Singular directions of heads against random orthonormal bases of the same subspaces: one row per kind and score.

    ``coherence`` is that of token lists: `superior` is the share of (singular, random) pairs in which the singular
    direction is the more coherent one, ½ by chance, with an interval and Wilcoxon's p over heads. ``cosine`` is the
    best cosine with a token; its p_svd is an upper bound, so only an excess of small ones counts. Nothing is
    drawn here: the rotations are the atlas'.
    Raises BadRequest for an atlas without scores, or without heads whose subspace is smaller than the stream.
    """
    told = judged(atlas, "p_coherence", "p_coherence_svd", "p_svd")
    places = directions(atlas)
    rotations = int(atlas.manifest["options"]["rotations"])
    random, found = _random(atlas, rotations), []
    for kind, side, at in places.groups(heads=True):
        unit = places.unit[at]
        for score, column in (("coherence", "p_coherence_svd"), ("cosine", "p_svd")):
            if not np.isnan(told[column][at]).all():
                found.append(_within(kind, side, score, told[column][at], unit, random[at]))
    if not found:
        raise BadRequest(
            f"{atlas.folder}: expected heads that read or write a smaller space than the stream; there is no other "
            "basis to compare with where d_head = d_model, nor without heads"
        )
    return _table(atlas, found, rotations)


def _within(
    kind: str, side: str, score: str, p: Float[np.ndarray, " n"], unit: Int[np.ndarray, " n"],
    random: Int[np.ndarray, " n"],
) -> Within:  # fmt: skip
    """`random`: how many random directions each p was counted among, where it was counted."""
    there: Bool[np.ndarray, " n"] = ~np.isnan(p)
    p, unit, random = p[there], unit[there], random[there]
    heads = len(np.unique(unit))
    if score == "cosine":
        return Within(kind, side, score, p, heads, excess_of_small(p), None, ALPHA)
    superior = 1 - np.clip((p * (random + 1) - 1) / random, 0.0, 1.0)
    test = signed_rank(unit_means(superior, unit) - 0.5)
    small_null = float(_reached(random).mean())
    return Within(kind, side, score, p, heads, excess_of_small(p, _worth(unit, random)), test, small_null)


def _worth(unit: Int[np.ndarray, " n"], random: Int[np.ndarray, " n"]) -> float:
    """How many independent p these are worth: those of one head share its random directions (equation 6)."""
    _, at, kept = np.unique(unit, return_inverse=True, return_counts=True)
    return float((random / (random + kept[at])).sum())


def _reached(draws: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """How often p counted among so few draws is below .05 by chance: less than .05, p having steps."""
    return np.maximum(0.0, np.ceil(ALPHA * (draws + 1)) - 1) / (draws + 1)


def _random(atlas: Atlas, rotations: int) -> Int[np.ndarray, " n"]:
    """How many random directions are behind each direction's p: whole bases, as large as its own head has dyads.

    Whatever rank is kept: the spectrum of a place is there in full, and a basis was drawn of all of its subspace.
    """
    size = {record["site"]: len(record["sigma"]) for record in atlas.sites}
    return rotations * np.array([size[site] for site in atlas.column("site")], dtype=np.int64)


def _table(atlas: Atlas, found: list[Within], rotations: int) -> Table:
    def superior(name: str) -> np.ndarray:
        return np.array([float("nan") if w.superior is None else 0.5 + getattr(w.superior, name) for w in found])

    p = np.array([w.excess.p if w.superior is None else w.superior.p for w in found])
    columns = [
        Column("kind", [w.kind for w in found]),
        Column("side", [w.side for w in found]),
        Column("score", [w.score for w in found], about="coherence of lists, or the best cosine with a token"),
        Column("heads", np.array([w.heads for w in found])),
        Column("n", np.array([w.excess.n for w in found]), about="directions"),
        Column("superior", superior("centre"), digits=3,
               about="share of pairs in which the singular direction beats the random one", chance=0.5),
        Column("low", superior("low"), digits=3, about="95 % interval, heads as units"),
        Column("high", superior("high"), digits=3, about="95 % interval, heads as units"),
        Column("small", np.array([(w.p < ALPHA).mean() for w in found]), digits=3,
               about="share with p < .05 within the subspace", chance="small_null"),
        Column("small_null", np.array([w.small_null for w in found]), digits=3,
               about="that share by chance: below .05 where p is counted among few draws"),
        Column("excess", np.array([w.excess.distance for w in found]), digits=3,
               about="largest excess of small p over uniform ones (one-sided Kolmogorov–Smirnov)"),
        Column("p_excess", np.array([w.excess.p for w in found]), about="chance of such an excess"),
        Column("p_heads", np.array([float("nan") if w.superior is None else w.superior.p for w in found]),
               about="Wilcoxon over heads that superior centres on ½"),
        Column("q", adjusted(p), about="Benjamini–Hochberg over rows (p_heads, for cosines p_excess)"),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta=atlas.manifest["meta"]
        | {"analysis": "study_basis", "rotations": rotations, "alpha": ALPHA,
           "null": "random orthonormal bases of each head's own read or written subspace"},
        title=f"{told_of(atlas)} · basis: singular directions against random bases of the same subspace",
        says=_says(found, adjusted(p)),
        not_says="Not what the network uses: activations decide that (covector study activations). Nothing about "
        "whether subspaces mean anything (covector study kinds); p of cosines are upper bounds, so a lack of small "
        "ones says little.",
        next=f"covector study activations {shlex.quote(str(atlas.folder))} --text FILE",
        picture=lambda _: _picture(found),
        key=("kind", "side", "score"),
    )  # fmt: skip


def _says(found: list[Within], q: Float[np.ndarray, " n"]) -> str:
    lists = [(w, value) for w, value in zip(found, q, strict=True) if w.superior is not None]
    better = [w for w, value in lists if w.superior and value < ALPHA and w.superior.centre > 0]
    worse = [w for w, value in lists if w.superior and value < ALPHA and w.superior.centre < 0]
    cosines = [w for w, value in zip(found, q, strict=True) if w.superior is None and value < ALPHA]
    said = []
    if better:
        said.append(f"Singular directions have more coherent lists than rotated ones: {_named(better)}.")
    if worse:
        said.append(f"Rotated bases have the more coherent lists: {_named(worse)}.")
    if lists and not better and not worse:
        said.append(f"Rotated bases score alike: {_named([w for w, _ in lists])}. {_bound([w for w, _ in lists])}")
    if cosines:
        told = ", ".join(f"{w.kind} {w.side} ({of_p(w.excess.p)})" for w in cosines)
        said.append(f"Single tokens are closer to singular directions than to rotated ones: {told}.")
    else:
        said.append("Single tokens are no closer to them than to rotated ones, as far as the bound can tell.")
    return " ".join(said)


def _named(found: list[Within]) -> str:
    words = [
        f"{w.kind} {w.side} {0.5 + w.superior.centre:.3f} ({of_p(w.superior.p)})"
        for w in found
        if w.superior is not None
    ]
    return ", ".join(words)


def _bound(found: list[Within]) -> str:
    widest = max((abs(v) for w in found if w.superior for v in (w.superior.low, w.superior.high)), default=float("nan"))
    if np.isnan(widest):
        return "There are too few heads for an interval."
    if widest < NEAR:
        return f"What is found is the subspace's: the SVD adds less than {100 * widest:.0f} points (chance 50 %)."
    return f"The intervals leave room for {100 * widest:.0f} points either way (chance 50 %)."


def _picture(found: list[Within]) -> Curve:
    x = np.linspace(0, 1, 101)
    return below_picture(
        [w.p for w in found],
        [f"{w.kind} {w.side} {w.score}" for w in found],
        x,
        x,
        worth=min(w.excess.n for w in found) / 2,
        x_name="p within the subspace",
        band_name="uniform",
    )


STUDY = Study(
    "basis",
    "Is the singular basis of a head special, or do rotated bases of the same subspace read as well?",
    basis,
    "atlas",
    "p within each head's subspace against uniform; pairs of singular and random directions; heads as units",
    seeded=False,
)
