"""Superposition: how many significant directions per dimension, how tightly packed, and where are semantic heads?

n directions in d dimensions cannot all be orthogonal once n > d: Welch's bound is the least that their largest |cos|
can be. Directions that share features are closer than that and than chance; directions in superposition are spread out.
Layer by layer, semantic heads stand beside the packing of that layer's heads.

Source: Q5(a) of the theory page; `docs/theory/studies.md`, equations 13–15, 32 and 33.
"""

import dataclasses
import shlex
from dataclasses import dataclass

import numpy as np

from covector.analyses.studies.directions import Directions, directions, told_of
from covector.analyses.studies.semantic import (
    OverLayers,
    SemanticHeads,
    of_heads,
    of_relation,
    over_layers,
    semantic_heads,
)
from covector.analyses.studies.study import Study
from covector.axes import Bool, Int
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.streams import generator
from covector.linalg.norms import lengths
from covector.linalg.packing import Packing, null_packings, welch_bound
from covector.linalg.packing import packing as packed
from covector.render import Column, Scatter, Table

ALPHA = 0.05
DRAWS = 100
# Rows of an atlas are float16: cosines of orthogonal ones come out below this.
ROUNDING = 1e-3
# What counts as significant, and in what words.
RULES = {
    "near": ("q_dir", "closer to a token than random directions (q_dir < .05)"),
    "coherent": ("q_coherence", "with more coherent lists than chance (q_coherence < .05)"),
    "interpretable": ("interpretable", "interpretable by the rule"),
}


@dataclass(frozen=True, eq=False)
class Set:
    """One set of significant directions with its packing and those of random directions in the same groups.

    `of` directions in all, `significant` of them, copies counted; `layer` where the set is a layer's heads.
    """

    name: str
    found: Packing
    null: list[Packing]
    of: int
    significant: int
    heads: "Heads"
    semantic: SemanticHeads
    layer: int | None

    @property
    def closer(self) -> float:
        """The rms |cos| over that of random sets (root of their mean square); NaN where those are orthogonal."""
        usual = float(np.sqrt(np.mean([one.rms**2 for one in self.null])))
        return self.found.rms / usual if usual else float("nan")

    @property
    def nearer(self) -> float:
        """The largest |cos| over the median of those of random sets; NaN where those are orthogonal."""
        usual = float(np.median([one.largest for one in self.null]))
        return self.found.largest / usual if usual else float("nan")


@dataclass(frozen=True, eq=False)
class Heads:
    """How many of a set's heads have a significant direction, and how many if as many were spread at random."""

    found: int
    of: int
    null: Int[np.ndarray, " draws"]


def packing(atlas: Atlas, *, rule: str = "near", draws: int = DRAWS, seed: int = 0) -> Table:
    """Packing of the significant directions of an atlas: all together, per side and kind, and of each layer's heads.

    `rule`: ``near``, ``coherent`` or ``interpretable``. Chance is that of as many random directions, orthonormal within
    each site's side as singular directions are: 95 % of `draws` sets have a smaller largest |cos|, a smaller rms, more
    dimensions. Heads that share keys and values share directions: their copies are left out. `heads` counts the heads
    with a significant direction of either circuit; its chance is that of as many among the same directions at random.
    `semantic` counts those with more of them than a random spread gives (q < .05; in a layer, as judged among the heads
    of all layers). Over layers their share is compared with `closer`: rank correlation, p by shuffled layers, in `says`
    and in meta (``over_layers``), beside those with the largest |cos| and of the share of directions.
    Raises BadRequest for another rule, draws < 20, or fewer than two significant directions.
    """
    if rule not in RULES or draws < 20:
        raise BadRequest(f"expected a rule ({', '.join(RULES)}) and draws >= 20, got '{rule}', {draws}")
    column = RULES[rule][0]
    if column not in atlas.names:
        raise BadRequest(
            f"{atlas.folder}: expected judged lists ({column}), it was built with --no-scores; use rule near"
        )
    value = atlas.column(column)
    significant = value.astype(bool) if rule == "interpretable" else np.nan_to_num(value, nan=1.0) < ALPHA
    places = directions(atlas)
    everything = np.ones(len(value), bool)
    sets = {"all": everything}
    sets |= {"read": places.side != "write", "write": places.side == "write"}
    sets |= {f"{kind} {side}": at for kind, side, at in places.groups()}
    rows = atlas.units(slice(None), np.float32)
    found = [
        _set(name, rows, places, at, significant, semantic_heads(places, at, significant), draws, seed)
        for name, at in sets.items()
    ]
    heads = semantic_heads(places, everything, significant)
    for layer in np.unique(heads.layer).tolist():
        at = places.is_head & (places.layer == layer)
        found.append(
            _set(f"L{layer} heads", rows, places, at, significant, heads.among(layer), draws, seed, layer=layer)
        )
    kept = [one for one in found if one is not None]
    if not kept:
        raise BadRequest(
            f"{atlas.folder}: expected two directions {RULES[rule][1]}, it has "
            f"{int(significant.sum())}; take another rule"
        )
    return _table(atlas, kept, rule, draws, seed)


def _set(
    name: str, rows: np.ndarray, places: Directions, at: Bool[np.ndarray, " n"], significant: Bool[np.ndarray, " n"],
    semantic: SemanticHeads, draws: int, seed: int, *, layer: int | None = None,
) -> Set | None:  # fmt: skip
    chosen = np.flatnonzero(at & significant)
    vectors, groups = rows[chosen], _groups(places)[chosen]
    if len(chosen) > 1:
        first = np.sort(np.unique(vectors, axis=0, return_index=True)[1])
        vectors, groups = vectors[first], groups[first]
    if len(vectors) < 2:
        return None
    vectors = vectors / lengths(vectors)[:, None].astype(np.float32)
    sizes = np.unique(groups, return_counts=True)[1].tolist()
    null = null_packings(sizes, vectors.shape[1], draws=draws, seed=seed)
    heads = _heads(places, at, significant, draws, seed)
    return Set(
        name=name, found=_rounded(packed(vectors)), null=[_rounded(one) for one in null], of=int(at.sum()),
        significant=int((at & significant).sum()), heads=heads, semantic=semantic, layer=layer,
    )  # fmt: skip


def _heads(
    places: Directions, at: Bool[np.ndarray, " n"], significant: Bool[np.ndarray, " n"], draws: int, seed: int
) -> Heads:
    among = np.flatnonzero(at & places.is_head)
    of = np.unique([str(site).partition(".")[0] for site in places.site[among]], return_inverse=True)[1]
    hits, rng = significant[among], generator(seed, "spread over heads")
    spread = [len(np.unique(of[rng.permutation(len(among))[: hits.sum()]])) for _ in range(draws)]
    return Heads(len(np.unique(of[hits])), int(of.max(initial=-1)) + 1, np.array(spread, np.int64))


def _rounded(found: Packing) -> Packing:
    """The packing, with what storage makes of orthogonal directions taken as orthogonal."""
    largest, rms = (value if value >= ROUNDING else 0.0 for value in (found.largest, found.rms))
    return dataclasses.replace(found, largest=largest, rms=rms)


def _groups(places: Directions) -> np.ndarray:
    """A number for every side of every site."""
    sides = np.unique(places.side.astype(str), return_inverse=True)[1]
    return places.unit * (sides.max() + 1) + sides


def _table(atlas: Atlas, sets: list[Set], rule: str, draws: int, seed: int) -> Table:
    def chance(name: str, share: float) -> np.ndarray:
        return np.array([np.quantile([getattr(p, name) for p in one.null], share) for one in sets])

    d = sets[0].found.d
    columns = [
        Column("set", [one.name for one in sets]),
        Column("n", np.array([one.found.n for one in sets]), about="significant directions, copies left out"),
        Column("share", np.array([one.significant / one.of for one in sets]), digits=3,
               about="share of all directions that are significant, copies counted"),
        Column("per_dimension", np.array([one.found.n / d for one in sets]), digits=3, about="n / d"),
        Column("largest", np.array([one.found.largest for one in sets]), "cos", 3, "largest |cos| of two of them",
               "largest_null"),
        Column("largest_null", chance("largest", 1 - ALPHA), "cos", 3,
               "95 % of sets of random directions stay below", 1 / np.sqrt(d)),
        Column("rms", np.array([one.found.rms for one in sets]), "cos", 3, "root mean square |cos| over pairs",
               "rms_null"),
        Column("rms_null", chance("rms", 1 - ALPHA), "cos", 3, "95 % of random sets stay below", 1 / np.sqrt(d)),
        Column("welch", np.array([welch_bound(one.found.n, d) for one in sets]), "cos", 3,
               "the least that largest and rms can be", 1 / np.sqrt(d)),
        Column("semantic", np.array([int(one.semantic.found.sum()) if one.heads.of else np.nan for one in sets]),
               digits=0, about="heads with more significant directions than a random spread gives (q < .05)"),
        Column("closer", np.array([one.closer for one in sets]), digits=2,
               about="rms over that of random sets", chance=1.0),
        Column("dimensions", np.array([one.found.dimensions for one in sets]), digits=1,
               about="dimensions that they fill, (Σλ)²/Σλ² of their second moment", chance="dimensions_null"),
        Column("dimensions_null", chance("dimensions", ALPHA), digits=1, about="95 % of random sets fill more"),
        Column("nearer", np.array([one.nearer for one in sets]), digits=2,
               about="largest over the median of random sets", chance=1.0),
        Column("of", np.array([one.of for one in sets]), about="directions in all"),
        Column("heads", np.array([one.heads.found if one.heads.of else np.nan for one in sets]), digits=0,
               about="heads that have a significant direction", chance="heads_null"),
        Column("heads_null", np.array([_fewest(one.heads) for one in sets]), digits=0,
               about="as many spread at random over the same directions: 95 % are in so many heads or more"),
        Column("of_heads", np.array([one.heads.of for one in sets]), about="heads in all"),
    ]  # fmt: skip
    related = _related(sets, seed)
    return Table(
        columns=columns,
        meta=atlas.manifest["meta"]
        | {"analysis": "study_packing", "rule": rule, "draws": draws, "seed": seed, "d": d,
           "null": "as many random directions, orthonormal within each site's side",
           "semantic_heads": _named(sets[0].semantic),
           "over_layers": {name: vars(one) for name, one in related.items()}},
        title=f"{told_of(atlas)} · packing of directions {RULES[rule][1]} · d {d}",
        says=_says(sets, d, related),
        not_says="Not how many features the model has: a matrix has no more singular directions than dimensions, and "
        "a feature that is no singular direction is not here. Directions of several layers may be one feature. "
        "Directions chosen for what labels share may lie closer than random ones for that alone.",
        next=f"covector search {shlex.quote(str(atlas.folder))} --like {atlas.column('site')[0]}:0",
        picture=_picture,
        key=("set",),
    )  # fmt: skip


def _fewest(heads: Heads) -> float:
    return float(np.quantile(heads.null, ALPHA, method="lower")) if heads.of else float("nan")


def _named(heads: SemanticHeads) -> dict[str, list[int]]:
    """Semantic heads by name, with how many of their directions are significant, and of how many."""
    kept = (heads.names[heads.found], heads.hits[heads.found], heads.of[heads.found])
    return {str(name): [int(hits), int(of)] for name, hits, of in zip(*kept, strict=True)}


def _related(sets: list[Set], seed: int) -> dict[str, OverLayers]:
    """Over layers: semantic heads (and the share of directions) against how closely the layer is packed."""
    layers = [one for one in sets if one.layer is not None]
    semantic = np.array([one.semantic.found.mean() for one in layers])
    share = np.array([one.significant / one.of for one in layers])
    closer, nearer = (np.array([getattr(one, name) for one in layers]) for name in ("closer", "nearer"))
    pairs = {
        "semantic closer": (semantic, closer),
        "semantic nearer": (semantic, nearer),
        "share closer": (share, closer),
    }
    return {name: over_layers(x, y, seed=seed) for name, (x, y) in pairs.items()}


def _says(sets: list[Set], d: int, related: dict[str, OverLayers]) -> str:
    whole = sets[0]
    n, found = whole.found.n, whole.found
    largest = float(np.quantile([p.largest for p in whole.null], 1 - ALPHA))
    typical = float(np.quantile([p.rms for p in whole.null], 1 - ALPHA))
    said = f"{n:,} of {whole.of:,} directions are significant, {n / d:.2f} per dimension; "
    bound = welch_bound(n, d)
    said += f"so many need a largest |cos| of {bound:.3f} (Welch). " if bound else "so few could all be orthogonal. "
    said += f"The nearest two have {found.largest:.3f} (random sets {largest:.3f}), "
    how = "closer together than random ones" if found.rms > typical else "as spread out as random ones"
    said += f"the typical pair {found.rms:.3f} (random {typical:.3f}): {how}. "
    said += f"They fill {found.dimensions:.0f} of {d} dimensions."
    if not whole.heads.of:
        return said
    relation = of_relation(related["semantic closer"], related["semantic nearer"])
    return f"{said} {of_heads(whole.semantic)} {relation}"


def _picture(table: Table) -> Scatter:
    return Scatter(
        x=np.asarray(table["per_dimension"]),
        y=np.asarray(table["rms"]),
        x_name="significant directions per dimension",
        y_name="root mean square |cos|",
        x_unit="",
        y_unit="cos",
        labels=[row["set"] for row in table.rows],
        groups=["heads of a layer" if row["set"].endswith(" heads") else "set" for row in table.rows],
        band=(0.0, float(np.max(np.asarray(table["rms_null"])))),
        band_name="random directions",
    )


STUDY = Study(
    "packing",
    "Superposition: how many significant directions per dimension, how tightly packed?",
    packing,
    "atlas",
    "largest and rms |cos| of the significant set against Welch's bound and random sets with the same groups; semantic "
    "heads per layer against that layer's packing",
)
