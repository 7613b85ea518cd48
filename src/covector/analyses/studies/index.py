"""Are early principal directions of an embedding interpretable and later ones not? Scores by index, with a changepoint.

A score's p under random directions is uniform, so Φ⁻¹(1 − p) is standard normal for each direction, and the mean of w
neighbours has a standard deviation of 1/√w: that is the band. One change of level along the index is searched, its p
paid for the search by shuffling the order.

Source: Q19 of the theory page; `docs/theory/studies.md`, equations 9–10.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from covector.analyses.studies.directions import directions, judged, of_p, told_of
from covector.analyses.studies.study import Study
from covector.axes import Bool, Float
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.clustered import clustered_share
from covector.linalg.changepoint import SHORTEST, Changepoint, changepoint
from covector.render import Column, Curve, Table

ALPHA = 0.05
WINDOWS = 8
SHUFFLES = 5000


@dataclass(frozen=True, eq=False)
class Indexed:
    """Normal scores of one matrix' directions, largest gain first, and the change of level found in them."""

    site: str
    side: str
    scores: Float[np.ndarray, " n"]
    coherent: Bool[np.ndarray, " n"]
    beyond: Bool[np.ndarray, " n"]
    change: Changepoint


def index(atlas: Atlas, *, sites: str | None = None, windows: int = WINDOWS, seed: int = 0) -> Table:
    """Coherence of an embedding's singular directions by index: one row per window of indices and matrix.

    `sites`: places, commas between (None: embeddings in and out, without positions). Scores are Φ⁻¹(1 − p) of
    the atlas' p_coherence, mean 0 and sd 1 by chance. The changepoint of each matrix stands in `says` and in meta.
    Raises BadRequest for an atlas without scores or such places, or windows < 2.
    """
    told = judged(atlas, "p_coherence", "p_coherence_cov")
    places = directions(atlas)
    wanted = _wanted(atlas, places.site, sites)
    if windows < 2:
        raise BadRequest(f"expected windows >= 2, got {windows}; leave it out for {WINDOWS}")
    found = []
    for site in wanted:
        for side in dict.fromkeys(places.side[places.site == site]):
            at = np.flatnonzero((places.site == site) & (places.side == side))
            at = at[np.argsort(places.dyad[at], kind="stable")]
            p, cov = told["p_coherence"][at], told["p_coherence_cov"][at]
            if np.isnan(p).all() or len(at) < 2 * SHORTEST:
                continue
            scores = -special.ndtri(np.clip(p, 1e-12, 1 - 1e-12))
            change = changepoint(scores, draws=SHUFFLES, seed=seed)
            found.append(Indexed(site, side, scores, p < ALPHA, cov < ALPHA, change))
    if not found:
        raise BadRequest(
            f"{atlas.folder}: expected places with {2 * SHORTEST} judged directions, got {', '.join(wanted)}"
        )
    return _table(atlas, found, windows, seed)


def _wanted(atlas: Atlas, site: np.ndarray, sites: str | None) -> list[str]:
    known = list(dict.fromkeys(site.tolist()))
    if sites is None:
        chosen = [name for name in known if "." not in name and name != "pos"]
        if not chosen:
            raise BadRequest(f"{atlas.folder}: expected embeddings in the atlas; build it with --kinds embed")
        return chosen
    chosen = [name.strip() for name in sites.split(",") if name.strip()]
    missing = [name for name in chosen if name not in known]
    if missing or not chosen:
        raise BadRequest(f"{atlas.folder}: expected places of this atlas, got '{sites}'; for example {known[0]}")
    return chosen


def _table(atlas: Atlas, found: list[Indexed], windows: int, seed: int) -> Table:
    cuts = [np.array_split(np.arange(len(one.scores)), windows) for one in found]
    pairs = [(one, at) for one, parts in zip(found, cuts, strict=True) for at in parts if len(at)]
    shares = [clustered_share(one.coherent[at], at) for one, at in pairs]
    columns = [
        Column("site", [one.site for one, _ in pairs]),
        Column("side", [one.side for one, _ in pairs]),
        Column("first", np.array([at[0] for _, at in pairs]), about="first index of the window"),
        Column("last", np.array([at[-1] for _, at in pairs]), about="last index of the window"),
        Column("score", np.array([np.nanmean(one.scores[at]) for one, at in pairs]), digits=2,
               about="mean Φ⁻¹(1 − p) of coherence: 0 by chance", chance="score_null"),
        Column("score_null", np.array([1.96 / np.sqrt(len(at)) for _, at in pairs]), digits=2,
               about="95 % of windows of random directions stay within"),
        Column("coherent", np.array([s.value for s in shares]), digits=3, about="share with p < .05", chance=ALPHA),
        Column("low", np.array([s.low for s in shares]), digits=3, about="95 % interval"),
        Column("high", np.array([s.high for s in shares]), digits=3, about="95 % interval"),
        Column("beyond_cov", np.array([one.beyond[at].mean() for one, at in pairs]), digits=3,
               about="share with p < .05 against directions of the basis' own covariance", chance=ALPHA),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta=atlas.manifest["meta"]
        | {"analysis": "study_index", "seed": seed, "shuffles": SHUFFLES,
           "null": "Haar directions; order of the indices shuffled for the changepoint",
           "changepoints": {f"{one.site} {one.side}": vars(one.change) for one in found}},
        title=f"{told_of(atlas)} · index: coherence of principal directions by index, largest gain first",
        says=" ".join(map(_said, found)),
        not_says="Not centred: the first direction may be the mean of all labels. A level is no meaning; other axes "
        "of the same space (independent components) are not tried.",
        next=f"covector svd {atlas.manifest['reference']} {found[0].site}",
        picture=lambda _: _picture(found),
        key=("site", "side", "first"),
    )  # fmt: skip


def _said(one: Indexed) -> str:
    change, n = one.change, len(one.scores)
    if not change.p < ALPHA:
        mean = float(np.nanmean(one.scores))
        near = "at chance" if abs(mean) < 1.96 / np.sqrt(n) else f"at {mean:+.2f} sd"
        return f"{one.site}: no change of level along its {n} directions ({of_p(change.p)}), all {near}."
    how = "falls" if change.after < change.before else "rises"
    return (
        f"{one.site}: coherence {how} at index {change.at} ({change.low} to {change.high}) from {change.before:+.2f} "
        f"to {change.after:+.2f} sd of chance ({of_p(change.p)})."
    )


def _picture(found: list[Indexed]) -> Curve:
    n = max(len(one.scores) for one in found)
    width = max(SHORTEST, n // 16)
    x = np.arange(n - width + 1) + (width - 1) / 2
    ys = np.full((len(found), len(x)), np.nan)
    for row, one in zip(ys, found, strict=True):
        means = np.convolve(np.nan_to_num(one.scores), np.full(width, 1 / width), mode="valid")
        row[: len(means)] = means
    reach = 1.96 / np.sqrt(width)
    return Curve(
        x=x,
        ys=ys,
        names=[f"{one.site} {one.side}" for one in found],
        x_name=f"index (mean of {width})",
        y_name="coherence score",
        x_unit="",
        y_unit="sd of chance",
        band=(-reach, reach),
    )


STUDY = Study(
    "index",
    "Are early principal directions of an embedding interpretable and later ones not?",
    index,
    "atlas",
    "normal scores of coherence by index with their null band; changepoint, its p by shuffled order",
)
