"""Why does folding norms matter? Each of its three steps alone and with the others: a 2³ factorial on the same sites.

``gain`` moves the norms' gains into what reads through them (into the unembedding too), ``centre`` takes the part along
1 out of what is read and written, ``unembed`` takes the mean token out of the unembedding. All eight combinations
compute the same function. Frames are three of them, nested (covector study frames); here every step is seen with and
without each other one, so that interactions can be estimated as well.

Source: Q11 and §1.5 of the theory page; `docs/theory/studies.md`, equations 4, 19 and 31.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from covector.analyses.studies.directions import adjusted, of_p, stand_ins, told_of, unit_means
from covector.analyses.studies.judges import DRAWS
from covector.analyses.studies.study import Study
from covector.axes import Float
from covector.errors import BadRequest, FrameUnavailable
from covector.io.atlas import Atlas
from covector.linalg.chance.laws import Matched
from covector.linalg.chance.lists import ListNull, haar_lists
from covector.linalg.chance.signed_rank import SignedRank, signed_rank
from covector.linalg.dictionary import Dictionary, dictionary
from covector.linalg.list_scores import list_scores
from covector.linalg.maps import Dense, Factored, Space
from covector.linalg.norms import without_mean
from covector.linalg.svd import svd
from covector.model.circuits import residual
from covector.model.frames import Frame, check_available, writes_centred
from covector.model.opened import Model
from covector.render import Column, Grid, Table

ALPHA = 0.05
FACTORS = ("gain", "centre", "unembed")
# Differences below this are rounding: a step that leaves a side alone changes nothing there.
ROUNDING = 6
# Which of the three steps are taken.
Cell = tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Place:
    """One site as stored: what reads [d, r] through `norm` and what writes [r, d] (or reads, for keys)."""

    kind: str
    norm: str | None
    reader: Float[np.ndarray, "d r"] | None
    writer: Float[np.ndarray, "r d"] | None
    second_reads: bool = False

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of the sides that lie in the stream."""
        if self.kind == "qk":
            return ("query", "key")
        return (("read",) if self.reader is not None else ()) + (("write",) if self.writer is not None else ())


@dataclass(frozen=True, eq=False)
class Judged:
    """One combination: mean z of every site and of its `random` stand-ins, share of coherent lists, leading spans."""

    z: Float[np.ndarray, " m"]
    random: Float[np.ndarray, " m"]
    share: Float[np.ndarray, " m"]
    spans: list[np.ndarray]


@dataclass(frozen=True, eq=False)
class Term:
    """One main effect or interaction on one kind and side: z and share of coherent lists, and what spans keep."""

    kind: str
    side: str
    factors: tuple[str, ...]
    test: SignedRank
    share: float
    overlap: float
    overlap_null: float


def factorial(atlas: Atlas, model: Model, *, leading: int = 10, draws: int = DRAWS, seed: int = 0) -> Table:
    """Main effects and interactions of folding's steps on coherence z: one row per kind, side and term.

    The model is taken as it is stored, whatever the frame of the atlas. z is against `draws` random directions of each
    combination's own dictionary (without a part along 1 where it is centred). A term is the mean of z over the four
    combinations where its sign is + less that over the four others, less the same of as many random directions
    (equation 31); Wilcoxon over sites, q over rows. Of every site the first dyads count, as many as a head has.
    `overlap` is of the first `leading` dyads' spans with and without a step. Steps that the anatomy does not allow are
    left out and said so; terms that cannot change a side have no row.
    Raises BadRequest for leading < 1, fewer than two steps, or a basis too small for lists.
    """
    if leading < 1:
        raise BadRequest(f"expected leading >= 1, got {leading}; leave it out for 10")
    stored = model.framed("raw")
    factors = _available(stored)
    if len(factors) < 2:
        raise BadRequest(
            f"{model.name}: expected two or more of {', '.join(FACTORS)} to be possible, it allows "
            f"{', '.join(factors) or 'none'}; there is nothing to combine"
        )
    cells = [cell for cell in product((False, True), repeat=3) if all(f in factors or not on for f, on in
             zip(FACTORS, cell, strict=True))]  # fmt: skip
    heads = [block.attn.d_head for block in stored.spec.blocks if block.attn]
    most = min(heads, default=stored.spec.d_model)
    z: dict[tuple[str, str], dict[Cell, Judged]] = {}
    for on_gain, on_centre in sorted({cell[:2] for cell in cells}):
        rows = _rows(stored, on_gain, on_centre)
        for cell in (c for c in cells if c[:2] == (on_gain, on_centre)):
            judges = {out: _judge(stored, out, cell, draws, seed) for out in {key[1] == "write" for key in rows}}
            for key, sites in rows.items():
                z.setdefault(key, {})[cell] = _judged(
                    [site[:most] for site in sites], *judges[key[1] == "write"], leading, seed
                )
    d = stored.spec.d_model
    terms = [t for (kind, side), found in z.items() for t in _terms(kind, side, found, factors, leading, d)]
    return _table(atlas, terms, factors, len(cells), leading, draws, seed)


def _available(model: Model) -> tuple[str, ...]:
    spec, found = model.spec, []
    try:
        check_available(model.stored, Frame("folded"))
        found.append("gain")
    except FrameUnavailable:
        pass
    if found and writes_centred(spec, Frame("gauge_fixed")):
        found.append("centre")
    if spec.output("token") is not None and not any(out.softcap for out in spec.outputs):
        found.append("unembed")
    return tuple(found)


def _places(model: Model) -> Iterator[Place]:
    weights = model.weights
    for layer, block in enumerate(model.spec.blocks):
        for kind in ("ov", "qk") if block.attn else ():
            for head in range(block.attn.n_heads if block.attn else 0):
                found = model.map(f"L{layer}H{head}.{kind}")
                assert isinstance(found, Factored)
                yield Place(kind, f"L{layer}.attn_norm", found.A, found.B, kind == "qk")
        if block.mlp is not None:
            yield Place("mlp.in", f"L{layer}.mlp_norm", weights[f"L{layer}.W_in"], None)
            yield Place("mlp.out", None, None, weights[f"L{layer}.W_out"])


def _rows(model: Model, gain: bool, centre: bool) -> dict[tuple[str, str], list[np.ndarray]]:
    """Directions of every kind and side, one array of rows per site, in one combination of the first two steps."""
    made: dict[tuple[str, str], list[np.ndarray]] = {}
    for place in _places(model):
        scale = _gain(model, place.norm) if gain else None
        first = None if place.reader is None else _read(place.reader, scale, centre)
        if place.writer is None:
            second = None
        else:
            second = place.writer.astype(np.float64)
            second = _read(second.T, scale, centre).T if place.second_reads else _along(second, centre)
        for side, rows in zip(place.sides, _sides(model, first, second), strict=True):
            made.setdefault((place.kind, side), []).append(rows)
    return made


def _sides(model: Model, first: np.ndarray | None, second: np.ndarray | None) -> list[np.ndarray]:
    stream = residual(model.spec)
    if first is not None and second is not None:
        found = svd(Factored(first, second, stream, stream, "float64"))
        return [_kept(found.U.T, found.S), _kept(found.Vh, found.S)]
    one = np.ascontiguousarray(first.T) if first is not None else second
    assert one is not None
    found = svd(Dense(one, Space("neuron", len(one)), stream, "float64"))
    return [_kept(found.Vh, found.S)]


def _kept(rows: Float[np.ndarray, "r d"], sizes: Float[np.ndarray, " r"]) -> Float[np.ndarray, "n d"]:
    """Directions with a gain: centring leaves a square matrix one that has none, and is anything."""
    return np.ascontiguousarray(rows[sizes > 1e-9 * sizes[0]])


def _gain(model: Model, norm: str | None) -> Float[np.ndarray, " d"] | None:
    if norm is None or f"{norm}.gain" not in model.weights:
        return None
    return model.weights[f"{norm}.gain"].astype(np.float64)


def _read(matrix: np.ndarray, scale: np.ndarray | None, centre: bool) -> np.ndarray:
    wide = matrix.astype(np.float64) if scale is None else scale[:, None] * matrix.astype(np.float64)
    return wide - wide.mean(axis=0) if centre else wide


def _along(rows: np.ndarray, centre: bool) -> np.ndarray:
    return without_mean(rows) if centre else rows


def _judge(model: Model, out: bool, cell: Cell, draws: int, seed: int) -> tuple[Dictionary, ListNull]:
    """The dictionary of one combination with its null: what tokens write, or (`out`) what the unembedding reads."""
    gain, centre, unembed = cell
    name = model.bases.default("write" if out else "read")
    vectors = model.bases[name].vectors.astype(np.float64)
    if out and gain:
        scale = _gain(model, "final_norm")
        vectors = vectors if scale is None else vectors * scale
    vectors = _along(vectors, centre)
    if out and unembed:
        vectors = vectors - vectors.mean(axis=0)
    made = dictionary(vectors, keep=model.bases.dictionary(name).keep)
    made.check()
    # The same Gaussian rows in every combination, so that what a draw happens to score is nobody's effect.
    law = Matched(without_mean(np.eye(model.spec.d_model))) if centre else None
    return made, haar_lists(made, draws=draws, seed=seed, law=law)


def _judged(sites: list[np.ndarray], chosen: Dictionary, null: ListNull, leading: int, seed: int) -> Judged:
    rows = np.concatenate(sites)
    found = list_scores(rows, chosen.lists(rows), chosen, seed=seed).coherence
    ends = np.cumsum([len(site) for site in sites])[:-1]
    z = np.split(np.atleast_1d(null.z("coherence", found)), ends)
    p = np.split(np.atleast_1d(null.p("coherence", found)), ends)
    unit = np.repeat(np.arange(len(sites)), [len(site) for site in sites])
    random = np.asarray(null.z("coherence", null.scores.coherence))[stand_ins(unit, null.draws)]
    return Judged(
        np.array([np.nanmean(one) for one in z]),
        unit_means(random, unit),
        np.array([np.mean(one < ALPHA) for one in p]),
        [site[:leading] for site in sites],
    )


def _terms(
    kind: str, side: str, found: dict[Cell, Judged], factors: tuple[str, ...], leading: int, d: int
) -> Iterator[Term]:
    for chosen in product((False, True), repeat=len(factors)):
        names = tuple(f for f, on in zip(factors, chosen, strict=True) if on)
        if not names:
            continue
        sign = {cell: _sign(cell, names) for cell in found}
        half = len(found) / 2
        effect = np.round(sum(sign[cell] * (one.z - one.random) for cell, one in found.items()) / half, ROUNDING)
        if not effect.any():
            continue
        share = float(sum(sign[cell] * one.share.mean() for cell, one in found.items()) / half)
        overlap = _overlap(found, names[0]) if len(names) == 1 else float("nan")
        null = float("nan") if np.isnan(overlap) else leading / d
        yield Term(kind, side, names, signed_rank(effect), share, overlap, null)


def _sign(cell: Cell, names: tuple[str, ...]) -> int:
    return int(np.prod([1 if cell[FACTORS.index(name)] else -1 for name in names]))


def _overlap(found: dict[Cell, Judged], name: str) -> float:
    """Mean cos² of the leading spans' principal angles with and without one step, over the other steps and sites."""
    at, values = FACTORS.index(name), []
    for cell, one in found.items():
        if not cell[at]:
            other = found[(*cell[:at], True, *cell[at + 1 :])]
            values += [
                np.sum((a @ b.T) ** 2) / min(len(a), len(b)) for a, b in zip(one.spans, other.spans, strict=True)
            ]
    return min(1.0, float(np.mean(values)))


def _table(
    atlas: Atlas, terms: list[Term], factors: tuple[str, ...], cells: int, leading: int, draws: int, seed: int
) -> Table:
    q = adjusted([t.test.p for t in terms])
    columns = [
        Column("kind", [t.kind for t in terms]),
        Column("side", [t.side for t in terms]),
        Column("term", [" × ".join(t.factors) for t in terms], about="a step, or an interaction of several"),
        Column("sites", np.array([t.test.n for t in terms])),
        Column("effect", np.array([t.test.centre for t in terms]), digits=2, chance=0.0,
               about="change of mean coherence z, Hodges–Lehmann over sites"),
        Column("low", np.array([t.test.low for t in terms]), digits=2, about="95 % interval, sites as units"),
        Column("high", np.array([t.test.high for t in terms]), digits=2, about="95 % interval"),
        Column("share", np.array([t.share for t in terms]), digits=3, chance=0.0,
               about="the same change of the share of coherent lists"),
        Column("p", np.array([t.test.p for t in terms]), about="Wilcoxon over sites"),
        Column("q", q, about="Benjamini–Hochberg over rows"),
        Column("overlap", np.array([t.overlap for t in terms]), digits=2, chance="overlap_null",
               about=f"mean cos² between the first {leading} dyads' spans with and without a step"),
        Column("overlap_null", np.array([t.overlap_null for t in terms]), digits=2, about="of random spans"),
    ]  # fmt: skip
    missing = [f for f in FACTORS if f not in factors]
    return Table(
        columns=columns,
        meta=atlas.manifest["meta"]
        | {"analysis": "study_factorial", "frame": "raw", "factors": list(factors), "unavailable": missing,
           "combinations": cells, "leading": leading, "draws": draws, "seed": seed,
           "null": "differences symmetric around zero over sites; z against Haar directions of each dictionary"},
        title=f"{told_of(atlas).partition(' · ')[0]} · factorial: {cells} combinations of {', '.join(factors)}",
        says=_says(terms, q, missing),
        not_says="All combinations compute the same function: one with more coherent lists shows more, it is not more "
        "right. Of five sites or fewer (MLPs of a small model) no p can be below .05.",
        next=f"covector study frames {shlex.quote(str(atlas.folder))}",
        picture=lambda _: _picture(terms),
        key=("kind", "side", "term"),
    )  # fmt: skip


def _says(terms: list[Term], q: Float[np.ndarray, " n"], missing: list[str]) -> str:
    told = [
        f"{' × '.join(t.factors)}, {t.kind} {t.side} {t.test.centre:+.2f} sd ({of_p(t.test.p)})"
        for t, value in zip(terms, q, strict=True)
        if value < ALPHA
    ]
    said = f"Changed coherence beyond chance: {'; '.join(told)}. " if told else (
        "No step and no interaction changes coherence beyond chance. ")  # fmt: skip
    main = [t for t in terms if len(t.factors) == 1 and np.isfinite(t.overlap)]
    if main:
        least = min(main, key=lambda t: t.overlap)
        said += f"Leading spans change most by {least.factors[0]}, {least.kind} {least.side}: overlap "
        said += f"{least.overlap:.2f} (random {least.overlap_null:.2f})."
    return said + (f" Not possible here: {', '.join(missing)}." if missing else "")


def _picture(terms: list[Term]) -> Grid:
    names = list(dict.fromkeys(" × ".join(t.factors) for t in terms))
    groups = list(dict.fromkeys(f"{t.kind} {t.side}" for t in terms))
    values = np.full((len(groups), len(names)), np.nan)
    for t in terms:
        values[groups.index(f"{t.kind} {t.side}"), names.index(" × ".join(t.factors))] = t.test.centre
    return Grid(values, groups, names, value_name="effect on coherence", unit="sd of random directions")


STUDY = Study(
    "factorial",
    "Why does folding norms matter: which of its steps changes what is read, alone and together with others?",
    factorial,
    "model",
    "2³ factorial of gain, centring and mean token: main effects and interactions, paired by site; overlap of spans",
)
