"""Chance and verdicts of judged lists, over a whole atlas: p against the null draws, q over every direction, the rule.

Source: §4.0 of the theory page; `docs/theory/scores.md`, equations 11–16. The rule itself is data in
`covector.analyses.score`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from covector.analyses.score import ALIGNED, INTERPRETABLE, SVD_SPECIFIC, Rule
from covector.axes import Bool, Float
from covector.linalg import chance
from covector.linalg.chance.lists import p_among

# Column of p or z → (score in the parts, null draws that it is held against).
AGAINST_DRAWS = {
    "p_coherence": ("coherence", "haar.coherence"),
    "p_coherence_cov": ("coherence", "cov.coherence"),
    "p_heldout": ("heldout", "haar.auc"),
    "p_intruder": ("intruder", "haar.intruder"),
    "p_lexical": ("lexical", "haar.lexical"),
    "p_whole": ("whole", "haar.whole"),
}
# p of the coherence of a head's direction among rotated bases of every head (equation 19): q_coherence_svd is of this.
POOLED = "p_coherence_pooled"


def chances(
    arrays: Mapping[str, np.ndarray], names: Sequence[str], nulls: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Float[np.ndarray, " n"]]:
    """p of every judged list against the draws of its own basis, and its coherence in their sd; NaN if undefined."""
    of = np.array(names)
    made = {column: np.full(len(of), np.nan) for column in (*AGAINST_DRAWS, "z_coherence")}
    for name in dict.fromkeys(names):
        at = of == name
        for column, (score, draws) in AGAINST_DRAWS.items():
            null = nulls[name].get(draws)
            if null is not None:
                made[column][at] = _tail(score, arrays[score][at], null)
        null = nulls[name].get("haar.coherence")
        if null is not None:
            made["z_coherence"][at] = (arrays["coherence"][at] - np.nanmean(null)) / np.nanstd(null, ddof=1)
    return made


def _tail(score: str, observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    return np.atleast_1d(np.asarray(p_among(score, observed, null[~np.isnan(null)]), dtype=np.float64))


def pooled(z: Float[np.ndarray, " n"], draws: Float[np.ndarray, " b"]) -> Float[np.ndarray, " n"]:
    """p of every z among the rotated bases of all heads, each in the deviations of its own head; NaN where z is."""
    p = np.full(len(z), np.nan)
    defined = np.isfinite(z)
    if defined.any() and len(draws):
        p[defined] = _tail("coherence", z[defined], draws)
    return p


def verdicts(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """q over the whole atlas, and what the rules say: ``interpretable``, ``svd_specific``, ``aligned``.

    `columns` are whole columns of the index. A clause whose value is missing is not met.
    """
    q = {
        "q_coherence": adjusted(columns["p_coherence"]),
        "q_coherence_svd": adjusted(columns[POOLED]),
        "q_whole": adjusted(columns["p_whole"]),
    }
    told = dict(columns) | q
    interpretable = _holds(INTERPRETABLE, told)
    return q | {
        "interpretable": interpretable,
        "svd_specific": _holds(SVD_SPECIFIC, told),
        "aligned": _holds(ALIGNED, told) & ~interpretable,
    }


def adjusted(p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Benjamini–Hochberg over every direction for which the question is defined; NaN elsewhere."""
    defined = ~np.isnan(p)
    q = np.full(len(p), np.nan)
    if defined.any():
        q[defined] = chance.bh(p[defined])
    return q


def _holds(rule: Rule, columns: Mapping[str, np.ndarray]) -> Bool[np.ndarray, " n"]:
    with np.errstate(invalid="ignore"):
        return np.logical_and.reduce([c.holds(columns[c.column]) for c in rule])
