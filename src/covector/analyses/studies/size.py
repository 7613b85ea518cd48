"""Are larger models more interpretable? Scores against the number of parameters, model by model.

Scores are free of width already (p and z against random directions of each model's own stream and vocabulary), so what
is left of a slope is not that cosines shrink. Models are the units: sites of one model say how well that model's score
is known, and nothing of what another model of its size would have.

Source: Q16 of the theory page (larger models); `docs/theory/studies.md`, equations 1–2 and 12.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covector.analyses.studies.directions import directions
from covector.analyses.studies.slopes import Clustered, Slope, slope
from covector.analyses.studies.study import Study
from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.clustered import clustered_share
from covector.render import Column, Scatter, Table

ALPHA = 0.05
# Fewer models than this say next to nothing of size; the page says so.
FEW = 10


@dataclass(frozen=True, eq=False)
class Sized:
    """One model: width, parameters, which directions are near a label, and the scores of lists; each with the sites.

    `coherent`, `z` and `judged` (their sites) are empty where the model's bases are too small for lists.
    """

    model: str
    folder: str
    d: int
    parameters: int
    near: Bool[np.ndarray, " n"]
    unit: Int[np.ndarray, " n"]
    coherent: Bool[np.ndarray, " m"]
    z: Float[np.ndarray, " m"]
    judged: Int[np.ndarray, " m"]

    def scores(self, name: str) -> Clustered:
        """One score of its directions."""
        return Clustered(getattr(self, name), self.unit if name == "near" else self.judged)


def size(
    atlases: Sequence[Atlas],
    parameters: Sequence[int],
    *,
    kinds: str = "ov",
) -> Table:
    """Shares of directions found, and mean coherence z, against log₁₀ parameters: one row per model, slopes in `says`.

    `near` counts p_dir < .05 of the best label and is there for every model; lists (`coherent`, `z`) only where bases
    hold labels enough and the atlas was built with scores.
    `parameters`: of every atlas' model, in the same order. `kinds`: which count, commas between. Slopes are per
    tenfold size; their intervals take sites within models for the units, and with three models or more a second one
    takes models (Student), which is the one to quote. Nothing is extrapolated.
    Raises BadRequest for fewer than two sizes, lengths that differ, or atlases without such kinds.
    """
    if len(atlases) != len(parameters) or len(set(parameters)) < 2 or min(parameters) < 1:
        raise BadRequest(
            f"study size: expected atlases of two models of different size or more, got {len(atlases)}; build another"
        )
    chosen = tuple(kind.strip() for kind in kinds.split(",") if kind.strip())
    found = sorted((_sized(a, n, chosen) for a, n in zip(atlases, parameters, strict=True)), key=_parameters)
    slopes = {name: _slope(found, name) for name in ("near", "coherent", "z")}
    return _table(found, slopes, chosen)


def _slope(found: list[Sized], name: str) -> Slope | None:
    """The slope of one score over the models that have it; None where they are of one size."""
    there = [one for one in found if len(one.scores(name).values)]
    if len({one.parameters for one in there}) < 2:
        return None
    x = np.log10([one.parameters for one in there])
    return slope(x, [one.scores(name) for one in there])


def _parameters(one: Sized) -> int:
    return one.parameters


def _sized(atlas: Atlas, parameters: int, kinds: tuple[str, ...]) -> Sized:
    places = directions(atlas)
    there = places.kind.astype(str)
    at, lacking = np.isin(there, kinds), [kind for kind in kinds if kind not in there]
    if lacking or not at.any():
        told = ", ".join(lacking) or "'' (none is named)"
        raise BadRequest(f"{atlas.folder}: expected directions of kind {told}; name kinds that all have")
    p, z = (
        atlas.column(name)[at] if name in atlas.names else np.full(at.sum(), np.nan)
        for name in ("p_coherence", "z_coherence")
    )
    there, unit = np.isfinite(z), places.unit[at]
    return Sized(
        str(atlas.manifest["meta"]["model"]),
        str(atlas.folder),
        int(atlas.manifest["d_model"]),
        parameters,
        atlas.column("p_dir")[at] < ALPHA,
        unit,
        p[there] < ALPHA,
        z[there].astype(np.float64),
        unit[there],
    )


def _table(found: list[Sized], slopes: dict[str, Slope | None], kinds: tuple[str, ...]) -> Table:
    near, lists = ([clustered_share(*_pair(one.scores(name))) for one in found] for name in ("near", "coherent"))
    columns = [
        Column("model", [Path(one.model).name for one in found]),
        Column("atlas", [one.folder for one in found], about="folder"),
        Column("parameters", np.array([one.parameters for one in found])),
        Column("sites", np.array([s.clusters for s in near])),
        Column("n", np.array([s.n for s in near]), about="directions"),
        Column("near", np.array([s.value for s in near]), digits=3, about="share with p_dir < .05", chance=ALPHA),
        Column("near_low", np.array([s.low for s in near]), digits=3, about="95 % interval, sites as clusters"),
        Column("near_high", np.array([s.high for s in near]), digits=3, about="95 % interval"),
        Column("coherent", np.array([s.value for s in lists]), digits=3, chance=ALPHA,
               about="share whose list is more coherent than random directions' (p < .05); – too few labels for lists"),
        Column("low", np.array([s.low for s in lists]), digits=3, about="95 % interval, sites as clusters"),
        Column("high", np.array([s.high for s in lists]), digits=3, about="95 % interval"),
        Column("z", np.array([one.z.mean() if len(one.z) else np.nan for one in found]), digits=2, chance=0.0,
               about="mean coherence, sd of random directions"),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta={
            "analysis": "study_size", "models": [one.model for one in found], "kinds": list(kinds),
            "null": "Haar directions of each model; sites within models as units",
            "slopes": {name: None if one is None else vars(one) for name, one in slopes.items()},
        },
        title=f"size: {', '.join(kinds)} of {len(found)} models, {found[0].parameters:,} to {found[-1].parameters:,} "
        "parameters",
        says=_says(found, slopes),
        not_says=(f"n = {len(found)} models is small: the slope is that of these models. " if len(found) < FEW else "")
        + "Models differ in more than size: data, training, vocabulary, depth and width are not held fixed. p_dir is "
        "an upper bound, so shares near a label are lower bounds.",
        next=_next(found),
        picture=lambda _: _picture(found, near),
        key=("atlas",),
    )  # fmt: skip


def _pair(scores: Clustered) -> tuple[np.ndarray, np.ndarray]:
    return scores.values, scores.unit


def _next(found: list[Sized]) -> str:
    """The slope on width where widths differ, else what the largest model's kinds show."""
    if len({one.d for one in found}) > 1:
        return f"covector study width {shlex.join(one.folder for one in found)}"
    return f"covector study kinds {shlex.quote(found[-1].folder)}"


def _says(found: list[Sized], slopes: dict[str, Slope | None]) -> str:
    words = {"near": "share near a label (p_dir < .05)", "coherent": "share of coherent lists", "z": "mean z of lists"}
    said = []
    for name, one in slopes.items():
        number = sum(len(model.scores(name).values) > 0 for model in found)
        if one is None:
            said.append(f"The {words[name]} is known of {number} model{'s' * (number != 1)} only: no slope.")
            continue
        told = one.words(1.0, " sd", digits=2) if name == "z" else one.words(100.0, " points")
        if one.has_models:
            said.append(f"Over n = {number} models the {words[name]} {one.verdict} with size: {told} per tenfold.")
        else:
            said.append(f"The {words[name]} is known of two models, which differ by {told} per tenfold.")
    return " ".join(said)


def _picture(found: list[Sized], shares: list) -> Scatter:
    return Scatter(
        x=np.log10([one.parameters for one in found]),
        y=np.array([s.value for s in shares]),
        x_name="log₁₀ parameters",
        y_name="share of directions near a label",
        x_unit="",
        y_unit="",
        labels=[one.model for one in found],
        interval=(np.array([s.low for s in shares]), np.array([s.high for s in shares])),
        band=(0.0, ALPHA),
    )


STUDY = Study(
    "size",
    "Are the directions of larger models more interpretable?",
    size,
    "sizes",
    "shares found and mean z against log parameters; slopes with intervals over sites and over models",
    seeded=False,
)
