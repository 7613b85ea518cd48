"""Where to look first in an atlas: directions that were called, then those nearest to a label, from many places.

covector.look_first("gpt2m.atlas").show()
"""

from pathlib import Path

import numpy as np

from covector.analyses.directions import LEVEL, direction_columns, inside_layers, like_first
from covector.axes import Bool, Float, Int
from covector.io.atlas import Atlas
from covector.render import Column, Table

# Directions of one place that are named: a head that is all about one thing would fill the list.
OF_ONE_PLACE = 2


def look_first(source: Atlas | str | Path, top: int = 9) -> Table:
    """At most `top` directions with q < .05 over the whole atlas: those called interpretable first, then by |ζ|.

    Of places inside layers, at most two of one: an embedding's directions are near its own rows for random weights
    too. ``pole``: the one whose list was judged where one was called, else the nearest label's; ``labels`` are of that
    pole. ``row``: the row of the index. An atlas built without scores calls nothing.
    `source`: an atlas, or its folder. Raises CorruptAtlas.
    """
    atlas = source if isinstance(source, Atlas) else Atlas(source)
    judged = "interpretable" in atlas.names
    given = atlas.columns("zeta", "q_dir", *(("interpretable", "score_pole") if judged else ()))
    called = given["interpretable"].astype(bool) if judged else np.zeros(len(atlas), dtype=bool)
    with np.errstate(invalid="ignore"):
        near = inside_layers(atlas) & (given["q_dir"] < LEVEL)
    rows = _chosen(atlas.places, near, given["zeta"], called, top)
    sign = np.where(called, given["score_pole"], given["zeta"])[rows] if judged else given["zeta"][rows]
    columns = {c.name: c for c in direction_columns(atlas, rows)}
    lists = zip(columns["plus"].values, columns["minus"].values, sign, strict=True)
    found, meta = int(near.sum()), atlas.manifest["meta"]
    return Table(
        columns=[
            *(columns[n] for n in ("place", "side", "zeta", "label", "q_dir")),
            Column("interpretable", called[rows], about="called so by the rule"),
            Column("pole", ["−" if s < 0 else "+" for s in sign], about="whose list was judged, or is nearest"),
            Column("labels", [minus if s < 0 else plus for plus, minus, s in lists], about="of that pole"),
            Column("row", rows.astype(np.float64), digits=0, about="of the index"),
        ],
        meta={**meta, "analysis": "look_first", "judged": judged, "level": LEVEL},
        title=f"Where to look first · {meta['model']} · {len(rows)} of {found:,} directions of layers with q < .05",
        says=_says(int((called & near).sum()), int(called[rows].sum()), judged, len(rows)),
        not_says="The strongest of many: q is of the whole atlas, ζ alone is not. A direction near a label need not be "
        "used by the model.",
        next=like_first(atlas, rows),
        key=("place", "side"),
    )


def _says(called: int, named: int, judged: bool, n: int) -> str:
    if not n:
        return "No direction inside a layer is nearer to a label than random ones (q < .05 over the whole atlas)."
    if called:
        are = "is" if called == 1 else "are"
        first = f"{called:,} of these {are} called interpretable by the rule, {named} of them {are} named first"
        return f"Directions inside layers, at most {OF_ONE_PLACE} of a place: {first}; then those nearest to a label."
    rule = "no direction is called interpretable by the rule" if judged else "the atlas was built without scores"
    return f"The directions inside layers nearest to a label, at most {OF_ONE_PLACE} of a place; {rule}."


def _chosen(
    place: Int[np.ndarray, " n"],
    near: Bool[np.ndarray, " n"],
    zeta: Float[np.ndarray, " n"],
    called: Bool[np.ndarray, " n"],
    top: int,
) -> Int[np.ndarray, " m"]:
    among = np.flatnonzero(near)
    order = among[np.lexsort((-np.abs(zeta[among]), ~called[among]))]
    seen, kept = dict[int, int](), list[int]()
    for i in order:
        at = int(place[i])
        if seen.get(at, 0) < OF_ONE_PLACE and len(kept) < top:
            seen[at] = seen.get(at, 0) + 1
            kept.append(int(i))
    return np.array(kept, dtype=np.int64)
