"""Are early principal directions of an embedding interpretable and later ones not? Scores by index, with a changepoint.

A score's p under random directions is uniform, so Φ⁻¹(1 − p) is standard normal for each direction, and the mean of w
neighbours has a standard deviation of 1/√w: that is the band. One change of level along the index is searched, its p
paid for the search by shuffling the order.

Principal components are those around the mean of the labels. The singular vectors of the table itself, which an atlas
has, are others: where labels have much in common the first is their mean, and those after it are not the components.

Source: Q19 of the theory page; `docs/theory/studies.md`, equations 9–10 and 34.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from covector.analyses.studies.directions import directions, judged, of_p, told_of
from covector.analyses.studies.judges import DRAWS, judge
from covector.analyses.studies.study import Study
from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.clustered import clustered_share
from covector.linalg.chance.laws import Matched
from covector.linalg.changepoint import SHORTEST, Changepoint, changepoint
from covector.linalg.dictionary import FEWEST
from covector.linalg.norms import lengths
from covector.linalg.principal import principal
from covector.model.opened import Model
from covector.render import Column, Curve, Table

ALPHA = 0.05
WINDOWS = 8
SHUFFLES = 5000
# The labels of embeddings whose place has another name.
LABELS = {"embed": "token_in", "unembed": "token_out", "pos": "position_in"}


@dataclass(frozen=True, eq=False)
class Indexed:
    """Normal scores of one matrix' directions, largest gain first, and the change of level found in them.

    `mean` is the |cos| of the first uncentred direction with the labels' mean; None where no mean was taken off.
    """

    site: str
    side: str
    scores: Float[np.ndarray, " n"]
    coherent: Bool[np.ndarray, " n"]
    beyond: Bool[np.ndarray, " n"]
    change: Changepoint
    mean: float | None = None


def index(
    atlas: Atlas,
    model: Model | None = None,
    *,
    sites: str | None = None,
    centred: bool = True,
    windows: int = WINDOWS,
    draws: int = DRAWS,
    seed: int = 0,
) -> Table:
    """Coherence of an embedding's principal directions by index: one row per window of indices and matrix.

    `sites`: places, commas between (None: embeddings in and out, without positions). With the `model`, directions of
    embeddings are the principal components of their labels, the mean taken off, judged against `draws` random ones.
    Without it, with ``centred=False`` and in layers they are the atlas' singular directions, not centred. Scores are
    Φ⁻¹(1 − p) of coherence, mean 0 and sd 1 by chance. The changepoint of each matrix stands in `says` and in meta.
    Raises BadRequest for an atlas without scores or such places, or windows < 2.
    """
    places = directions(atlas)
    wanted = _wanted(atlas, places.site, sites)
    if windows < 2:
        raise BadRequest(f"expected windows >= 2, got {windows}; leave it out for {WINDOWS}")
    found = []
    for site in wanted:
        for side in dict.fromkeys(places.side[places.site == site]):
            at = np.flatnonzero((places.site == site) & (places.side == side))
            at = at[np.argsort(places.dyad[at], kind="stable")]
            if centred and model is not None and LABELS.get(site, site) in model.bases:
                one = _components(atlas, model, site, side, at, draws, seed)
            else:
                told = judged(atlas, "p_coherence", "p_coherence_cov")
                one = _indexed(site, side, told["p_coherence"][at], told["p_coherence_cov"][at], seed)
            found += [one] if one is not None else []
    if not found:
        raise BadRequest(
            f"{atlas.folder}: expected places with {2 * SHORTEST} judged directions, got {', '.join(wanted)}"
        )
    return _table(atlas, found, windows, draws, seed)


def _indexed(
    site: str,
    side: str,
    p: Float[np.ndarray, " n"],
    cov: Float[np.ndarray, " n"],
    seed: int,
    mean: float | None = None,
) -> Indexed | None:
    """The scores of these p with their change of level; None where there are too few, or none is judged."""
    if np.isnan(p).all() or len(p) < 2 * SHORTEST:
        return None
    scores = -special.ndtri(np.clip(p, 1e-12, 1 - 1e-12))
    return Indexed(site, side, scores, p < ALPHA, cov < ALPHA, changepoint(scores, draws=SHUFFLES, seed=seed), mean)


def _components(
    atlas: Atlas, model: Model, site: str, side: str, at: Int[np.ndarray, " n"], draws: int, seed: int
) -> Indexed | None:
    """Principal components of an embedding's labels, judged in the basis that the atlas reads the place against."""
    against, dot, _ = str(atlas.column("basis")[at[0]]).partition(".centred")
    if int(model.bases.dictionary(against, bool(dot)).keep.sum()) < FEWEST:
        return None
    name = LABELS.get(site, site)
    own = model.bases.centred(name) if dot else model.bases[name]
    found = principal(own.vectors, own.usable)
    # "Beyond the labels' covariance" is beyond directions that vary as the labels do around their mean.
    law = Matched(found.axes * np.sqrt(found.variances)[:, None])
    p = judge(model, against, centred=bool(dot), draws=draws, seed=seed)(found.axes).p
    cov = judge(model, against, centred=bool(dot), law=law, draws=draws, seed=seed)(found.axes).p
    first = atlas.units(at[:1])[0].astype(np.float64)
    size = lengths(np.stack([first, found.mean]))
    along = abs(float(first @ found.mean)) / float(size.prod()) if size.all() else 0.0
    return _indexed(site, side, p, cov, seed, along)


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


def _table(atlas: Atlas, found: list[Indexed], windows: int, draws: int, seed: int) -> Table:
    cuts = [np.array_split(np.arange(len(one.scores)), windows) for one in found]
    pairs = [(one, at) for one, parts in zip(found, cuts, strict=True) for at in parts if len(at)]
    shares = [clustered_share(one.coherent[at], at) for one, at in pairs]
    random = 1 / np.sqrt(atlas.units(slice(0, 1)).shape[1])
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
               about="share with p < .05 against directions of the labels' own covariance", chance=ALPHA),
        Column("cos_mean", np.array([np.nan if one.mean is None else one.mean for one, _ in pairs]), "cos", 3,
               "|cos| of the first uncentred direction with the labels' mean, where that is taken off", random),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta=atlas.manifest["meta"]
        | {"analysis": "study_index", "seed": seed, "shuffles": SHUFFLES, "draws": draws,
           "centred": {f"{one.site} {one.side}": one.mean is not None for one in found},
           "null": "Haar directions; order of the indices shuffled for the changepoint",
           "changepoints": {f"{one.site} {one.side}": vars(one.change) for one in found}},
        title=f"{told_of(atlas)} · index: coherence of principal directions by index, largest gain first",
        says=" ".join(map(_said, found)),
        not_says=f"{_uncentred(found)}A level is no meaning; other axes of the same space (independent components) are "
        "not tried.",
        next=f"covector svd {atlas.manifest['reference']} {found[0].site}",
        picture=lambda _: _picture(found),
        key=("site", "side", "first"),
    )  # fmt: skip


def _uncentred(found: list[Indexed]) -> str:
    """Which directions are no principal components, and how to have them."""
    named = [one.site for one in found if one.mean is None]
    if not named:
        return ""
    which = "" if len(named) == len(found) else f" ({', '.join(named)})"
    return (
        f"Not centred{which}: singular directions, no principal components; the first may be the mean of all labels "
        "(embeddings are centred where the model is given). "
    )


def _said(one: Indexed) -> str:
    said = _level(one)
    if one.mean is None:
        return said
    return (
        f"{said} Centred: principal components around the labels' mean, with which the first uncentred direction has "
        f"|cos| {one.mean:.3f}."
    )


def _level(one: Indexed) -> str:
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
    "model",
    "principal components around the labels' mean; normal scores of coherence by index with their null band; "
    "changepoint, its p by shuffled order",
)
