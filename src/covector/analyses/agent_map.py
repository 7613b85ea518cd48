"""Every dyad against every label: the heat maps of the decision-transformer post, for all matrices at once.

The post looked at singular vectors × embeddings one matrix at a time, and took rows of V for singular vectors (its
claim that the second MLP matrix hardly meets actions comes from that). Here a dyad is a dyad on both sides, every cell
has its exact p, and one level holds for all cells of the request.

Source: F12, F13 and §0 of the theory page; `docs/theory/location.md`, equations 17–18.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from covector.analyses.agent_map_picture import panels
from covector.analyses.agent_untrained import Untrained, said, untrained
from covector.analyses.locate_places import Chosen, Place, chosen, places
from covector.axes import Float
from covector.errors import BadRank, BadRequest, FrameUnavailable
from covector.linalg import chance
from covector.linalg.lapack import at_most_threads
from covector.linalg.location import hyperplane
from covector.linalg.svd import svd
from covector.model.circuits import site_tensors
from covector.model.opened import Model
from covector.render import Column, Table

# Streams narrower than this are decomposed faster by one thread than by several that wait for each other.
SMALL = 512
# The chance that the level of all cells, and the false-discovery rate of the sentence, leave.
LEVEL = 0.05
# Cells of one table: beyond, files of hundreds of megabytes are written.
MOST_CELLS = 400_000


@dataclass(frozen=True, eq=False)
class Directions:
    """The leading dyads of one place, on that side: unit rows in the space that they live in, and their gains."""

    place: Place
    rows: Float[np.ndarray, "r d"]
    stream: Float[np.ndarray, "r d_model"]
    S: Float[np.ndarray, " r"]

    @property
    def d(self) -> int:
        """The dimension that chance counts."""
        return self.rows.shape[1]


def directions(model: Model, sites: str, side: str, dyads: int) -> list[Directions]:
    """The first `dyads` dyads of every place, in the order of the model; maps of zeros have none.

    Raises BadRank for dyads < 1, FrameUnavailable in a frame with biases, and what `places` raises.
    """
    if isinstance(dyads, bool) or dyads < 1:
        raise BadRank(f"expected dyads >= 1 per place, got {dyads}; leave it out for 8")
    if model.frame.bias:
        raise FrameUnavailable("locate looks at maps of the stream without their constants; leave +bias out")
    made = []
    there = places(model, sites, side)
    for site in dict.fromkeys(p.site for p in there):
        with at_most_threads(1 if model.spec.d_model < SMALL else None):
            found = svd(model.map(site))
        for place in (p for p in there if p.site == site):
            stream = found.U.T if place.side in ("read", "query") else found.Vh
            stream = np.ascontiguousarray(stream[: min(dyads, found.rank)])
            rows = hyperplane(stream) if place.centred else stream
            if len(rows):
                made.append(Directions(place, rows, stream, found.S[: len(rows)]))
    if not made:
        raise BadRequest("every map named is zero: nothing is read or written there; name other sites")
    return made


def agent_map(
    model: Model,
    bases: Sequence[str] | str,
    *,
    sites: str = "*",
    side: str = "both",
    dyads: int = 8,
    without: Sequence[str] | str = (),
    frame: str | None = None,
) -> Table:
    """One row per dyad and label, nearest first: the cosine, its p, and what a cell of this kind says.

    `bases` are names, or one text with commas (``action_out,state_in``). The first `dyads` dyads of every place of
    `sites` (`locate`'s words) are compared with every label of every basis. `without` leaves labels out as for
    `locate`; ``trained`` also those that look as training found them.

    Columns: `cos` of dyad and label with the level that the best of *all* cells stays below with 95 %; `zeta` = √d·cos;
    `p` of the cell alone, exact (Beta); `q` Benjamini–Hochberg over all cells; `means`; `direct`, on written sides of
    output labels: what a reading of 1 adds to that output before the final norm, σ·v·e; `untrained`: why the label says
    nothing, where that is known. Costs one SVD per map and a product per basis.
    Raises UnknownBasis, BadSite, BadRank, UnknownFrame, FrameUnavailable, and BadRequest for what cannot be compared.
    """
    names = [bases] if isinstance(bases, str) else list(bases)
    names = list(dict.fromkeys(n.strip() for text in names for n in text.split(",") if n.strip()))
    without = (without,) if isinstance(without, str) else tuple(without)
    if not names:
        raise BadRequest("expected the name of a basis, or several with commas, got none; try action_out")
    view = model if frame is None or frame == str(model.frame) else model.framed(frame)
    found = directions(view, sites, side, dyads)
    against = [_against(view, name, without) for name in names]
    cells = sum(len(f.rows) for f in found) * sum(len(c.rows) for c, _ in against)
    if cells > MOST_CELLS:
        raise BadRequest(
            f"expected at most {MOST_CELLS} cells (dyads × labels), got {cells}; fewer --dyads, --sites or bases"
        )
    columns = _columns(view, found, against, cells)
    used = (t for f in found for t in site_tensors(f.place.site))
    tensors = dict.fromkeys((*used, *(t for c, _ in against for t in c.whole.tensors)))
    meta = {
        "analysis": "agent_map",
        "policy": "none: weights only",
        "bases": names,
        "labels": [len(c.rows) for c, _ in against],
        "order": {c.whole.name: c.labels for c, _ in against},
        "left_out": [c.left_out for c, _ in against],
        "without": list(without),
        "untrained_heads": [c.whole.name for c, u in against if u.head],
        "untouched": [int(u.untouched[c.rows].sum()) for c, u in against],
        "sites": sites,
        "side": side,
        "places": len(found),
        "dyads": dyads,
        "dimension": sorted({f.d for f in found}),
        "cells": cells,
        "level": _level(found, cells),
        "null": "Haar direction; level: union over all cells",
    }
    table = Table(
        columns,
        view.meta | meta | {"tensors": view.origins(*tensors)},
        key=("site", "side", "dyad", "basis", "label"),
    )
    return replace(
        table,
        title=_title(table, view),
        says=_says(table),
        not_says=_not_says(table, view, names),
        next=_next(table, view),
        picture=panels,
    )


def means(side: str, basis: str) -> str:
    """What a cell says: the side of the dyad decides between writing and reading, that of the basis what is met."""
    label, _, way = basis.partition(":")[0].rpartition("_")
    label = label.removesuffix("_in")
    if way == "out":
        one = f"{_article(label)} {label} already written"
        return {
            "write": f"writes the {label}", "read": f"reads {one}",
            "query": f"asks where {one} stands", "key": f"is found by {one}",
        }[side]  # fmt: skip
    return {
        "write": f"writes as the {label} is embedded", "read": f"reads the {label} input",
        "query": f"asks from the {label} input", "key": f"is found by the {label} input",
    }[side]  # fmt: skip


def _article(word: str) -> str:
    return "an" if word[:1] in "aeiou" else "a"


def _against(model: Model, name: str, without: tuple[str, ...]) -> tuple[Chosen, Untrained]:
    found, known = chosen(model, name, (), without), untrained(model, name)
    if "trained" in without:
        kept = found.rows[~known.untouched[found.rows]]
        if not len(kept):
            raise BadRequest(f"basis {name}: all its labels look untouched; leave --without trained out")
        found = replace(found, rows=kept, left_out=found.left_out)
    return found, known


def _level(found: list[Directions], cells: int) -> float:
    """|cos| that the best of all cells stays below with 95 %, in the smallest dimension there is."""
    return float(chance.threshold(min(f.d for f in found), cells, LEVEL))


def _columns(
    model: Model, found: list[Directions], against: list[tuple[Chosen, Untrained]], cells: int
) -> list[Column]:
    """All cells, nearest first (by p, so that a side of fewer dimensions is not favoured)."""
    blocks = [_Block(model, f, chosen_, known) for f in found for chosen_, known in against]
    cos = np.concatenate([b.cos.ravel() for b in blocks])
    p = np.concatenate([np.ravel(chance.tail(b.cos, b.at.d)) for b in blocks])
    # Below any p that a double holds the order is that of the cosines.
    order = np.lexsort((-np.abs(cos), p))
    text = {name: [v for b in blocks for v in getattr(b, name)()] for name in _Block.TEXTS}
    number = {name: np.concatenate([getattr(b, name)() for b in blocks]) for name in _Block.NUMBERS}
    level = float(_level(found, cells))

    def said_of(name: str) -> list[str]:
        return [text[name][i] for i in order.tolist()]

    return [
        Column("site", said_of("site")),
        Column("side", said_of("side"), about="read, write; of a QK map query and key, both reads"),
        Column("dyad", number["dyad"][order].astype(int), about="index of the singular triple, largest gain first"),
        Column("sigma", number["sigma"][order], about="gain σ of the dyad in the map's own units"),
        Column("basis", said_of("basis")),
        Column("label", said_of("label")),
        Column("cos", cos[order], "cos", 3, "cosine of the singular direction and the label", chance=level),
        Column("zeta", number["zeta"][order], "sd", 2, "√d·cos"),
        Column("p", p[order], about="chance that a random direction reaches this |cos| with this label"),
        Column("q", chance.bh(p)[order], about="Benjamini–Hochberg over all cells of the request"),
        Column("means", said_of("means"), about="what a cell of this kind says"),
        Column("direct", number["direct"][order], digits=3,
               about="σ·v·e: what a reading of 1 adds to that output, before the final norm"),
        Column("untrained", said_of("untrained"), about="why the label says nothing, where that is known"),
    ]  # fmt: skip


class _Block:
    """The cells of one place and one basis: dyads × labels, flattened row by row."""

    TEXTS = ("site", "side", "basis", "label", "means", "untrained")
    NUMBERS = ("dyad", "sigma", "zeta", "direct")

    def __init__(self, model: Model, at: Directions, labels: Chosen, known: Untrained) -> None:
        self.model, self.at, self.chosen, self.known = model, at, labels, known
        self.cos = at.rows @ labels.units(at.place.centred).astype(np.float64).T
        self.cos = np.clip(self.cos, -1.0, 1.0)

    def _same(self, text: str) -> list[str]:
        return [text] * self.cos.size

    def site(self) -> list[str]:
        return self._same(str(self.at.place.site))

    def side(self) -> list[str]:
        return self._same(self.at.place.side)

    def basis(self) -> list[str]:
        return self._same(self.chosen.whole.name)

    def means(self) -> list[str]:
        return self._same(means(self.at.place.side, self.chosen.whole.name))

    def label(self) -> list[str]:
        return self.chosen.labels * len(self.cos)

    def untrained(self) -> list[str]:
        return [self.known.words(int(row)) for row in self.chosen.rows] * len(self.cos)

    def dyad(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.cos)), self.cos.shape[1])

    def sigma(self) -> np.ndarray:
        return np.repeat(self.at.S, self.cos.shape[1])

    def zeta(self) -> np.ndarray:
        return np.sqrt(self.at.d) * self.cos.ravel()

    def direct(self) -> np.ndarray:
        whole = self.chosen.whole
        if self.at.place.side != "write" or whole.side != "out":
            return np.full(self.cos.size, np.nan)
        vectors = self.model.bases[whole.name.partition(":")[0]].vectors[self.chosen.rows].astype(np.float64)
        return np.ravel(self.at.S[:, None] * (self.at.stream @ vectors.T))


def _title(table: Table, model: Model) -> str:
    meta = table.meta
    labels = " + ".join(f"{n} ({k})" for n, k in zip(meta["bases"], meta["labels"], strict=True))
    return (
        f"{model.name} · {meta['places']} places × {meta['dyads']} dyads × {labels} · {meta['cells']} cells · "
        f"frame {model.frame}"
    )


def _says(table: Table) -> str:
    """How many cells are beyond chance, and the nearest cell of each kind of matrix, in falling order."""
    beyond = int(np.sum(table.column("q").numbers <= LEVEL))
    head = f"{beyond} of {len(table)} cells are beyond chance (false-discovery rate {LEVEL:.0%})"
    if not beyond:
        return f"{head}: no dyad here lies along a label."
    best: dict[str, dict[str, Any]] = {}
    for row in table.head(beyond).rows:
        if not row["untrained"]:
            best.setdefault(f"{kind(row['site'])} {row['side']}", row)
    if not best:
        return f"{head}, all of them of labels that were never trained: chance, for all that is known."
    shown = [f"{name} .{round(abs(r['cos']) * 1000):03d} ({r['label']})" for name, r in list(best.items())[:6]]
    return f"{head}. The nearest cell of each kind: {', '.join(shown)}."


def kind(site: str) -> str:
    """``OV``, ``QK``, ``MLP in``, ``MLP out``; embeddings by name."""
    name = re.sub(r"^L\d+([HK]\d+)?\.", "", site)
    return name.replace("mlp.", "MLP ").replace("ov", "OV").replace("qk", "QK")


# How every map ends that has not played the agent; see `agent_effects` for one that has.
NOTHING_RUN = "It does not say that the model uses these directions (nothing was run): covector rollout edits them"


def _not_says(table: Table, model: Model, names: list[str]) -> str:
    parts = [NOTHING_RUN]
    if model.stored.spec.final_norm is not None and any(n.partition(":")[0].endswith("_out") for n in names):
        parts.append("direct leaves out the final norm")
    parts += said(model, names)
    parts += [f"{k} labels of {n} have no direction and are left out"
              for n, k in zip(names, table.meta["left_out"], strict=True) if k]  # fmt: skip
    return "; ".join(parts) + "."


def _next(table: Table, model: Model) -> str:
    """Edit the dyad that writes (or, without one, reads) most plainly."""
    trained = [row for row in table.head(200).rows if not row["untrained"]] or table.rows[:1]
    top = next((row for row in trained if row["side"] == "write"), trained[0])
    if "action_out" in model.bases and str(model.frame) == "raw":
        arm = shlex.quote(f"{top['site']}:{top['dyad']}*0")
        return f"covector rollout {model.words} --arm edit={arm} --episodes 100"
    return f"covector svd {model.words} {top['site']} --basis {top['basis']}{model.framing}"
