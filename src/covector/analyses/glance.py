"""A model at a glance: every place of an atlas in one row, what was found there beside what chance would find.

    covector.glance("gpt2m.atlas").show()

Source: theory page §2 F1, §4.0; the union bound for the best of the directions of one place, which are orthonormal
and share their labels, so that Šidák's product would be too small.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import bdtr

from covector.axes import Float, Int
from covector.io.atlas import Atlas
from covector.linalg.spectra import sizes
from covector.render import Column, Grid, Table
from covector.render.number import number_text

# A direction is called near a token at this q, and counted at this p; see `readout.LEVEL`.
LEVEL = 0.05
_SMALLEST = float(np.finfo(np.float64).tiny)


def glance(source: Atlas | str | Path) -> Table:
    """One row per place of an atlas, in its order: sizes of the map, directions beyond chance on all its sides.

    ``near``: share of its directions with p_dir < .05, where chance gives at most .05, less where labels are alike
    (`near_level`: the share that a place of as many independent directions does not exceed with 95 %, binomial).
    ``zeta``: of the direction whose p_dir is the smallest, and ``p_best`` its chance: that the best of so many is this
    near, an upper bound however they depend on each other. ``found``: directions with q < .05 over the whole atlas.
    ``called`` and ``specific``: interpretable by the rule, and also against rotated bases (NaN where the atlas was not
    judged).
    Sizes are of the whole spectrum, exact to the atlas' own precision. `source`: an atlas, or its folder.
    Raises CorruptAtlas.
    """
    atlas = source if isinstance(source, Atlas) else Atlas(source)
    given = atlas.columns("p_dir", "q_dir", "zeta")
    judged = "interpretable" in atlas.names
    verdicts = atlas.columns("interpretable", "svd_specific") if judged else {}
    records = atlas.sites
    place = atlas.places
    known = np.isfinite(given["p_dir"])
    n = _counts(place, known, len(records))
    with np.errstate(invalid="ignore", divide="ignore"):
        near = _counts(place, known & (given["p_dir"] < LEVEL), len(records)) / n
    expected, strongest = _best(place, given["p_dir"], given["zeta"], n)
    size = [sizes(np.array(r["sigma"], dtype=np.float64)) for r in records]
    columns = [
        Column("site", [r["site"] for r in records]),
        Column("kind", [r["kind"] for r in records]),
        Column("layer", _whole(r["layer"] for r in records), digits=0),
        Column("head", _whole(r["head"] for r in records), digits=0),
        Column("directions", n, digits=0, about="directions of all sides that were compared with a basis"),
        Column("near", near, digits=3, chance=LEVEL, about="share with p_dir < .05; in parentheses the most that"
               " chance gives"),
        Column("near_level", _level(n), digits=3, about="95 % of places of as many random directions have no more"),
        Column("found", _counts(place, given["q_dir"] < LEVEL, len(records)), digits=0, about="q < .05, whole"
               " atlas: of all that are found 5 % may be chance"),
        Column("zeta", strongest, digits=1, about="|ζ| = √d·|cos| of its least likely direction, either pole"),
        Column("p_best", np.minimum(expected, 1.0), about="chance that the best of so many is this near, at most"),
        Column("called", _verdicts(place, verdicts, "interpretable", len(records)), digits=0, about="by the rule"),
        Column("specific", _verdicts(place, verdicts, "svd_specific", len(records)), digits=0, about="of these, also"
               " against rotated bases of the same place"),
        Column("sigma1", np.array([s.spectral for s in size]), digits=3, about="largest gain"),
        Column("frobenius", np.array([s.frobenius for s in size]), digits=3, about="‖M‖_F"),
        Column("stable", np.array([s.stable for s in size]), digits=1, about="stable rank ‖M‖²_F/σ₁²"),
        Column("effective", np.array([s.effective for s in size]), digits=1, about="effective rank, exp of entropy"),
    ]  # fmt: skip
    meta = atlas.manifest["meta"]
    return Table(
        columns=columns,
        meta={**meta, "analysis": "glance", "level": LEVEL, "judged": judged},
        title=f"{meta['model']} at a glance · {len(records)} places, {len(atlas):,} directions · frame {meta['frame']}",
        says=_says(records, given["q_dir"], expected, n),
        not_says=_not_says(judged),
        next=_next(atlas, records, expected),
        picture=_picture,
        key=("site",),
    )


def _counts(place: np.ndarray, which: np.ndarray, n: int) -> Float[np.ndarray, " n"]:
    return np.bincount(place[np.asarray(which, dtype=bool)], minlength=n).astype(np.float64)


def _verdicts(place: np.ndarray, verdicts: dict[str, np.ndarray], name: str, n: int) -> Float[np.ndarray, " n"]:
    return _counts(place, verdicts[name], n) if verdicts else np.full(n, np.nan)


def _whole(values) -> Float[np.ndarray, " n"]:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _best(
    place: Int[np.ndarray, " m"], p: Float[np.ndarray, " m"], zeta: Float[np.ndarray, " m"], n: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """How many directions as near as the least likely one of each place chance gives (n · p), and |ζ| of that one.

    NaN where a place has none.
    """
    expected, strongest = np.full(len(n), np.nan), np.full(len(n), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    last_first = known[np.lexsort((np.abs(zeta[known]), -p[known]))]  # of equal p the largest |ζ| comes last
    expected[place[last_first]] = np.maximum(p[last_first], _SMALLEST)
    strongest[place[last_first]] = np.abs(zeta[last_first])
    return expected * n, strongest


def _level(n: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The share that n independent chances of LEVEL do not exceed with 95 %, exact: the binomial's quantile over n."""
    level = {many: _quantile(int(many)) / many for many in np.unique(n) if many > 0}
    return np.array([level.get(many, np.nan) for many in n])


def _quantile(n: int) -> int:
    below = bdtr(np.arange(n + 1), n, LEVEL)
    return int(np.searchsorted(below, 0.95 - 1e-12))  # one direction has .95 exactly, but for rounding


def _says(
    records: Sequence[dict], q: Float[np.ndarray, " m"], expected: Float[np.ndarray, " n"], n: Float[np.ndarray, " n"]
) -> str:
    compared = int(np.isfinite(expected).sum())
    if not compared:
        return "No direction of this atlas was compared with a basis."
    least = _least(records, expected)
    named = ", ".join(f"{records[i]['site']} (p {number_text(min(float(expected[i]) * compared, 1.0))})" for i in least)
    return (
        f"{int(np.sum(q < LEVEL)):,} of {int(n.sum()):,} directions lie closer to a label of their basis than random "
        f"directions (q < .05: 5 % of them may be chance). The places in layers with the least likely directions: "
        f"{named}; each p counts all {compared} places."
    )


def _least(records: Sequence[dict], expected: Float[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    """The three places with the least likely directions; in layers, where there are any."""
    # A table of the basis' own vectors is near them by construction, for random weights too: those are not named.
    inside = np.array([r["layer"] is not None for r in records])
    ranked = np.where(inside, expected, np.inf) if np.isfinite(expected[inside]).any() else expected
    return np.argsort(ranked, kind="stable")[: min(3, int(np.isfinite(ranked).sum()))]  # NaN and ∞ come last


def _next(atlas: Atlas, records: Sequence[dict], expected: Float[np.ndarray, " n"]) -> str:
    """The directions of the place with the least likely one; empty where none was compared."""
    least = _least(records, expected)
    if not len(least):
        return ""
    return f"covector directions {shlex.quote(str(atlas.folder))} --site {records[least[0]]['site']} --top 10"


def _not_says(judged: bool) -> str:
    rule = "" if judged else " This atlas was built without scores, so nothing is called interpretable."
    return (
        f"Being near a token is no use by the model: what a place does to the output needs observables or edits.{rule}"
    )


def _picture(table: Table) -> Grid:
    """Places × layers, coloured by the share of directions near a label."""
    layers = sorted({int(v) for v in table["layer"] if np.isfinite(v)})
    names = list(dict.fromkeys(_row_name(r) for r in table.rows if r["layer"] is not None))
    values = np.full((len(names), len(layers)), np.nan)
    for row in table.rows:
        if row["layer"] is not None and row["near"] is not None:
            values[names.index(_row_name(row)), layers.index(int(row["layer"]))] = row["near"]
    return Grid(
        values=values,
        row_labels=names,
        column_labels=[f"L{layer}" for layer in layers],
        value_name="share of directions with p < .05",
        centre=LEVEL,
        chance=None,
        row_name="place",
        column_name="layer",
    )


def _row_name(row: dict) -> str:
    place = str(row["site"]).partition(".")
    head = f"H{int(row['head'])}." if row["head"] is not None else ""
    return f"{head}{place[2]}"
