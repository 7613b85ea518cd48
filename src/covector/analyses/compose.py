"""Which heads read what which other heads write: composition of all pairs, through queries, keys and values.

Each row is a writer, a later reader and the way in (q, k, v; ``in`` and ``gate`` for MLPs, ``out`` for outputs): the
composition score ‖W₁W₂‖_F/(‖W₁‖_F‖W₂‖_F), and the dyads that are aligned best. The reader is QK for q and k, OV for v.

Under LayerNorm the direction 1 is invisible to readers; it is taken off both ends first, whatever the frame. Under
RMSNorm, or with no norm, it is part of the function and stays.

Source: Elhage et al. 2021; `docs/theory/heads.md`, equations 14–18; F17 and SV-22 of the theory page.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from covector.analyses.each_head import without_bias
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.composition import Composition, End, composition, cosines_between, read_end, written_end
from covector.model.address import Site
from covector.model.circuits import cautions, site_tensors
from covector.model.opened import Model
from covector.model.spec import Norm
from covector.render import Column, Grid, Table

WAYS = ("q", "k", "v")
# False-discovery rate of the sentence.
LEVEL = 0.05
# Writers and readers in the picture; more cannot be read.
SHOWN = 32
# Where outputs read, beyond every block.
LAST = 10**6


@dataclass(frozen=True, eq=False)
class _Place:
    """A writer or a reader: its name, the way in (readers), where in the forward pass it stands, and its end."""

    name: str
    way: str
    stage: int
    end: End


def compose(
    model: Model,
    *,
    between: str = "heads",
    top: int = 20,
    frame: str | None = None,
) -> Table:
    """Pairs of a writer and a later reader, the furthest beyond chance first; the `top` of them (0: all).

    `between`: ``heads`` (OV → q, k, v of later heads) or ``all`` (also embeddings and MLP outputs as writers, MLP
    inputs and outputs of the model as readers).

    `score` is ‖W₁W₂‖_F/(‖W₁‖_F‖W₂‖_F), 0 … 1, by chance 1/√d. `z` is score² less 1/d in standard deviations under a
    random relative rotation (exact mean, variance and skewness), p its upper tail by a gamma law of the same three
    moments (never below 1e-6), q Benjamini–Hochberg over all pairs of the request, shown or not. `cos` is the largest
    cosine between a dyad that one writes and one that the other reads (`dyads` tells which), `share` what that pair of
    dyads carries of ‖W₁W₂‖²; p_cos and q_cos repeat the choice of the pair of dyads in the null (union over all of
    them).
    Raises BadRequest, BadSite, UnknownFrame, FrameUnavailable.
    Source: `docs/theory/heads.md`, equations 14–18.
    """
    if between not in ("heads", "all"):
        raise BadRequest(f"expected between heads or all, got '{between}'")
    if isinstance(top, bool) or top < 0:
        raise BadRequest(f"expected top >= 0 pairs, got {top}; 0 shows all")
    view = without_bias(model, frame)
    centred = _reads_through_layer_norm(view)
    d = view.spec.d_model - centred
    writers = list(_writers(view, between, centred))
    readers = list(_readers(view, between, centred))
    found = composition([w.end for w in writers], [r.end for r in readers], d)
    tied = {"embed", "unembed"} if view.stored.spec.tied else set()  # one matrix: nothing to find
    allowed = np.array([[w.stage < r.stage and {w.name, r.name} != tied for r in readers] for w in writers])
    if not allowed.any():
        raise BadRequest(f"{view.name} has no head behind another: expected two blocks of attention; try between='all'")
    rows, across = np.nonzero(allowed)
    z, p, p_cos = (np.asarray(table)[rows, across] for table in (found.z, found.p, found.p_aligned))
    q, q_cos = chance.bh(p), chance.bh(p_cos)
    order = np.argsort(-np.nan_to_num(z, nan=-np.inf), kind="stable")
    order = order[:top] if top else order
    columns = _columns(writers, readers, found, rows[order], across[order])
    columns[4:4] = [Column("z", z[order], "sd", 1, "score² over its null mean 1/d, in the null's standard deviations"),
                    Column("p", p[order], about="upper tail under a random rotation of reader against writer"),
                    Column("q", q[order], about=f"Benjamini–Hochberg over all {len(p)} pairs")]  # fmt: skip
    columns += [Column("p_cos", p_cos[order], about="chance of this cosine between any dyads of the pair (union)"),
                Column("q_cos", q_cos[order], about=f"Benjamini–Hochberg over all {len(p)} pairs"),
                Column("level", found.level[rows[order], across[order]], "", 3, "95 % of chance is below")]  # fmt: skip
    return Table(
        columns=columns,
        meta=view.meta | {"analysis": "compose", "policy": "none: weights only", "between": between, "pairs": len(p),
                          "shown": len(order), "dimension": d, "direction_1": "taken off" if centred else "kept",
                          "null": "relative Haar rotation: gamma law of the exact three moments; union for cosines",
                          "tensors": view.origins(*_tensors(view, between))},
        title=f"{view.name} · {len(order)} of {len(p)} pairs · frame {view.frame} · d {d} · chance 1/√d {d**-0.5:.3f}"
        + (" · direction 1 taken off" if centred else ""),
        says=_says(columns, q, q_cos),
        not_says=_not_says(view, centred),
        next=_next(view, columns),
        picture=_picture(found, allowed, writers, readers),
        key=("writer", "reader", "way"),
    )  # fmt: skip


def _reads_through_layer_norm(view: Model) -> bool:
    """Whether every reader of the stream is behind a LayerNorm, which hides the direction 1 from it."""
    norms: list[Norm | None] = [s.reads for b in view.spec.blocks for s in b.sublayers]
    return all(n is not None and n.kind == "layer" for n in (*norms, view.spec.final_norm))


def _stages(view: Model) -> Iterator[tuple[int, str, int]]:
    """(layer, sublayer, stage): a sublayer sees what stands at an earlier stage; parallel ones share theirs."""
    stage = 0
    for i, block in enumerate(view.spec.blocks):
        for j, sub in enumerate(block.sublayers):
            stage += 1 if j == 0 or not block.parallel else 0
            yield i, sub.name, stage


def _writers(view: Model, between: str, centred: bool) -> Iterator[_Place]:
    if between == "all":
        for name in _inputs(view):
            yield _Place(name, "", 0, written_end(view.map(name), centred=centred))
    for i, name, stage in _stages(view):
        if name == "attn":
            for h in range(_heads(view, i)):
                end = written_end(view.map(Site(i, h, "ov")), centred=centred)
                yield _Place(f"L{i}H{h}", "", stage, end)
        elif between == "all":
            end = written_end(view.map(Site(i, None, "out")), centred=centred)
            yield _Place(f"L{i}.mlp.out", "", stage, end)


def _readers(view: Model, between: str, centred: bool) -> Iterator[_Place]:
    for i, name, stage in _stages(view):
        if name == "attn":
            for h in range(_heads(view, i)):
                score, value = view.map(Site(i, h, "qk")), view.map(Site(i, h, "ov"))
                for way, m in zip(WAYS, (score, score.T, value), strict=True):
                    yield _Place(f"L{i}H{h}", way, stage, read_end(m, centred=centred))
        elif between == "all":
            mlp = view.spec.blocks[i].mlp
            for way in ("in", *["gate"] * bool(mlp and mlp.gated)):
                yield _Place(f"L{i}.mlp", way, stage, read_end(view.map(Site(i, None, way)), centred=centred))
    if between == "all":
        for out in view.spec.outputs:
            name = "unembed" if out.name == "token" else f"{out.name}_out"
            if not out.transform:
                yield _Place(name, "out", LAST, read_end(view.map(name), centred=centred))


def _inputs(view: Model) -> list[str]:
    """Names of the embeddings that write into the stream."""
    assembly = view.spec.assembly
    given = (*assembly.inputs, *((assembly.time,) if assembly.time else ()))
    names = ["embed" if i.name == "token" else f"{i.name}_in" for i in given]
    return [*names, *(["pos"] if assembly.positions != "none" else [])]


def _heads(view: Model, layer: int) -> int:
    attn = view.spec.blocks[layer].attn
    return attn.n_heads if attn else 0


def _columns(
    writers: list[_Place], readers: list[_Place], found: Composition, rows: np.ndarray, across: np.ndarray
) -> list[Column]:
    score = np.sqrt(found.squared[rows, across])
    dyads, cosine, share, threshold = [], [], [], []
    for i, j in zip(rows, across, strict=True):
        one, other = writers[i].end, readers[j].end
        if not one.S.size or not other.S.size:
            dyads.append("–")
            cosine.append(np.nan)
            share.append(np.nan)
            threshold.append(np.nan)
            continue
        C = cosines_between(one, other)
        a, b = np.unravel_index(np.abs(C).argmax(), C.shape)
        carried = one.weights[:, None] * other.weights * C**2
        dyads.append(f"{a} → {b}")
        cosine.append(float(C[a, b]))
        share.append(float(carried[a, b] / carried.sum()) if carried.sum() > 0 else np.nan)
        threshold.append(float(chance.threshold(found.d, C.size)))
    return [
        Column("writer", [writers[i].name for i in rows], about="what writes: OV of a head, an MLP's output, an input"),
        Column("reader", [readers[j].name for j in across], about="what reads, later in the forward pass"),
        Column("way", [readers[j].way for j in across], about="through its queries, keys, values; in, gate, out"),
        Column("score", score, "", 3, "‖W₁W₂‖_F/(‖W₁‖_F‖W₂‖_F)", chance="level"),
        Column("dyads", dyads, about="the writer's and the reader's dyad with the largest cosine"),
        Column("cos", np.array(cosine), "cos", 2, "that cosine", chance="cos_level"),
        Column("cos_level", np.array(threshold), "cos", 2, "|cos| that the best pair of random dyads stays below, 95 %",
               chance=0.0),
        Column("share", np.array(share), "", 2, "share of ‖W₁W₂‖² that these two dyads carry"),
    ]  # fmt: skip


def _tensors(view: Model, between: str) -> list[str]:
    sites = [s for i in range(view.spec.n_layers) if _heads(view, i) for s in (Site(i, 0, "ov"), Site(i, 0, "qk"))]
    if between == "all":
        sites += [view.site(n) for n in _inputs(view)]
        sites += [s for i, b in enumerate(view.spec.blocks) if b.mlp for s in view.sites(f"L{i}.mlp.*")]
        sites += [view.site("unembed" if o.name == "token" else f"{o.name}_out") for o in view.spec.outputs]
    return [name for s in sites for name in site_tensors(s)]


def _says(columns: list[Column], q: np.ndarray, q_cos: np.ndarray) -> str:
    beyond, aligned = (int((np.nan_to_num(x, nan=1.0) < LEVEL).sum()) for x in (q, q_cos))
    first = {c.name: c.values[0] for c in columns if c.name in ("writer", "reader", "way")}
    return (
        f"At a false-discovery rate of {LEVEL:.0%}, {beyond} of {len(q)} pairs share more than randomly turned maps of "
        f"the same spectra, {aligned} have two dyads more aligned than chance allows; furthest from chance: "
        f"{first['writer']} → {first['reader']} ({first['way']})."
    )


def _not_says(view: Model, centred: bool) -> str:
    parts = ["It does not say that the one uses the other: nothing was run, and trained maps share the stream's few "
             "strong directions, so that many pairs exceed random ones"]  # fmt: skip
    if str(view.frame) == "raw" and any(view.spec.norms()):
        parts.append("frame raw leaves the norms' gains out of the readers (--frame folded has them in)")
    if not centred:
        parts.append("the direction 1 is kept: not every reader stands behind a LayerNorm")
    known = dict.fromkeys(c for i, b in enumerate(view.stored.spec.blocks) if b.attn for kind in ("qk", "ov")
                          for c in cautions(view.stored.spec, Site(i, 0, kind)))  # fmt: skip
    return "; ".join([*parts, *known]) + "."


def _next(view: Model, columns: list[Column]) -> str:
    by_name = {c.name: c for c in columns}
    reader, way = str(by_name["reader"].values[0]), str(by_name["way"].values[0])
    site = {"q": f"{reader}.qk", "k": f"{reader}.qk", "v": reader}.get(
        way, f"{reader}.{way}" if way != "out" else reader
    )
    frame = "" if str(view.frame) == "raw" else f" --frame {view.frame}"
    return f"covector svd {view.words} {site}{frame}"


def _picture(found: Composition, allowed: np.ndarray, writers: list[_Place], readers: list[_Place]) -> Grid:
    """Writers × readers, coloured by z; of large models the writers and readers with the largest."""
    z = np.where(allowed, found.z, np.nan)
    top = np.nan_to_num(z, nan=-np.inf)
    rows = np.sort(np.argsort(-top.max(axis=1), kind="stable")[:SHOWN])
    across = np.sort(np.argsort(-top.max(axis=0), kind="stable")[:SHOWN])
    rows = rows[np.isfinite(z[rows]).any(axis=1)]
    across = across[np.isfinite(z[:, across]).any(axis=0)]
    if not len(rows) or not len(across):
        rows, across = np.arange(1), np.arange(1)
    return Grid(
        values=z[np.ix_(rows, across)],
        row_labels=[writers[i].name for i in rows],
        column_labels=[f"{readers[j].name}.{readers[j].way}" for j in across],
        value_name="z of score²",
        unit="sd",
        chance=2.0,
        digits=1,
        row_name="writer",
        column_name="reader",
    )
