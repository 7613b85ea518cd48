"""Is a leading dyad what the agent mostly does? Directions of dyads against the mean and the most frequent action.

The decision-transformer post read its dyad 0 so. The mean action is Σ share·vector over the actions that the unchanged
agent took, each the row of the action head (continuous actions: the mean action's entries for the shares).

Source: theory page §0, F13; `docs/replicate-dt-svd.md`, claim A4.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.analyses.agent_map import LEVEL, Directions, directions
from covector.analyses.rollout import Experiment
from covector.analyses.rollout_arms import CLEAN
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.location import hyperplane
from covector.render import Column, Table

BASIS = "action_out"
# The leading dyads of each place that are compared.
DYADS = 4


@dataclass(frozen=True, eq=False)
class Usual:
    """What the unchanged agent does: the share of each action (its mean, if continuous) and the commonest."""

    names: tuple[str, ...]
    shares: Float[np.ndarray, " action"]
    mean: Float[np.ndarray, " d_model"]
    common: int
    vectors: Float[np.ndarray, "action d_model"]


def usual(x: Experiment) -> Usual:
    """Over the clean episodes at the first target. Raises BadRequest where there is no mean action."""
    basis = x.model.bases[BASIS]
    vectors = basis.vectors.astype(np.float64)
    taken = [a for e in x.of(CLEAN) for a in e.actions]
    if x.agent.discrete:
        shares = np.bincount(np.array(taken, dtype=int), minlength=len(vectors))[: len(vectors)] / len(taken)
    else:
        shares = np.mean(np.array(taken, dtype=np.float64), axis=0)
    mean = shares @ vectors
    if not np.linalg.norm(mean) > 0:
        raise BadRequest("--by actions: expected a mean action with a direction, it is zero; give more --episodes")
    return Usual(tuple(basis.labels), shares, mean, int(np.abs(shares).argmax()), vectors)


def by_actions(x: Experiment, dyads: int = DYADS) -> Table:
    """One row per dyad and side: cosines with the mean and with the most frequent action of the clean episodes.

    `cos` with the mean action, its exact `p` for this dyad alone, `q` (Benjamini–Hochberg over all rows), `rank` among
    the dyads of its place that were compared, by \\|cos\\|; `common` the cosine with the most frequent action and its
    `p_common`; `nearest` the action nearest to the dyad. The level is what the best of all rows stays below with 95 %.
    """
    done, found = usual(x), directions(x.model, "*", "both", dyads)
    rows = [row for place in found for row in _rows(place, done)]
    cos, p = (np.array([r[name] for r in rows], dtype=np.float64) for name in ("cos", "p"))
    d = min(f.d for f in found)
    level = float(chance.threshold(d, len(rows), LEVEL))
    for row, q in zip(rows, chance.bh(p).tolist(), strict=True):
        row["q"] = q
    order = np.lexsort((-np.abs(cos), p)).tolist()

    def of(name: str) -> list[Any]:
        return [rows[i][name] for i in order]

    columns = [
        Column("site", of("site")),
        Column("side", of("side"), about="written, or met by reading (query, key)"),
        Column("dyad", np.array(of("dyad"))),
        Column("cos", cos[order], "cos", 3, "cosine with the mean of the actions taken", chance=level),
        Column("p", p[order], about="chance that a random direction reaches this |cos|"),
        Column("q", np.array(of("q")), about="Benjamini–Hochberg over all rows"),
        Column("rank", np.array(of("rank")), about="of |cos| among the compared dyads of the place"),
        Column("common", np.array(of("common")), "cos", 3,
               f"cosine with the most frequent action, {done.names[done.common]}", chance=level),
        Column("p_common", np.array(of("p_common")), about="chance of this |cos|"),
        Column("nearest", of("nearest"), about="the action nearest to the dyad"),
    ]  # fmt: skip
    shares = dict(zip(done.names, map(float, done.shares), strict=True))
    meta = x.meta | {"analysis": "rollout_actions", "by": "actions", "shares": shares, "dyads": dyads,
                     "level": level, "null": "Haar direction; level: union over all rows"}  # fmt: skip
    return Table(columns, meta, *_said(x, done, rows), key=("site", "side", "dyad"))


def _rows(place: Directions, done: Usual) -> list[dict[str, Any]]:
    targets = np.vstack([done.mean, done.vectors[done.common], done.vectors])
    if place.place.centred:
        targets = hyperplane(targets - targets.mean(axis=1, keepdims=True))
    lengths = np.linalg.norm(targets, axis=1, keepdims=True)
    cosines = np.clip(place.rows @ (targets / np.where(lengths > 0, lengths, 1.0)).T, -1.0, 1.0)
    p, ranks = np.asarray(chance.tail(cosines, place.d)), (-np.abs(cosines[:, 0])).argsort().argsort() + 1
    return [
        {
            "site": str(place.place.site), "side": place.place.side, "dyad": i, "cos": float(c[0]), "p": float(p[i, 0]),
            "common": float(c[1]), "p_common": float(p[i, 1]), "rank": int(ranks[i]),
            "nearest": done.names[int(np.abs(c[2:]).argmax())],
        }
        for i, c in enumerate(cosines)
    ]  # fmt: skip


def _said(x: Experiment, done: Usual, rows: list[dict[str, Any]]) -> tuple[str, str, str, str]:
    order = np.argsort(-np.abs(done.shares), kind="stable")[:4]
    told = ", ".join(
        f"{done.names[i]} {done.shares[i]:.0%}" if x.agent.discrete else f"{done.names[i]} {done.shares[i]:+.2f}"
        for i in order.tolist()
    )
    first = [r for r in rows if r["dyad"] == 0]
    beyond = [r for r in first if r["q"] <= LEVEL]
    leads = [r for r in first if r["rank"] == 1]
    common = [r for r in first if r["nearest"] == done.names[done.common]]
    title = f"{x.model.name} in {x.agent.environment.id} · dyads against the actions of {x.count(CLEAN)} episodes"
    says = f"{'It takes' if x.agent.discrete else 'Mean actions:'} {told}. Dyad 0 lies along the mean action beyond "
    says += f"chance at {len(beyond)} of {len(first)} places (false-discovery rate {LEVEL:.0%})"
    if beyond:
        best = max(beyond, key=lambda r: abs(r["cos"]))
        says += f", most at {best['site']} {best['side']} ({best['cos']:+.3f})"
    says += f"; it is the first of its place's dyads by that at {len(leads)}"
    if x.agent.discrete:
        says += f", and its nearest action is the most frequent one at {len(common)} (by chance some "
        says += f"{len(first) / len(done.names):.0f})"
    no = "A cosine says where a dyad points, not how often it is read, nor which sign it is read with; "
    no += "adding the same to all logits is part of the mean action and changes nothing: --by contrasts of locate."
    return title, says + ".", no, f"covector locate {_locating(x)} {BASIS} --by contrasts"


def _locating(x: Experiment) -> str:
    """The words of the model without the environment, which locate does not take."""
    words, _, _ = x.typed.partition(" --env ")
    return words
