"""The directions of an atlas that a filter keeps, in an order: the same rows as the explorer's list.

covector.directions("gpt2m.atlas", kinds=["ov"], side="write", labels="fire").show()
"""

import re
import shlex
import unicodedata
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from covector.analyses.direction_lines import direction_line
from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.render import Column, Table

# A direction is called near a label at this q; see `readout.LEVEL`.
LEVEL = 0.05
# Labels of each pole that a row names.
LABELS = 6
FLAGS = ("interpretable", "svd_specific", "noisy", "aligned")
# What rows can be put in order by, as columns of the index; ``strength`` is |ζ|.
NUMBERS = ("sigma", "p_dir", "q_dir", "p_cov", "p_svd", "q_svd", "coherence", "q_coherence", "heldout", "q_heldout",
           "intruder", "q_intruder", "lexical", "q_lexical", "stability")  # fmt: skip


def directions(
    source: Atlas | str | Path,
    *,
    kinds: Sequence[str] = (),
    side: str = "",
    site: str = "",
    layers: tuple[int, int] | None = None,
    most_q: float = 1.0,
    flag: str = "",
    labels: str = "",
    sort: str = "strength",
    rising: bool = False,
    top: int | None = None,
) -> Table:
    """One row per direction that every filter keeps, the first `top` of them.

    `kinds`: of maps; `side`: read, write, query or key; `site`: a part of an address, * for any number; `layers`: first
    and last, both in the atlas; `most_q`: the largest q over the whole atlas; `flag`: one of `FLAGS`; `labels`: a part
    of a label in either pole's list, or one in quotes, exactly. `sort`: ``strength`` (|ζ|), ``layer``, ``place``,
    ``side``, ``label`` or one of `NUMBERS`, falling unless `rising`; what is unknown comes last.
    p and q are those of the whole atlas: they are not corrected for what a filter chooses. `source`: an atlas, or its
    folder. Raises BadRequest for a name, a layer or a place that is none, CorruptAtlas.
    """
    atlas = source if isinstance(source, Atlas) else Atlas(source)
    _check(atlas, kinds, side, flag, top)
    _check_places(atlas, site, layers)
    kept = _kept(atlas, kinds, side, site, layers, most_q, flag)
    if labels.strip():
        kept &= _listing(atlas, labels)
    order = _order(atlas, sort, rising)
    rows = order[kept[order]]
    near = int((atlas.column("q_dir")[rows] < LEVEL).sum())
    first, meta = rows if top is None else rows[:top], atlas.manifest["meta"]
    return Table(
        columns=direction_columns(atlas, first, sort),
        meta={**meta, "analysis": "directions", "kept": len(rows), "near": near, "sort": sort},
        title=f"{meta['model']} · {len(first):,} of {len(rows):,} kept directions shown, {len(atlas):,} in all",
        says=f"{len(rows):,} of {len(atlas):,} directions are kept; {near:,} of them lie closer to a label than random "
        f"directions (q_dir < {LEVEL} over the whole atlas){_beside(atlas, rows)}." + _verdict(atlas, rows),
        not_says="Filters choose by what is looked at: p and q are of the whole atlas and are not corrected for the "
        "choice. A direction near a label need not be used.",
        next=like_first(atlas, first),
        lines=partial(direction_line, order=sort),
        key=("place", "side"),
    )  # fmt: skip


def like_first(atlas: Atlas, rows: Int[np.ndarray, " n"]) -> str:
    """The search for more like the first of these rows that a search compares, inside a layer; empty without rows."""
    if not len(rows):
        return ""
    inside = rows[inside_layers(atlas)[rows]]
    (row,) = atlas.rows((inside if len(inside) else rows)[:1], ["site", "dyad", "side"])
    return f"covector search {shlex.quote(str(atlas.folder))} --like {row['site']}:{row['dyad']}.{row['side']}"


def inside_layers(atlas: Atlas) -> Bool[np.ndarray, " n"]:
    """Which directions are of maps inside layers: an embedding's lie near its own rows for random weights too."""
    return np.array([r["layer"] is not None for r in atlas.sites])[atlas.places]


def _beside(atlas: Atlas, rows: Int[np.ndarray, " n"]) -> str:
    """Of those near a label: how many are beyond the covariance of the labels, and how many are of embeddings."""
    near = rows[atlas.column("q_dir")[rows] < LEVEL]
    p_cov, said = atlas.column("p_cov")[near], ""
    if np.isfinite(p_cov).any():
        beyond = int((p_cov < LEVEL).sum())
        said += f", {beyond:,} of these also than ones of the labels' own covariance (p_cov < {LEVEL})"
    if outside := int((~inside_layers(atlas)[near]).sum()):
        verb = "is" if outside == 1 else "are"
        said += f"; {outside:,} {verb} of an embedding, whose directions lie near its own rows for random weights too"
    return said


def _verdict(atlas: Atlas, rows: Int[np.ndarray, " n"]) -> str:
    """What calls a direction interpretable, where one of these rows is: q_coherence, not q_dir."""
    if "interpretable" not in atlas.names or not atlas.column("interpretable")[rows].any():
        return ""
    return " Interpretable is a verdict on the list of labels (q_coherence and more), not on the nearest one (q_dir)."


def direction_columns(atlas: Atlas, rows: Int[np.ndarray, " n"], order: str = "") -> list[Column]:
    """What a list says of directions: where, how strong, how near to a label beside chance, verdicts, both poles.

    `order` is what puts them in order; one of `NUMBERS` has its column.
    """
    names = set(atlas.names)
    wanted = ("site", "dyad", "side", "sigma", "zeta", "label", "top", "bottom", "score_pole", *NUMBERS, *FLAGS)
    told = atlas.rows(rows, [n for n in wanted if n in names])

    def of(name: str) -> Float[np.ndarray, " n"]:
        return np.array([np.nan if r[name] is None else r[name] for r in told], dtype=np.float64)

    def more(**about: str) -> list[Column]:
        digits = {"coherence": 3, "q_coherence": None}
        return [Column(n, of(n), digits=digits.get(n), about=text) for n, text in about.items() if n in names]

    judged = []
    if "score_pole" in names:
        poles = [None if not r["score_pole"] else "+" if r["score_pole"] > 0 else "−" for r in told]
        judged = [Column("judged", poles, about="pole of the list that coherence, its q and the verdict are about")]
    columns = [
        Column("place", [f"{r['site']}:{r['dyad']}" for r in told]),
        Column("side", [r["side"] for r in told]),
        Column("sigma", of("sigma"), digits=3, about="gain σ"),
        Column("zeta", of("zeta"), digits=1, about="ζ = √d·cos with the nearest label, signed by its pole"),
        Column("label", [r["label"] for r in told], about="nearest label"),
        *more(
            q_dir="false share among directions as near to a label, whole atlas",
            q_coherence="false share among lists as coherent, whole atlas: what calls a direction interpretable",
        ),
        Column("called", [" ".join(f for f in FLAGS if r.get(f)) for r in told], about="verdicts of the atlas"),
        *judged,
        Column("plus", [_pole(r["top"]) for r in told], about=f"first {LABELS} labels of the + pole"),
        Column("minus", [_pole(r["bottom"]) for r in told], about=f"first {LABELS} labels of the − pole"),
        *more(
            p_dir="chance that a random direction is this near to a label",
            p_svd="chance under rotated bases of the same place",
            p_cov="chance for a random direction of the labels' own covariance",
            coherence="of the labels, after the direction is projected out",
        ),
    ]
    if order in NUMBERS and order not in {column.name for column in columns}:
        columns.append(Column(order, of(order), about="what the rows are in order of"))
    return columns


def _pole(labels: Sequence[str | None] | None) -> list[str]:
    return [t for t in (labels or ())[:LABELS] if t is not None]


def _check(atlas: Atlas, kinds: Sequence[str], side: str, flag: str, top: int | None) -> None:
    there = list(dict.fromkeys(r["kind"] for r in atlas.sites))
    for kind in kinds:
        if kind not in there:
            raise BadRequest(f"--kind: expected a kind of this atlas ({', '.join(there)}), got '{kind}'")
    sides = sorted(set(atlas.column("side")))
    if side and side not in sides:
        raise BadRequest(f"--side: expected a side of this atlas ({', '.join(sides)}), got '{side}'")
    flags = [f for f in FLAGS if f in atlas.names]
    if flag and flag not in flags:
        told = ", ".join(flags) or "none: it was built without scores"
        raise BadRequest(f"--called: expected a verdict of this atlas ({told}), got '{flag}'")
    if top is not None and top < 1:
        raise BadRequest(f"--top: expected at least 1 direction, got {top}")


def _check_places(atlas: Atlas, site: str, layers: tuple[int, int] | None) -> None:
    there = sorted({r["layer"] for r in atlas.sites if r["layer"] is not None})
    if layers is not None and not (there and there[0] <= layers[0] <= layers[1] <= there[-1]):
        told = f"{there[0]} to {there[-1]}" if there else "none: it holds embeddings alone"
        given = f"{layers[0]}" if layers[0] == layers[1] else f"{layers[0]}-{layers[1]}"
        raise BadRequest(f"--layers: expected layers of this atlas ({told}), first to last, got {given}")
    address = _address(site)
    if not any(address.search(folded(r["site"])) for r in atlas.sites):
        raise BadRequest(
            f"--site: expected a part of an address of this atlas, such as {atlas.sites[-1]['site']}, got '{site}'"
        )


def _address(site: str) -> re.Pattern[str]:
    """What addresses are looked through for: * is any number, and a dyad is left out."""
    return re.compile(re.escape(re.sub(r":\d+$", "", folded(site))).replace(r"\*", r"\d+"))


def _kept(
    atlas: Atlas, kinds: Sequence[str], side: str, site: str, layers: tuple[int, int] | None, most_q: float, flag: str
) -> Bool[np.ndarray, " n"]:
    wanted = np.ones(len(atlas.sites), dtype=bool)
    address = _address(site)
    for i, record in enumerate(atlas.sites):
        inside = layers is None or (record["layer"] is not None and layers[0] <= record["layer"] <= layers[1])
        named = bool(address.search(folded(record["site"])))
        wanted[i] = inside and named and (not kinds or record["kind"] in kinds)
    kept = wanted[atlas.places]
    if side:
        kept &= atlas.column("side") == side
    if most_q < 1:
        with np.errstate(invalid="ignore"):
            kept &= atlas.column("q_dir") <= most_q
    return kept & atlas.column(flag).astype(bool) if flag else kept


def _listing(atlas: Atlas, typed: str) -> Bool[np.ndarray, " n"]:
    """Which rows list a label that contains what was typed, or is it where it stands in quotes."""
    exact = re.fullmatch(r"""(['"])(.*)\1""", typed.strip())
    sought = bare(exact[2]) if exact else folded(typed.strip())
    known: dict[str, bool] = {}

    def matches(label: str | None) -> bool:
        if label is None:
            return False
        if label not in known:
            known[label] = bare(label) == sought if exact else sought in folded(label)
        return known[label]

    told = atlas.columns("top", "bottom")
    return np.array([any(map(matches, (*a, *b))) for a, b in zip(told["top"], told["bottom"], strict=True)], dtype=bool)


def _order(atlas: Atlas, sort: str, rising: bool) -> Int[np.ndarray, " n"]:
    values = _sortable(atlas, sort)
    unknown = np.isnan(values)
    return np.lexsort((values if rising else -values, unknown))


def _sortable(atlas: Atlas, sort: str) -> Float[np.ndarray, " n"]:
    if sort == "strength":
        return np.abs(atlas.column("zeta")).astype(np.float64)
    if sort == "place":
        return np.arange(len(atlas), dtype=np.float64)
    if sort == "layer":
        layers = np.array([np.nan if r["layer"] is None else r["layer"] for r in atlas.sites], dtype=np.float64)
        return layers[atlas.places]
    if sort in ("side", "label"):
        texts: Any = atlas.column(sort)
        rank = {text: i for i, text in enumerate(sorted({"" if t is None else str(t) for t in texts}))}
        return np.array([rank["" if t is None else str(t)] for t in texts], dtype=np.float64)
    if sort in NUMBERS and sort in atlas.names:
        return atlas.column(sort).astype(np.float64)
    if sort in NUMBERS and "coherence" in atlas.names:
        raise BadRequest(f"--sort: expected a column of this atlas, it was built before {sort} was kept; build it anew")
    there = ["strength", "place", "side", "layer", "label", *(n for n in NUMBERS if n in atlas.names)]
    raise BadRequest(f"--sort: expected one of {', '.join(there)}, got '{sort}'")


def folded(text: str) -> str:
    """The letters of a text that a search compares: no case, no accents."""
    return "".join(
        c for c in unicodedata.normalize("NFKD", text) if not unicodedata.category(c).startswith("M")
    ).lower()


def bare(label: str) -> str:
    """A label without the mark of a space in front of it."""
    return re.sub("^[ ▁Ġ·]", "", label)
