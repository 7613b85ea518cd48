"""Why does folding norms matter? The same sites in several frames, paired, with the effect of each step.

``fold`` (raw → folded) moves the norms' gains into what reads through them (and takes the mean out of it); ``centre``
(folded → gauge_fixed) also takes the part along 1 out of what is written, and the mean token out of the unembedding.
Scores are z against random directions in each frame's own bases, so an effect is not one of the basis alone. These
random directions are the same in all frames (atlases of one seed): what a finite number of them misses of their mean is
common to all sites of a frame, and would else be taken for an effect.

Source: Q11 and §1.5 of the theory page; `docs/theory/studies.md`, equations 4 and 19–20.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from covector.analyses.studies.directions import adjusted, directions, judged, of_p, unit_means
from covector.analyses.studies.study import Study
from covector.axes import Float
from covector.errors import BadRequest, FrameUnavailable
from covector.io.atlas import Atlas
from covector.linalg.chance.signed_rank import SignedRank, signed_rank
from covector.render import Column, Grid, Table

ALPHA = 0.05
FRAMES = ("raw", "folded", "gauge_fixed")
# What a step from one frame to the next is called.
EFFECTS = {("raw", "folded"): "fold", ("folded", "gauge_fixed"): "centre", ("raw", "gauge_fixed"): "both"}
# Differences below this are rounding: a step that leaves a side alone changes nothing there.
ROUNDING = 6


@dataclass(frozen=True, eq=False)
class InFrame:
    """One frame's atlas: mean z and share of coherent lists per site and side, in the order of `keys`."""

    frame: str
    keys: list[tuple[str, str, str]]
    z: Float[np.ndarray, " m"]
    share: Float[np.ndarray, " m"]
    along_one: Float[np.ndarray, " m"]
    spans: dict[tuple[str, str, str], np.ndarray]


@dataclass(frozen=True, eq=False)
class Effect:
    """What one step does to one kind and side, paired by site."""

    kind: str
    side: str
    frames: tuple[str, str]
    z: tuple[float, float]
    share: tuple[float, float]
    test: SignedRank
    overlap: float
    overlap_null: float
    along: tuple[float, float]


def frames(atlas: Atlas, made: Callable[[str], Atlas], *, names: Sequence[str] = FRAMES, leading: int = 10) -> Table:
    """Effect of each step between frames on coherence z, per kind and side; sites are the units.

    `made` gives the atlas of the same model in a frame (opened, or built); frames that the model lacks are left out and
    said so. `leading`: dyads of every site whose span is compared between frames. p is Wilcoxon's over sites, q over
    rows. Nothing is drawn here.
    Raises BadRequest for fewer than two frames, or atlases of different models.
    """
    if leading < 1:
        raise BadRequest(f"expected leading >= 1, got {leading}; leave it out for 10")
    own, found, missing = str(atlas.manifest["meta"]["frame"]), [], []
    for name in names:
        try:
            found.append(_in_frame(atlas if name == own else made(name), name, leading))
        except FrameUnavailable:
            missing.append(name)
    if len(found) < 2:
        raise BadRequest(
            f"{atlas.folder}: expected two frames or more of {', '.join(names)}, this model has {len(found)}; "
            "its norms cannot be folded otherwise"
        )
    found = _shared(found)
    if not found[0].keys:
        raise BadRequest(f"{atlas.folder}: expected places that all frames have; build them with the same --kinds")
    pairs = list(pairwise(found)) + ([(found[0], found[-1])] if len(found) > 2 else [])
    effects = [effect for one, other in pairs for effect in _effects(one, other, int(atlas.manifest["d_model"]))]
    return _table(atlas, effects, [one.frame for one in found], missing, leading)


def _in_frame(atlas: Atlas, name: str, leading: int) -> InFrame:
    told, places = judged(atlas, "z_coherence", "p_coherence"), directions(atlas)
    sides = np.unique(places.side.astype(str), return_inverse=True)[1]
    _, first, unit = np.unique(places.unit * (sides.max() + 1) + sides, return_index=True, return_inverse=True)
    order = np.argsort(first)
    keys = [(str(places.site[i]), str(places.kind[i]), str(places.side[i])) for i in first[order]]
    rows = atlas.units(slice(None))
    along = rows.sum(axis=1) ** 2 / rows.shape[1]
    hits = np.where(np.isnan(told["p_coherence"]), np.nan, told["p_coherence"] < ALPHA)
    spans = {}
    for key, number in zip(keys, order, strict=True):
        at = np.flatnonzero((unit == number) & (places.dyad < leading))
        spans[key] = rows[at]
    z, share, one = (unit_means(values, unit)[order] for values in (told["z_coherence"], hits, along))
    return InFrame(name, keys, z, share, one, spans)


def _shared(found: list[InFrame]) -> list[InFrame]:
    """The places that every frame has: folding the last norm makes an unembedding of its own from a tied one."""
    common = [key for key in found[0].keys if all(key in one.spans for one in found)]
    made = []
    for one in found:
        at = np.array([one.keys.index(key) for key in common], dtype=np.int64)
        spans = {key: one.spans[key] for key in common}
        made.append(InFrame(one.frame, common, one.z[at], one.share[at], one.along_one[at], spans))
    return made


def _effects(one: InFrame, other: InFrame, d: int) -> list[Effect]:
    made = []
    for kind, side in dict.fromkeys(key[1:] for key in one.keys):
        at = np.array([key[1:] == (kind, side) for key in one.keys])
        overlaps = [_overlap(one.spans[k], other.spans[k]) for k in one.keys if k[1:] == (kind, side)]
        size = np.mean([min(len(one.spans[k]), len(other.spans[k])) for k in one.keys if k[1:] == (kind, side)])
        made.append(
            Effect(
                kind,
                side,
                (one.frame, other.frame),
                (float(np.nanmean(one.z[at])), float(np.nanmean(other.z[at]))),
                (float(np.nanmean(one.share[at])), float(np.nanmean(other.share[at]))),
                signed_rank(np.round(other.z[at] - one.z[at], ROUNDING)),
                float(np.mean(overlaps)),
                float(size / d),
                (float(one.along_one[at].mean()), float(other.along_one[at].mean())),
            )
        )
    return made


def _overlap(rows: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"]) -> float:
    """Mean squared cosine of the principal angles: 1 for the same span, k/d for random ones."""
    return float(min(1.0, np.sum((rows @ others.T) ** 2) / max(1, min(len(rows), len(others)))))


def _table(atlas: Atlas, effects: list[Effect], frames: list[str], missing: list[str], leading: int) -> Table:
    q = adjusted([e.test.p for e in effects])
    d = int(atlas.manifest["d_model"])
    columns = [
        Column("step", [_step(e) for e in effects], about="from one frame to the next"),
        Column("kind", [e.kind for e in effects]),
        Column("side", [e.side for e in effects]),
        Column("sites", np.array([e.test.n for e in effects])),
        Column("before", np.array([e.share[0] for e in effects]), digits=3, about="share of coherent lists",
               chance=ALPHA),
        Column("after", np.array([e.share[1] for e in effects]), digits=3, about="share of coherent lists",
               chance=ALPHA),
        Column("effect", np.array([e.test.centre for e in effects]), digits=2,
               about="coherence z after less before, Hodges–Lehmann over sites", chance=0.0),
        Column("low", np.array([e.test.low for e in effects]), digits=2, about="95 % interval, sites as units"),
        Column("high", np.array([e.test.high for e in effects]), digits=2, about="95 % interval"),
        Column("q", q, about="Benjamini–Hochberg over rows of Wilcoxon's p"),
        Column("overlap", np.array([e.overlap for e in effects]), digits=2, chance="overlap_null",
               about=f"mean cos² between the first {leading} dyads' spans before and after"),
        Column("overlap_null", np.array([e.overlap_null for e in effects]), digits=2, about="of random spans"),
        Column("one_before", np.array([e.along[0] for e in effects]), digits=3,
               about="share of a direction along 1, before", chance=1 / d),
        Column("one_after", np.array([e.along[1] for e in effects]), digits=3, about="the same, after", chance=1 / d),
        Column("p", np.array([e.test.p for e in effects]), about="Wilcoxon over sites"),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta=atlas.manifest["meta"]
        | {"analysis": "study_frames", "frames": frames, "unavailable": missing, "leading": leading,
           "null": "differences symmetric around zero over sites; z against Haar directions of each frame's bases"},
        title=f"{atlas.manifest['meta']['model']} · frames: coherence from {' to '.join(frames)}, step by step",
        says=_says(effects, q, missing),
        not_says="Every one of these frames computes the same function: a frame with more coherent lists shows more, "
        "it is not more right. The steps are nested, so interactions are not seen here (covector study factorial).",
        next=f"covector study factorial {shlex.quote(str(atlas.folder))}",
        picture=lambda _: _picture(effects),
        key=("step", "kind", "side"),
    )  # fmt: skip


def _step(effect: Effect) -> str:
    return EFFECTS.get(effect.frames, f"{effect.frames[0]} → {effect.frames[1]}")


def _says(effects: list[Effect], q: Float[np.ndarray, " n"], missing: list[str]) -> str:
    told = [
        f"{_step(e)}, {e.kind} {e.side} {e.test.centre:+.2f} sd ({of_p(e.test.p)})"
        for e, value in zip(effects, q, strict=True)
        if value < ALPHA
    ]
    said = (
        f"Changed coherence beyond chance: {'; '.join(told)}. " if told else "No step changes coherence beyond chance. "
    )
    least = min(effects, key=lambda e: e.overlap)
    said += f"Leading spans change most in {_step(least)}, {least.kind} {least.side}: overlap {least.overlap:.2f} "
    said += f"(random {least.overlap_null:.2f})."
    return said + (f" This model has no frame {', '.join(missing)}." if missing else "")


def _picture(effects: list[Effect]) -> Grid:
    steps = list(dict.fromkeys(map(_step, effects)))
    groups = list(dict.fromkeys(f"{e.kind} {e.side}" for e in effects))
    values = np.full((len(groups), len(steps)), np.nan)
    for e in effects:
        values[groups.index(f"{e.kind} {e.side}"), steps.index(_step(e))] = e.test.centre
    return Grid(values, groups, steps, value_name="effect on coherence", unit="sd of random directions")


STUDY = Study(
    "frames",
    "Why does folding norms matter: what does each step between frames do to what is read?",
    frames,
    "frames",
    "coherence z of the same sites in several frames, paired; overlap of spans; share along 1",
    seeded=False,
)
