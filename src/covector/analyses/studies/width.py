"""Does what is found fall with the width of a model? By ζ, corrected for width, and by the raw cosine, which is not.

The best cosine of a random direction falls as 1/√d, so a fixed cosine finds less in every wider model, meaning or not.
ζ = √d·cos with its p asks the same of every width. Slopes are on log₂ d: change of the share found per doubling.

Source: Q16 and §2.1 of the theory page; `docs/theory/studies.md`, equations 11–12.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.studies.directions import directions, of_share
from covector.analyses.studies.slopes import Clustered, Slope, slope
from covector.analyses.studies.study import Study
from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg import chance
from covector.linalg.chance.clustered import clustered_share
from covector.render import Column, Scatter, Table

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Width:
    """Finds of one atlas: by p_dir of ζ and by a fixed raw cosine, with the site of every direction."""

    model: str
    folder: str
    d: int
    zeta: Float[np.ndarray, " n"]
    by_zeta: Bool[np.ndarray, " n"]
    by_cosine: Bool[np.ndarray, " n"]
    unit: Int[np.ndarray, " n"]
    cosine_chance: float


def width(
    atlases: Sequence[Atlas],
    *,
    kinds: str = "ov",
    cosine: float | None = None,
) -> Table:
    """Share of directions found by ζ (p_dir < .05) and by a raw cosine, one row per atlas, with slopes on log₂ d.

    `kinds`: which kinds count, commas between, the same in every atlas. `cosine`: the raw threshold (None: what .05 is
    at the smallest width). Slopes stand in `says` and meta: intervals take sites within models for the units, and
    with three models or more a second one takes models, which is the one to quote.
    Raises BadRequest for fewer than two widths, kinds that an atlas lacks, or a cosine outside (0, 1).
    """
    if len({int(a.manifest["d_model"]) for a in atlases}) < 2:
        raise BadRequest(
            f"study width: expected atlases of two widths or more, got {len(atlases)}; build another model's"
        )
    if cosine is not None and not 0 < cosine < 1:
        raise BadRequest(f"expected a cosine in (0, 1), got {cosine}; leave it out for what 5 % is")
    chosen = tuple(kind.strip() for kind in kinds.split(",") if kind.strip())
    ordered = sorted(atlases, key=lambda a: int(a.manifest["d_model"]))
    level = _level(ordered[0], chosen) if cosine is None else cosine
    found = [_measured(atlas, chosen, level) for atlas in ordered]
    slopes = {name: _slope(found, name) for name in ("by_zeta", "by_cosine")}
    return _table(found, slopes, chosen, level)


def _rows(atlas: Atlas, kinds: tuple[str, ...]) -> np.ndarray:
    there = atlas.column("kind").astype(str)
    at, lacking = np.isin(there, kinds), [kind for kind in kinds if kind not in there]
    if lacking or not at.any():
        told = ", ".join(lacking) or "'' (none is named)"
        raise BadRequest(f"{atlas.folder}: expected directions of kind {told}; name kinds that all have")
    return at


def _level(atlas: Atlas, kinds: tuple[str, ...]) -> float:
    """The cosine whose p_dir is .05 in this atlas: its tail, taken by every label, is that."""
    at = _rows(atlas, kinds)
    d, labels = int(atlas.manifest["d_model"]), _labels(atlas, at)
    return float(np.asarray(chance.threshold(d, labels, ALPHA)))


def _labels(atlas: Atlas, at: np.ndarray) -> float:
    """How many labels p_dir was taken over: p over the exact tail of the same cosine, where p is below 1."""
    told, d = atlas.columns("cos", "p_dir", "zeta"), int(atlas.manifest["d_model"])
    cos, p = np.abs(told["cos"][at]), told["p_dir"][at]
    there = (p < 1) & (p > 1e-12)
    if not there.any():
        return 1 / float(np.asarray(chance.tail(float(np.median(cos)), d)))
    lived = np.round((told["zeta"][at][there] / told["cos"][at][there]) ** 2).astype(int)
    ratio = [float(q) / float(np.asarray(chance.tail(float(c), int(n)))) for q, c, n in
             zip(p[there][:50], cos[there][:50], lived[:50], strict=True)]  # fmt: skip
    return max(1.0, float(np.median(ratio)))


def _measured(atlas: Atlas, kinds: tuple[str, ...], level: float) -> Width:
    at, places = _rows(atlas, kinds), directions(atlas)
    told, d = atlas.columns("cos", "zeta", "p_dir"), int(atlas.manifest["d_model"])
    expected = min(1.0, _labels(atlas, at) * float(np.asarray(chance.tail(level, d))))
    return Width(
        model=str(atlas.manifest["meta"]["model"]),
        folder=str(atlas.folder),
        d=d,
        zeta=np.abs(told["zeta"][at]),
        by_zeta=told["p_dir"][at] < ALPHA,
        by_cosine=np.abs(told["cos"][at]) >= level,
        unit=places.unit[at],
        cosine_chance=expected,
    )


def _slope(found: list[Width], name: str) -> Slope:
    models = [Clustered(getattr(w, name), w.unit) for w in found]
    x = np.log2([w.d for w in found])
    return slope(x, models)


def _table(found: list[Width], slopes: dict[str, Slope], kinds: tuple[str, ...], level: float) -> Table:
    shares = {name: [clustered_share(getattr(w, name), w.unit) for w in found] for name in slopes}
    columns = [
        Column("model", [w.model for w in found]),
        Column("atlas", [w.folder for w in found], about="folder"),
        Column("d", np.array([w.d for w in found]), about="width"),
        Column("n", np.array([len(w.unit) for w in found]), about="directions"),
        Column("zeta", np.array([np.median(w.zeta) for w in found]), digits=2, about="median |ζ| of the best label"),
        Column("by_zeta", np.array([s.value for s in shares["by_zeta"]]), digits=3,
               about="share with p_dir < .05", chance=ALPHA),
        Column("low", np.array([s.low for s in shares["by_zeta"]]), digits=3, about="95 % interval, sites as clusters"),
        Column("high", np.array([s.high for s in shares["by_zeta"]]), digits=3, about="95 % interval"),
        Column("by_cosine", np.array([s.value for s in shares["by_cosine"]]), digits=3,
               about=f"share with |cos| >= {level:.3f}", chance="cosine_chance"),
        Column("cosine_chance", np.array([w.cosine_chance for w in found]), digits=3,
               about="share of random directions of this width that reach that cosine, at most"),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta={
            "analysis": "study_width", "models": [w.model for w in found], "kinds": list(kinds), "cosine": level,
            "null": "Haar directions, closed form; sites within models as units",
            "slopes": {name: vars(one) for name, one in slopes.items()},
        },
        title=f"width: directions of {', '.join(kinds)} found in {len(found)} models, d {found[0].d} to {found[-1].d}",
        says=_says(slopes, found, level),
        not_says="Models differ in more than width: data, training and vocabulary are not held fixed. "
        + ("With two models a slope is a difference of two models. " if len(found) == 2 else "")
        + "p_dir is an upper bound, so shares found by ζ are lower bounds, at chance too.",
        next=f"covector study kinds {shlex.quote(found[-1].folder)}",
        picture=lambda _: _picture(found, shares),
        key=("atlas",),
    )  # fmt: skip


def _says(slopes: dict[str, Slope], found: list[Width], level: float) -> str:
    told = {name: one.words(100.0, " points", per=" per doubling") for name, one in slopes.items()}
    first, last = found[0], found[-1]
    return (
        f"By ζ the share found {slopes['by_zeta'].verdict} with width: {told['by_zeta']}. By a raw cosine of "
        f"{level:.3f}: {told['by_cosine']}; of random directions {of_share(first.cosine_chance)} reach it at "
        f"d = {first.d}, {of_share(last.cosine_chance)} at d = {last.d}."
    )


def _picture(found: list[Width], shares: dict[str, list]) -> Scatter:
    both = [(w, share, name) for name, every in shares.items() for w, share in zip(found, every, strict=True)]
    return Scatter(
        x=np.array([np.log2(w.d) for w, _, _ in both]),
        y=np.array([share.value for _, share, _ in both]),
        x_name="log₂ d",
        y_name="share of directions found",
        x_unit="",
        y_unit="",
        labels=[w.model for w, _, _ in both],
        groups=[{"by_zeta": "by ζ", "by_cosine": "by raw cosine"}[name] for _, _, name in both],
        interval=(np.array([s.low for _, s, _ in both]), np.array([s.high for _, s, _ in both])),
        band=(0.0, ALPHA),
    )


STUDY = Study(
    "width",
    "Does what is found fall with the width of a model, once the fall of cosines is taken out?",
    width,
    "atlases",
    "share found by ζ and by a fixed raw cosine against log₂ d; slopes with intervals over sites and over models",
    seeded=False,
)
