"""Are early principal directions of an embedding interpretable and later ones not? Scores by index, with a changepoint.

A score's p under random directions is uniform, so Φ⁻¹(1 − p) is standard normal for each direction, and the mean of w
neighbours has a standard deviation of 1/√w: that is the band. One change of level along the index is searched, its p
paid for the search by shuffling the order.

Principal components are those around the mean of the labels. The singular vectors of the table itself, which an atlas
has, are others: where labels have much in common the first is their mean, and those after it are not the components.

Axes of an ICA of the same labels have no index. They stand beside as many leading components, and beside random axes of
the span that both have.

Source: Q19 of the theory page; `docs/theory/studies.md`, equations 9–10 and 34–36.
"""

from dataclasses import dataclass

import numpy as np

from covector.analyses.studies import independent
from covector.analyses.studies.directions import directions, judged, of_p, told_of
from covector.analyses.studies.judges import DRAWS, judge
from covector.analyses.studies.study import Study
from covector.axes import Bool, Float, Int
from covector.errors import BadRequest, MissingExtra
from covector.io.atlas import Atlas
from covector.linalg.chance.clustered import clustered_share
from covector.linalg.chance.laws import Matched
from covector.linalg.changepoint import SHORTEST, Changepoint, changepoint
from covector.linalg.dictionary import FEWEST
from covector.linalg.factorings import available
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

    `mean` is the |cos| of the first uncentred direction with the labels' mean; None where no mean was taken off. `ica`
    is None there too, and where ICA could not be had.
    """

    site: str
    side: str
    scores: Float[np.ndarray, " n"]
    coherent: Bool[np.ndarray, " n"]
    beyond: Bool[np.ndarray, " n"]
    change: Changepoint
    mean: float | None = None
    ica: independent.Compared | None = None


@dataclass(frozen=True, eq=False)
class _Row:
    """One row of the table: a window of indices, or axes as a whole (their `p` among random axes of the same span)."""

    of: Indexed
    axes: str
    first: float
    last: float
    score: float
    null: float
    share: tuple[float, float, float]
    beyond: float
    p: float = np.nan


def index(
    atlas: Atlas,
    model: Model | None = None,
    *,
    sites: str | None = None,
    centred: bool = True,
    windows: int = WINDOWS,
    number: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Table:
    """Coherence of an embedding's principal directions by index: one row per window of indices and matrix; and of ICA.

    `sites`: places, commas between (None: embeddings in and out, without positions). With the `model`, directions of
    embeddings are the principal components of their labels, the mean taken off, judged against `draws` random ones.
    Without it, with ``centred=False`` and in layers they are the atlas' singular directions, not centred. Scores are
    Φ⁻¹(1 − p) of coherence, mean 0 and sd 1 by chance. The changepoint of each matrix stands in `says` and in meta.

    Where directions are principal components three rows follow: the leading `number` of them (None: 64, or all) as a
    whole, as many ICA axes of the same labels in their span, and random axes of that span (the mean over 49 bases; its
    intervals are 95 % of bases). `p_turned` is the share of those bases that score as high. ICA needs scikit-learn:
    without it there are no such rows, which the table says; with a `number` that is an error.
    Raises BadRequest for an atlas without scores or such places, windows < 2 or number < 2, MissingExtra.
    """
    places = directions(atlas)
    wanted = _wanted(atlas, places.site, sites)
    if windows < 2:
        raise BadRequest(f"expected windows >= 2, got {windows}; leave it out for {WINDOWS}")
    number = _axes(number)
    found = []
    for site in wanted:
        for side in dict.fromkeys(places.side[places.site == site]):
            at = np.flatnonzero((places.site == site) & (places.side == side))
            at = at[np.argsort(places.dyad[at], kind="stable")]
            if centred and model is not None and LABELS.get(site, site) in model.bases:
                one = _components(atlas, model, site, side, at, number, draws, seed)
            else:
                told = judged(atlas, "p_coherence", "p_coherence_cov")
                one = _indexed(site, side, told["p_coherence"][at], told["p_coherence_cov"][at], seed)
            found += [one] if one is not None else []
    if not found:
        raise BadRequest(
            f"{atlas.folder}: expected places with {2 * SHORTEST} judged directions, got {', '.join(wanted)}"
        )
    return _table(atlas, found, windows, draws, seed)


def _axes(number: int | None) -> int:
    """How many axes ICA looks for; 0 where scikit-learn is missing and no number was asked for."""
    if number is not None and number < 2:
        raise BadRequest(f"expected number >= 2 axes, got {number}; leave it out for {independent.NUMBER}")
    try:
        available()
    except MissingExtra:
        if number is not None:
            raise
        return 0
    return independent.NUMBER if number is None else number


def _indexed(
    site: str,
    side: str,
    p: Float[np.ndarray, " n"],
    cov: Float[np.ndarray, " n"],
    seed: int,
    mean: float | None = None,
    ica: independent.Compared | None = None,
) -> Indexed | None:
    """The scores of these p with their change of level; None where there are too few, or none is judged."""
    if np.isnan(p).all() or len(p) < 2 * SHORTEST:
        return None
    scores = independent.normal(p)
    change = changepoint(scores, draws=SHUFFLES, seed=seed)
    return Indexed(site, side, scores, p < ALPHA, cov < ALPHA, change, mean, ica)


def _components(
    atlas: Atlas, model: Model, site: str, side: str, at: Int[np.ndarray, " n"], number: int, draws: int, seed: int
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
    among = judge(model, against, centred=bool(dot), draws=draws, seed=seed)
    beyond = judge(model, against, centred=bool(dot), law=law, draws=draws, seed=seed)
    ica = independent.compared(own, found, among, beyond, number=number, seed=seed) if number else None
    first = atlas.units(at[:1])[0].astype(np.float64)
    size = lengths(np.stack([first, found.mean]))
    along = abs(float(first @ found.mean)) / float(size.prod()) if size.all() else 0.0
    return _indexed(site, side, among(found.axes).p, beyond(found.axes).p, seed, along, ica)


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


def _windows(one: Indexed, windows: int) -> list[_Row]:
    """The indices of one matrix, shared out."""
    rows = []
    for at in np.array_split(np.arange(len(one.scores)), windows):
        if not len(at):
            continue
        share = clustered_share(one.coherent[at], at)
        rows.append(_Row(one, "PCA", float(at[0]), float(at[-1]), float(np.nanmean(one.scores[at])),
                         float(1.96 / np.sqrt(len(at))), (share.value, share.low, share.high),
                         float(one.beyond[at].mean())))  # fmt: skip
    return rows


def _wholes(one: Indexed) -> list[_Row]:
    """The leading components, ICA axes and random axes of one span, each as a whole."""
    ica = one.ica
    if ica is None:
        return []
    rows, k = [], len(ica.ica.scores)
    for name, axes, last in (("leading", ica.leading, k - 1), ("ICA", ica.ica, np.nan)):
        share = clustered_share(axes.coherent, np.arange(k))
        beyond = np.nan if axes.beyond is None else float(axes.beyond.mean())
        rows.append(_Row(one, name, last - k + 1.0, float(last), axes.mean, float(1.96 / np.sqrt(k)),
                         (share.value, share.low, share.high), beyond, ica.p(axes)))  # fmt: skip
    score = ica.of_turns()[0]
    return [*rows, _Row(one, "random", np.nan, np.nan, score, np.nan, ica.of_turns(share=True), np.nan)]


def _table(atlas: Atlas, found: list[Indexed], windows: int, draws: int, seed: int) -> Table:
    rows = [row for one in found for row in (*_windows(one, windows), *_wholes(one))]
    random = 1 / np.sqrt(atlas.units(slice(0, 1)).shape[1])
    compared = [(f"{one.site} {one.side}", one.ica) for one in found if one.ica is not None]
    return Table(
        columns=_columns(rows, random, any(compared)),
        meta=atlas.manifest["meta"]
        | {"analysis": "study_index", "seed": seed, "shuffles": SHUFFLES, "draws": draws,
           "centred": {f"{one.site} {one.side}": one.mean is not None for one in found},
           "null": "Haar directions; order of the indices shuffled for the changepoint; for ICA random bases of its "
           "span, whitened",
           "changepoints": {f"{one.site} {one.side}": vars(one.change) for one in found},
           "independent": {name: ica.told() for name, ica in compared}},
        title=f"{told_of(atlas)} · index: coherence of principal directions by index, largest gain first",
        says=" ".join(map(_said, found)),
        not_says=f"{_uncentred(found)}{_untried(found)}{_alike(found)}A level is no meaning.",
        next=f"covector svd {atlas.manifest['reference']} {found[0].site}",
        picture=lambda _: _picture(found),
        key=("site", "side", "axes", "first"),
    )  # fmt: skip


def _columns(rows: list[_Row], random: float, compared: bool) -> list[Column]:
    def of(field: str) -> np.ndarray:
        return np.array([getattr(row, field) for row in rows], dtype=np.float64)

    columns = [
        Column("site", [row.of.site for row in rows]),
        Column("side", [row.of.side for row in rows]),
        Column("axes", [row.axes for row in rows],
               about="PCA by index; the leading ones together; ICA in their span; random axes of that span"),
        Column("first", of("first"), digits=0, about="first index of the window"),
        Column("last", of("last"), digits=0, about="last index of the window"),
        Column("score", of("score"), digits=2, about="mean Φ⁻¹(1 − p) of coherence: 0 by chance", chance="score_null"),
        Column("score_null", of("null"), digits=2, about="95 % of windows of random directions stay within"),
        Column("coherent", of("share")[:, 0], digits=3, about="share with p < .05", chance=ALPHA),
        Column("low", of("share")[:, 1], digits=3, about="95 % interval; of random axes: of bases"),
        Column("high", of("share")[:, 2], digits=3, about="95 % interval; of random axes: of bases"),
        Column("beyond_cov", of("beyond"), digits=3,
               about="share with p < .05 against directions of the labels' own covariance", chance=ALPHA),
        Column("cos_mean", np.array([np.nan if row.of.mean is None else row.of.mean for row in rows]), "cos", 3,
               "|cos| of the first uncentred direction with the labels' mean, where that is taken off", random),
    ]  # fmt: skip
    if compared:
        columns.append(Column("p_turned", of("p"), digits=2,
                              about="share of random bases of the span with as high a mean score"))  # fmt: skip
    return columns


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


def _untried(found: list[Indexed]) -> str:
    """For which components there are no independent ones, and how to have them."""
    named = [one.site for one in found if one.mean is not None and one.ica is None]
    if not named:
        return ""
    return (
        f"Independent components are not tried ({', '.join(named)}): expected scikit-learn (pip install "
        "'covector[study]') and more labels than axes. "
    )


def _alike(found: list[Indexed]) -> str:
    """What ICA's own score against all random directions does not show."""
    told = [f"{one.ica.alike:.2f} ({one.site})" for one in found if one.ica is not None]
    if not told:
        return ""
    return (
        f"ICA axes are not orthogonal (mean |cos| {', '.join(told)}) and lean on weak components, as random axes of "
        "the span do: held against these, not against zero, they tell of ICA. "
    )


def _said(one: Indexed) -> str:
    said = _level(one)
    if one.mean is None:
        return said
    said += (
        " Centred: principal components around the labels' mean, with which the first uncentred direction has "
        f"|cos| {one.mean:.3f}."
    )
    return said if one.ica is None else f"{said} {independent.said(one.ica)}"


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
    "changepoint, its p by shuffled order; ICA axes beside as many components and random axes of their span",
)
