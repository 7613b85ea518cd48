"""Rays or directions: do the directions of a model mean something at one pole only, more often than random ones?

Per direction κ compares how far its two poles reach: 0 for equal ones, ±1 for a ray. Labels are taken relative to their
mean, so that a direction is not one-sided because all labels lie on one side. Its sign is nobody's choice, so |κ| is
what counts; random directions have the same |κ| computed on the same labels.

Source: Q6 of the theory page; `docs/theory/studies.md`, equation 8.
"""

import shlex
from dataclasses import dataclass

import numpy as np
from scipy import stats

from covector.analyses.studies.below import below_picture, shares_below
from covector.analyses.studies.directions import adjusted, directions, of_p, of_share, told_of
from covector.analyses.studies.study import Study
from covector.axes import Float
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.haar import haar_directions
from covector.linalg.norms import lengths, without_mean
from covector.linalg.one_sided import one_sidedness
from covector.linalg.topk import poles as extremes
from covector.model.bases import Basis, undertrained
from covector.model.opened import Model
from covector.render import Column, Curve, Table

ALPHA = 0.05
DRAWS = 5000


@dataclass(frozen=True, eq=False)
class Sided:
    """|κ| of the directions of one kind and side, that of random ones, and the most one-sided direction's place."""

    kind: str
    side: str
    kappa: Float[np.ndarray, " n"]
    null: Float[np.ndarray, " draws"]
    foremost: str
    labels: list[str]


def poles(atlas: Atlas, model: Model, *, k: int = 10, draws: int = DRAWS, seed: int = 0) -> Table:
    """One-sidedness |κ| of every kind's directions against random ones: one row per kind and side.

    `k`: labels per pole. Labels that look hardly trained are left out, those kept are taken relative to their mean.
    p is the two-sample Kolmogorov–Smirnov test against `draws` random directions, q over rows.
    Raises BadRequest for a basis of fewer than 2·k labels, k or draws < 1, or another model's atlas.
    """
    if k < 1 or draws < 1:
        raise BadRequest(f"expected k >= 1 labels per pole and draws >= 1, got {k} and {draws}")
    places, names = directions(atlas), atlas.column("basis")
    found, nulls = [], {}
    for kind, side, at in places.groups():
        name, _, centred = str(names[at][0]).partition(".")
        key = (name, bool(centred))
        basis = model.bases.centred(name) if centred else model.bases[name]
        twin = model.bases[name].same_as
        key = (twin.name if twin is not None else name, bool(centred))
        if key not in nulls:
            units, kept = _relative(basis, model.bases[name], k)
            nulls[key] = (units, kept, np.abs(_kappa(_random(model.spec.d_model, draws, seed, key[1]), units, kept, k)))
        units, kept, null = nulls[key]
        rows = atlas.units(at)
        signed = _kappa(rows, units, kept, k)
        best = int(np.nanargmax(np.abs(signed)))
        row = np.flatnonzero(at)[best]
        place = f"{places.site[row]}:{places.dyad[row]}"
        found.append(
            Sided(kind, side, np.abs(signed), null, place, _labels(rows[best], signed[best], basis, units, kept))
        )
    return _table(atlas, found, k, draws, seed)


def _random(d: int, draws: int, seed: int, centred: bool) -> Float[np.ndarray, "draws d"]:
    rows = haar_directions(draws, d, seed)
    return without_mean(rows) if centred else rows


def _relative(basis: Basis, plain: Basis, k: int) -> tuple[Float[np.ndarray, "n d"], np.ndarray]:
    """Unit vectors relative to their mean, and who is kept."""
    kept = basis.usable & ~undertrained(plain)
    if kept.sum() < 2 * k:
        raise BadRequest(f"{basis.name}: expected {2 * k} labels or more for k = {k}, it keeps {int(kept.sum())}")
    units = np.zeros(basis.vectors.shape)
    rows = basis.vectors[kept].astype(np.float64) / basis.norms[kept, None]
    units[kept] = rows - rows.mean(axis=0)
    return units, kept


def _kappa(rows: Float[np.ndarray, "r d"], units: Float[np.ndarray, "n d"], kept: np.ndarray, k: int) -> np.ndarray:
    found = extremes(rows, units, k, keep=kept, lengths=np.where(kept, lengths(units), 1.0))
    return one_sidedness(found.top_score.mean(axis=1), -found.bottom_score.mean(axis=1))


def _labels(
    row: Float[np.ndarray, " d"], kappa: float, basis: Basis, units: Float[np.ndarray, "n d"], kept: np.ndarray
) -> list[str]:
    """Five labels of the pole that reaches farther."""
    found = extremes(row[None], units, 5, keep=kept, lengths=np.where(kept, lengths(units), 1.0))
    ids = found.top[0] if kappa > 0 else found.bottom[0]
    return [basis.labels[i] for i in ids if i >= 0]


def _table(atlas: Atlas, found: list[Sided], k: int, draws: int, seed: int) -> Table:
    tests = [_against_random(s) for s in found]
    q = adjusted([p for _, p in tests])
    edge = [float(np.quantile(s.null, 1 - ALPHA)) for s in found]
    columns = [
        Column("kind", [s.kind for s in found]),
        Column("side", [s.side for s in found]),
        Column("n", np.array([len(s.kappa) for s in found]), about="directions"),
        Column("kappa", np.array([np.nanmedian(s.kappa) for s in found]), digits=3,
               about="median |κ|: 0 equal poles, 1 a ray", chance="kappa_null"),
        Column("kappa_null", np.array([np.median(s.null) for s in found]), digits=3,
               about="median of random directions"),
        Column("beyond", np.array([np.mean(s.kappa > e) for s, e in zip(found, edge, strict=True)]), digits=3,
               about="share more one-sided than 95 % of random directions", chance=ALPHA),
        Column("D", np.array([distance for distance, _ in tests]), digits=3,
               about="Kolmogorov–Smirnov distance to random directions"),
        Column("p", np.array([p for _, p in tests]), about="chance of such a distance"),
        Column("q", q, about="Benjamini–Hochberg over rows"),
        Column("foremost", [s.foremost for s in found], about="the most one-sided direction"),
        Column("labels", [s.labels for s in found], about="labels of its farther pole"),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta=atlas.manifest["meta"]
        | {"analysis": "study_poles", "k": k, "draws": draws, "seed": seed, "null": "Haar directions, same labels"},
        title=f"{told_of(atlas)} · poles: how one-sided directions are · {k} labels per pole",
        says=_says(found, q, edge),
        not_says="Not whether activations visit one pole only: that needs texts. Directions of one matrix are taken as "
        "separate. Labels relative to their mean; other axes of the vocabulary (frequency, length) are left in.",
        next=f"covector study index {shlex.quote(str(atlas.folder))}",
        picture=lambda _: _picture(found),
        key=("kind", "side"),
    )  # fmt: skip


def _against_random(found: Sided) -> tuple[float, float]:
    """Kolmogorov–Smirnov distance to the random directions, and its p."""
    told = np.array(stats.ks_2samp(found.kappa[~np.isnan(found.kappa)], found.null, method="asymp"), np.float64)
    return float(told[0]), float(told[1])


def _says(found: list[Sided], q: Float[np.ndarray, " n"], edge: list[float]) -> str:
    told = []
    for s, value, level in zip(found, q, edge, strict=True):
        if value < ALPHA:
            how = "more" if np.nanmedian(s.kappa) > np.median(s.null) else "less"
            share = of_share(float(np.mean(s.kappa > level)))
            told.append(f"{s.kind} {s.side} {how} ({share} beyond, {of_p(value).replace('p', 'q', 1)})")
    if not told:
        return "Directions are as one-sided as random ones, in every kind: both poles reach as far as chance lets them."
    rest = "; the others as random ones" if len(told) < len(found) else ""
    return f"More or less one-sided than random directions (5 % beyond by chance; q): {', '.join(told)}{rest}."


def _picture(found: list[Sided]) -> Curve:
    x = np.linspace(0, max(float(np.nanmax(s.kappa)) for s in found), 101)
    return below_picture(
        [s.kappa for s in found],
        [f"{s.kind} {s.side}" for s in found],
        x,
        shares_below(found[0].null, x),
        worth=min(len(s.kappa) for s in found),
        x_name="|κ|",
        band_name="random directions",
    )


STUDY = Study(
    "poles",
    "Rays or directions: does a direction mean something at one pole only, more often than by chance?",
    poles,
    "model",
    "|κ| of both poles' reach, relative to the mean label, against Haar directions on the same labels",
)
