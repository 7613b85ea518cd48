"""What kind of head is each head? Scores from weights alone, one row per head, each with its own null.

η (does OV send what it reads back as itself), copying and suppression of tokens, the position that QK favours, size,
and the source tokens that OV answers to most.

Source: `docs/theory/heads.md`, equations 1–9.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from covector.analyses.each_head import each_layer, head_svd, without_bias
from covector.analyses.heads_words import caveats, head_line, picture, sentence
from covector.analyses.sources import Sources
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.chance.streams import generator
from covector.linalg.norms import lengths as row_lengths
from covector.linalg.norms import without_mean
from covector.linalg.offsets import TARGETS, null_offset_shares, offset_shares, queries_of
from covector.linalg.positivity import Positivity, core_positivity, null_positivity, positivity
from covector.linalg.retrieval import reaches_own
from covector.linalg.salience import gains, null_top_gains
from covector.linalg.svd import SVD
from covector.model.bases import Basis
from covector.model.frames import reads_centred, writes_centred
from covector.model.opened import Model
from covector.render import Column, Table

# The level that 95 % of chance stays below, and the false-discovery rate of labels.
LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class _Heads:
    """All heads of a model with what every score needs."""

    model: Model
    names: list[str]
    places: list[tuple[int, int]]
    dyads: list[SVD]
    weights: list[Positivity]
    writes_in: int  # dimension that writes can have: d_model, one less where the frame centres them
    reads_in: list[int]


def heads(
    model: Model,
    *,
    k: int = 1,
    basis: str = "auto",
    frame: str | None = None,
    sample: int = 1024,
    salient: int = 5,
    draws: int = 200,
    seed: int = 0,
) -> Table:
    """One row per head: eigenvalue positivity, copying, suppression, favoured position, size, and salient source
    tokens.

    `basis` are the source vectors E': ``token_in``, ``token_in_mlp0``, or auto, what the first MLP makes of a token for
    heads behind it and the bare embedding for heads of block 0 (agents: their states). `k`: a token is
    copied when it stands among the k highest outputs of E'·OV·W_U, suppressed when among the k highest of −OV.
    `sample` source tokens are drawn without replacement where there are more (0: all), the output is always the whole
    vocabulary. `salient` tokens of the largest gain are listed. `draws` serve the simulated nulls.

    Nulls: η, η of the full circuit E'·OV·W_U: OV of equal spectrum, its write side turned at random (`*_p` two-sided,
    `*_p_max` with the maximum over heads repeated in the null). Copying, suppression: permuted targets, k/n.
    Positions: QK of equal spectrum, its key side turned. Gain: the largest gain under rotation. q is
    Benjamini–Hochberg over heads, one family per score. Columns that the anatomy does not allow are left out, and
    said.
    Costs seconds for small models and minutes at the size of GPT-2, mostly 2·sample·n_vocab·d_head flop per head for
    copying and two eigenvalue problems per head and draw; fewer draws and a smaller sample shorten it.
    Raises BadRequest, BadSite, UnknownBasis, UnknownFrame, FrameUnavailable.
    Source: `docs/theory/heads.md`, equations 1–9; F11 of the theory page.
    """
    for name, value, least in (("k", k, 1), ("sample", sample, 0), ("salient", salient, 0), ("draws", draws, 20)):
        if isinstance(value, bool) or value < least:
            raise BadRequest(f"expected {name} >= {least}, got {value}; leave it out for its default")
    view = without_bias(model, frame)
    every = _collected(view)
    sources = Sources(view, basis)
    columns = [*_sizes(every), *_positivity(every, "eta", None, draws, seed)]
    target, left_out = _comparable(sources)
    measured: dict[str, Any] = {}
    if target is not None:
        columns += _positivity(every, "eta_full", (sources, target), draws, seed)
        copied, measured = _copying(every, sources, target, k, sample, seed)
        columns += copied
    columns += _positions(every, draws, seed)
    if salient:
        if sources.first.usable.any() or sources.later.usable.any():
            columns += _salience(every, sources, salient, draws, seed)
        else:
            left_out.append(f"no salient sources: all vectors of {' and '.join(sources.names)} are zero")
    return Table(
        columns=columns,
        meta=view.meta | {"analysis": "heads", "policy": "none: weights only", "seed": seed, "draws": draws, "k": k,
                          "bases": {"read": sources.names, "write": target.name if target else None}, **measured,
                          "null": "OV (QK) of equal spectrum, turned at random; permuted targets for copying",
                          "tensors": view.origins(*_tensors(view, sources, target))},
        title=f"{view.name} · {len(every.names)} heads · frame {view.frame} · {sources.words}"
        + (f" · copied: top {k} of {measured['labels']}, chance {measured['expected_hits']:.2g}" if measured else "")
        + " · (chance 95 %) · * q < .05",
        says=sentence(columns, LEVEL),
        not_says=caveats(view, columns, measured, left_out),
        next=_next(view, columns),
        picture=picture,
        lines=head_line,
        key=("head",),
    )  # fmt: skip


def _collected(view: Model) -> _Heads:
    names, places, dyads, weights, reads_in = [], [], [], [], []
    d = view.spec.d_model
    for layer in each_layer(view):
        for h, name in enumerate(layer.names()):
            names.append(name)
            places.append((layer.layer, h))
            dyads.append(head_svd(view, layer.layer, h))
            weights.append(positivity(layer.A[h], layer.B[h]))
            reads_in.append(d - reads_centred(view.stored.spec, view.frame, f"L{layer.layer}.W_V"))
    return _Heads(view, names, places, dyads, weights, d - writes_centred(view.stored.spec, view.frame), reads_in)


def _comparable(sources: Sources) -> tuple[Basis | None, list[str]]:
    """The outputs that sources are copied to, or None and the reason in words."""
    target = sources.outputs()
    if target is None:
        return None, ["no copying: inputs and outputs of this model carry different labels"]
    if not (sources.usable & target.usable).any():
        names = ", ".join(dict.fromkeys([*sources.names, target.name]))
        return None, [f"no copying and no full circuit: no token has a finite vector other than zero in all of {names}"]
    return target, []


def _sizes(every: _Heads) -> list[Column]:
    of = every.dyads
    norm = np.array([np.linalg.norm(m.S) for m in of])
    first = np.array([m.S[0] if m.rank else 0.0 for m in of])
    nuclear = np.array([w.nuclear for w in every.weights])
    weyl = np.array([w.absolute / w.nuclear if w.nuclear > 0 else np.nan for w in every.weights])
    return [
        Column("head", every.names, about="layer and query head"),
        Column("norm", norm, about="‖OV‖_F in the frame's units"),
        Column("sigma1", first, about="largest gain of OV"),
        Column("trace", np.array([w.trace for w in every.weights]), about="trace of OV: the sum of its eigenvalues"),
        Column("nuclear", nuclear, about="Σσ of OV"),
        Column("weyl", weyl, "", 2, "Σ|λ| / Σσ of OV: 1 for a normal map, 0 for a nilpotent one (Weyl: never above 1)"),
    ]


def _positivity(every: _Heads, name: str, circuit: tuple[Sources, Basis] | None, draws: int, seed: int) -> list[Column]:
    """η of every head with its null: of OV (`circuit` None), or of the full circuit through T = W_U·E'."""
    d, n = every.model.spec.d_model, len(every.names)
    observed, null = np.full(n, np.nan), np.zeros((draws, n))
    factors = [(layer.A[h], layer.B[h]) for layer in each_layer(every.model) for h in range(len(layer.A))]
    for i, (A, B) in enumerate(factors):
        found, (layer, head) = every.dyads[i], every.places[i]
        between = circuit and circuit[0].between(layer, circuit[1])
        if between is None:
            observed[i] = every.weights[i].eta
        else:
            size = float(np.linalg.norm(B @ between) * np.linalg.norm(A))
            observed[i] = float(core_positivity(B @ between @ A, size))
        if not found.rank:
            continue
        seen = found.U if between is None else between @ found.U
        if every.writes_in < d:  # written vectors have no part along 1, and see none
            seen = seen - seen.mean(axis=0)
        null[:, i] = null_positivity(
            found.S, every.writes_in, draws=draws, seed=(seed, layer, head, int(between is not None)),
            seen=None if between is None and every.writes_in == d else seen,
        )  # fmt: skip
    spread = np.sqrt(np.mean(null**2, axis=0))
    z = np.divide(observed, spread, out=np.full(n, np.nan), where=spread > 0)
    p = np.array([float(chance.monte_carlo_p(abs(observed[i]), np.abs(null[:, i])).value) for i in range(n)])
    scaled = np.abs(np.divide(null, spread, out=np.zeros_like(null), where=spread > 0))
    of = "OV" if circuit is None else "the full circuit E'·OV·W_U"
    return [
        Column(name, observed, "", 2, f"Σλ/Σ|λ| of {of}: +1 sends vectors back as themselves, −1 as their opposites",
               chance=f"{name}_level"),
        Column(f"{name}_level", np.quantile(np.abs(null), 1 - LEVEL, axis=0), "", 2,
               "|η| that an OV of equal spectrum, turned at random, stays below with 95 %"),
        Column(f"{name}_z", z, "sd", 1, "η over the standard deviation of its null"),
        Column(f"{name}_p", p, about="two-sided p under that null"),
        Column(f"{name}_q", chance.bh(p), about="Benjamini–Hochberg over heads"),
        Column(f"{name}_p_max", chance.max_t(np.abs(z), scaled, step_down=False),
               about="p of the largest |z| over heads: the choice of the best head repeated in the null"),
    ]  # fmt: skip


def _copying(
    every: _Heads, sources: Sources, target: Basis, k: int, sample: int, seed: int
) -> tuple[list[Column], dict[str, Any]]:
    both = np.flatnonzero(sources.usable & target.usable)
    outputs = np.flatnonzero(target.usable)
    if k >= len(outputs):
        raise BadRequest(f"expected k below the {len(outputs)} labels of {target.name}, got {k}; 1 or 10 is customary")
    drawn = both
    if 0 < sample < len(both):
        drawn = np.sort(generator(seed, "sources").choice(both, sample, replace=False))
    own = np.searchsorted(outputs, drawn)
    vectors = target.vectors[outputs]
    hits = {"copy": [], "suppress": []}
    for layer in each_layer(every.model):
        rows = sources.of(layer.layer).vectors[drawn].astype(np.float64)
        reached = reaches_own(rows @ layer.A, layer.B, vectors, own, k)
        hits["copy"] += reached.high.sum(axis=1).tolist()
        hits["suppress"] += reached.low.sum(axis=1).tolist()
    m, share = len(drawn), k / len(outputs)
    words = {"copy": f"share of tokens among the {k} highest outputs of E'·OV·W_U for themselves",
             "suppress": f"the same with −OV: tokens among the {k} outputs that they push down most"}  # fmt: skip
    level = _binomial_level(m, share)
    columns = []
    for name, counts in hits.items():
        count = np.array(counts, dtype=float)
        p = _binomial_tail(count, m, share)
        columns += [Column(name, count / m, "", 2, words[name], chance=level),
                    Column(f"{name}_p", p, about=f"binomial p: permuted targets are hit with chance k/n = {share:.3g}"),
                    Column(f"{name}_q", chance.bh(p), about="Benjamini–Hochberg over heads")]  # fmt: skip
        if m < len(both):
            low, high = _clopper_pearson(count, m)
            columns += [Column(f"{name}_low", low, "", 2, "95 % interval of the share over all tokens, lower end"),
                        Column(f"{name}_high", high, "", 2, "upper end")]  # fmt: skip
    return columns, {"labels": len(outputs), "sources": m, "of_sources": len(both), "expected_hits": share}


def _binomial_tail(count: Float[np.ndarray, " h"], m: int, share: float) -> Float[np.ndarray, " h"]:
    """P(Binomial(m, share) >= count)."""
    return np.where(count > 0, special.betainc(np.maximum(count, 1.0), m - np.maximum(count, 1.0) + 1, share), 1.0)


def _binomial_level(m: int, share: float) -> float:
    """The share of hits that permuted targets stay at or below with 95 %."""
    counts = np.arange(m + 1, dtype=float)
    beyond = np.append(_binomial_tail(counts[1:], m, share), 0.0)
    return float(counts[np.argmax(beyond <= LEVEL)] / m)


def _clopper_pearson(count: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    low = np.where(count > 0, special.betaincinv(np.maximum(count, 1.0), m - np.maximum(count, 1.0) + 1, LEVEL / 2), 0)
    high = np.where(count < m, special.betaincinv(np.minimum(count, m - 1) + 1, m - np.minimum(count, m - 1),
                                                  1 - LEVEL / 2), 1.0)  # fmt: skip
    return low, high


def _positions(every: _Heads, draws: int, seed: int) -> list[Column]:
    """Shares of the previous, current and first position, and the label of the strongest; only for learned
    positions."""
    view = every.model
    if "position_in" not in view.bases or view.spec.assembly.mode != "tokens":
        return []
    first = view.spec.assembly.position_offset
    rows = view.bases["position_in"].vectors[first:].astype(np.float64)
    shares, p = [], []
    for layer in each_layer(view, "qk"):
        attn = view.spec.blocks[layer.layer].attn
        if attn is None:
            continue
        seen = rows[: attn.window] if attn.window else rows  # within a window every query sees all earlier keys
        queries = queries_of(len(seen))
        if not len(queries):
            return []
        scores = (seen[queries] @ layer.A) @ (layer.B @ seen.T)
        found = offset_shares(scores, queries, attn.causal)
        centred = reads_centred(view.stored.spec, view.frame, f"L{layer.layer}.W_K")
        null = null_offset_shares(_asked(view, layer.layer, seen[queries]), seen, queries, causal=attn.causal,
                                  centred=centred, draws=draws, seed=(seed, layer.layer))  # fmt: skip
        shares.append(found)
        p.append([[float(chance.monte_carlo_p(found[h, t], null[:, h, t]).value) for t in range(len(TARGETS))]
                  for h in range(len(found))])  # fmt: skip
    share, q = np.concatenate(shares), chance.bh(np.concatenate(p))
    best = np.argmin(np.where(share > 0.5, q, np.inf), axis=1)
    attends = [TARGETS[b] if q[i, b] < LEVEL and share[i, b] > 0.5 else "" for i, b in enumerate(best)]
    strongest = np.array([share[i, b] for i, b in enumerate(best)])
    about = "mean share of keys that score below the {} position, positions alone; chance ½"
    made = [Column("favours", attends, about="position that QK ranks highest, where that is beyond chance (q < .05)"),
            Column("share", np.where([bool(a) for a in attends], strongest, np.nan), "", 2, about.format("favoured"),
                   chance=0.5)]  # fmt: skip
    for t, target in enumerate(TARGETS):
        made += [Column(target, share[:, t], "", 2, about.format(target), chance=0.5),
                 Column(f"{target}_q", q[:, t], about="against random QK; BH over heads and positions")]  # fmt: skip
    return made


def _asked(view: Model, layer: int, queries: np.ndarray) -> Float[np.ndarray, "h q r"]:
    """Position queries in each QK's own coordinates, times its gains; padded with zeros to a common rank."""
    attn = view.spec.blocks[layer].attn
    n_heads, r = (attn.n_heads, attn.d_head) if attn else (0, 1)
    made = np.zeros((n_heads, len(queries), min(r, view.spec.d_model - 1)))
    for h in range(n_heads):
        found = head_svd(view, layer, h, "qk")
        own = min(found.rank, made.shape[2])
        made[h, :, :own] = (queries @ found.U[:, :own]) * found.S[:own]
    return made


def _salience(every: _Heads, sources: Sources, salient: int, draws: int, seed: int) -> list[Column]:
    """The source labels of the largest gain, and how large the largest is by chance."""
    top, best, level, p = [], [], [], []
    for first, last in _alike(every, sources):
        source, d = sources.of(every.places[first][0]), every.reads_in[first]
        kept = np.flatnonzero(source.usable)
        if not len(kept):
            top += [[] for _ in range(first, last)]
            best, level, p = ([*values, *[np.nan] * (last - first)] for values in (best, level, p))
            continue
        rows = source.vectors[kept]
        rows = without_mean(rows) if d < every.model.spec.d_model else rows
        lengths = np.maximum(row_lengths(rows), np.finfo(float).tiny)
        of = every.dyads[first:last]
        spectra = np.zeros((len(of), max(1, *(m.rank for m in of))))
        for row, found in enumerate(of):
            spectra[row, : found.rank] = found.S
            gain = gains(rows, lengths, found.U, found.S, d)
            order = np.argsort(-gain, kind="stable")[:salient]
            top.append([source.labels[kept[j]] for j in order] if found.rank else [])
            best.append(float(gain[order[0]]))
        units = (rows / lengths[:, None]).astype(np.float32)
        null = null_top_gains(units, spectra, d, draws=draws, seed=(seed, every.places[first][0]))
        level += np.quantile(null, 1 - LEVEL, axis=0).tolist()
        p += [float(chance.monte_carlo_p(best[first + row], null[:, row]).value) for row in range(len(of))]
    q = chance.bh(np.array(p))
    return [
        Column("salient", top, about="source labels that OV answers to most, the largest gain first"),
        Column("gain", np.array(best), "", 1, "‖eOV‖/‖e‖ of the first, over a random direction's", chance="gain_level"),
        Column("gain_level", np.array(level), "", 1, "largest gain of any label that chance stays below with 95 %"),
        Column("gain_p", np.array(p), about="p of the largest gain under a random rotation of OV"),
        Column("gain_q", q, about="Benjamini–Hochberg over heads"),
    ]


def _alike(every: _Heads, sources: Sources) -> Iterator[tuple[int, int]]:
    """Runs of heads that read the same vectors in the same space, as (first, last + 1): one null serves a run."""
    kinds = [(sources.of(layer).name, d) for (layer, _), d in zip(every.places, every.reads_in, strict=True)]
    starts = [i for i in range(len(kinds)) if i == 0 or kinds[i] != kinds[i - 1]]
    yield from zip(starts, [*starts[1:], len(kinds)], strict=True)


def _tensors(view: Model, sources: Sources, target: Basis | None) -> list[str]:
    roles = ("W_V", "W_O", "W_Q", "W_K")
    own = [f"L{i}.{r}" for i, b in enumerate(view.spec.blocks) if b.attn for r in roles]
    return [*own, *sources.tensors, *(target.tensors if target else ()), *(["W_pos"] if "W_pos" in view.stored else [])]


def _next(view: Model, columns: list[Column]) -> str:
    by_name = {c.name: c for c in columns}
    score = by_name["copy"].numbers if "copy" in by_name else np.abs(np.nan_to_num(by_name["eta_z"].numbers))
    frame = "" if str(view.frame) == "raw" else f" --frame {view.frame}"
    return f"covector svd {view.words} {by_name['head'].values[int(np.argmax(score))]}{frame}"
