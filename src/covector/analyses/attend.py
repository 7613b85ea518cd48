"""Why a head looks from one position to another: its score, split over dyads of QK, upstream writers, or their pairs.

Source: `docs/theory/attend.md`, equations 1–11; theory page §4.2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covector.analyses.attend_picture import SPLITS, attend_picture, check_by
from covector.analyses.attend_prompt import Asked
from covector.analyses.attend_splits import (
    LEVEL,
    SHARE,
    DyadSplit,
    Glance,
    Row,
    by_dyads,
    by_keys,
    by_pairs,
    by_writers,
)
from covector.analyses.attend_tokens import TokenSide, token_columns, token_line, token_side
from covector.errors import BadRequest, BadSite
from covector.linalg.svd import SVD
from covector.model.address import Site
from covector.model.opened import Model
from covector.propagation.scores import HeadScore
from covector.render import Column, Table
from covector.run.prompts import Pair

NOT_SAYS = (
    "It does not say what would happen without a part: the scales of the norms are held at this prompt, and other "
    "layers would change (covector patch measures that)"
)


def attend(
    model: Model,
    head: str,
    prompt: Pair | str | Mapping[str, np.ndarray],
    to: str | int | None = None,
    start: str | int = "end",
    *,
    by: str = "dyads",
    top: int = 50,
    k: int = 8,
    frame: str | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Table:
    """Why `head` looks from the query at `start` to the key at `to`: the attention score there, in parts that add up.

    `prompt`: a text, a `Pair` (its clean side), or an agent's inputs by name. `to` and `start` are a slot (``end``,
    ``NAME+1``), a position, or the text of a token that stands there once; without `to`: the key with the most weight.
    Every row has its part of the score (before a soft-cap) and of the contrast: the score less the mean of the other
    keys' scores, weighted as the rest of the attention is. Softmax sees differences of scores only, so what all keys
    share says nothing about where a head looks.

    `by`: ``dyads``: singular dyads of QK at the offset of the two positions (rotary turns included), and biases;
    ``tokens``: the same, with the `k` tokens nearest to what each dyad's query side is, and looks for; ``writers``:
    what every earlier component has written, on the query side and on the key side (each side is the whole score);
    ``pairs``: query writer × key writer, the `top` largest and one row for the rest; ``keys``: every key that the
    query sees, not a split.
    ``meta["contributing"]``: how many dyads reach 90 % of what all dyads bring to the contrast, and how many directions
    of a random basis of the same query space do (equation 11).
    Exact to rounding of float64: norms, of queries and keys too, have their scale held at this prompt. Accounting.
    Raises BadRequest (positions, a key that the query cannot see, a query with one key), BadSite, FrameUnavailable,
    UnknownFrame.
    """
    check_by(by)
    if isinstance(top, bool) or top < 1 or isinstance(k, bool) or k < 1:
        raise BadRequest(f"expected at least one row and one token, got top {top} and k {k}")
    view = model if frame is None or frame == str(model.frame) else model.framed(frame)
    site = _head(view, head)
    asked = Asked.run(view, prompt)
    glance = _glance(asked, site, to, start)
    if by in ("dyads", "tokens"):
        split = by_dyads(glance, draws=draws, seed=seed)
        rows, dyads = list(split.rows), split.dyads
    else:
        rows, dyads = {"writers": by_writers, "keys": by_keys}.get(by, lambda g: by_pairs(g, top))(glance), None
        split = None
    rows = [rows[i] for i in _order(rows, by)]
    sides = [] if by != "tokens" or dyads is None else _sides(view, site, rows, dyads, k)
    return Table(
        columns=[*_columns(rows, by, glance, asked), *(c for side in sides for c in token_columns(side))],
        meta=view.meta | _meta(glance, asked, site, by, draws, seed) | _set_meta(split),
        title=_title(view, asked, glance, site, by),
        says=_says(rows, asked, glance, by, split),
        not_says=_not_says(glance, by),
        next=_next(view, asked, glance, site, by, rows),
        picture=attend_picture,
        lines=token_line if by == "tokens" else None,
        key=_key(by),
    )


def _head(model: Model, address: str) -> Site:
    site = model.site(address)
    if site.layer is None or site.head is None or site.kind not in ("ov", "qk", "q"):
        raise BadSite(f"expected a query head such as L1H0, got {address}")
    return Site(site.layer, site.head, "qk")


def _glance(asked: Asked, site: Site, to: str | int | None, start: str | int) -> Glance:
    c = next(c for c in asked.linear.components if c.layer == site.layer and c.attn)
    score = HeadScore(asked.linear, c, site.head or 0)
    t = asked.position(str(start), "--from")
    seen = np.flatnonzero(score.seen[t])
    if len(seen) < 2:
        raise BadRequest(f"--from {asked.told(t)}: this query sees one key only, so there is nothing to choose; go on")
    s = int(np.argmax(score.pattern[t])) if to is None else asked.position(str(to), "--to")
    if s not in seen:
        raise BadRequest(
            f"--to {asked.told(s)}: {str(site).removesuffix('.qk')} cannot look there from {asked.told(t)}; "
            f"it sees positions {seen[0]} to {seen[-1]}"
        )
    return Glance(score, t, s)


def _order(rows: Sequence[Row], by: str) -> np.ndarray:
    if by in ("pairs", "keys"):  # sorted already, or in the order of the text
        return np.arange(len(rows))
    return np.argsort([-abs(row.contrast) for row in rows], kind="stable")


def _key(by: str) -> tuple[str, ...]:
    return {"writers": ("side", "part"), "pairs": ("query", "key"), "keys": ("position",)}.get(by, ("part",))


def _columns(rows: Sequence[Row], by: str, glance: Glance, asked: Asked) -> list[Column]:
    score = Column("score", np.array([r.score for r in rows]), "", 3, "its part of the score, before a soft-cap")
    contrast = np.array([r.contrast for r in rows])
    if by == "keys":
        own = [int(row.name) for row in rows]
        return [
            Column("position", np.array(own), about="of the key"),
            Column("token", [asked.names[i] for i in own], about="what stands there"),
            Column("weight", np.array([r.more[0] for r in rows]), "", 3, "attention weight", chance=1 / glance.keys),
            Column("rank", np.array([r.more[1] for r in rows]).astype(int), about="among the keys that are seen"),
            score,
            Column("contrast", contrast, "", 3, "score less the weighted mean of the others"),
        ]
    bars = np.array([r.chance for r in rows])
    share = contrast / glance.contrast if glance.contrast else contrast * np.nan
    about = "its part of score less the weighted mean of the other keys"
    made = [
        *_names(rows, by),
        score,
        Column("contrast", contrast, "", 3, about, chance="chance"),
        Column("share", share, "", 3, "contrast over that of all parts"),
        Column("chance", bars, "", 3, _CHANCE["dyads" if by == "tokens" else by]),
    ]
    if by not in ("dyads", "tokens"):
        return made
    told = np.array([r.more for r in rows]).reshape(-1, 3)
    return [
        *made,
        Column("p", np.array([r.p for r in rows]), about="chance that some direction of a random basis of the same "
                                                         "query space carries as much"),
        Column("sigma", told[:, 0], "", 3, "gain of the dyad, the score's scale included"),
        Column("at_query", told[:, 1], "", 3, "coefficient of what the query reads; score = sigma · at_query · at_key"),
        Column("at_key", told[:, 2], "", 3, "coefficient of what the key reads"),
    ]  # fmt: skip


_CHANCE = {
    "dyads": "|contrast| that the largest part stays below (95 %) in random bases of the same query space",
    "writers": "|contrast| that the rows of a side stay below (95 %) if what this writer writes is turned at random",
    "pairs": "|contrast| that all pairs stay below (95 %) if what the query's writer writes is turned at random",
}


def _names(rows: Sequence[Row], by: str) -> list[Column]:
    if by == "writers":
        return [
            Column("side", [r.side for r in rows], about="query or key; the rows of either side sum to the score"),
            Column("part", [r.name for r in rows], about="component, position embedding, or bias"),
        ]
    if by == "pairs":
        return [
            Column("query", [r.side for r in rows], about="who wrote what the query reads"),
            Column("key", [r.name for r in rows], about="who wrote what the key offers"),
        ]
    return [Column("part", [r.name for r in rows], about="dyad of QK at this offset, largest σ first, or biases")]


def _sides(model: Model, site: Site, rows: Sequence[Row], dyads: SVD, k: int) -> tuple[TokenSide, TokenSide]:
    """The tokens of both sides of every dyad, on the pole where this prompt's query stands."""
    index = [int(r.name.removeprefix("dyad ")) if r.name.startswith("dyad ") else -1 for r in rows]
    signs = np.where([r.more[1] < 0 for r in rows], -1.0, 1.0)
    read, offered = dyads.U.T, dyads.Vh
    return (
        token_side("query", model, site, read, index, signs, k),
        token_side("key", model, site, offered, index, signs, k),
    )


def _meta(glance: Glance, asked: Asked, site: Site, by: str, draws: int, seed: int) -> dict[str, Any]:
    head = glance.head
    others = glance.weights[glance.weights < 0]
    return {
        "analysis": "attend", "site": str(site), "by": by, "kind": "accounting", "policy": "frozen",
        "prompt": asked.text, "tokens": list(asked.names), "query": glance.t, "key": glance.s,
        "offset": glance.t - glance.s, "weight": glance.weight, "rank": glance.rank, "keys": glance.keys,
        "score": glance.score, "capped": float(head.scores[glance.t, glance.s]), "contrast": glance.contrast,
        "entropy": float(-np.sum(others * -np.log(-others))) if len(others) else 0.0,
        "draws": draws if by in ("dyads", "tokens") else None, "seed": seed if by in ("dyads", "tokens") else None,
    }  # fmt: skip


def _title(model: Model, asked: Asked, glance: Glance, site: Site, by: str) -> str:
    turned = f" · offset {glance.t - glance.s}" if glance.head.attn.rotary and by in ("dyads", "tokens") else ""
    return (
        f"{model.name} {str(site).removesuffix('.qk')} · {asked.told(glance.t)} → {asked.told(glance.s)} · "
        f"weight {glance.weight:.3f}, rank {glance.rank} of {glance.keys} · by {by}{turned}"
    )


def _says(rows: Sequence[Row], asked: Asked, glance: Glance, by: str, split: DyadSplit | None) -> str:
    capped = glance.head.attn.softcap
    cap = f" ({float(glance.head.scores[glance.t, glance.s]):+.3f} after the soft-cap)" if capped else ""
    whole = (
        f"The score is {glance.score:+.3f}{cap}, {glance.contrast:+.3f} against the weighted mean of the "
        f"{glance.keys - 1} other key{'s' if glance.keys > 2 else ''}"
    )
    if by == "keys":
        best = max(rows, key=lambda r: r.more[0])
        even = f"{best.more[0]:.3f} (even: {1 / glance.keys:.3f})"
        return f"{whole}; {asked.told(int(best.name))} has the most weight, {even}."
    parts = []
    for side in dict.fromkeys(r.side for r in rows) if by == "writers" else ("",):
        here = [r for r in rows if r.side == side or by != "writers"]
        parts.append(_leads(here, side, by))
    return f"{whole}; {'; '.join(parts)}{_few(split)}."


def _few(split: DyadSplit | None) -> str:
    """How many dyads do it, beside how many directions of a random basis would."""
    if split is None or split.dyads.rank < 2:
        return ""
    return (
        f"; {split.needed} of {split.dyads.rank} dyads reach{'es' * (split.needed == 1)} {SHARE:.0%} of what dyads "
        f"bring (a random basis: "
        f"{split.usual:.0f}, p {split.p:.2g})"
    )


def _set_meta(split: DyadSplit | None) -> dict[str, Any]:
    if split is None:
        return {}
    return {"contributing": {"share": SHARE, "dyads": split.needed, "random_basis": split.usual, "p": split.p}}


def _leads(rows: Sequence[Row], side: str, by: str) -> str:
    """Which part brings most, and whether that is beyond chance; how far parts cancel."""
    named = [r for r in rows if "other" not in r.name] or rows
    first = max(named, key=lambda r: abs(r.contrast))
    net, gross = abs(sum(r.contrast for r in rows)), sum(abs(r.contrast) for r in rows)
    name = f"{first.side} × {first.name}" if by == "pairs" else first.name
    against = ""
    if np.isfinite(first.chance):
        against = f" (chance {first.chance:.3f})"
    where = f"on the {side} side " if side else ""
    cancelled = f", the parts cancel by {1 - net / gross:.0%}" if gross and by != "pairs" else ""
    return f"{where}{name} brings most, {first.contrast:+.3f}{against}{cancelled}"


def _not_says(glance: Glance, by: str) -> str:
    attn = glance.head.attn
    clauses = [NOT_SAYS]
    if attn.rotary and by in ("dyads", "tokens"):
        clauses.append(f"the dyads are those of offset {glance.t - glance.s}; at other offsets the head has others")
    if by in ("dyads", "tokens"):
        clauses.append("a basis other than the singular one splits the same score otherwise")
        clauses.append(
            "p also reflects the spectrum: a random basis has no strong dyads, so one of large σ passes at most prompts"
        )
    if by == "tokens":
        clauses.append("a list of near tokens is not a meaning")
    if attn.softcap is not None:
        clauses.append("parts are of the score before its soft-cap")
    return "; ".join(clauses) + "."


def _next(model: Model, asked: Asked, glance: Glance, site: Site, by: str, rows: Sequence[Row]) -> str:
    """Dyads → tokens → writers → pairs → the leading key-side head, looked at from the key."""
    name, t, s = str(site).removesuffix(".qk"), glance.t, glance.s
    frame = model.framing
    onward = {"keys": "dyads", "dyads": "writers", "writers": "pairs", "tokens": "writers"}.get(by)
    if onward == "pairs":
        heads = [r for r in rows if r.side == "key" and "H" in r.name]
        if heads and s > 0:
            first = max(heads, key=lambda r: abs(r.contrast))
            return f"covector attend {model.words} {first.name} {asked.typed} --from {s} --by keys{frame}"
    if onward is None:
        return f"covector svd {model.words} {name}.qk{frame}"
    return f"covector attend {model.words} {name} {asked.typed} --from {t} --to {s} --by {onward}{frame}"


__all__ = ["LEVEL", "SPLITS", "attend"]
