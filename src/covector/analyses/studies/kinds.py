"""Are the directions of heads more interpretable than those of MLPs, and those than embeddings? With a size control.

Heads are thin: 64 directions of 1024, picked by no one. An MLP has 1024, most of small gain. So kinds are compared at
matched index (the first `leading` dyads of every site), and beside the whole MLP stand slices of it that are as thin as
a head: the map through as many random neurons as a head has dimensions. If slices score like heads, thinness explains
what heads have over MLPs; if they score like MLPs, it is the role.

Source: Q7 of the theory page; `docs/theory/studies.md`, equations 1–3.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from covector.analyses.studies.directions import Directions, adjusted, directions, judged, of_p, of_share, told_of
from covector.analyses.studies.judges import DRAWS, judge
from covector.analyses.studies.study import Study
from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.clustered import Share, clustered_share, exchange_p
from covector.linalg.chance.streams import generator
from covector.linalg.maps import Factored
from covector.linalg.svd import svd
from covector.model.circuits import residual
from covector.model.frames import reads_centred, writes_centred
from covector.model.opened import Model
from covector.render import Column, Scatter, Table

ALPHA = 0.05
SLICE = "mlp slice"
# Shuffles of sites between kinds.
SHUFFLES = 5000


@dataclass(frozen=True, eq=False)
class Group:
    """p-values of the directions of one kind and side, with the site and layer that each belongs to."""

    kind: str
    side: str
    p: Float[np.ndarray, " n"]
    p_dir: Float[np.ndarray, " n"]
    dyad: Int[np.ndarray, " n"]
    unit: Int[np.ndarray, " n"]
    layer: Int[np.ndarray, " n"]

    def first(self, leading: int) -> "Group":
        """The directions of the first `leading` dyads of every site."""
        at = (self.dyad < leading) & ~np.isnan(self.p)
        return Group(self.kind, self.side, *(v[at] for v in (self.p, self.p_dir, self.dyad, self.unit, self.layer)))

    def hits(self) -> Bool[np.ndarray, " n"]:
        """Which lists are more coherent than chance."""
        return self.p < ALPHA

    def sites(self) -> tuple[Float[np.ndarray, " m"], Int[np.ndarray, " m"]]:
        """Share of hits of every site, and its layer."""
        _, first, at = np.unique(self.unit, return_index=True, return_inverse=True)
        return np.bincount(at, self.hits()) / np.bincount(at), self.layer[first]


def kinds(
    atlas: Atlas, model: Model | None = None, *, leading: int | None = None, draws: int = DRAWS, seed: int = 0
) -> Table:
    """Share of directions whose token lists are more coherent than chance (p < .05), per kind and side.

    `leading`: dyads of every site that count (None: as many as a head has). With the `model` slices of its MLPs, as
    thin as heads, stand beside them; `draws` random directions judge those. Differences are to OV of the same side;
    their p shuffles sites within layers. Shares of random weights are .05 whatever the kind.
    Raises BadRequest for an atlas without scores, leading < 1, or a basis too small for lists.
    """
    if leading is not None and leading < 1:
        raise BadRequest(f"expected leading >= 1 dyads per site, got {leading}; leave it out for a head's")
    told = judged(atlas, "p_coherence", "p_dir")
    places = directions(atlas)
    groups = [
        Group(kind, side, told["p_coherence"][at], told["p_dir"][at], places.dyad[at], places.unit[at],
              places.layer[at])
        for kind, side, at in places.groups()
    ]  # fmt: skip
    m = _thin(places) if leading is None else leading
    if model is not None:
        for group in slices(model, width=_thin(places), draws=draws, seed=seed):
            groups.insert(_after_mlp(groups), group)
    return _table(atlas, [g for g in groups if not np.isnan(g.p).all()], m, model is not None, draws, seed)


def slices(model: Model, *, width: int, draws: int = DRAWS, seed: int = 0) -> list[Group]:
    """Directions of `thin_maps`, judged: two groups, what slices read and what they write; empty where there are none.

    Raises BadRequest where a basis is too small for lists.
    """
    made = [(layer, svd(m)) for layer, m in thin_maps(model, width=width, seed=seed)]
    if not made:
        return []
    layers = [layer for layer, _ in made]
    centred = reads_centred(model.spec, model.frame, f"L{layers[0]}.W_in"), writes_centred(model.spec, model.frame)
    read, write = [found.U.T for _, found in made], [found.Vh for _, found in made]
    return [
        _judged(model, side, rows, layers, is_centred, draws, seed)
        for side, rows, is_centred in zip(("read", "write"), (read, write), centred, strict=True)
    ]


def thin_maps(model: Model, *, width: int, seed: int = 0) -> Iterator[tuple[int, Factored]]:
    """(layer, W_in[:, S] W_out[S, :]) for disjoint random sets S of `width` neurons, as many as the layer has heads.

    None for an MLP with fewer neurons than that. The activation in between is left out, as it is when an MLP's matrices
    are decomposed; slices that together have all neurons sum to W_in W_out.
    """
    stream = residual(model.spec)
    for layer, block in enumerate(model.spec.blocks):
        if block.mlp is None:
            continue
        heads = block.attn.n_heads if block.attn else 1
        order = generator((seed, layer), "neurons").permutation(block.mlp.d_mlp)
        into, out = model.weights[f"L{layer}.W_in"], model.weights[f"L{layer}.W_out"]
        for i in range(min(heads, block.mlp.d_mlp // width)):
            neurons = order[i * width : (i + 1) * width]
            yield layer, Factored(into[:, neurons], out[neurons], stream, stream, "float64")


def _judged(
    model: Model, side: str, made: list[np.ndarray], layers: list[int], centred: bool, draws: int, seed: int
) -> Group:
    chosen = judge(model, model.bases.default(side), centred=centred, draws=draws, seed=seed)
    told = chosen(np.ascontiguousarray(np.concatenate(made)))
    counts = [len(rows) for rows in made]
    dyad = np.concatenate([np.arange(n) for n in counts])
    unit, layer = np.repeat(np.arange(len(made)), counts), np.repeat(layers, counts)
    return Group(SLICE, side, told.p, told.p_dir, dyad, unit, layer)


def _thin(places: Directions) -> int:
    """How many dyads a head has; where there are none, the smallest site."""
    _, sizes = np.unique(places.unit[places.is_head] if places.is_head.any() else places.unit, return_counts=True)
    return int(max(1, (sizes // (2 if places.is_head.any() else 1)).min()))


def _after_mlp(groups: list[Group]) -> int:
    at = [i for i, group in enumerate(groups) if group.kind.startswith(("mlp", "ov", "qk"))]
    return at[-1] + 1 if at else len(groups)


def _table(atlas: Atlas, groups: list[Group], leading: int, with_slices: bool, draws: int, seed: int) -> Table:
    first = [group.first(leading) for group in groups]
    shares = [clustered_share(group.hits(), group.unit) for group in first]
    against = [_against(group, first, seed) for group in first]
    whole = [float(np.nanmean(np.where(np.isnan(g.p), np.nan, g.p < ALPHA))) for g in groups]
    near = [float((group.p_dir < ALPHA).mean()) if len(group.p_dir) else float("nan") for group in first]
    columns = [
        Column("kind", [g.kind for g in groups], about="what is decomposed"),
        Column("side", [g.side for g in groups], about="read from the stream, or written to it"),
        Column("sites", np.array([s.clusters for s in shares]), about="maps of this kind"),
        Column("n", np.array([s.n for s in shares]), about=f"directions: the first {leading} dyads of every site"),
        Column("coherent", np.array([s.value for s in shares]), "", 3,
               "share whose list is more coherent than random directions' (p < .05)", ALPHA),
        Column("low", np.array([s.low for s in shares]), digits=3, about="95 % interval, sites as clusters"),
        Column("high", np.array([s.high for s in shares]), digits=3, about="95 % interval, sites as clusters"),
        Column("near", np.array(near), "", 3, "share closer to one token than chance (p_dir < .05)", ALPHA),
        Column("all", np.array(whole), "", 3, "share coherent among all dyads of the sites", ALPHA),
        Column("vs_ov", np.array([a[0] for a in against]), digits=3, about="share less that of OV, same side",
               chance=0.0),
        Column("p_vs_ov", np.array([a[1] for a in against]), about="sites shuffled between the two, within layers"),
        Column("q_vs_ov", adjusted([a[1] for a in against]), about="Benjamini–Hochberg over the rows"),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta=atlas.manifest["meta"]
        | {"analysis": "study_kinds", "leading": leading, "draws": draws, "seed": seed, "alpha": ALPHA,
           "slices": with_slices, "null": "Haar directions; sites shuffled between kinds within layers"},
        title=f"{told_of(atlas)} · kinds: token lists more coherent than chance · first {leading} dyads of every site",
        says=_says(first, shares, against),
        not_says=_not_says(first, with_slices),
        next=f"covector study sides {shlex.quote(str(atlas.folder))}",
        picture=_picture,
        key=("kind", "side"),
    )  # fmt: skip


def _against(group: Group, groups: list[Group], seed: int) -> tuple[float, float]:
    """Difference to OV of the same side (queries and keys are read), and its p."""
    side = "write" if group.side == "write" else "read"
    other = next((g for g in groups if g.kind == "ov" and g.side == side and g is not group), None)
    if other is None or not len(group.p) or not len(other.p):
        return float("nan"), float("nan")
    (mine, layers), (theirs, their_layers) = group.sites(), other.sites()
    shared = np.isin(layers, their_layers).any()
    strata = (layers, their_layers) if shared else None
    p = exchange_p(mine, theirs, strata, draws=SHUFFLES, seed=seed)
    return float(group.hits().mean() - other.hits().mean()), p


def _says(groups: list[Group], shares: list[Share], against: list[tuple[float, float]]) -> str:
    ranked = sorted(zip(groups, shares, strict=True), key=lambda pair: -pair[1].value)
    words = [f"{g.kind} {g.side} {of_share(s.value)} ({of_share(s.low)} to {of_share(s.high)})" for g, s in ranked[:3]]
    said = f"Coherent lists, 5 % by chance: {', '.join(words)}, … {ranked[-1][0].kind} {ranked[-1][0].side} "
    said += f"{of_share(ranked[-1][1].value)}. "
    q = adjusted([a[1] for a in against])
    differing = [f"{g.kind} {g.side}" for g, one in zip(groups, q, strict=True) if one < ALPHA]
    said += f"Other than OV: {', '.join(differing)}. " if differing else "No kind is other than OV beyond chance. "
    return said + _size_says(groups, against)


def _size_says(groups: list[Group], against: list[tuple[float, float]]) -> str:
    """What the slices of MLPs say about thinness."""
    found = {g.side: a for g, a in zip(groups, against, strict=True) if g.kind == SLICE}
    told = {side: a for side, a in found.items() if a[1] == a[1]}
    if not told:
        return ""
    worst = min(told.values(), key=lambda a: a[1])
    numbers = ", ".join(f"{side} {100 * a[0]:+.0f} points ({of_p(a[1])})" for side, a in told.items())
    if worst[1] < ALPHA / len(told):
        return f"Head-sized slices of the MLPs differ from OV: {numbers}; thinness alone does not make them alike."
    return f"Head-sized slices of the MLPs score like OV: {numbers}; where MLPs score otherwise, size may be why."


def _not_says(groups: list[Group], with_slices: bool) -> str:
    said = "Not that the lists mean anything, only that their labels are more alike than those of random directions. "
    if any(len(np.unique(g.unit)) == 1 for g in groups):
        said += (
            "A single matrix (an embedding) shows no spread of its kind: its interval takes directions as separate. "
        )
    return said if with_slices else said + "Without the model there is no size control."


def _picture(table: Table) -> Scatter:
    names = [f"{row['kind']} {row['side']}" for row in table.rows]
    return Scatter(
        x=np.arange(len(table)),
        y=np.asarray(table["coherent"]),
        x_name="kind and side, as in the table",
        y_name="share of coherent lists",
        x_unit="",
        y_unit="",
        labels=names,
        groups=[row["kind"] for row in table.rows],
        interval=(np.asarray(table["low"]), np.asarray(table["high"])),
        band=(0.0, ALPHA),
    )


STUDY = Study(
    "kinds",
    "Are OV and QK directions more interpretable than those of MLPs, and those than embeddings, size apart?",
    kinds,
    "model",
    "share of coherent lists per kind at matched index; head-sized slices of the MLPs; sites shuffled within layers",
)
