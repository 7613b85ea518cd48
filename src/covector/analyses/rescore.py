"""Directions that a search shows, once more from the checkpoint in float64; an atlas holds them in float16.

Heads are thin, so theirs are found again in milliseconds. A direction that comes out otherwise than it is stored (a
block of equal gains, another machine's last digits) keeps the stored score.

Source: `docs/theory/search.md`, equation 3.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covector.analyses.query import Query
from covector.axes import Bool, Float
from covector.io.atlas import Atlas
from covector.linalg.svd import SVD, svd
from covector.model.opened import Model

# Unit rows in float16 lie within 1e-6 of themselves, measured as 1 − cos; a turn by more is another direction.
SAME = 1e-4


def rescored(
    atlas: Atlas, query: Query, model: Model, rows: Sequence[Mapping[str, Any]], at: np.ndarray, *, every: bool
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Scores of the directions `rows` (their places `at` in the atlas) in float64, and which of them were found again.

    Those of heads; with `every` also those of wide maps, whose SVD may take minutes. The others are NaN.
    """
    scores, done = np.full(len(rows), np.nan), np.zeros(len(rows), dtype=bool)
    found: dict[str, SVD] = {}
    for i, row in enumerate(rows):
        site = model.site(row["site"])
        if site.head is None and not every:
            continue
        if row["site"] not in found:
            found[row["site"]] = _svd(model, row["site"], atlas.manifest["options"]["rank"])
        direction = _direction(found[row["site"]], row["side"], row["dyad"])
        stored = atlas.units(at[i : i + 1])[0]
        cosine = float(direction @ stored) / float(np.linalg.norm(stored))
        if abs(cosine) < 1 - SAME:
            continue
        along = query.rows[row["basis"]] @ direction * np.sign(cosine)
        scores[i] = along[0] if len(along) == 1 else np.linalg.norm(along)
        done[i] = True
    return scores, done


def _svd(model: Model, address: str, rank: int | None) -> SVD:
    site = model.site(address)
    return svd(model.map(site)) if site.head is not None else svd(model.map(site), rank, stream_only=True)


def _direction(found: SVD, side: str, dyad: int) -> Float[np.ndarray, " d"]:
    """Unit direction in the stream; zero where the dyad was not found again."""
    reads = side in ("read", "query")
    space = found.reads if reads else found.writes
    if dyad >= found.rank:
        return np.zeros(space.size - (space.kind == "residual+1"))
    row = found.U[:, dyad] if reads else found.Vh[dyad]
    if space.kind == "residual+1":
        row = row[1:] / np.linalg.norm(row[1:])
    return row
