"""Which dyad of a head reads which dyad that an earlier one writes: composition dyad by dyad, with its null.

`compose` tells the best aligned dyads of a pair of places; here are all of them. Each row is a dyad of a writer, a dyad
of a later reader and the way in (q, k, v; ``in``, ``gate``, ``out``), with the cosine of what the one writes and what
the other reads. A random direction has the exact Beta law of a cosine; two prices are told beside the p of the single
cosine: that of all dyads of this pair of places, and the false-discovery rate over all pairs of dyads of the request.

Source: Elhage et al. 2021; `docs/theory/heads.md`, equations 14 and 18–19.
"""

import numpy as np

from covector.analyses.compose_places import Place, Places, command_of, places
from covector.analyses.studies.directions import of_share
from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.composition import cosines_between
from covector.model.opened import Model
from covector.render import Column, Grid, Table

# False-discovery rate of the sentence.
LEVEL = 0.05
# Pairs of dyads that are held and judged at a time: 80 MB of cosines, as much of p and q.
LARGEST = 10**7
# Dyads of either side in the picture; more cannot be read.
SHOWN = 32


def compose_dyads(model: Model, *, between: str = "heads", top: int = 20, frame: str | None = None) -> Table:
    """Pairs of a dyad that is written and a dyad that is read later, most aligned first; the `top` of them (0: all).

    `between` as for `compose`: ``heads``, ``all``, or places with commas between (``L0H1,L2H0``).

    `cos` is |cos| of what dyad `writes` of the writer writes with what dyad `reads` of the reader reads (a dyad's sign
    is free), `share` what the two carry of ‖W₁W₂‖_F² of their places. p is the chance that one random direction is as
    near: exact for a random rotation of reader against writer. p_union pays for all dyads of the two places (union), q
    is Benjamini–Hochberg over all pairs of dyads of the request, shown or not. Dyads are numbered from 0 by gain,
    direction 1 taken off first where the title says so. Where gains are alike, single dyads are any basis of their
    span. Raises BadRequest, also for more than 10,000,000 pairs of dyads, BadSite, UnknownFrame, FrameUnavailable.
    Source: `docs/theory/heads.md`, equations 14 and 18–19.
    """
    if isinstance(top, bool) or top < 0:
        raise BadRequest(f"expected top >= 0 pairs of dyads, got {top}; 0 shows all")
    at = places(model, between, frame)
    pairs = [(at.writers[i], at.readers[j]) for i, j in np.argwhere(at.allowed)]
    sizes = np.array([w.end.S.size * r.end.S.size for w, r in pairs])
    number = int(sizes.sum())
    if not number:
        raise BadRequest(f"expected maps with dyads, those of '{between}' are zero; name other places with --between")
    if number > LARGEST:
        first, then = pairs[int(np.flatnonzero(sizes)[0])]
        raise BadRequest(
            f"expected at most {LARGEST:,} pairs of dyads, '{between}' has {number:,}; name fewer places: "
            f"--between {first.name},{then.name}"
        )
    cosines = np.concatenate([np.abs(cosines_between(w.end, r.end)).ravel() for w, r in pairs])
    cosines = np.minimum(cosines, 1.0)
    p = np.asarray(chance.tail(cosines, at.d))
    q = chance.bh(p)
    order = np.argsort(-cosines, kind="stable")
    order = order[:top] if top else order
    of = np.searchsorted(np.cumsum(sizes), order, side="right")
    within = order - (np.cumsum(sizes) - sizes)[of]
    first, then = pairs[of[0]]
    columns = _columns(at, pairs, of, within, cosines[order], p[order], q[order])
    return Table(
        columns=columns,
        meta=at.view.meta | {"analysis": "compose_dyads", "policy": "none: weights only", "between": between,
                             "pairs": len(pairs), "dyads": number, "shown": len(order), "dimension": at.d,
                             "direction_1": "taken off" if at.centred else "kept",
                             "null": "relative Haar rotation: exact Beta law of a cosine; union over the dyads of a "
                             "pair of places; Benjamini–Hochberg over all", "tensors": at.tensors},
        title=f"{at.view.name} · {len(order):,} of {number:,} pairs of dyads in {len(pairs)} pairs of places"
        f" · frame {at.view.frame} · d {at.d}{at.told}",
        says=_says(columns, q, np.repeat(np.arange(len(pairs)), sizes), len(pairs)),
        not_says=f"Dyads of like gain are any basis of their span. {at.limits()}",
        next=command_of(at.view, then),
        picture=_picture(first, then, at.d),
        key=("writer", "reader", "way", "writes", "reads"),
    )  # fmt: skip


def _columns(
    at: Places,
    pairs: list[tuple[Place, Place]],
    of: Int[np.ndarray, " n"],
    within: Int[np.ndarray, " n"],
    cosines: Float[np.ndarray, " n"],
    p: Float[np.ndarray, " n"],
    q: Float[np.ndarray, " n"],
) -> list[Column]:
    """Rows are entries `within` the cosines (row by row) of pairs `of`."""
    shown = [pairs[k] for k in of]
    across = np.array([r.end.S.size for _, r in shown])
    tries = across * np.array([w.end.S.size for w, _ in shown])
    writes, reads = within // across, within % across
    whole = {k: _squared(*pairs[k]) for k in dict.fromkeys(of.tolist())}
    power = np.array([w.end.weights[a] * r.end.weights[b] for (w, r), a, b in zip(shown, writes, reads, strict=True)])
    total = np.array([whole[k] for k in of.tolist()])
    share = np.divide(power * cosines**2, total, out=np.full(len(total), np.nan), where=total > 0)
    levels = {n: float(chance.threshold(at.d, n)) for n in dict.fromkeys(tries.tolist())}
    return [
        Column("writer", [w.name for w, _ in shown], about="what writes: OV of a head, an MLP's output, an input"),
        Column("writes", writes, about="its dyad, from 0 by gain"),
        Column("reader", [r.name for _, r in shown], about="what reads, later in the forward pass"),
        Column("way", [r.way for _, r in shown], about="through its queries, keys, values; in, gate, out"),
        Column("reads", reads, about="its dyad, from 0 by gain"),
        Column("cos", cosines, "cos", 3, "|cos| of what is written and what is read", chance="cos_level"),
        Column("cos_level", np.array([levels[n] for n in tries.tolist()]), "cos", 3,
               "|cos| that the best pair of random dyads of the two places stays below, 95 %", chance=0.0),
        Column("share", share, "", 3, "share of ‖W₁W₂‖² that these two dyads carry"),
        Column("p", p, about="chance that one random direction is this near: exact Beta law"),
        Column("p_union", np.minimum(tries * p, 1.0), about="chance for any dyads of the two places (union)"),
        Column("q", q, about="Benjamini–Hochberg over all pairs of dyads of the request"),
    ]  # fmt: skip


def _squared(writer: Place, reader: Place) -> float:
    """‖W₁W₂‖_F²/(‖W₁‖_F²‖W₂‖_F²)."""
    cosines = cosines_between(writer.end, reader.end)
    return float(writer.end.weights @ cosines**2 @ reader.end.weights)


def _says(columns: list[Column], q: Float[np.ndarray, " n"], pair: Int[np.ndarray, " n"], pairs: int) -> str:
    first = {c.name: c.values[0] for c in columns}
    beyond = q < LEVEL
    share = "" if np.isnan(first["share"]) else f", {of_share(float(first['share']))} of what they compose"
    return (
        f"At a false-discovery rate of {LEVEL:.0%}, {int(beyond.sum()):,} of {len(q):,} pairs of dyads are more "
        f"aligned than random directions, in {len(np.unique(pair[beyond])):,} of {pairs:,} pairs of places; most "
        f"of all: {first['writer']} dyad {first['writes']} → {first['reader']} ({first['way']}) dyad {first['reads']}, "
        f"|cos| {first['cos']:.3f}{share}."
    )


def _picture(writer: Place, reader: Place, d: int) -> Grid:
    """|cos| of the leading dyads of the pair of places that has the most aligned ones."""
    values = np.abs(cosines_between(writer.end, reader.end))[:SHOWN, :SHOWN]
    return Grid(
        values=values,
        row_labels=[str(i) for i in range(values.shape[0])],
        column_labels=[str(j) for j in range(values.shape[1])],
        value_name="|cos|",
        unit="cos",
        chance=float(chance.threshold(d, 1)),
        digits=2,
        row_name=f"{writer.name} dyad",
        column_name=f"{reader.name}.{reader.way} dyad",
    )
