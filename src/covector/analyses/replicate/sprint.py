"""The findings A–G of a published research sprint, asked of a model: the claim, ours, chance, and a verdict.

Source: document 001 of the sources (`diego898/mech-interp`); `docs/replicate.md`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from covector.analyses.replicate.finding import (
    ALPHA,
    CONCEPTS,
    DRAWS,
    FAILS,
    HOLDS,
    SILENT,
    Asked,
    Finding,
    Removal,
    Traced,
    silent,
)
from covector.analyses.replicate.findings import FINDINGS
from covector.analyses.replicate.sprint_lines import finding_line
from covector.errors import BadRequest, CovectorError
from covector.io.atlas import Atlas
from covector.model.opened import Model
from covector.render import Column, Scatter, Table


def replicate_sprint(
    model: Model,
    atlas: Atlas,
    made: Callable[[str], Atlas] | None = None,
    *,
    removed: Callable[[Model, Sequence[Traced]], Removal] | None = None,
    concepts: Sequence[str] = CONCEPTS,
    draws: int = DRAWS,
    seed: int = 0,
) -> Table:
    """One row per claim: the number of this model that answers it, what chance gives, and a verdict.

    `atlas`: of this model, in the frame raw, with ov and scores. `made` gives the atlas of another frame (B.i cannot be
    asked without). `removed` removes traced dyads and measures (`covector.analyses.replicate.removal`, on a text; G
    cannot be asked without). `concepts`: expressions of tokens that F traces; those which the vocabulary cannot say are
    left out. `draws` of the studies' nulls.

    A claim holds where its number is beyond chance at 5 %, in the direction claimed: an interval that excludes chance,
    or a p below .05. Each claim is judged by itself; selection inside one (heads, directions, concepts) is part of its
    chance level. What cannot be asked of this model says why. Raises BadRequest for another frame, fewer than 200
    draws.
    """
    if str(atlas.manifest["meta"]["frame"]) != "raw" or str(model.frame) != "raw":
        raise BadRequest(f"{atlas.folder}: expected an atlas in the frame raw, as the sprint's findings are")
    if draws < 200:
        raise BadRequest(f"expected draws >= 200, got {draws}; leave it out for {DRAWS}")
    asked = Asked(model, atlas, made, removed, tuple(concepts), draws, seed)
    found = [finding for key, ask in FINDINGS for finding in _answers(key, ask, asked)]
    return Table(
        columns=_columns(found),
        meta=model.meta
        | {"analysis": "replicate_sprint", "seed": seed, "draws": draws, "concepts": list(concepts),
           "level": ALPHA, "policy": "none: weights only, but for G",
           "null": "that of each analysis; see docs/replicate.md"},
        title=f"{model.name} · frame raw · findings A–G of the sprint on gpt2-medium, asked again",
        says=_says(found),
        not_says="It does not say that the sprint was wrong where a claim fails here: it looked at another model. "
        "Verdicts are at 5 % each, so of twenty false claims one would hold. Coherent lists stand for interpretable "
        "ones; whether a list means anything is not decided here.",
        next=_next(model, found),
        picture=_picture,
        lines=finding_line,
        key=("finding",),
    )  # fmt: skip


def _answers(key: str, ask: Callable[[Asked], Finding | list[Finding]], asked: Asked) -> list[Finding]:
    try:
        found = ask(asked)
    except CovectorError as error:
        # An atlas names its folder; where that is told, or passes away, is nothing of the finding.
        why = str(error).replace(f"{asked.atlas.folder.parent}/", "").replace(f"{asked.model.name}: ", "")
        return [silent(key, why)]
    return found if isinstance(found, list) else [found]


def _columns(found: Sequence[Finding]) -> list[Column]:
    def of(name: str) -> np.ndarray:
        return np.array([getattr(one, name) for one in found], dtype=np.float64)

    return [
        Column("finding", [one.key for one in found], about="as the sprint numbers it"),
        Column("claim", [one.claim for one in found]),
        Column("verdict", [one.verdict for one in found], about=f"at {ALPHA:.0%}, in the direction claimed"),
        Column("number", [one.number for one in found], about="what answers it"),
        Column("ours", of("ours"), digits=3, about="on this model", chance="chance"),
        Column("chance", of("chance"), digits=3, about="what chance gives, or 95 % of it"),
        Column("low", of("low"), digits=3, about="95 % interval, heads as clusters"),
        Column("high", of("high"), digits=3, about="95 % interval"),
        Column("p", of("p"), about="over all places that the analysis looked at"),
        Column("why", [one.why for one in found], about="the numbers behind it, or why it cannot be asked"),
    ]


def _says(found: Sequence[Finding]) -> str:
    by = {v: [one.key for one in found if one.verdict == v] for v in (HOLDS, FAILS, SILENT)}
    asked = len(by[HOLDS]) + len(by[FAILS])
    said = f"Of {asked} claims that can be asked here, these hold: {', '.join(by[HOLDS]) or 'none'}"
    said += f"; these do not: {', '.join(by[FAILS])}." if by[FAILS] else "."
    return said + (f" Not asked: {', '.join(by[SILENT])}." if by[SILENT] else "")


def _next(model: Model, found: Sequence[Finding]) -> str:
    if any(one.key == "G" and "--text" in one.why for one in found):
        return f"covector replicate sprint {model.words} --text FILE"
    return f"covector atlas {model.words} --out FOLDER"


def _picture(table: Table) -> Scatter:
    """Ours against chance, claim by claim, in units of each claim's own number."""
    there = np.flatnonzero(np.isfinite(table["ours"]))
    return Scatter(
        x=np.asarray(table["chance"])[there],
        y=np.asarray(table["ours"])[there],
        x_name="chance",
        y_name="ours",
        x_unit="",
        y_unit="",
        labels=[table["finding"][i] for i in there.tolist()],
        groups=[table["verdict"][i] for i in there.tolist()],
        diagonal=True,
    )
