"""Spectra of a model's places: how large each map is, how many dimensions it has, what noise of its shape would show.

One row per place. Every number is measured against random maps of the same shape: one Gaussian matrix for MLP maps, a
product of two for ov and qk. Places of one kind are also compared with each other over depth, which names the layer or
head whose spectrum jumps.

Source: `docs/theory/spectra.md`, equations 1–13.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from covector.analyses.site_spectra import SiteSpectrum, chosen_sites, site_spectra
from covector.analyses.spectrum_jumps import Group, Jump, grouped, jumps, z_columns
from covector.analyses.spectrum_lines import site_line
from covector.analyses.spectrum_picture import VIEWS, spectrum_picture
from covector.errors import BadRequest, FrameUnavailable
from covector.linalg import chance
from covector.linalg.chance import random_matrix as noise
from covector.linalg.lapack import at_most_threads
from covector.linalg.spectra import power_law, sizes
from covector.model.circuits import cautions, site_tensors
from covector.model.frames import check_available
from covector.model.frames import frame as frame_of
from covector.model.opened import Model
from covector.render import Column, Table

# Level of every statement: 5 % of random maps have a spike, 5 % of random models a jump.
LEVEL = 0.05
# Fewer draws put no value above a 95 % level with any confidence (its own error is then 0.02).
FEWEST_DRAWS = 100


def spectrum(
    source: Model | Sequence[SiteSpectrum],
    sites: str = "*",
    *,
    kinds: Sequence[str] | str = (),
    frame: str | None = None,
    draws: int = 1000,
    view: str = "spectra",
    seed: int = 0,
    meta: Mapping[str, Any] | None = None,
) -> Table:
    """The spectrum of every place that `sites` names: norms, dimension counts, spikes, and how far out of line it is.

    `source`: a model, or spectra that somebody has computed (then `sites` and `frame` do not apply, and `meta` says
    where they come from). `sites`: addresses with commas between, or ``*`` (every ov, qk and MLP map); `kinds` keeps
    these kinds, and with ``*`` may name others (q, k, v, o, embed, pos, unembed …). `view`: what the picture shows,
    ``spectra`` (σ against index, a curve per layer) or ``depth`` (norms against layers).

    Singular values are exact to 1e-9; nulls are simulated with `draws` draws. Chance levels: 95 % for one place
    (`sigma1_null`, the counts' nulls, `edge`), 95 % over the whole request for the z scores (`z_level`). σ₁ and the
    counts are compared with noise of the same Frobenius norm, spikes with noise of the same median singular value.
    `q_spike` is Benjamini–Hochberg over the request.
    Raises BadSite, BadRequest, UnknownFrame, FrameUnavailable.
    Source: `docs/theory/spectra.md`, equations 1–13.
    """
    given = (kinds,) if isinstance(kinds, str) else kinds
    kinds = tuple(k.strip() for text in given for k in text.split(",") if k.strip())
    _check(draws, view)
    if not isinstance(source, Model):
        if sites != "*" or frame is not None:
            raise BadRequest("spectra that are given have their places and frame already; leave sites and frame out")
        kept = [r for r in source if not kinds or r.site.kind in kinds]
        return _table(kept, None, {"model": "spectra", **(meta or {})}, draws, view, seed)
    model = source if frame is None or frame == str(source.frame) else source.framed(frame)
    chosen = chosen_sites(model.spec, sites, kinds)
    tensors = dict.fromkeys(name for site in chosen for name in site_tensors(site))
    with ThreadPoolExecutor(1) as beside:  # hashing what is read takes as long as decomposing it, on another core
        origins = beside.submit(model.origins, *tensors)
        records = site_spectra(model, chosen)
        told = model.meta | {"sites": sites, "kinds": list(kinds), "tensors": origins.result()}
    return _table(records, model, told, draws, view, seed)


def foremost(table: Table, n: int) -> Table:
    """The n rows that are most out of line with their kind, in the table's order."""
    if n < 1:
        raise BadRequest(f"expected rows >= 1, got {n}; leave it out for 32")
    out = [np.abs(table[z]) / table[f"{z}_level"] for z in ("z", "z_norm")]
    strength = np.nan_to_num(np.fmax(*out), nan=-1.0)
    return table.take(np.sort(np.argsort(-strength, kind="stable")[:n]))


def _table(
    records: list[SiteSpectrum], model: Model | None, meta: Mapping[str, Any], draws: int, view: str, seed: int
) -> Table:
    if not records:
        raise BadRequest("expected at least one spectrum, none is left; name other kinds")
    groups = grouped(records)
    with at_most_threads(1):  # small matrices, many of them: one thread is faster
        nulls = {g.key: noise.spectrum_null(*g.key, draws=draws, seed=seed) for g in groups}
    found = jumps(groups, LEVEL, seed)
    rows = [_measured(r, nulls[g.key]) for g in groups for r in g.records]
    order = np.argsort([i for g in groups for i in g.places], kind="stable")
    rows = [rows[i] for i in order.tolist()]
    columns = [*_columns(records, rows), *z_columns(len(records), found)]
    return Table(
        columns=columns,
        meta={**meta, **_request(draws, seed, groups, found)},
        title=f"{meta['model']} · spectra of {len(records)} maps ({_kinds(groups)}) · frame {_frame(meta)}"
        " · in parentheses: chance",
        says=f"{_jump_sentence(found)} {_noise_sentence(records, rows)}",
        not_says=_not_says(records, model),
        next=_next(model, groups, found),
        picture=partial(spectrum_picture, groups, nulls, found, view),
        lines=site_line,
        key=("site",),
    )


def _check(draws: int, view: str) -> None:
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < FEWEST_DRAWS:
        raise BadRequest(f"expected draws >= {FEWEST_DRAWS} for levels of 95 %, got {draws}; leave it out for 1000")
    if view not in VIEWS:
        raise BadRequest(f"expected a view ({', '.join(VIEWS)}), got '{view}'")


def _measured(record: SiteSpectrum, null: noise.SpectrumNull) -> dict[str, float]:
    """Every number of one place but its comparison with others; NaN where a map of zeros has none."""
    S = record.S
    row = {"rank": float(S.size), "full": float(record.rank), **asdict(sizes(S))}
    if not S.size:
        empty = ("sigma1_null", "p_sigma1", "edge", "p_spike", "p_spike_error", "soft_rank", "alpha", "alpha_distance")
        return (
            row
            | dict.fromkeys((*empty, "stable_null", "participation_null", "effective_null"), np.nan)
            | {"spikes": 0.0}
        )
    stable, participation, effective = noise.count_levels(null, LEVEL)
    above = noise.spikes(S, null, LEVEL)
    law = power_law(S)
    return row | {
        "sigma1_null": noise.largest_at_same_norm(S, null, LEVEL),
        "p_sigma1": float(noise.largest_p(S, null).value),
        "stable_null": stable,
        "participation_null": participation,
        "effective_null": effective,
        "spikes": float(above.count),
        "edge": above.edge,
        "p_spike": above.p,
        "p_spike_error": above.error,
        "soft_rank": noise.soft_rank(S, null),
        "alpha": law.alpha if law else np.nan,
        "alpha_distance": law.distance if law else np.nan,
    }


def _columns(records: Sequence[SiteSpectrum], rows: Sequence[Mapping[str, float]]) -> list[Column]:
    def of(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows])

    below = "a random map of this shape stays above with 95 %"
    p_spike = of("p_spike")
    q = np.full(len(rows), np.nan)
    q[np.isfinite(p_spike)] = chance.bh(p_spike[np.isfinite(p_spike)])
    return [
        Column("site", [str(r.site) for r in records]),
        Column("layer", [r.site.layer for r in records]),
        Column("head", [r.site.head for r in records]),
        Column("kind", [r.site.kind for r in records]),
        Column("sigma1", of("spectral"), about="largest singular value, the map's own units", chance="sigma1_null"),
        Column("sigma1_null", of("sigma1_null"), about="95 % of random maps of this shape and norm are below"),
        Column("p_sigma1", of("p_sigma1"), about="chance that a random map puts this share of its norm into σ₁"),
        Column("frobenius", of("frobenius"), about="√Σσ², the map's own units"),
        Column("nuclear", of("nuclear"), about="Σσ, the map's own units"),
        Column("stable", of("stable"), "dimensions", 1, "Σσ²/σ₁²"),
        Column("stable_null", of("stable_null"), "dimensions", 1, below),
        Column("participation", of("participation"), "dimensions", 1, "(Σσ²)²/Σσ⁴"),
        Column("participation_null", of("participation_null"), "dimensions", 1, below),
        Column("effective", of("effective"), "dimensions", 1, "exp of the entropy of σ²/Σσ²"),
        Column("effective_null", of("effective_null"), "dimensions", 1, below),
        Column("rank", of("rank").astype(int), about="singular values above rounding"),
        Column("full", of("full").astype(int), about="the most that a map of this shape can have"),
        Column("condition", of("condition"), about="σ₁ over the last one above rounding"),
        Column("spikes", of("spikes").astype(int), about="σ above noise of the same median; 95 % of random maps: 0",
               chance=0),
        Column("edge", of("edge"), about="the level that the spikes exceed"),
        Column("p_spike", p_spike, about="chance that σ₁ of noise is this far above its median"),
        Column("p_spike_error", of("p_spike_error"), about="standard error of p_spike"),
        Column("q_spike", q, about="Benjamini–Hochberg over the request"),
        Column("soft_rank", of("soft_rank"), digits=3, about="edge of the bulk's noise over σ₁, squared; noise: 1"),
        Column("alpha", of("alpha"), digits=2, about="power law of the squared values' tail; from 50 values on"),
        Column("alpha_distance", of("alpha_distance"), digits=3, about="Kolmogorov–Smirnov distance of that tail"),
    ]  # fmt: skip


def _request(draws: int, seed: int, groups: Sequence[Group], found: Sequence[Jump]) -> dict[str, Any]:
    return {
        "analysis": "spectrum",
        "draws": draws,
        "seed": seed,
        "level": LEVEL,
        "null": "Gaussian entries; for ov and qk the product of two Gaussian factors",
        "groups": [{"kind": g.kind, "shape": list(g.shape), "inner": g.inner, "maps": len(g.records)} for g in groups],
        "tests": len(found),
    }


def _kinds(groups: Sequence[Group]) -> str:
    return ", ".join(dict.fromkeys(g.kind for g in groups))


def _frame(meta: Mapping[str, Any]) -> str:
    return str(meta.get("frame", "as given"))


def _jump_sentence(found: Sequence[Jump]) -> str:
    if not found:
        return "Too few places of one kind to say whether one is out of line (four are needed)."
    named = _out_of_line(found)
    if not named:
        top = max(found, key=lambda j: abs(j.z) / j.level)
        return f"No layer or head is out of line; the nearest to it is {top.words}."
    rest = "; ".join(j.short for j in named[1:4])
    return f"Out of line: {named[0].words}" + (f"; also {rest}." if rest else ".")


def _out_of_line(found: Sequence[Jump]) -> list[Jump]:
    """Comparisons beyond the familywise level, strongest first; single places before layers, which they may explain.

    A place that is out of line by σ₁ and by its norm is told once, by σ₁, which says whether one dyad does it.
    """
    beyond = sorted((j for j in found if abs(j.z) > j.level), key=lambda j: (j.site is None, -abs(j.z) / j.level))
    by_largest = {j.site: j for j in beyond if j.what == "z"}
    told = [by_largest.get(j.site, j) if j.site else j for j in beyond]
    return list(dict.fromkeys(told))


def _noise_sentence(records: Sequence[SiteSpectrum], rows: Sequence[Mapping[str, float]]) -> str:
    p = np.array([row["p_spike"] for row in rows])
    finite = np.isfinite(p)
    beyond = int(np.count_nonzero(chance.bh(p[finite]) <= LEVEL)) if finite.any() else 0
    shares = [row["effective"] / row["effective_null"] for row in rows if row["spectral"] > 0]
    text = f"{beyond} of {len(records)} maps have singular values above noise of their shape (q ≤ {LEVEL:g})"
    return text + (
        f"; their effective rank is {100 * np.median(shares):.0f} % of noise's in the median." if shares else "."
    )


def _not_says(records: Sequence[SiteSpectrum], model: Model | None) -> str:
    text = (
        "It does not say what a spike means, nor that a map without one is noise. z (of σ₁, of ‖M‖) compares places of "
        "one kind and takes growth over depth for spread."
    )
    if model is None:
        return text
    found = dict.fromkeys(c for r in records for c in cautions(model.spec, r.site))
    return text + (f" {'; '.join(found).capitalize()}." if found else "")


def _next(model: Model | None, groups: Sequence[Group], found: Sequence[Jump]) -> str:
    """Look at the place that jumps; if it is a layer, ask whether it jumps in another frame too; else the picture."""
    if model is None:
        return ""
    named, frame = _out_of_line(found), str(model.frame)
    words = "" if frame == "raw" else f" --frame {frame}"
    if named and named[0].site:
        return f"covector svd {model.words} {named[0].site}{words}"
    other = "raw" if frame != "raw" else next((f for f in ("gauge_fixed", "folded") if _has(model, f)), None)
    if named and other:
        return f"covector spectrum {model.words} --kind {named[0].group.kind} --frame {other}"
    return f"covector spectrum {model.words} --kind {groups[0].kind} --plot spectrum.svg{words}"


def _has(model: Model, name: str) -> bool:
    try:
        check_available(model.stored, frame_of(name))
    except FrameUnavailable:
        return False
    return True
