"""The picture of a readout: labels × dyads, coloured by cosine; each cell names the label that stands there."""

import numpy as np

from covector.render import Grid, Table

# Labels per pole in the picture; more cannot be read.
LABELS = 10


def tokens_by_dyads(table: Table) -> Grid:
    """Rows: the + pole's labels from its best down, then the − pole's towards its most negative; columns: dyads."""
    side = "write" if "write_cos" in table else "read"
    scored = f"{side}_cos" in table
    rows = table.rows
    k = min([LABELS, *(len(r[f"{side}_plus"]) for r in rows)])
    texts = [[*r[f"{side}_plus"][:k], *reversed(r[f"{side}_minus"][:k])] for r in rows]
    values = [[*r[f"{side}_plus_score"][:k], *reversed(r[f"{side}_minus_score"][:k])] for r in rows]
    level = table.column(f"{side}_cos").chance if scored else None
    return Grid(
        values=np.array(values, dtype=float).T,
        row_labels=[*(f"+{i + 1}" for i in range(k)), *(f"−{i + 1}" for i in reversed(range(k)))],
        column_labels=[f"{r['dyad']} σ {r['sigma']:.3g}" for r in rows],
        cell_text=[list(column) for column in zip(*texts, strict=True)],
        value_name="cosine" if scored and table.meta.get("score") == "cosine" else "score",
        unit="cos" if scored and table.meta.get("score") == "cosine" else "",
        chance=float(level) if isinstance(level, float) else None,
        row_name=f"{side} side: rank in pole",
        column_name="dyad",
    )
