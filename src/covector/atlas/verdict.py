"""Chance and verdicts of judged lists, over a whole atlas: p against the null draws, q over every direction, the rule.

Source: §4.0 of the theory page; `docs/theory/scores.md`, equations 11–16. The rule itself is data in
`covector.analyses.score`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from covector.analyses.score import ALIGNED, INTERPRETABLE, SVD_SPECIFIC, Rule
from covector.atlas.judge import SCORES, p_within, z_within
from covector.axes import Bool, Float
from covector.linalg import chance

# Column of p → (score in the parts, null draws that it is held against).
AGAINST_DRAWS = {
    **{f"p_{name}": (name, f"haar.{score}") for name, score in SCORES.items()},
    **{f"p_{name}_cov": (name, f"cov.{score}") for name, score in SCORES.items()},
    "p_whole": ("whole", "haar.whole"),
}
# p of a score of a head's direction among rotated bases of every head (equation 19): q_…_svd is of this.
POOLED = {name: f"p_{name}_pooled" for name in SCORES}
# Column of q → the p whose family it is over.
Q_OF = {
    **{f"q_{name}": f"p_{name}" for name in SCORES},
    **{f"q_{name}_cov": f"p_{name}_cov" for name in SCORES},
    **{f"q_{name}_svd": POOLED[name] for name in SCORES},
    "q_whole": "p_whole",
}


def chances(
    arrays: Mapping[str, np.ndarray], names: Sequence[str], nulls: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Float[np.ndarray, " n"]]:
    """p of every judged list against the draws of its own basis, and z in their sd; NaN if undefined."""
    of = np.array(names)
    made = {column: np.full(len(of), np.nan) for column in (*AGAINST_DRAWS, *(f"z_{name}" for name in SCORES))}
    for name in dict.fromkeys(names):
        at = of == name
        for column, (score, draws) in AGAINST_DRAWS.items():
            if draws in nulls[name]:
                made[column][at] = p_within(draws.partition(".")[2], arrays[score][at], nulls[name][draws])
        for score, drawn in SCORES.items():
            if f"haar.{drawn}" in nulls[name]:
                made[f"z_{score}"][at] = z_within(arrays[score][at], nulls[name][f"haar.{drawn}"])
    return made


def verdicts(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """q over the whole atlas, and what the rules say: ``interpretable``, ``svd_specific``, ``aligned``.

    `columns` are whole columns of the index. A clause whose value is missing is not met.
    """
    q = {name: adjusted(columns[p]) for name, p in Q_OF.items()}
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
