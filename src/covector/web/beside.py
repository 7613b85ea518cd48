"""Dyads of a place beside those nearest to them in a second atlas, with what each of them lists."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from covector.analyses.compare_atlases import all_nearest_dyads, nearest_dyads
from covector.io.atlas import Atlas

# Dyads of a place, and labels of a pole, that are shown side by side.
MOST, LABELS = 24, 7


def beside(a: Atlas, b: Atlas, site: str, side: str) -> list[dict[str, Any]]:
    """The leading dyads of one place of `a`: its row, |cos|, and the dyad of `b` with gain and labels of both poles.

    Raises BadRequest where one of them does not have the place.
    """
    return _told(b, nearest_dyads(a, b, site, side, MOST))


def all_beside(a: Atlas, b: Atlas) -> dict[str, list[dict[str, Any]]]:
    """`beside` of every place that both have, by ``site side``."""
    found = all_nearest_dyads(a, b, MOST)
    told = iter(_told(b, [pair for pairs in found.values() for pair in pairs]))
    return {f"{site} {side}": [next(told) for _ in pairs] for (site, side), pairs in found.items()}


def _told(b: Atlas, pairs: Sequence[tuple[int, int, float]]) -> list[dict[str, Any]]:
    given = b.rows(np.array([j for _, j, _ in pairs], dtype=np.int64), ("dyad", "sigma", "top", "bottom"))
    return [
        {
            "row": i, "cos": round(cos, 3), "dyad": row["dyad"], "sigma": float(f"{row['sigma']:.4g}"),
            "top": (row["top"] or [])[:LABELS], "bottom": (row["bottom"] or [])[:LABELS],
        }
        for (i, _, cos), row in zip(pairs, given, strict=True)
    ]  # fmt: skip
