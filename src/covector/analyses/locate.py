"""Where a set of labelled directions is read or written most strongly: every place of the model, one row each.

A place is one side of one map. Three numbers tell how it meets the set: the gain (uses σ), the energy (the subspace
alone) and the largest cosine of a singular direction. Places are ranked by the z of the gain, never by a raw cosine: a
map with more directions has more chances of a high one.

Source: F13 of the theory; `docs/theory/location.md`, equations 1–11.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from covector.analyses.locate_picture import gain_by_depth
from covector.analyses.locate_places import Chosen, Place, chosen, places
from covector.analyses.locate_words import next_command, not_says, says, title
from covector.axes import Float
from covector.errors import BadRequest, FrameUnavailable
from covector.linalg import chance, location
from covector.linalg.lapack import thread_pools
from covector.linalg.location import BestCosine, Face, Moment
from covector.linalg.location_null import Family, dealt, item_scores, null_scores, share_first
from covector.linalg.maps import Factored
from covector.linalg.svd import svd
from covector.model.circuits import site_tensors
from covector.model.opened import Model
from covector.render import Column, Table

# The chance that the levels in the table leave, and the familywise level of its sentence.
LEVEL = 0.05
# Multiply–adds spent on best cosines (ten seconds of a core or so); the weaker places beyond them go without.
COSINE_COST = 2e11
# And on the simulated null of one rank. Beyond, the union bound of exact tails: with 1910 tokens in 128 dimensions and
# 32 dyads its level is .421 where simulation gives .413.
COSINE_NULL_COST = 1e9
# Streams narrower than this are done faster by one thread than by several that wait for each other (and so are thin
# factors, of any stream).
SMALL = 512


def locate(
    model: Model,
    basis: str,
    *,
    side: str = "both",
    sites: str = "*",
    concept: Sequence[str] | str = (),
    without: Sequence[str] | str = (),
    frame: str | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Table:
    """One row per place, strongest first: how it meets `basis`, or the labels of it that `concept` names.

    `without` leaves labels of a whole basis out: ``ascii`` (those that are not ASCII), ``trained`` (those that look
    hardly trained: they lie close together and pull a gain their way). `sites` are addresses with wildcards, several
    with commas (``*``: OV and QK of every head and every MLP map); `side` keeps ``read`` (with queries and keys) or
    ``write``.

    Columns: `gain` of the unit vectors over that of a random direction; its `z`; `p` from `draws` random rotations of
    the set, `q` (Benjamini–Hochberg) and `familywise` (Westfall–Young max-T: the same rotation is scored everywhere);
    `first`, the confidence that the place has the largest z for labels like these, right also for two of them; `cos`
    with its label and dyad and `p_cos`, for that place alone; `energy` of the subspace, NaN where the map spans the
    stream. Values are exact in float64; p values are Monte-Carlo, or rigorous upper bounds where those are smaller.

    Cost: the SVD of every map, then per draw a QR of d × min(labels, d) and d² per place. At the size of GPT-2 (600
    places) a concept takes 27 s of one core, the whole vocabulary 25 s and another 5 s per hundred draws. Memory:
    8·d bytes per direction, and 0.6 GB.
    Raises UnknownBasis, BadSite, NotOneToken, UnknownFrame, FrameUnavailable, and BadRequest for what cannot be
    located: no label with a direction, a set that meets every direction alike, sites without a side in the stream.
    """
    concept, without = ((x,) if isinstance(x, str) else tuple(x) for x in (concept, without))
    view = model if frame is None or frame == str(model.frame) else model.framed(frame)
    if view.frame.bias:
        raise FrameUnavailable("locate looks at maps of the stream without their constants; leave +bias out")
    labels, there = chosen(view, basis, concept, without), places(view, sites, side)
    with thread_pools().limit(limits=1 if view.spec.d_model < SMALL else None):
        found = _measured(view, there, labels, draws, seed)
        order = np.argsort(-np.nan_to_num(found.z, nan=-np.inf), kind="stable").tolist()
        columns, cosines = _columns(found, order, draws, seed)
    used = dict.fromkeys((*(t for p in there for t in site_tensors(p.site)), *labels.whole.tensors))
    request = {
        "analysis": "locate",
        "policy": "none: weights only",
        "basis": basis,
        "concept": list(concept),
        "labels": len(labels.rows),
        "left_out": labels.left_out,
        "without": list(without),
        "hardly_trained": labels.hardly_trained,
        "sites": sites,
        "side": side,
        "places": len(order),
        "maps_of_zeros": [f"{p.site} {p.side}" for p in there if p not in found.places],
        "dimension": sorted({m.d for m in found.moments.values()}),
        "draws": draws,
        "seed": seed,
        "null": "the set turned by a Haar rotation, the same one at every place",
        "ranked_by": "z of the gain",
        "resampled": found.items,
        "z_level": found.z_level,
        **cosines,
    }
    table = Table(columns, view.meta | request | {"tensors": view.origins(*used)}, key=("site", "side"))
    return replace(
        table,
        title=title(table, view),
        says=says(table, LEVEL),
        not_says=not_says(table, view, LEVEL),
        next=next_command(table, view),
        picture=gain_by_depth,
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """What was measured, in the order of the model: entry i of everything belongs to place i."""

    places: tuple[Place, ...]
    faces: tuple[Face, ...]
    units: dict[bool, Float[np.ndarray, "n d"]]
    moments: dict[bool, Moment]
    chosen: Chosen
    null: Float[np.ndarray, "draws m"]
    first: Float[np.ndarray, " m"]
    items: int

    def moment(self, i: int) -> Moment:
        """The set as place i sees it."""
        return self.moments[self.places[i].centred]

    @cached_property
    def caught(self) -> list[Float[np.ndarray, " r"]]:
        """What each direction of each place catches of the set."""
        return [location.caught(face, self.moment(i)) for i, face in enumerate(self.faces)]

    @cached_property
    def gain(self) -> Float[np.ndarray, " m"]:
        """Gains."""
        return np.array([location.gain(f, c) for f, c in zip(self.faces, self.caught, strict=True)])

    @cached_property
    def sd(self) -> Float[np.ndarray, " m"]:
        """Their standard deviations by chance; 0 where chance leaves the gain no freedom."""
        return np.array([location.gain_sd(face, self.moment(i)) for i, face in enumerate(self.faces)])

    @property
    def z(self) -> Float[np.ndarray, " m"]:
        """The gain in standard deviations of its null; NaN where that is a constant."""
        return np.divide(self.gain - 1, self.sd, out=np.full(len(self.sd), np.nan), where=self.sd > 0)

    @property
    def null_gain(self) -> Float[np.ndarray, "draws m"]:
        """Gains of the turned sets."""
        return np.maximum(1 + self.sd * self.null, 0.0)

    @property
    def z_level(self) -> list[float]:
        """The middle 95 % of z at one place by chance."""
        return [float(q) for q in np.quantile(self.null[:, self.sd > 0], [LEVEL / 2, 1 - LEVEL / 2])]

    @property
    def familywise(self) -> Float[np.ndarray, " m"]:
        """Max-T over all places, on a scale that gives each nearly the same null."""
        free = self.sd > 0
        scale = np.where(free, self.sd, 1.0)
        observed = np.where(free, location.normal_score(self.gain, scale), np.nan)
        return chance.max_t(observed, location.normal_score(self.null_gain, scale))


def _measured(model: Model, there: tuple[Place, ...], labels: Chosen, draws: int, seed: int) -> _Found:
    """Every face, its gains under rotations, and how sure the first is. Maps of zeros are left out."""
    faces = _faces(model, there)
    kept = tuple(faces)
    kinds = sorted({p.centred for p in kept})
    if not kinds:
        raise BadRequest("every map named is zero: nothing is read or written there; name other sites")
    units = {c: labels.units(c) for c in kinds}
    moments = {c: location.second_moment(units[c]) for c in kinds}
    if not any(m.spread for m in moments.values()):
        raise BadRequest(
            f"{labels.whole.name}: these {len(labels.rows)} labels meet every direction alike, so the gain is 1 "
            "everywhere (Parseval); locate some of them: concept, --concept"
        )
    families = [Family(moments[c], [faces[p] for p in kept if p.centred == c], c) for c in kinds]
    # Families stand one behind the other; `back` finds each place's column.
    back = np.argsort(np.concatenate([[i for i, p in enumerate(kept) if p.centred == c] for c in kinds]))
    groups = dealt(len(labels.rows), seed)
    items = np.concatenate([item_scores(f, units[c], groups) for c, f in zip(kinds, families, strict=True)], axis=1)
    free = np.array([faces[p].spread * moments[p.centred].spread > 0 for p in kept])
    sizes = np.bincount(groups)
    return _Found(
        places=kept,
        faces=tuple(faces.values()),
        units=units,
        moments=moments,
        chosen=labels,
        null=null_scores(families, draws=draws, seed=seed)[:, back],
        first=share_first(np.where(free, items[:, back], np.nan), sizes, draws=draws, seed=seed),
        items=len(sizes),
    )


def _faces(model: Model, there: tuple[Place, ...]) -> dict[Place, Face]:
    """The singular directions of every place, in the coordinates of its space; one SVD per site."""
    made: dict[Place, Face] = {}
    for site in dict.fromkeys(p.site for p in there):
        m = model.map(site)
        with thread_pools().limit(limits=1 if isinstance(m, Factored) else None):
            dyads = svd(m)
        for place in (p for p in there if p.site == site):
            rows = np.ascontiguousarray(dyads.U.T) if place.side in ("read", "query") else dyads.Vh
            if dyads.rank:
                made[place] = Face(location.hyperplane(rows) if place.centred else rows, dyads.S)
    return {p: made[p] for p in there if p in made}


def _columns(found: _Found, order: list[int], draws: int, seed: int) -> tuple[list[Column], dict[str, Any]]:
    """The table's columns, strongest place first, and what there is to say of the cosines."""
    gains, null = found.gain, found.null_gain
    p = [
        chance.monte_carlo_p(g, null[:, i], at_most=location.gain_bound(found.faces[i], g)).value
        if found.sd[i] > 0 else np.nan
        for i, g in enumerate(gains)
    ]  # fmt: skip
    p = np.array(p)
    there = [found.places[i] for i in order]
    cosines, about_cosines = _cosine_columns(found, order, draws, seed)
    columns = [
        Column("site", [str(place.site) for place in there]),
        Column("side", [place.side for place in there], about="read, write; of a QK map query and key, both reads"),
        Column("gain", gains[order], "×", 2, "mean power of the unit vectors here, over that of a random direction",
               chance="gain_level"),
        Column("gain_level", np.quantile(null, 1 - LEVEL, axis=0)[order], "×", 2,
               "gain that a random rotation of the set stays below with 95 %"),
        Column("z", found.z[order], "sd", 1, "(gain − 1) over its standard deviation by chance, exact"),
        Column("familywise", found.familywise[order], digits=4, about="p that any place reaches as much (max-T)"),
        Column("first", found.first[order], digits=2, about="confidence that z is largest here for labels like these"),
        *cosines,
        *_energy_columns(found, order, draws, seed),
        Column("q", chance.bh(p)[order], about="Benjamini–Hochberg over all places"),
        Column("p", p[order], about="chance that a random rotation of the set reaches this gain at this place"),
        Column("rank", np.array([len(found.faces[i].S) for i in order]), about="directions of the map"),
    ]  # fmt: skip
    return columns, about_cosines


def _cosine_columns(found: _Found, order: list[int], draws: int, seed: int) -> tuple[list[Column], dict[str, Any]]:
    """The best cosine of each place, as far down the ranking as the work allows, with its null for that place alone."""
    best: list[BestCosine] = []
    laws: dict[tuple[bool, int], Float[np.ndarray, " draws"] | None] = {}
    levels, p, spent = [], [], 0.0
    for i in order:
        units, (r, d) = found.units[found.places[i].centred], found.faces[i].directions.shape
        spent += float(r) * d * len(units)
        if best and spent > COSINE_COST:
            break
        cosine = location.best_cosine(found.faces[i], units)
        best.append(cosine)
        key = (found.places[i].centred, r)
        if key not in laws:
            cost = float(draws) * len(units) * min(units.shape) * r
            quick = cost <= COSINE_NULL_COST
            laws[key] = chance.null_max_of_frame(units, r, draws=draws, seed=(seed, r)) if quick else None
        level, chances = _cosine_chance(cosine, laws[key], len(units) * r, d)
        levels.append(level)
        p.append(chances)
    empty = [np.nan] * (len(order) - len(best))
    labels, rest = found.chosen.labels, [None] * len(empty)
    columns = [
        Column("cos", np.array([b.value for b in best] + empty), "cos", 3, "largest |cosine| of dyad and label",
               chance="cos_level"),
        Column("cos_level", np.array(levels + empty), "", 3, "|cosine| that the best of all dyads and labels of the "
               "place stays below with 95 % by chance"),
        Column("label", [*(labels[b.label] for b in best), *rest], about="the label of that cosine"),
        Column("dyad", np.array([float(b.dyad) for b in best] + empty), digits=0, about="its singular dyad"),
        Column("p_cos", np.array(p + empty), about="chance that random directions reach this |cosine| at this place"),
    ]  # fmt: skip
    law = "Haar frame" + (", simulated" if all(x is not None for x in laws.values()) else ", union bound where large")
    return columns, {"cosines_at": len(best), "cosine_null": law}


def _cosine_chance(best: BestCosine, null: np.ndarray | None, cells: int, d: int) -> tuple[float, float]:
    """The level and the p of a best cosine: simulated, or the union bound over all cells."""
    bound = min(1.0, cells * float(chance.tail(best.value, d)))
    if null is None:
        return float(chance.threshold(d, cells, LEVEL)), bound
    return float(np.quantile(null, 1 - LEVEL)), float(chance.monte_carlo_p(abs(best.value), null, at_most=bound).value)


def _energy_columns(found: _Found, order: list[int], draws: int, seed: int) -> list[Column]:
    """Energies with their null: Beta for one vector, simulated for more, one null per rank."""
    energies = np.array([location.energy(found.faces[i], found.caught[i]) for i in order])
    levels, p = np.full(len(order), np.nan), np.full(len(order), np.nan)
    laws: dict[tuple[bool, int], Float[np.ndarray, " draws"]] = {}
    for row, i in enumerate(order):
        moment, face = found.moment(i), found.faces[i]
        r, d = face.directions.shape
        if r == d:
            continue
        if moment.n == 1:
            levels[row] = float(chance.quantile(LEVEL, d, r)) ** 2
            p[row] = float(chance.tail(np.sqrt(energies[row]), d, r))
            continue
        key = (found.places[i].centred, r)
        if key not in laws:
            laws[key] = location.null_energy(moment, r, draws=draws, seed=(seed, r))
        flat = Face(face.directions, np.ones(r))
        bound = location.gain_bound(flat, energies[row] * d / r)
        levels[row] = np.quantile(laws[key], 1 - LEVEL)
        p[row] = chance.monte_carlo_p(energies[row], laws[key], at_most=bound).value
    return [
        Column("energy", energies, digits=3, about="mean share of a unit vector in the map's subspace (– if r = d)",
               chance="energy_level"),
        Column("energy_level", levels, digits=3, about="energy that a random subspace of that rank stays below, 95 %"),
        Column("p_energy", p, about="chance that a random subspace of that rank holds as much"),
    ]  # fmt: skip
