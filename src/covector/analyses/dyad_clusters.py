"""Do dyads fall into groups by what they read of the states? Average linkage of their maps, beside turned dyads.

Source: Q3 of the theory page; `docs/theory/location.md`, "Clusters of dyads".
"""

from dataclasses import replace

import numpy as np

from covector.analyses.agent_map import directions
from covector.analyses.agent_untrained import untrained
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.clusters import Clusters, clusters, turned_clusters
from covector.linalg.location import hyperplane
from covector.model.circuits import site_tensors
from covector.model.opened import Model
from covector.render import Column, Table

LEVEL = 0.05
# Strongest labels that name a dyad's map, and a cluster's.
NAMED = 3


def dyad_clusters(
    model: Model, basis: str = "state_in", *, sites: str = "*", side: str = "read", dyads: int = 8, draws: int = 200,
    seed: int = 0,
) -> Table:  # fmt: skip
    """One row per dyad: its cluster by its map over the basis, and how well it lies there (silhouette).

    The first `dyads` dyads of every place; distance 1 − |cos| of their scores over the labels that have a direction
    and look trained. The number of clusters (2 to 8) is chosen by the mean silhouette. The null turns the dyads of
    each place within their span, the choice repeated: `p` of the mean silhouette and of the cophenetic correlation
    stand in meta and in the sentence. Raises what `directions` raises, and BadRequest for fewer than 4 dyads.
    """
    found = directions(model, sites, side, dyads)
    if len({f.place.centred for f in found}) > 1:
        raise BadRequest("--by clusters: expected places with the same norm in front; name --sites one kind at a time")
    names, units = _labels(model, basis, found[0].place.centred)
    rows = [f.rows for f in found]
    profiles = np.concatenate(rows) @ units.T
    made = clusters(profiles)
    null = turned_clusters(rows, units, draws=draws, seed=seed)
    observed = np.array([made.mean, made.cophenetic])
    p = [float(chance.monte_carlo_p(o, n).value) for o, n in zip(observed, null.T, strict=True)]
    levels = np.quantile(null, 1 - LEVEL, axis=0)
    where = [(str(f.place.site), f.place.side, i) for f in found for i in range(len(f.rows))]
    order = np.lexsort((-made.own, made.labels)).tolist()
    level = float(chance.threshold(units.shape[1], profiles.size, LEVEL))
    strongest = np.abs(profiles).argmax(axis=1)
    columns = [
        Column("cluster", made.labels[order], about="largest first"),
        Column("site", [where[i][0] for i in order]),
        Column("side", [where[i][1] for i in order]),
        Column("dyad", np.array([where[i][2] for i in order])),
        Column("silhouette", made.own[order], digits=2, about="1: near its own cluster only; < 0: nearer to another"),
        Column("cos", profiles[order, strongest[order]], "cos", 3, "with the label it meets most", chance=level),
        Column("label", [names[strongest[i]] for i in order], about="that label"),
        Column("like", [_like(profiles, i, where) for i in order], about="the most alike map, and |cos| of both"),
    ]  # fmt: skip
    meta = {
        "analysis": "dyad_clusters", "policy": "none: weights only", "basis": basis, "labels": len(names),
        "sites": sites, "side": side, "dyads": dyads, "clusters": made.count, "silhouette": made.mean,
        "silhouette_level": float(levels[0]), "p_silhouette": p[0], "cophenetic": made.cophenetic,
        "cophenetic_level": float(levels[1]), "p_cophenetic": p[1], "draws": draws, "seed": seed,
        "null": "dyads of each place turned at random within their span; choice repeated",
    }  # fmt: skip
    tensors = dict.fromkeys((*(t for f in found for t in site_tensors(f.place.site)), *model.bases[basis].tensors))
    table = Table(columns, model.meta | meta | {"tensors": model.origins(*tensors)},
                  key=("site", "side", "dyad"))  # fmt: skip
    return replace(
        table,
        title=f"{model.name} · {len(profiles)} dyads of {len(found)} places by {basis} ({len(names)}) · frame "
        f"{model.frame} · {draws} draws",
        says=_says(made, p, levels),
        not_says="It does not say what a cluster is for (nothing was run); dyads turned within their span keep what "
        "each place reads, so groups of places that read the same subspace are not counted as groups of dyads.",
        next=f"covector locate {model.words} {basis} --map {where[order[0]][0]}:{where[order[0]][2]}"
        f".{where[order[0]][1]}{model.framing}",
    )


def _labels(model: Model, basis: str, centred: bool) -> tuple[list[str], Float[np.ndarray, "n d"]]:
    found = model.bases.centred(basis) if centred else model.bases[basis]
    usable = np.flatnonzero(found.usable & ~untrained(model, basis).any)
    if found.metric is not None or len(usable) < 2:
        raise BadRequest(f"{basis}: expected two trained labels with a direction or more, got {len(usable)}")
    units = found.unit()[usable].astype(np.float64)
    return [found.labels[i] for i in usable], hyperplane(units) if centred else units


def _like(profiles: np.ndarray, i: int, where: list[tuple[str, str, int]]) -> str:
    units = profiles / np.linalg.norm(profiles, axis=1, keepdims=True)
    alike = np.abs(units @ units[i])
    alike[i] = -1
    j = int(alike.argmax())
    return f"{where[j][0]}:{where[j][2]} {where[j][1]} {alike[j]:.2f}"


def _says(made: Clusters, p: list[float], levels: np.ndarray) -> str:
    sizes = ", ".join(map(str, np.bincount(made.labels).tolist()))
    numbers = (
        f"mean silhouette {made.mean:.2f} ({levels[0]:.2f} is what turned dyads stay below with 95 %, p {p[0]:.2g}), "
        f"cophenetic correlation {made.cophenetic:.2f} ({levels[1]:.2f}, p {p[1]:.2g})"
    )
    if p[0] > LEVEL:
        return (
            f"No clusters beyond chance: cut where it is best, {made.count} groups of {sizes} dyads, {numbers}. The "
            "groups below are an order, not a finding."
        )
    return f"{made.count} clusters of {sizes} dyads, more apart than chance makes them: {numbers}."
