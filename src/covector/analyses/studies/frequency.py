"""Is the score of a direction an effect of token frequency? Rare tokens are alike because nothing taught them apart.

Three questions of each kind and side. Do frequent lists score higher (or lower) among the directions of a site, more
than among random directions? Do directions lie along frequency more often than chance? And what is left of the score
when every list is compared with lists of the same frequencies and vector lengths (N8)? Random directions are treated
alike in all three, so that what the vocabulary does to any direction is not put down to the model.

Source: Q4, N8 and §1.6 of the theory page; `docs/theory/studies.md`, equations 21–23.
"""

import shlex
from dataclasses import dataclass

import numpy as np
from scipy import stats

from covector.analyses.studies.directions import adjusted, directions, of_p, of_share, stand_ins, told_of, unit_means
from covector.analyses.studies.judges import without_one
from covector.analyses.studies.study import Study
from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.clustered import Share, clustered_share
from covector.linalg.chance.haar import unit_rows
from covector.linalg.chance.pareto import tail_p
from covector.linalg.chance.signed_rank import SignedRank, signed_rank
from covector.linalg.chance.streams import generator
from covector.linalg.dictionary import Dictionary
from covector.linalg.list_scores import list_scores
from covector.linalg.norms import lengths
from covector.linalg.strata import matched_coherence, ranks, strata
from covector.model.opened import Model
from covector.render import Column, Scatter, Table

ALPHA = 0.05
DRAWS = 2000
# Lists exchanged within their strata behind each expected coherence; their mean is then right to a tenth of its sd.
EXCHANGED = 24
# Sites with fewer directions than this have no rank correlation worth the name.
SHORTEST = 8
PROXY = "token id (lower is more frequent)"


@dataclass(frozen=True, eq=False)
class Measured:
    """Directions on one dictionary.

    coherence of their lists, the part `beyond` the expectation of their frequencies, mean frequency rank of the
    `listed` tokens (0 rare, 1 frequent), correlation of their cosines with the frequency rank (`along`).
    """

    coherence: Float[np.ndarray, " n"]
    beyond: Float[np.ndarray, " n"]
    listed: Float[np.ndarray, " n"]
    along: Float[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Ground:
    """One basis: its dictionary with frequency ranks and strata, and what random directions measure on it."""

    dictionary: Dictionary
    rank: Float[np.ndarray, " n"]
    stratum: Int[np.ndarray, " n"]
    random: Measured

    @property
    def rho(self) -> float:
        """Rank correlation of coherence and frequency among random directions."""
        return _rho(self.random.listed, self.random.coherence)


@dataclass(frozen=True, eq=False)
class Found:
    """One kind and side: site by site correlation, shares before and after, and the change of z."""

    kind: str
    side: str
    sites: int
    n: int
    rho: SignedRank
    rho_null: float
    along: Share
    before: Share
    after: Share
    effect: SignedRank


def frequency(
    atlas: Atlas,
    model: Model,
    counts: Int[np.ndarray, " n"] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Table:
    """How far token frequency explains coherence: one row per kind and side.

    `counts`: how often each token id occurs in some text; None takes the order of ids for the order of frequency, a
    proxy that fits vocabularies made by merging and no others. `rho` is the rank correlation of a list's frequency
    with its coherence among the directions of a site, `effect` the change of z (sd of random directions) once lists
    are compared with lists of equal frequencies; both less what as many random directions show, Wilcoxon over sites.
    Lists are drawn and judged again here, so an atlas without scores will do; kinds that are read against other labels
    than tokens are left out.
    Raises BadRequest for draws < 100, counts of another vocabulary or without two distinct values, or no tokens.
    """
    if draws < 100:
        raise BadRequest(f"expected draws >= 100, got {draws}; leave it out for {DRAWS}")
    often = _often(model, counts)
    places, names = directions(atlas), atlas.column("basis").astype(str)
    grounds: dict[tuple[str, bool], Ground] = {}
    found = []
    for kind, side, at in places.groups():
        name, _, centred = names[at][0].partition(".")
        if not name.startswith("token") or len(model.bases[name]) != len(often):
            continue
        twin = model.bases[name].same_as
        key = (twin.name if twin is not None else name, bool(centred))
        if key not in grounds:
            grounds[key] = _ground(model, key, often, draws, seed)
        rows = atlas.units(at)
        measured = _measured(rows / lengths(rows)[:, None], grounds[key], seed)
        found.append(_found(kind, side, measured, places.unit[at], grounds[key]))
    if not found:
        raise BadRequest(
            f"{atlas.folder}: expected directions that are read against tokens, its bases hold other labels"
        )
    return _table(atlas, found, counts, draws, seed)


def _often(model: Model, counts: Int[np.ndarray, " n"] | None) -> Float[np.ndarray, " n"]:
    size = model.spec.n_vocab
    if counts is None:
        return -np.arange(size, dtype=np.float64)
    if counts.shape != (size,) or len(np.unique(counts)) < 2:
        raise BadRequest(f"expected {size} counts that are not all alike, got {counts.shape}; count more text")
    return counts.astype(np.float64)


def _ground(model: Model, key: tuple[str, bool], often: np.ndarray, draws: int, seed: int) -> Ground:
    dictionary = model.bases.dictionary(*key)
    dictionary.check()
    d = model.spec.d_model
    rng = generator(seed, "frequency")
    rows = rng.standard_normal((draws, d - key[1])) @ (without_one(d) if key[1] else np.eye(d))
    rank = ranks(often, dictionary.keep)
    stratum = strata(often, model.bases[key[0]].norms, dictionary.keep)
    nothing = Measured(*(np.empty(0) for _ in range(4)))
    ground = Ground(dictionary, rank, stratum, nothing)
    return Ground(dictionary, rank, stratum, _measured(unit_rows(rows), ground, seed))


def _measured(rows: Float[np.ndarray, "n d"], ground: Ground, seed: int) -> Measured:
    dictionary = ground.dictionary
    told = list_scores(rows, dictionary.lists(rows), dictionary, seed=seed)
    members = told.members[:, : dictionary.scored]
    expected = matched_coherence(
        dictionary.view.aim_of(rows), members, dictionary.view, ground.stratum, draws=EXCHANGED, seed=seed
    )
    units = dictionary.units[dictionary.keep].astype(np.float64)
    units = units - units.mean(axis=0)
    rank = ground.rank[dictionary.keep]
    spread = np.sqrt(np.maximum(np.einsum("nd,nd->n", rows @ (units.T @ units), rows), np.finfo(float).tiny))
    along = rows @ (units.T @ (rank - rank.mean())) / (spread * np.linalg.norm(rank - rank.mean()))
    return Measured(told.coherence, told.coherence - expected, ground.rank[members].mean(axis=1), along)


def _found(kind: str, side: str, told: Measured, unit: Int[np.ndarray, " n"], ground: Ground) -> Found:
    random = ground.random
    z = [
        (ours - np.nanmean(null)) / np.nanstd(null, ddof=1)
        for ours, null in ((told.coherence, random.coherence), (told.beyond, random.beyond))
    ]
    p = [
        np.atleast_1d(tail_p(ours, null))
        for ours, null in ((told.coherence, random.coherence), (told.beyond, random.beyond))
    ]
    edge = float(np.quantile(np.abs(random.along), 1 - ALPHA))
    random_at = stand_ins(unit, len(random.coherence))
    null_z = [(n[random_at] - np.nanmean(n)) / np.nanstd(n, ddof=1) for n in (random.coherence, random.beyond)]
    sites = [np.flatnonzero(unit == u) for u in np.unique(unit)]
    ours = np.array([_rho(told.listed[at], told.coherence[at]) for at in sites])
    theirs = np.array([_rho(random.listed[random_at[at]], random.coherence[random_at[at]]) for at in sites])
    return Found(
        kind,
        side,
        len(sites),
        len(unit),
        signed_rank(ours - theirs),
        ground.rho,
        clustered_share(np.abs(told.along) > edge, unit),
        clustered_share(p[0] < ALPHA, unit),
        clustered_share(p[1] < ALPHA, unit),
        signed_rank(unit_means(z[1] - z[0] - (null_z[1] - null_z[0]), unit)),
    )


def _rho(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    there = np.isfinite(one) & np.isfinite(other)
    if there.sum() < SHORTEST or np.ptp(one[there]) == 0 or np.ptp(other[there]) == 0:
        return float("nan")
    return float(np.corrcoef(stats.rankdata(one[there]), stats.rankdata(other[there]))[0, 1])


def _table(atlas: Atlas, found: list[Found], counts: np.ndarray | None, draws: int, seed: int) -> Table:
    q, q_rho = adjusted([f.effect.p for f in found]), adjusted([f.rho.p for f in found])
    source = PROXY if counts is None else f"a text of {int(counts.sum()):,} tokens"
    columns = [
        Column("kind", [f.kind for f in found]),
        Column("side", [f.side for f in found]),
        Column("sites", np.array([f.sites for f in found])),
        Column("n", np.array([f.n for f in found]), about="directions"),
        Column("rho", np.array([f.rho.centre + f.rho_null for f in found]), digits=2, chance="rho_null",
               about="rank correlation of a list's frequency with its coherence within sites, Hodges–Lehmann"),
        Column("rho_null", np.array([f.rho_null for f in found]), digits=2, about="the same of random directions"),
        Column("along", np.array([f.along.value for f in found]), digits=3, chance=ALPHA,
               about="share whose cosines follow frequency more than 95 % of random directions'"),
        Column("before", np.array([f.before.value for f in found]), digits=3, chance=ALPHA,
               about="share of coherent lists (p < .05)"),
        Column("after", np.array([f.after.value for f in found]), digits=3, chance=ALPHA,
               about="share more coherent than lists of equal frequencies, beyond what random directions are"),
        Column("effect", np.array([f.effect.centre for f in found]), digits=2, chance=0.0,
               about="z with frequency taken out less z, Hodges–Lehmann over sites"),
        Column("low", np.array([f.effect.low for f in found]), digits=2, about="95 % interval, sites as units"),
        Column("high", np.array([f.effect.high for f in found]), digits=2, about="95 % interval"),
        Column("q", q, about="Benjamini–Hochberg over rows of Wilcoxon's p of the effect"),
        Column("q_rho", q_rho, about="the same of rho against that of random directions"),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta=atlas.manifest["meta"]
        | {"analysis": "study_frequency", "frequency": source, "draws": draws, "exchanged": EXCHANGED, "seed": seed,
           "null": "Haar directions, measured alike; members exchanged within strata of frequency and length"},
        title=f"{told_of(atlas)} · frequency by {source}",
        says=_says(found, q, q_rho),
        not_says=("Frequencies are not known here: ids stand in for them, which fits vocabularies made by merging, and "
                  "--text counts real ones. " if counts is None else "Frequencies are those of this text, not of what "
                  "the model was trained on. ")
        + "Whatever goes along with frequency (how far a token was trained, its spelling) is taken out with it.",
        next=f"covector study kinds {shlex.quote(str(atlas.folder))}",
        picture=_picture,
        key=("kind", "side"),
    )  # fmt: skip


def _says(found: list[Found], q: Float[np.ndarray, " n"], q_rho: Float[np.ndarray, " n"]) -> str:
    changed = [
        f"{f.kind} {f.side} {f.effect.centre:+.2f} sd ({of_share(f.before.value)} coherent, then "
        f"{of_share(f.after.value)}; {of_p(f.effect.p)})"
        for f, value in zip(found, q, strict=True)
        if value < ALPHA
    ]
    said = (
        f"Taking frequency out changes coherence: {'; '.join(changed)}. "
        if changed
        else f"Taking frequency out changes coherence nowhere beyond chance (largest {_largest(found)}). "
    )
    tied = [
        f"{f.kind} {f.side} {f.rho.centre + f.rho_null:+.2f} (random {f.rho_null:+.2f})"
        for f, value in zip(found, q_rho, strict=True)
        if value < ALPHA
    ]
    said += f"Coherence goes with frequency otherwise than in random directions: {', '.join(tied)}. " if tied else ""
    along = max(found, key=lambda f: f.along.value)
    shares = np.array([f.along.value for f in found])
    said += f"Along frequency lie {of_share(float(shares.min()))} to {of_share(float(shares.max()))} (chance 5 %)"
    return f"{said}, most in {along.kind} {along.side}."


def _largest(found: list[Found]) -> str:
    most = max(found, key=lambda f: abs(f.effect.centre) if np.isfinite(f.effect.centre) else -1.0)
    return f"{most.kind} {most.side} {most.effect.centre:+.2f} sd"


def _picture(table: Table) -> Scatter:
    return Scatter(
        x=np.asarray(table["before"]),
        y=np.asarray(table["after"]),
        x_name="share of coherent lists",
        y_name="share with frequency taken out",
        x_unit="",
        y_unit="",
        labels=[f"{row['kind']} {row['side']}" for row in table.rows],
        groups=[row["kind"] for row in table.rows],
        diagonal=True,
        band=(0.0, ALPHA),
    )


STUDY = Study(
    "frequency",
    "Is the coherence of what is read and written an effect of how frequent tokens are?",
    frequency,
    "counts",
    "coherence against lists of equal token frequency and length; rank correlation; random directions treated alike",
)
