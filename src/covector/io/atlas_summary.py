"""An atlas in a few rows, one per kind of place: what a notebook shows of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covector.render import Column, Table

# A direction is called near a label at this p, and counted at this q; as in `analyses.glance`.
LEVEL = 0.05


def summary(manifest: Mapping[str, Any], kinds: Sequence[str], columns: Mapping[str, np.ndarray], folder: str) -> Table:
    """One row per kind: places, directions, the share near a label (p_dir < .05), how many with q < .05, verdicts.

    `kinds`: of every place; `columns`: ``kind``, ``p_dir``, ``q_dir`` and where judged ``interpretable``, a value a
    direction.
    """
    names = list(dict.fromkeys(kinds))
    of = [np.array([k == name for k in columns["kind"]]) for name in names]
    compared = [mine & np.isfinite(columns["p_dir"]) for mine in of]
    with np.errstate(invalid="ignore", divide="ignore"):
        near = [np.float64((columns["p_dir"][c] < LEVEL).sum()) / c.sum() for c in compared]
    shown = [
        Column("kind", names),
        Column("places", np.array([list(kinds).count(name) for name in names]), digits=0),
        Column("directions", np.array([mine.sum() for mine in of]), digits=0),
        Column("near", np.array(near), digits=3, chance=LEVEL, about="share with p_dir < .05"),
        Column("found", np.array([(columns["q_dir"][mine] < LEVEL).sum() for mine in of]), digits=0, about="q < .05"),
    ]
    if "interpretable" in columns:
        called = [columns["interpretable"][mine].sum() for mine in of]
        shown.append(Column("called", np.array(called), digits=0, about="interpretable by the rule"))
    meta = manifest["meta"]
    return Table(
        shown,
        meta={**meta, "analysis": "atlas_summary"},
        title=f"atlas of {meta['model']} · {len(kinds)} places, {len(columns['kind']):,} directions · "
        f"d {manifest['d_model']} · frame {meta['frame']}",
        next=f"covector view {folder}",
        key=("kind",),
    )
