"""Concept tracing: which directions of a whole model read or write a concept, and whether that is more than chance.

A query is a weighted list of tokens, a vector, a subspace, or directions of the atlas itself. Every stored direction
is scored in one pass; thresholds are those of as many random directions as were looked at.

Source: F3 of the theory page; `docs/theory/search.md`, equations 1–4 and 9.
"""

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.analyses.query import Query, dimension
from covector.analyses.rescore import rescored
from covector.analyses.search_chance import covariance_of, familywise
from covector.analyses.search_lines import effect_words, hit_line
from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg import chance
from covector.linalg.scan import scan
from covector.model.opened import Model
from covector.render import Column, Scatter, Table

# Columns of the index that a hit is told of: reading all of a hundred thousand rows would take longer than the search.
SHOWN = ("site", "side", "dyad", "basis", "sigma", "top", "bottom", "noisy")

SIDES = ("read", "write", "query", "key")
# Maps inside blocks, which a search looks at unless told otherwise: every concept made of tokens lies in the span of
# the embeddings, so that finding it there says nothing about the network.
INSIDE = ("ov", "qk", "mlp.in", "mlp.gate", "mlp.out")


@dataclass(frozen=True)
class Scored:
    """Every direction that was looked at: its row in the atlas, its score, and the dimension of its law."""

    at: Int[np.ndarray, " n"]
    cos: Float[np.ndarray, " n"]
    p: Float[np.ndarray, " n"]
    d: Int[np.ndarray, " n"]
    k: Int[np.ndarray, " n"]
    tau: float

    @property
    def q(self) -> Float[np.ndarray, " n"]:
        """Benjamini–Hochberg over all that were looked at."""
        return chance.bh(self.p)

    @property
    def hits(self) -> Bool[np.ndarray, " n"]:
        """Which lie beyond τ."""
        return np.abs(self.cos) >= self.tau

    def with_scores(self, which: Int[np.ndarray, " m"], cos: Float[np.ndarray, " m"]) -> "Scored":
        """The same with better known scores in some places, and their p."""
        scores, p = self.cos.copy(), self.p.copy()
        scores[which] = cos
        p[which] = [_tail(c, int(d), int(k)) for c, d, k in zip(cos, self.d[which], self.k[which], strict=True)]
        return dataclasses.replace(self, cos=scores, p=p)


def score(
    atlas: Atlas, query: Query, *, sides: Sequence[str] = SIDES, kinds: Sequence[str] = (), alpha: float = 0.05
) -> Scored:
    """Cosine of every direction with the query (length of its projection for a subspace), with p and τ.

    p is exact for a random direction; τ is the |cos| that the best of as many random directions stays below with
    probability 1 − α. Scores are those of the stored float16 rows, off by 2e-5 or so. Without `kinds`, the maps inside
    blocks are looked at: not the embeddings, of which tokens are made. Raises BadRequest.
    """
    index = atlas.columns("side", "kind", "basis")
    known = sorted(set(index["kind"]))
    blocks = [kind for kind in known if kind in INSIDE] or known
    chosen = _among(index["side"], _checked(sides, SIDES, "side"))
    chosen &= _among(index["kind"], _checked(kinds, known, "kind") or blocks)
    chosen &= _among(index["basis"], tuple(query.rows))  # an action is no state
    at = np.flatnonzero(chosen)
    if not len(at):
        raise BadRequest(
            f"{atlas.folder}: no direction of these sides and kinds can hold the query; leave one of them out"
        )
    found = scan(atlas.vectors, np.concatenate(list(query.rows.values())))
    atlas.check_scores(found)
    cos, p, d, k = np.zeros(len(at)), np.ones(len(at)), np.zeros(len(at), int), np.ones(len(at), int)
    tau, first = 0.0, 0
    for name, rows in query.rows.items():
        here = index["basis"][at] == name
        some = found[at[here], first : first + len(rows)].astype(np.float64)
        law, first = dimension(name, rows.shape[1]), first + len(rows)
        cos[here] = some[:, 0] if len(rows) == 1 else np.sqrt((some**2).sum(axis=1))
        p[here], d[here], k[here] = _tail(cos[here], law, len(rows)), law, len(rows)
        if here.any():
            tau = max(tau, float(chance.threshold(law, len(at), alpha, len(rows))))
    return Scored(at, cos, p, d, k, tau)


def _tail(cosine: Any, d: int, k: int) -> Any:
    return chance.tail(np.minimum(np.abs(cosine), 1.0), int(d), int(k))


def _among(values: np.ndarray, wanted: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Where texts are one of a few: one comparison each, without turning the column into another."""
    return np.any([values == one for one in wanted], axis=0)


def _checked(given: Sequence[str], known: Sequence[str], what: str) -> Sequence[str]:
    unknown = [g for g in given if g not in known]
    if unknown:
        raise BadRequest(f"expected a {what} among {', '.join(known)}, got '{unknown[0]}'")
    return given


def search(
    atlas: Atlas,
    query: Query,
    *,
    model: Model | None = None,
    top: int = 20,
    sides: Sequence[str] = SIDES,
    kinds: Sequence[str] = (),
    alpha: float = 0.05,
    exact: bool = False,
    seed: int = 0,
    steps: Sequence[Mapping[str, Any]] = (),
) -> Table:
    """The `top` directions nearest to a query, strongest first, one row each.

    With the `model` that the atlas was made from, directions of heads that are shown are scored again in float64 (with
    `exact`, those of MLPs and embeddings too), and ``p_cov`` and ``familywise`` are there: NaN without it, and for
    subspaces. ``p_cov`` is of one direction of the basis' own covariance, chosen beforehand; ``familywise`` of the best
    of all that were looked at, by the law that reaches it more often. ``effect`` is σ·cos, the expected effect: how
    much of the concept dyad i writes per unit of what it reads (for a read side: how far a unit of the concept drives
    it). ``meta["beyond"]`` counts directions beyond τ, ``beyond_covariance`` those of them that are so for directions
    of the basis' covariance too; neither depends on `top`. `steps` tell how an expansion went (`expanded`).
    Raises BadRequest.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise BadRequest(f"expected --top >= 1, got {top}; leave it out for 20")
    if exact and model is None:
        raise BadRequest("expected the checkpoint for --exact, it is not there; leave --exact out")
    found = score(atlas, query, sides=sides, kinds=kinds, alpha=alpha)
    order = _nearest(found, np.arange(len(found.at)), top)
    again = np.zeros(len(found.at), dtype=bool)
    if model is not None:
        rows = atlas.rows(found.at[order], ["site", "side", "dyad", "basis"])
        cos, done = rescored(atlas, query, model, rows, found.at[order], every=exact)
        found = found.with_scores(order[done], cos[done])
        again[order[done]] = True
        order = _nearest(found, order, top)
    rows = atlas.rows(found.at[order], SHOWN)
    p_cov, beyond = _covariance(atlas, model, query, found, order, alpha, seed)
    return Table(
        columns=_columns(found, order, rows, p_cov, again[order], query.k > 1),
        meta=_meta(atlas, query, found, alpha, {"sides": list(sides), "kinds": list(kinds) or "inside blocks"})
        | {"beyond_covariance": beyond, "seed": seed, "expansion": list(steps)},
        title=f"{atlas.manifest['meta']['model']} · {query.words} · {len(found.at):,} directions · "
        f"τ {found.tau:.3f} ({100 * alpha:.3g} % of searches for a random direction find one)",
        says=_says(query, found, rows, order, beyond),
        not_says="It does not say that the model uses them for this: measure it (covector fires, patch, steer). "
        "Directions that share a matrix are not independent finds.",
        next=next_command(atlas, query, rows) if found.hits.any() else "",
        picture=_by_layer(atlas, found),
        lines=hit_line,
        key=("place", "side"),
    )


def _nearest(found: Scored, among: Int[np.ndarray, " n"], top: int) -> Int[np.ndarray, " m"]:
    """The largest |cos|, ties in the order of the model."""
    return among[np.lexsort((found.at[among], -np.abs(found.cos[among])))[:top]]


def _columns(
    found: Scored, order: np.ndarray, rows: list[dict[str, Any]], p_cov: np.ndarray, again: np.ndarray, whole: bool
) -> list[Column]:
    cos, sigma = found.cos[order], np.array([r["sigma"] for r in rows])
    positive = (cos >= 0) | whole
    root = np.sqrt(found.d[order])
    n = len(found.at)
    return [
        Column("place", [f"{r['site']}:{r['dyad']}" for r in rows], about="site and dyad"),
        Column("side", [r["side"] for r in rows], about="which side of the dyad: read, write; query, key of a QK map"),
        Column("pole", ["+" if plus else "−" for plus in positive], about="the pole that the concept lies on"),
        Column("cos", cos, "cos", 3, "cosine with the query (its projected length for a subspace)", chance=found.tau),
        Column("zeta", root * cos, "sd", 1, "√d·cos", chance=float(np.sqrt(found.d.min()) * found.tau)),
        Column("p", found.p[order], about="chance that one random direction reaches this |cos|"),
        Column("q", found.q[order], about=f"Benjamini–Hochberg over the {n:,} directions looked at"),
        Column("p_cov", p_cov, about="p of one direction of the basis' own covariance, chosen beforehand: uncorrected"),
        Column("familywise", familywise(found.p[order], p_cov, n), about=f"chance, at most, that the best of {n:,} "
               "comes as near: random ones, or of the basis' own covariance, whichever come nearer"),
        Column("sigma", sigma, digits=3, about="gain of the dyad"),
        Column("effect", sigma * cos, "×", 3, "expected effect σ·cos: written along the concept per unit read (a read "
               "side: written per unit of the concept; QK: of the score per unit)"),
        Column("tokens", [r["top" if plus else "bottom"] for r, plus in zip(rows, positive, strict=True)],
               about="labels of that pole"),
        Column("noisy", np.array([bool(r["noisy"]) for r in rows]), about="storage rounding may turn the direction"),
        Column("exact", again, about="scored in float64 from the checkpoint (else from the stored float16 row)"),
    ]  # fmt: skip


def _covariance(
    atlas: Atlas, model: Model | None, query: Query, found: Scored, order: np.ndarray, alpha: float, seed: int
) -> tuple[Float[np.ndarray, " n"], int | None]:
    """p_cov of those shown, and how many of all beyond τ are so by it too; NaN and None where it is not defined."""
    if model is None or query.k > 1:
        return np.full(len(order), np.nan), None
    laws, basis, n = covariance_of(model, query, seed), atlas.column("basis"), len(found.at)
    hits = np.flatnonzero(found.hits)
    beyond = laws.beyond(basis[found.at[hits]].tolist(), found.cos[hits], alpha / n)
    return laws.p_of(basis[found.at[order]].tolist(), found.cos[order]), beyond


def _says(query: Query, found: Scored, rows: list[dict[str, Any]], order: np.ndarray, beyond: int | None) -> str:
    hits, listed = int(found.hits.sum()), int((found.q < 0.05).sum())
    said = f"{hits} of {len(found.at):,} directions {'lies' if hits == 1 else 'lie'} beyond τ; {listed} have q < .05"
    others = [i for i, row in enumerate(rows) if _address(row) not in query.places]
    if others and abs(found.cos[order[others[0]]]) >= found.tau:
        row, cos = rows[others[0]], found.cos[order[others[0]]]
        pole = "" if query.k > 1 else f" ({'+' if cos >= 0 else '−'} pole)"
        asked = ", besides what was asked for," if query.places else ""
        said += f". The nearest{asked} is what {row['site']}:{row['dyad']} {VERB[row['side']]}{pole}"
        said += f", effect {effect_words(row['side'], row['sigma'] * cos)}"
    if hits and beyond is not None:
        also = "it is" if hits == 1 else f"{beyond or 'none'} {'is' if beyond == 1 else 'are'}"
        also = "it is not" if hits == 1 and not beyond else also
        said += f". Of {'the one' if hits == 1 else f'the {hits}'} beyond τ {also} beyond what the best of as many "
        said += "directions of the basis' own covariance reaches (FWER)"
    return said + "".join(f". {note}" for note in query.notes) + "."


VERB = {"read": "reads", "write": "writes", "query": "asks for (query)", "key": "offers (key)"}


def _address(row: Mapping[str, Any]) -> str:
    return f"{row['site']}:{row['dyad']}.{row['side']}"


def next_command(atlas: Atlas, query: Query, rows: Sequence[Mapping[str, Any]]) -> str:
    """More like the best direction; after that, the whole place that the best other one belongs to."""
    others = [row for row in rows if _address(row) not in query.places]
    if not others:
        return ""
    if not query.places:
        return f"covector search {shlex.quote(str(atlas.folder))} --like {_address(others[0])}"
    frame = atlas.manifest["meta"]["frame"]
    typed = f" --frame {frame}" if frame != "raw" else ""
    return f"covector svd {atlas.manifest['reference']} {others[0]['site']}{typed}"


def _meta(atlas: Atlas, query: Query, found: Scored, alpha: float, looked: Mapping[str, Any]) -> dict[str, Any]:
    return (
        atlas.manifest["meta"]
        | {
            "analysis": "search",
            "policy": "none: weights only",
            "atlas": str(atlas.folder),
            "query": {"words": query.words, "kind": query.kind, "dimensions": query.k, "notes": list(query.notes)},
        }
        | looked
        | {
            "directions": len(found.at),
            "alpha": alpha,
            "tau": found.tau,
            "beyond": int(found.hits.sum()),
            "null": "Haar directions; Beta law, union over the directions looked at; p_cov: one direction of the "
            "basis' own covariance; familywise: the larger of both laws, union over the directions looked at",
            "precision": "cosines of stored float16 rows: to about 2e-5; where exact: float64",
        }
    )


def _by_layer(atlas: Atlas, found: Scored) -> Callable[[Table], Scatter]:
    def picture(_: Table) -> Scatter:
        """Cosine against layer, one dot per direction beyond three quarters of τ."""
        index = atlas.columns("layer", "side")
        near = np.abs(found.cos) > 0.75 * found.tau
        layers = np.nan_to_num(index["layer"][found.at[near]].astype(float), nan=-1.0)
        return Scatter(
            x=layers,
            y=found.cos[near],
            x_name="layer (−1: embedding)",
            y_name="cosine with the query",
            x_unit="",
            y_unit="cos",
            groups=[str(s) for s in index["side"][found.at[near]]],
            band=(-found.tau, found.tau),
        )

    return picture
