"""Which heads read what which other heads write: composition of all pairs, through queries, keys and values.

Each row is a writer, a later reader and the way in (q, k, v; ``in`` and ``gate`` for MLPs, ``out`` for outputs): the
composition score ‖W₁W₂‖_F/(‖W₁‖_F‖W₂‖_F), and the dyads that are aligned best. The reader is QK for q and k, OV for v.

Under LayerNorm the direction 1 is invisible to readers; it is taken off both ends first, whatever the frame. Under
RMSNorm, or with no norm, it is part of the function and stays.

Source: Elhage et al. 2021; `docs/theory/heads.md`, equations 14–18; F17 and SV-22 of the theory page.
"""

import numpy as np

from covector.analyses.compose_places import Place, Places, command_of, places
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.composition import Composition, composition, cosines_between
from covector.model.opened import Model
from covector.render import Column, Grid, Table

# False-discovery rate of the sentence.
LEVEL = 0.05
# Writers and readers in the picture; more cannot be read.
SHOWN = 32


def compose(
    model: Model,
    *,
    between: str = "heads",
    top: int = 20,
    frame: str | None = None,
) -> Table:
    """Pairs of a writer and a later reader, the furthest beyond chance first; the `top` of them (0: all).

    `between`: ``heads`` (OV → q, k, v of later heads), ``all`` (also embeddings and MLP outputs as writers, MLP inputs
    and outputs of the model as readers), or names of both with commas between: ``L0H1,L2H0``, ``embed,L1.mlp``.

    `score` is ‖W₁W₂‖_F/(‖W₁‖_F‖W₂‖_F), 0 … 1, by chance 1/√d. `z` is score² less 1/d in standard deviations under a
    random relative rotation (exact mean, variance and skewness), p its upper tail by a gamma law of the same three
    moments (never below 1e-6), q Benjamini–Hochberg over all pairs of the request, shown or not. `cos` is the largest
    cosine between a dyad that one writes and one that the other reads (`dyads` tells which), `share` what that pair of
    dyads carries of ‖W₁W₂‖²; p_cos and q_cos repeat the choice of the pair of dyads in the null (union over all of
    them). `compose_dyads` has every pair of dyads.
    Raises BadRequest, BadSite, UnknownFrame, FrameUnavailable.
    Source: `docs/theory/heads.md`, equations 14–18.
    """
    if isinstance(top, bool) or top < 0:
        raise BadRequest(f"expected top >= 0 pairs, got {top}; 0 shows all")
    at = places(model, between, frame)
    view, writers, readers, d = at.view, at.writers, at.readers, at.d
    found = composition([w.end for w in writers], [r.end for r in readers], d)
    rows, across = np.nonzero(at.allowed)
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
                          "shown": len(order), "dimension": d, "direction_1": "taken off" if at.centred else "kept",
                          "null": "relative Haar rotation: gamma law of the exact three moments; union for cosines",
                          "tensors": at.tensors},
        title=f"{view.name} · {len(order)} of {len(p)} pairs · frame {view.frame} · d {d} · chance 1/√d {d**-0.5:.3f}"
        + at.told,
        says=_says(columns, q, q_cos),
        not_says=at.limits(),
        next=command_of(view, readers[across[order[0]]]),
        picture=_picture(found, at),
        key=("writer", "reader", "way"),
    )  # fmt: skip


def _columns(
    writers: list[Place], readers: list[Place], found: Composition, rows: np.ndarray, across: np.ndarray
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


def _says(columns: list[Column], q: np.ndarray, q_cos: np.ndarray) -> str:
    beyond, aligned = (int((np.nan_to_num(x, nan=1.0) < LEVEL).sum()) for x in (q, q_cos))
    first = {c.name: c.values[0] for c in columns if c.name in ("writer", "reader", "way")}
    return (
        f"At a false-discovery rate of {LEVEL:.0%}, {beyond} of {len(q)} pairs share more than randomly turned maps of "
        f"the same spectra, {aligned} have two dyads more aligned than chance allows; furthest from chance: "
        f"{first['writer']} → {first['reader']} ({first['way']})."
    )


def _picture(found: Composition, at: Places) -> Grid:
    """Writers × readers, coloured by z; of large models the writers and readers with the largest."""
    z = np.where(at.allowed, found.z, np.nan)
    top = np.nan_to_num(z, nan=-np.inf)
    rows = np.sort(np.argsort(-top.max(axis=1), kind="stable")[:SHOWN])
    across = np.sort(np.argsort(-top.max(axis=0), kind="stable")[:SHOWN])
    rows = rows[np.isfinite(z[rows]).any(axis=1)]
    across = across[np.isfinite(z[:, across]).any(axis=0)]
    if not len(rows) or not len(across):
        rows, across = np.arange(1), np.arange(1)
    return Grid(
        values=z[np.ix_(rows, across)],
        row_labels=[at.writers[i].name for i in rows],
        column_labels=[f"{at.readers[j].name}.{at.readers[j].way}" for j in across],
        value_name="z of score²",
        unit="sd",
        chance=2.0,
        digits=1,
        row_name="writer",
        column_name="reader",
    )
