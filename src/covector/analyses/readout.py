"""What a place reads and writes: the singular dyads of its map against labelled bases, with chance beside each score.

One row per dyad, both sides and both poles in it: what excites the + pole is written as the + pole. Nothing is sorted
apart.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.analyses.readout_lines import dyad_line
from covector.analyses.readout_picture import tokens_by_dyads
from covector.analyses.side import Exact, SideReading, orthonormal, read_side
from covector.axes import Bool, Float
from covector.errors import BadRank, BadRequest
from covector.linalg import chance
from covector.linalg.maps import Factored, Map
from covector.linalg.norms import stream_part
from covector.linalg.svd import SVD, svd
from covector.model.address import Site
from covector.model.bases import left, undertrained
from covector.model.circuits import cautions, side_centred, site_tensors
from covector.model.opened import Model
from covector.render import Column, Table

# Dyads called beyond chance at this false-discovery rate (Benjamini–Hochberg over the request).
LEVEL = 0.05


@dataclass(frozen=True)
class _Side:
    """One side of the dyads: read against a basis when it lies in the residual stream, else by its own coordinates."""

    name: str
    directions: Float[np.ndarray, "r d"]
    reading: SideReading | None
    labels: tuple[str, ...]
    hardly: Bool[np.ndarray, " token"] | None = None


def readout(
    model: Model,
    address: str,
    *,
    rank: int = 10,
    k: int = 15,
    basis: str = "auto",
    frame: str | None = None,
    score: str = "cosine",
    without: tuple[str, ...] | str = (),
    tokens: tuple[str, ...] | str = (),
    exact: bool = False,
    draws: int = 2000,
    seed: int = 0,
) -> Table:
    """The leading `rank` dyads of the map at `address`, each with its `k` extreme labels per side and pole.

    `basis`: a name for both sides, one for each (``token_in,token_out``), or ``auto`` (reads against inputs, writes
    against outputs). `frame` re-frames the model. `score` orders the lists: ``cosine`` (equal to ζ) or
    ``raw`` dot products; p values are always of cosines. `without` leaves labels out: ``ascii`` keeps ASCII labels
    only, ``trained`` drops tokens that look hardly trained (filters never re-rank). `tokens` adds the ζ of given labels
    on the written side (the read one where nothing is written to the stream). `exact` simulates p values with
    `draws` draws (and adds p_cov) instead of giving their closed upper bounds.

    q is Benjamini–Hochberg over every dyad and side of this request, on p_dir. Columns of a side without a residual
    basis (neurons, a head's own coordinates) hold loadings and no p.
    Raises BadSite, BadRank, UnknownBasis, UnknownFrame, FrameUnavailable, NotOneToken.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise BadRequest(f"expected k >= 1 labels per pole, got {k}; leave it out for 15")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise BadRank(f"expected rank >= 1 dyads, got {rank}; leave it out for 10")
    without, tokens = ((x,) if isinstance(x, str) else tuple(x) for x in (without, tokens))
    view = model if frame is None or frame == str(model.frame) else model.framed(frame)
    site = view.site(address)
    m = view.map(site)
    # A map as wide as the stream reads and writes all of it: its subspace is everything, and the tail is not needed.
    thin = _rank_bound(m) < view.spec.d_model
    whole = svd(m) if thin else svd(m, rank)
    shown = min(rank, whole.rank)
    chosen = _basis_names(view, basis, site)
    simulate = Exact(draws, seed) if exact else None
    with ThreadPoolExecutor(1) as beside:  # hashing a vocabulary takes as long as a product with it, on another core
        origins = beside.submit(view.origins, *_tensors(view, site, m, chosen))
        sides = [
            _side(view, site, whole, shown, n, chosen[n], thin=thin, k=k, score=score, without=without, exact=simulate)
            for n in ("read", "write")
        ]
    q = _adjusted(sides, "p_dir")
    columns = [*_dyad_columns(whole, shown), *_side_columns(sides, q), *_asked(view, sides, tokens)]
    return Table(
        columns=columns,
        meta=view.meta
        | _request(str(site), m.shape, whole, sides, score, without, simulate, seed)
        | {"tensors": origins.result()},
        title=_title(view, str(site), m.shape, sides),
        says=_says(sides, shown, str(site), q),
        not_says=_not_says(view, site, sides),
        next=_next(view, str(site)),
        picture=tokens_by_dyads,
        lines=dyad_line,
        key=("dyad",),
    )


def _basis_names(model: Model, basis: str, site: Site) -> dict[str, str]:
    """Basis per side. A QK map has no written side: both of its sides read the stream, the second as the key."""
    read, comma, write = basis.partition(",")
    if basis == "auto":
        return {side: model.bases.default("read" if site.kind == "qk" else side) for side in ("read", "write")}
    return {"read": read, "write": write if comma else read}


def _asked(model: Model, sides: list[_Side], tokens: tuple[str, ...]) -> list[Column]:
    """ζ of given labels on every dyad, one column each."""
    side = next((s for s in reversed(sides) if s.reading), None)
    if side is None or side.reading is None or not tokens:
        return []
    reading, made = side.reading, []
    level = float(np.sqrt(reading.d) * chance.threshold(reading.d, 1))
    for text in tokens:
        of_tokens = reading.basis.name.startswith("token_") and model.vocabulary is not None
        row = model.vocabulary.one(text) if of_tokens and model.vocabulary else reading.basis.index(text)
        about = f"√d·cos, {side.name} side"
        made.append(Column(f"zeta: {reading.basis.labels[row]}", reading.zeta_of(row), "sd", 2, about, chance=level))
    return made


def _side(
    model: Model,
    site: Site,
    whole: SVD,
    shown: int,
    name: str,
    basis_name: str,
    *,
    thin: bool,
    k: int,
    score: str,
    without: tuple[str, ...],
    exact: Exact | None,
) -> _Side:
    space = whole.reads if name == "read" else whole.writes
    every = whole.U.T if name == "read" else whole.Vh
    if space.kind not in ("residual", "residual+1"):
        labels = model.labels.get(space.kind, ())
        given = (*labels, *(f"{_short(space.kind)}{i}" for i in range(len(labels), space.size)))
        return _Side(name, every[:shown], None, given[: space.size])
    if space.kind == "residual+1":
        every = stream_part(every)
    hyperplane = side_centred(model.stored.spec, model.frame, site, second=name == "write")
    basis = model.bases.centred(basis_name) if hyperplane else model.bases[basis_name]
    plain = model.bases[basis_name.partition(":")[0]]
    reading = read_side(
        np.ascontiguousarray(every[:shown]),
        _subspace(every, model.spec.d_model) if thin else None,
        basis,
        k=k,
        keep=left(basis, plain, without),
        centred=hyperplane,
        score=score,
        exact=exact,
    )
    return _Side(name, every[:shown], reading, basis.labels, undertrained(plain))


def _rank_bound(m: Map) -> int:
    """The rank that a map cannot exceed: its inner size when it is kept in factors."""
    return min(*m.shape, m.A.shape[1]) if isinstance(m, Factored) else min(m.shape)


def _subspace(directions: np.ndarray, d_model: int) -> Float[np.ndarray, "r d"] | None:
    """Orthonormal rows spanning all that a thin map can read or write on this side; None when that is the stream."""
    found = orthonormal(directions) if len(directions) else directions
    return None if len(found) in (0, d_model) else found


def _tensors(model: Model, site: Site, m: Map, chosen: dict[str, str]) -> tuple[str, ...]:
    """Canonical tensors that a readout is made from: the map's, and those of bases on sides that lie in the stream."""
    spaces = {"read": m.reads.kind, "write": m.writes.kind}
    names = [chosen[side].partition(":")[0] for side in chosen if spaces[side].startswith("residual")]
    return (*site_tensors(site), *(t for name in names for t in model.bases[name].tensors))


def _basis_tensors(sides: list[_Side]) -> tuple[str, ...]:
    return tuple(name for s in sides if s.reading for name in s.reading.basis.tensors)


def _adjusted(sides: list[_Side], question: str) -> dict[str, np.ndarray]:
    """Benjamini–Hochberg over all dyads and both sides of the answers to one question (``p_dir``, ``p_svd``)."""
    read = [(s.name, getattr(s.reading, question)) for s in sides if s.reading]
    if not read:
        return {}
    adjusted = chance.bh(np.concatenate([p for _, p in read]))
    return dict(zip((n for n, _ in read), np.split(adjusted, len(read)), strict=True))


def _dyad_columns(whole: SVD, shown: int) -> list[Column]:
    block = [whole.block_of(i) for i in range(shown)]
    return [
        Column("dyad", np.arange(shown), about="index of the singular triple, largest gain first"),
        Column("sigma", whole.S[:shown], about="gain σ of the dyad in the map's own units"),
        Column("gap", whole.gap[:shown], "σ₁", 3, "distance to the nearest other σ, in units of the largest"),
        Column("block", [f"{b.start}–{b.stop - 1}" if len(b) > 1 else str(b.start) for b in block],
               about="indices that rounding of the stored weights mixes: only their span is defined"),
        Column("noisy", whole.noisy[:shown], about="1 where storage rounding turns the direction by more than 0.1 rad"),
        Column("turn", whole.wedin[:shown], "sin", 3, "bound on the sine of its turn by storage rounding"),
    ]  # fmt: skip


def _side_columns(sides: list[_Side], q: dict[str, np.ndarray]) -> list[Column]:
    made: list[Column] = []
    for side in sides:
        made += _measured(side, q[side.name]) if side.reading else _own_coordinates(side)
    return made


def _measured(side: _Side, q: np.ndarray) -> list[Column]:
    reading, at = side.reading, side.name
    if reading is None:
        return []
    made = [
        Column(f"{at}_label", [side.labels[i] for i in reading.best_id], about="the label with the largest |cosine|"),
        Column(f"{at}_cos", reading.best, "cos", 3, "signed cosine with that label", chance=reading.tau),
        Column(f"{at}_zeta", reading.zeta, "sd", 2, "√d·cos", chance=f"{at}_level"),
        Column(
            f"{at}_level",
            np.full(len(reading.best), np.sqrt(reading.d) * reading.tau),
            "sd",
            2,
            "|ζ| that the best label of a random direction stays below with 95 %",
        ),
        Column(f"{at}_p_dir", reading.p_dir, about="chance that a random direction reaches this |cos| with any label"),
        Column(f"{at}_q", q, about="Benjamini–Hochberg over all dyads and sides of the request"),
        Column(f"{at}_p_svd", reading.p_svd, about="the same for a random basis of the same subspace (NaN when r = d)"),
    ]
    if reading.p_cov is not None:
        made.append(Column(f"{at}_p_cov", reading.p_cov, about="the same for directions with the basis' covariance"))
    if reading.p_error is not None:
        made.append(Column(f"{at}_p_error", reading.p_error, about="standard error of p_dir"))
    made.append(Column(f"{at}_skew", reading.skew, digits=2, about="third moment of all scores; orders the poles only"))
    for pole, ids, scores in (
        ("plus", reading.top, reading.top_score),
        ("minus", reading.bottom, reading.bottom_score),
    ):
        made.append(
            Column(f"{at}_{pole}", [[side.labels[i] for i in row] for row in ids], about=f"labels, {pole} pole")
        )
        made.append(Column(f"{at}_{pole}_score", [list(map(float, row)) for row in scores], digits=3))
    made.append(_flagged(side, reading))
    return made


def _flagged(side: _Side, reading: SideReading) -> Column:
    """Listed labels whose vectors look hardly trained: kept, and marked, unless they were asked to be left out."""
    hardly = side.hardly
    both = np.concatenate([reading.top, reading.bottom], axis=1)
    names = [[side.labels[i] for i in row if hardly is not None and hardly[i]] for row in both]
    return Column(f"{side.name}_flagged", names, about="listed labels that look hardly trained")


def _own_coordinates(side: _Side, k: int = 6) -> list[Column]:
    """The largest loadings of a side that has no residual basis."""
    order = np.argsort(side.directions, axis=1, kind="stable")
    k = min(k, order.shape[1])
    made = []
    for pole, ids in (("plus", order[:, ::-1][:, :k]), ("minus", order[:, :k])):
        scores = np.take_along_axis(side.directions, ids, axis=1)
        made.append(Column(f"{side.name}_{pole}", [[side.labels[i] for i in row] for row in ids]))
        made.append(Column(f"{side.name}_{pole}_score", [list(map(float, row)) for row in scores], digits=3))
    return made


def _short(kind: str) -> str:
    return {"neurons": "n", "head": "c", "position": "position "}.get(kind, f"{kind} ")


def _request(
    site: str,
    shape: tuple[int, int],
    whole: SVD,
    sides: list[_Side],
    score: str,
    without: tuple[str, ...],
    exact: Exact | None,
    seed: int,
) -> dict[str, Any]:
    measured = [s for s in sides if s.reading]
    return {
        "analysis": "readout",
        "site": site,
        "shape": list(shape),
        "policy": "none: weights only",
        "seed": seed if exact else None,
        "null": "Haar direction, " + (f"Monte-Carlo, {exact.draws} draws" if exact else "closed upper bound"),
        "score": score,
        "without": list(without),
        "route": whole.route,
        "cut": whole.cut,
        "bases": {s.name: s.reading.basis.name for s in measured if s.reading},
        "labels": {s.name: s.reading.n for s in measured if s.reading},
        "left_out": {s.name: len(s.reading.basis) - s.reading.n for s in measured if s.reading},
        "dimension": {s.name: s.reading.d for s in measured if s.reading},
        "chance_zeta": {s.name: float(np.sqrt(s.reading.d) * s.reading.tau) for s in measured if s.reading},
    }


def _title(model: Model, site: str, shape: tuple[int, int], sides: list[_Side]) -> str:
    verbs = {"read": "queries", "write": "keys"} if site.endswith(".qk") else {"read": "reads", "write": "writes"}
    read = " → ".join(f"{verbs[s.name]} {s.reading.basis.name}" for s in sides if s.reading)
    levels = dict.fromkeys(f"{np.sqrt(s.reading.d) * s.reading.tau:.1f}" for s in sides if s.reading)
    told = next((verbs[s.name] for s in reversed(sides) if s.reading), "")
    level = f" · ζ, p of what it {told}; chance 95 % ζ {' / '.join(levels)}" if levels else ""
    size = f"{shape[0]}×{shape[1]}"
    return f"{model.name} {site} · {size} · frame {model.frame} · {read or 'own coordinates'}{level}"


def _says(sides: list[_Side], shown: int, site: str, q: dict[str, np.ndarray]) -> str:
    """What is beyond chance, by the q that the table holds; inside the subspace by a q of the same kind on p_svd."""
    parts = []
    for side in sides:
        if side.reading:
            verb = {"read": "query", "write": "match as keys"}[side.name] if site.endswith(".qk") else side.name
            beyond = int(np.sum(q[side.name] < LEVEL))
            parts.append(f"{beyond} of {shown} dyads {verb} {side.reading.basis.name} beyond chance")
    if not parts:
        return f"{site} has no residual side here: its dyads are shown by their largest coordinates."
    inside = _adjusted(sides, "p_svd")
    tail = ""
    if any(np.isfinite(p).any() for p in inside.values()):
        both = [(q[name] < LEVEL) & (np.nan_to_num(p, nan=1.0) < LEVEL) for name, p in inside.items()]
        tail = f"; {int(np.any(both, axis=0).sum())} of them also beat random bases of the same subspace"
    return f"At a false-discovery rate of {LEVEL:.0%}, {' and '.join(parts)}{tail}."


def _not_says(model: Model, site: Site, sides: list[_Side]) -> str:
    known = cautions(model.stored.spec, site)
    plain = "It does not say that the model uses these directions (nothing was run), nor that a word list is a meaning"
    left = [f"{s.name}: {len(s.reading.basis) - s.reading.n} left out" for s in sides
            if s.reading and len(s.reading.basis) > s.reading.n]  # fmt: skip
    return "; ".join([plain, *known, *_own_rows(model, site, sides), *left]) + "."


def _own_rows(model: Model, site: Site, sides: list[_Side]) -> list[str]:
    """A caution where a map is read against its own rows: such directions are near them by construction."""
    own = {"W_E" if n == "W_U" and model.stored.spec.tied else n for n in site_tensors(site)}
    named = {"W_E" if n == "W_U" and model.stored.spec.tied else n for n in _basis_tensors(sides)}
    return ["the basis is this map's own rows: p_dir is small for random weights too"] if own & named else []


def _next(model: Model, site: str) -> str:
    frame = "" if str(model.frame) == "raw" else f" --frame {model.frame}"
    return f"covector svd {model.words} {site}{frame} --grid"
