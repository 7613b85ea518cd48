"""Which heads carry a relation: does a head's OV send the first of each pair to the second?

φ = share of pairs (s, t) with t among the k highest outputs of E'_s·OV·W_U; suppression is the same with −OV. The null
permutes the targets among the pairs: it keeps what the head writes for these sources, and which words are targets.

Source: MAPS (Elhelo and Geva); `docs/theory/heads.md`, equations 6–7 and 10.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covector.analyses.each_head import each_layer, without_bias
from covector.analyses.sources import Sources
from covector.axes import Bool, Float, Int
from covector.errors import BadRequest, NotOneToken, UnknownBasis
from covector.linalg import chance
from covector.linalg.chance.streams import generator
from covector.linalg.retrieval import reaches_each
from covector.model.bases import Basis
from covector.model.opened import Model
from covector.render import Column, Grid, Table

Pairs = Sequence[tuple[str, str]] | str | Path
# False-discovery rate of the sentence.
LEVEL = 0.05
# Marks with which a text shows that its first space counts.
SPACED = (" ", "·", "Ġ", "▁")


@dataclass(frozen=True)
class _Found:
    """The pairs whose both ends are labels, and those left out."""

    source: Int[np.ndarray, " m"]
    target: Int[np.ndarray, " m"]
    texts: list[list[str]]
    left_out: list[str]


def relation(
    model: Model,
    pairs: Pairs,
    *,
    k: int = 10,
    basis: str = "auto",
    frame: str | None = None,
    draws: int = 10000,
    seed: int = 0,
) -> Table:
    """One row per head: φ, the share of `pairs` whose target is among the k highest outputs for its source.

    `pairs`: (source, target) texts, or a file with one pair per line, parted by a tab (or else a comma). A bare word
    means its token with a leading space where there is one (`meta["pairs"]` tells); pairs that are not single tokens
    are left out and counted. `basis`: as in `heads`.

    Null: targets permuted among the pairs, one permutation for all heads (`p`; `p_max` with the maximum over heads in
    the null; q is Benjamini–Hochberg over heads). `reach_chance` is the exact mean over permutations. Where most pairs
    share a target it is high: a head that always writes " the" carries no relation.
    Raises BadRequest (no usable pair, an unreadable file, k out of range), BadSite, UnknownBasis, FrameUnavailable.
    Source: `docs/theory/heads.md`, equations 6–7 and 10.
    """
    if isinstance(draws, bool) or draws < 100:
        raise BadRequest(f"expected draws >= 100 permutations, got {draws}; leave it out for 10000")
    view = without_bias(model, frame)
    sources = Sources(view, basis)
    target = sources.outputs()
    if target is None:
        raise BadRequest(f"expected a model that reads and writes the same labels, {view.name} does not; see --units")
    found = _usable_pairs(view, _read(pairs), sources, target)
    names: list[str] = []
    hits: dict[str, list[np.ndarray]] = {"reach": [], "suppress": []}
    outputs = np.flatnonzero(target.usable)
    if not 1 <= k < len(outputs):
        raise BadRequest(f"expected 1 <= k < {len(outputs)} labels of {target.name}, got {k}; 1 or 10 is customary")
    vectors, own = target.vectors[outputs], np.searchsorted(outputs, found.target)
    for layer in each_layer(view):
        rows = sources.of(layer.layer).vectors[found.source].astype(np.float64)
        found_hits = reaches_each(rows @ layer.A, layer.B, vectors, own, k)
        names += layer.names()
        hits["reach"].append(found_hits.high)
        hits["suppress"].append(found_hits.low)
    columns = [Column("head", names, about="layer and query head")]
    words = {"reach": f"share of pairs whose target is among the {k} highest outputs for its source",
             "suppress": f"share of pairs whose target is among the {k} lowest"}  # fmt: skip
    for name, tables in hits.items():
        columns += _scored(name, words[name], np.concatenate(tables), draws, seed)
    reached, down = (c.numbers for c in columns if c.name in ("reach", "suppress"))
    order = np.argsort(-np.maximum(reached, down), kind="stable")
    return Table(
        columns=[c.taken(order) for c in columns],
        meta=view.meta | {"analysis": "relation", "policy": "none: weights only", "seed": seed, "draws": draws, "k": k,
                          "bases": {"read": sources.names, "write": target.name}, "pairs": found.texts,
                          "left_out": found.left_out, "null": "targets permuted among the pairs",
                          "tensors": view.origins(*_tensors(view), *sources.tensors, *target.tensors)},
        title=f"{view.name} · {len(found.texts)} pairs ({_shown(found)}) · frame {view.frame} · {sources.words}"
        f" · top {k} of {len(outputs)}",
        says=_says(reached, down, columns),
        not_says=_not_says(found),
        next=f"covector svd {view.words} {names[int(order[0])]}"
        + ("" if str(view.frame) == "raw" else f" --frame {view.frame}"),
        picture=_picture,
        key=("head",),
    )  # fmt: skip


def _read(pairs: Pairs) -> list[tuple[str, str]]:
    if not isinstance(pairs, str | Path):
        made = [tuple(p) for p in pairs]
        if any(len(p) != 2 or not all(isinstance(x, str) for x in p) for p in made):
            raise BadRequest("expected pairs of texts (source, target); give a list of 2-tuples")
        return [(p[0], p[1]) for p in made]
    try:
        lines = Path(pairs).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise BadRequest(f"expected a file of pairs at '{pairs}': {why}; one pair per line, parted by a tab") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = line.split("\t") if "\t" in line else line.split(",")
        if len(parts) != 2:
            raise BadRequest(
                f"{pairs}, line {number}: expected source, tab, target; got {len(parts)} columns: '{line}'"
            )
        found.append((parts[0], parts[1]))
    return found


def _usable_pairs(view: Model, pairs: list[tuple[str, str]], sources: Sources, target: Basis) -> _Found:
    source, goal, texts, left_out = [], [], [], []
    for pair in pairs:
        rows = [_row(view, target, text) for text in pair]
        if None in rows or not (sources.usable[rows[0]] and target.usable[rows[1]]):
            left_out.append(" → ".join(pair))
            continue
        source.append(rows[0])
        goal.append(rows[1])
        texts.append([target.labels[r] for r in rows if r is not None])
    if len(source) < 2:
        raise BadRequest(
            f"expected at least 2 pairs of single tokens, got {len(source)} of {len(pairs)}"
            + (f" (left out: {', '.join(left_out[:3])})" if left_out else "") + "; permuting one pair proves nothing"
        )  # fmt: skip
    return _Found(np.array(source), np.array(goal), texts, left_out)


def _row(view: Model, basis: Basis, text: str) -> int | None:
    """The row of a text: as it is where it starts with a space, else its spaced form before the bare one."""
    for form in (text,) if text.startswith(SPACED) else (" " + text, text):
        try:
            return view.vocabulary.one(form) if view.vocabulary else basis.index(form)
        except (NotOneToken, UnknownBasis):
            continue
    return None


def _scored(name: str, words: str, hits: Bool[np.ndarray, "h m m"], draws: int, seed: int) -> list[Column]:
    """φ of every head from its table of sources × targets, against permutations of the targets."""
    m = hits.shape[1]
    rows = np.arange(m)
    observed = hits[:, rows, rows].mean(axis=1)
    expected = hits.mean(axis=(1, 2))
    null = _permuted(hits, draws, seed)
    p = np.array([float(chance.monte_carlo_p(observed[h], null[:, h]).value) for h in range(len(hits))])
    # Heads differ in how much they hit anyway: the excess over the mean is what the largest is taken of.
    p_max = chance.max_t(observed - expected, null - expected, step_down=False)
    return [
        Column(name, observed, "", 2, words, chance=f"{name}_level"),
        Column(
            f"{name}_level", np.quantile(null, 1 - LEVEL, axis=0), "", 2, "what 95 % of permutations stay at or below"
        ),
        Column(f"{name}_chance", expected, "", 3, "mean over all permutations of the targets (exact)"),
        Column(f"{name}_p", p, about="share of permutations that do as well"),
        Column(f"{name}_q", chance.bh(p), about="Benjamini–Hochberg over heads"),
        Column(
            f"{name}_p_max", p_max, about="p of the largest excess over heads: the choice of head repeated in the null"
        ),
    ]


def _permuted(hits: Bool[np.ndarray, "h m m"], draws: int, seed: int) -> Float[np.ndarray, "draws h"]:
    rng, (h, m, _) = generator(seed, "relation"), hits.shape
    rows, null = np.arange(m), np.empty((draws, h))
    for draw in range(draws):
        null[draw] = hits[:, rows, rng.permutation(m)].mean(axis=1)
    return null


def _tensors(view: Model) -> list[str]:
    return [f"L{i}.{r}" for i, b in enumerate(view.spec.blocks) if b.attn for r in ("W_V", "W_O")]


def _shown(found: _Found) -> str:
    return " → ".join(found.texts[0]).strip() + ", …"


def _says(reached: np.ndarray, down: np.ndarray, columns: list[Column]) -> str:
    q = {c.name: c.numbers for c in columns if c.name.endswith("_q")}
    best = int(np.argmax(reached))
    names = columns[0].values
    return (
        f"At a false-discovery rate of {LEVEL:.0%}, {int((q['reach_q'] < LEVEL).sum())} of {len(names)} heads send "
        f"sources to their targets more often than to each other's ({names[best]} most: {reached[best]:.0%}), "
        f"{int((q['suppress_q'] < LEVEL).sum())} push them down (at most {down.max():.0%})."
    )


def _not_says(found: _Found) -> str:
    text = (
        "It does not say that the model uses this head for the relation: nothing was run, and OV is read without norms"
    )
    left = f"; {len(found.left_out)} pairs left out, not single tokens" if found.left_out else ""
    return f"{text} and biases{left}."


def _picture(table: Table) -> Grid:
    """Layers × heads, coloured by φ."""
    places = [tuple(map(int, head[1:].split("H"))) for head in table["head"]]
    layers, across = sorted({p[0] for p in places}), sorted({p[1] for p in places})
    values = np.full((len(layers), len(across)), np.nan)
    for value, (layer, head) in zip(table["reach"], places, strict=True):
        values[layers.index(layer), across.index(head)] = value
    return Grid(
        values=values,
        row_labels=[f"L{i}" for i in layers],
        column_labels=[f"H{i}" for i in across],
        value_name="φ",
        chance=float(np.max(table["reach_level"])),
        row_name="layer",
        column_name="head",
    )
