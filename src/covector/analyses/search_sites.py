"""A concept by place: how much of it all directions of a side hold together, and how strongly the map passes it.

A concept may be spread over many dyads of one map without any of them standing out. The joint fit asks how much of it
lies in what a side reads or writes at all; the gain also weighs how strongly. One row per site and side.

Source: F3 of the theory page (ii, iii); `docs/theory/search.md`, equations 5–7.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.analyses.query import Query
from covector.analyses.search import SIDES, Scored, next_command, score
from covector.analyses.search_lines import place_line
from covector.axes import Float
from covector.errors import BadRequest, FrameUnavailable
from covector.io.atlas import Atlas
from covector.linalg import chance
from covector.linalg.chance.quadratic import gain_tail
from covector.render import Column, Scatter, Table

# Rotations for the joint fit of a subspace, which has no closed form.
DRAWS = 2000


@dataclass(frozen=True)
class Place:
    """One side of one site: its rows among those looked at, in order of dyad, and what was measured."""

    rows: slice
    best: int
    fit: float
    fit_chance: float
    p_fit: float
    gain: float
    p_gain: float


def search_sites(
    atlas: Atlas,
    query: Query,
    *,
    top: int = 20,
    sides: Sequence[str] = SIDES,
    kinds: Sequence[str] = (),
    alpha: float = 0.05,
    seed: int = 0,
    dyads: int | None = None,
    steps: Sequence[Mapping[str, Any]] = (),
) -> Table:
    """The `top` sides of sites that pass the concept most, one row each.

    ``fit`` is R² of the concept by the leading `dyads` stored directions of the side (all, if None), ‖P c‖² (for a
    subspace the mean over its dimensions), r/d by chance; NaN p where they span everything, as all of an MLP do.
    ``gain`` is ‖c M‖² (for what is written ‖M c‖²) over that of a random direction, so 1 by chance; NaN where the atlas
    holds only some of the dyads (built with --rank).
    Both are of the stored float16 rows: relative error below 1e-3. p of the fit is exact (Beta; simulated for a
    subspace), of the gain a saddlepoint approximation, NaN for a subspace. q is Benjamini–Hochberg per question over
    all sides of sites, ``familywise`` Holm over both questions together. Raises BadRequest, and FrameUnavailable in a
    +bias frame.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise BadRequest(f"expected --top >= 1, got {top}; leave it out for 20")
    if "bias" in str(atlas.manifest["meta"]["frame"]):
        raise FrameUnavailable(
            "--by site needs directions that are orthonormal in the stream; with +bias their constants are missing; "
            "build the atlas without +bias"
        )
    if dyads is not None and (isinstance(dyads, bool) or not isinstance(dyads, int) or dyads < 1):
        raise BadRequest(f"expected --dyads >= 1, got {dyads}; leave it out for all of a side")
    found = score(atlas, query, sides=sides, kinds=kinds, alpha=alpha)
    places = list(_places(atlas, found, seed, dyads))
    order = _strongest(places)[:top]
    rows = atlas.rows(found.at[[places[i].best for i in order]])
    measured = _measured(places)
    complete = not np.isnan(measured["gain"]).any()
    return Table(
        columns=_columns(found, places, order, rows, measured, query.k > 1),
        meta=_meta(atlas, query, found, places, alpha, {"sides": list(sides), "kinds": list(kinds) or "inside blocks"})
        | {"complete": complete, "seed": seed, "dyads": dyads, "expansion": list(steps)},
        title=f"{atlas.manifest['meta']['model']} · {query.words} · {len(places):,} sides of sites · "
        f"gain 1 by chance, familywise level {alpha:.3g}",
        says=_says(query, measured, rows, alpha),
        not_says="It does not say that attention ever moves the concept there, nor that the model uses it."
        + ("" if complete else " The atlas was built with --rank: gains need every dyad and are left out."),
        next=next_command(atlas, query, rows) if (measured["familywise"] < alpha).any() else "",
        picture=_by_layer(atlas, found, places),
        lines=place_line,
        key=("site", "side"),
    )


def _places(atlas: Atlas, found: Scored, seed: int, dyads: int | None) -> Iterator[Place]:
    index = atlas.columns("site", "side", "sigma")
    site, side, sigma = (index[name][found.at] for name in ("site", "side", "sigma"))
    starts = np.flatnonzero(np.r_[True, (site[1:] != site[:-1]) | (side[1:] != side[:-1])])
    spectra = {s["site"]: np.asarray(s["sigma"]) for s in atlas.sites}
    nulls: dict[tuple[int, int, int], Any] = {}
    for first, last in zip(starts.tolist(), [*starts[1:].tolist(), len(site)], strict=True):
        rows = slice(first, last)
        r, d, k = min(last - first, dyads or last - first), int(found.d[first]), int(found.k[first])
        squares = found.cos[rows] ** 2
        fit, whole = min(float(squares[:r].sum()) / k, 1.0), spectra[site[first]]
        p_fit = np.nan if r >= d else _p_fit(fit, r, d, k, seed, nulls)
        gain = p_gain = np.nan
        if last - first == len(whole):
            gain = float(squares @ sigma[rows] ** 2) / k / (float(whole @ whole) / d)
            p_gain = gain_tail(whole, gain, d) if k == 1 else np.nan
        best = first + int(np.argmax(squares))
        yield Place(rows, best, fit, r / d, p_fit, gain, p_gain)


def _p_fit(fit: float, r: int, d: int, k: int, seed: int, nulls: dict[tuple[int, int, int], Any]) -> float:
    """Exact for a direction. The mean of ‖P c_j‖² over k orthonormal rows is the gain of a map of r equal gains."""
    if k == 1:
        return float(chance.tail(np.sqrt(fit), d, r))
    if (r, d, k) not in nulls:
        nulls[r, d, k] = chance.null_gain(np.ones(r), np.eye(k, d), draws=DRAWS, seed=seed)
    return float(chance.monte_carlo_p(fit * d / r, nulls[r, d, k]).value)


def _measured(places: list[Place]) -> dict[str, Float[np.ndarray, " n"]]:
    values = {name: np.array([getattr(p, name) for p in places]) for name in ("fit", "p_fit", "gain", "p_gain")}
    both = _adjusted(np.concatenate([values["p_fit"], values["p_gain"]]), chance.holm)
    return values | {
        "q_fit": _adjusted(values["p_fit"], chance.bh),
        "q_gain": _adjusted(values["p_gain"], chance.bh),
        "familywise": np.fmin(both[: len(places)], both[len(places) :]),
    }


def _adjusted(p: Float[np.ndarray, " n"], rule: Any) -> Float[np.ndarray, " n"]:
    """Over the sides of sites for which the question is defined; NaN elsewhere."""
    adjusted, defined = np.full(len(p), np.nan), ~np.isnan(p)
    if defined.any():
        adjusted[defined] = rule(p[defined])
    return adjusted


def _strongest(places: list[Place]) -> list[int]:
    """By the smaller p of the two questions, then by gain, then in the order of the model."""
    p = np.array([np.nanmin([place.p_fit, place.p_gain, 1.0]) for place in places])
    size = np.array([place.gain if not np.isnan(place.gain) else place.fit / place.fit_chance for place in places])
    return np.lexsort((np.arange(len(places)), -size, p)).tolist()


def _columns(
    found: Scored,
    places: list[Place],
    order: list[int],
    rows: list[dict[str, Any]],
    measured: Mapping[str, Float[np.ndarray, " n"]],
    subspace: bool,
) -> list[Column]:
    at = [places[i] for i in order]
    cos = np.array([found.cos[p.best] for p in at])
    positive = (cos >= 0) | subspace
    totals = np.array([float((found.cos[p.rows] ** 2).sum()) for p in at])
    share = np.divide(cos**2, totals, out=np.zeros(len(at)), where=totals > 0)
    picked = {name: values[order] for name, values in measured.items()}
    return [
        Column("site", [r["site"] for r in rows], about="where"),
        Column("side", [r["side"] for r in rows], about="read, write; query, key of a QK map"),
        Column("gain", picked["gain"], digits=2, about="‖c M‖² over that of a random direction", chance=1.0),
        Column("p_gain", picked["p_gain"], about="chance of this gain for a random direction"),
        Column("q_gain", picked["q_gain"], about=f"Benjamini–Hochberg over {len(places):,} sides of sites"),
        Column("fit", picked["fit"], digits=3, about="R² of the concept by the directions of the side",
               chance="fit_chance"),
        Column("fit_chance", np.array([p.fit_chance for p in at]), digits=3, about="r/d"),
        Column("p_fit", picked["p_fit"], about="chance of this fit (Beta); – where the side spans everything"),
        Column("q_fit", picked["q_fit"], about=f"Benjamini–Hochberg over {len(places):,} sides of sites"),
        Column("familywise", picked["familywise"], about="Holm over both questions and all sides of sites"),
        Column("dyad", np.array([r["dyad"] for r in rows]), about="the direction that holds most of the fit"),
        Column("pole", ["+" if plus else "−" for plus in positive], about="the pole that the concept lies on"),
        Column("cos", cos, "cos", 3, "its cosine with the concept", chance=found.tau),
        Column("share", share, digits=2, about="cos² of that direction over the fit of all"),
        Column("tokens", [r["top" if plus else "bottom"] for r, plus in zip(rows, positive, strict=True)],
               about="labels of that pole"),
    ]  # fmt: skip


def _says(query: Query, measured: Mapping[str, np.ndarray], rows: list[dict[str, Any]], alpha: float) -> str:
    beyond = int((measured["familywise"] < alpha).sum())
    n = len(measured["fit"])
    said = f"{beyond} of {n:,} sides of sites stand out beyond the familywise level"
    said += f"; {int((measured['q_gain'] < 0.05).sum())} have a gain with q < .05"
    said += f", {int((measured['q_fit'] < 0.05).sum())} a fit with q < .05"
    if beyond:
        said += (
            f". First is what {rows[0]['site']} {rows[0]['side']}s"
            if rows[0]["side"] in ("read", "write")
            else (f". First is the {rows[0]['side']} of {rows[0]['site']}")
        )
    return said + "".join(f". {note}" for note in query.notes) + "."


def _meta(
    atlas: Atlas, query: Query, found: Scored, places: list[Place], alpha: float, looked: Mapping[str, Any]
) -> dict[str, Any]:
    return (
        atlas.manifest["meta"]
        | {
            "analysis": "search",
            "by": "site",
            "policy": "none: weights only",
            "atlas": str(atlas.folder),
            "query": {"words": query.words, "kind": query.kind, "dimensions": query.k, "notes": list(query.notes)},
        }
        | looked
        | {
            "directions": len(found.at),
            "places": len(places),
            "alpha": alpha,
            "tau": found.tau,
            "null": "a Haar direction: Beta law of the fit, saddlepoint of the gain",
            "precision": "stored float16 directions: relative error of fit and gain below 1e-3",
        }
    )


def _by_layer(atlas: Atlas, found: Scored, places: list[Place]) -> Scatter:
    index = atlas.columns("layer", "side")
    at = found.at[[place.best for place in places]]
    known = [place.gain for place in places]
    layers = np.nan_to_num(index["layer"][at].astype(float), nan=-1.0)
    defined = ~np.isnan(known)
    return Scatter(
        x=layers[defined],
        y=np.array(known)[defined],
        x_name="layer (−1: embedding)",
        y_name="gain of the concept (1 by chance)",
        x_unit="",
        y_unit="",
        groups=[str(s) for s in index["side"][at][defined]],
    )
