"""What removing a dyad does to the action, beside what its weights say: straight to the action head, and in all.

Source: theory page F12, F13; the same measurements as `covector.analyses.behaviour`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from covector.analyses.agent_map import NOTHING_RUN
from covector.analyses.behaviour import straight_effects
from covector.analyses.rollout_arms import divergences
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.render import Column, Table
from covector.run.decoder import Decoder
from covector.run.replay import Moments, values
from covector.study.edit import Edit

Dyad = tuple[str, int]
# (straight, total, other): KL of the action straight and in all, share of moments with another action.
Effects = Mapping[Dyad, tuple[float, float, float]]
BASIS = "action_out"


def removal_effects(model: Model, decoder: Decoder, seen: Moments, dyads: Sequence[Dyad]) -> Effects:
    """What the removal of each dyad alone does at recorded moments; see `Effects`.

    Straight is NaN where the dyad does not write the stream, or a norm stands behind it. Costs a pass over the moments
    for each dyad. Raises what resolving the edits raises.
    """
    changes = {f"{site}:{i}": Edit.parse(f"{site}:{i}*0").change(model) for site, i in dyads}
    direct = straight_effects(seen.agent, decoder, seen, values(decoder, seen), changes)
    moved = divergences(decoder, seen, changes)
    return {(site, i): (direct[name], moved[name][1], moved[name][0]) for site, i in dyads for name in [f"{site}:{i}"]}


def dyads_of(table: Table) -> list[Dyad]:
    """The dyads of a table of cells, each once. Raises BadRequest where effects say nothing about its cells."""
    if not any(b.partition(":")[0] == BASIS for b in table.meta["bases"]):
        raise BadRequest(
            f"--total: expected the basis {BASIS}, whose actions move, got {', '.join(table.meta['bases'])}"
        )
    if table.meta["frame"] != "raw":
        raise BadRequest(f"--total: expected frame raw, in which dyads are removed, got {table.meta['frame']}")
    return list(dict.fromkeys(zip(table["site"], map(int, table["dyad"]), strict=True)))


def with_effects(table: Table, found: Effects, seen: Moments, more: Mapping[str, object]) -> Table:
    """The table of cells with what removing each dyad does: `straight`, `total`, `other`, next to `direct`."""
    rows = [found[site, int(i)] for site, i in zip(table["site"], table["dyad"], strict=True)]
    measured = np.array(rows, dtype=np.float64).reshape(-1, 3)
    unit = "nats" if seen.agent.discrete else ""
    kind = "KL of the action" if seen.agent.discrete else "mean squared change of the action"
    columns = [
        Column("straight", measured[:, 0], unit, 4, f"{kind} if the dyad's way straight to the action head is cut"),
        Column("total", measured[:, 1], unit, 4, f"{kind} if the dyad is removed, along clean episodes"),
        Column("other", measured[:, 2], "", 2, "share of those moments with another action"),
    ]
    at = [c.name for c in table.columns].index("direct") + 1
    largest = max(found, key=lambda dyad: found[dyad][1])
    said = (
        f" Removed alone, {largest[0]}:{largest[1]} moves the action most ({found[largest][1]:.3g} in all"
        + (f", {found[largest][0]:.3g} straight" if found[largest][0] == found[largest][0] else "")
        + f"; {seen.count} moments of {len(np.unique(seen.of))} clean episodes)."
    )
    played = "Effects are on the next action along clean episodes, not on returns: covector rollout plays them"
    return replace(
        table,
        columns=(*table.columns[:at], *columns, *table.columns[at:]),
        meta=dict(table.meta) | {"moments": seen.count, "total_effects": dict(more)},
        says=table.says + said,
        not_says=table.not_says.replace(NOTHING_RUN, played),
    )
