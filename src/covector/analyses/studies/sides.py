"""Is what a head reads less interpretable than what it writes? On the same dyads, against several bases.

A read direction can be looked up in several bases: what tokens put into the stream, what the first MLP makes of that,
what the output reads, the duals of the embedding. Each has its own null, so scores are z against random directions of
the same basis; the difference read − write is taken on each dyad, averaged over a head, and heads are the units.

Source: Q9 and §1.6 of the theory page; `docs/theory/studies.md`, equation 4.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.studies.directions import adjusted, directions, judged, of_p, of_share, told_of, unit_means
from covector.analyses.studies.judges import DRAWS, judge
from covector.analyses.studies.study import Study
from covector.axes import Float
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.signed_rank import SignedRank, signed_rank
from covector.linalg.norms import lengths
from covector.model.opened import Model
from covector.render import Column, Scatter, Table

ALPHA = 0.05
# What read directions are looked up in, where the model has it; the last is the pseudo-inverse, regularised.
BASES = ("token_in", "token_in_mlp0", "token_out", "token_in:ridge=1")


@dataclass(frozen=True, eq=False)
class Against:
    """Mean z per head of what is read, in one basis; share of its lists that are coherent."""

    basis: str
    z: Float[np.ndarray, " m"]
    share: float


def sides(
    atlas: Atlas,
    model: Model | None = None,
    *,
    bases: Sequence[str] | None = None,
    leading: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Table:
    """Coherence z of what heads read less that of what they write, paired by dyad: one row per basis of the read side.

    Without the `model` the atlas' own basis is the only one. `leading`: dyads of every head that count (None: all).
    p is Wilcoxon's over heads, q over bases. On random weights differences centre on zero, whatever the basis.
    Raises BadRequest for an atlas without scores or OV heads.
    """
    told = judged(atlas, "z_coherence", "p_coherence", "basis")
    places = directions(atlas)
    first = np.iinfo(places.dyad.dtype).max if leading is None else leading
    read, write = (places.of("ov", side) & (places.dyad < first) for side in ("read", "write"))
    if first < 1 or not read.any() or not write.any():
        raise BadRequest(f"{atlas.folder}: expected heads with an OV map and leading >= 1; build with --kinds ov")
    written = unit_means(told["z_coherence"][write], places.unit[write])
    own = str(told["basis"][read][0])
    found = [Against(own, unit_means(told["z_coherence"][read], places.unit[read]), _share(told["p_coherence"][read]))]
    if model is not None:
        rows = atlas.units(read)
        rows /= lengths(rows)[:, None]
        plain, dot, _ = own.partition(".centred")
        for name in _names(model, bases, plain):
            again = judge(model, name, centred=bool(dot), draws=draws, seed=seed)(rows)
            found.append(Against(name, unit_means(again.z, places.unit[read]), _share(again.p)))
    return _table(atlas, found, written, _share(told["p_coherence"][write]), leading, draws, seed)


def _names(model: Model, bases: Sequence[str] | None, own: str) -> list[str]:
    """Bases of the read side besides the atlas' own: those asked for, or those of `BASES` that model and frame have."""
    runs = model.frame.preserving
    known = [n for n in BASES if n.partition(":")[0] in model.bases and (runs or n != "token_in_mlp0")]
    return [name for name in (known if bases is None else bases) if name != own]


def _share(p: Float[np.ndarray, " n"]) -> float:
    there = p[~np.isnan(p)]
    return float((there < ALPHA).mean()) if len(there) else float("nan")


def _table(
    atlas: Atlas,
    found: list[Against],
    written: Float[np.ndarray, " m"],
    share: float,
    leading: int | None,
    draws: int,
    seed: int,
) -> Table:
    tests = [signed_rank(one.z - written) for one in found]
    q = adjusted([test.p for test in tests])
    n = len(found)
    columns = [
        Column("basis", [one.basis for one in found], about="what read directions are looked up in"),
        Column("heads", np.array([test.n for test in tests]), about="pairs: heads with both sides"),
        Column("read", np.array([one.share for one in found]), "", 3, "share of coherent lists read", ALPHA),
        Column("write", np.full(n, share), "", 3, "share of coherent lists written", ALPHA),
        Column("z_read", np.array([np.nanmean(one.z) for one in found]), "", 2,
               "mean coherence in sd of random directions", 0.0),
        Column("z_write", np.full(n, np.nanmean(written)), "", 2, "the same of what is written", 0.0),
        Column("difference", np.array([test.centre for test in tests]), "", 2,
               "z read less z written, Hodges–Lehmann over heads", 0.0),
        Column("low", np.array([test.low for test in tests]), "", 2, "95 % interval"),
        Column("high", np.array([test.high for test in tests]), "", 2, "95 % interval"),
        Column("p", np.array([test.p for test in tests]), about="Wilcoxon's signed ranks over heads"),
        Column("q", q, about="Benjamini–Hochberg over bases"),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta=atlas.manifest["meta"]
        | {"analysis": "study_sides", "leading": leading, "draws": draws, "seed": seed,
           "null": "differences symmetric around zero; z against Haar directions of each basis"},
        title=f"{told_of(atlas)} · sides: what OV heads read against what they write · {tests[0].n} heads",
        says=_says(found, tests, q, share),
        not_says="Not what a head does with either: a side is judged by how alike its labels are. Heads of one layer "
        "are taken as separate. QK has no written side.",
        next=f"covector study basis {shlex.quote(str(atlas.folder))}",
        picture=_picture,
        key=("basis",),
    )  # fmt: skip


def _says(found: list[Against], tests: list[SignedRank], q: Float[np.ndarray, " n"], share: float) -> str:
    words = []
    for one, test, value in zip(found, tests, q, strict=True):
        if not value < ALPHA:
            words.append(f"{one.basis}: no difference beyond chance ({of_p(test.p)})")
            continue
        how = "less" if test.centre < 0 else "more"
        words.append(f"{one.basis}: read {how} coherent than written by {abs(test.centre):.2f} sd ({of_p(test.p)})")
    head = (
        f"Coherent lists: written {of_share(share)}, read {of_share(found[0].share)} in {found[0].basis} (chance 5 %)."
    )
    return f"{head} By basis of the read side — {'; '.join(words)}."


def _picture(table: Table) -> Scatter:
    return Scatter(
        x=np.arange(len(table)),
        y=np.asarray(table["difference"]),
        x_name="basis of the read side",
        y_name="coherence read − written",
        x_unit="",
        y_unit="sd of random directions",
        labels=[row["basis"] for row in table.rows],
        interval=(np.asarray(table["low"]), np.asarray(table["high"])),
        band=(0.0, 0.0),
    )


STUDY = Study(
    "sides",
    "Is what heads read less interpretable than what they write?",
    sides,
    "model",
    "z of coherence on the same dyads, read in several bases; Wilcoxon over heads, BH over bases",
)
