"""How one changed place looks in a terminal: how much, along which labels, and what random changes of it give."""

from typing import Any

from covector.render.labels import cell_len, clip, pad, shown
from covector.render.number import probability

# Labels per side and pole at the most; fewer where the line is narrow.
LABELS = 3


def change_line(row: dict[str, Any], width: int) -> str:
    """``L2H1.ov .27 rank 4 | + a → c | − e → g | label .87 p .61 in .05 p .21 turn 77° p .05 new 1 p .41``.

    How much it changed, of ‖M‖, and over how many dyads; what the leading one reads → writes, both poles. Each p is the
    share of random changes of equal norm and rank that reach the number before it.
    """
    if not row["change"]:
        return f"{row['site']:<11} unchanged"
    head = f"{row['site']:<11}{_number(row['change'])} rank {row['rank']:<3}| "
    if row["inside"] is None:
        return f"{head}not tested"
    tail = (
        f"| label {_number(row['label'])} {_chance(row['p_label'])} in {_number(row['inside'])} "
        f"{_chance(row['p_inside'])} turn {row['turn']:>2.0f}° {_chance(row['p_turn'])} new {row['new']:.0f} "
        f"{_chance(row['p_new'])}"
    )
    free = max(width - cell_len(head) - cell_len(tail) - len(" | "), 16)
    each = free // 2
    return (
        head
        + " | ".join(pad(clip(_pole(row, *pole, each), each), each) for pole in (("+", "plus"), ("−", "minus")))
        + tail
    )


def _pole(row: dict[str, Any], sign: str, pole: str, width: int) -> str:
    """``+ a b → c d``: as many labels of each side as fit."""
    sides = [[shown(t) for t in row.get(f"{verb}_{pole}") or []] for verb in ("reads", "writes")]
    text = ""
    for count in range(1, LABELS + 1):
        parts = [" ".join(side[:count]) for side in sides]
        longer = f"{sign} {parts[0]} → {parts[1]}".replace("  ", " ").rstrip()
        if text and cell_len(longer) > width:
            break
        text = longer
    return text


def _chance(p: float) -> str:
    """``p .01`` in six cells."""
    return f"p {probability(p).strip():>4}"


def _number(value: float) -> str:
    """Two significant digits without a leading zero, in four cells."""
    text = (
        f"{value:.2f}".removeprefix("0") if 0.005 <= value < 9.995 else f"{value:.0e}" if value < 1 else f"{value:.0f}"
    )
    return text.rjust(4)
