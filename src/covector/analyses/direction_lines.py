"""How a direction of an atlas looks in a terminal: where, how near to its label, what it is called, both poles."""

from typing import Any

from covector.render.labels import cell_len, clip, pad, shown
from covector.render.number import number_text, probability

# Cells of the place, so that the columns stand below each other in models of up to 100 layers and heads.
PLACE = 15
# What the verdicts of an atlas are called where there is little room, the stronger first.
SHORT = {"svd_specific": "SVD-specific", "interpretable": "interpretable", "aligned": "aligned"}
CALLED = max(map(len, SHORT.values()))
# Columns that every line has.
SHOWN = {"place", "side", "sigma", "label", "q_dir", "q_coherence"}
# Cells for both lists, below which they get a line of their own.
LEAST = 32


def direction_line(row: dict[str, Any], width: int, order: str = "") -> str:
    """``L22H10.ov:1     write σ 3.14  ζ +13.2 q label 1e-08 list +  .031 interpretable | + ·hear ·say … | − ·see …``.

    q of the nearest label (`q_dir`), whose pole ζ has the sign of; and of the list (`q_coherence`) of the pole that is
    named, which the verdict is about. That pole stands first where there is a verdict, else the label's. A ~ behind the
    place: rounding may turn it. What rows are in order of is named where it is not among these. Both lists go on a line
    of their own where there is no room.
    """
    called = row["called"].split()
    verdict = next((word for flag, word in SHORT.items() if flag in called), "")
    head = f"{pad(row['place'] + '~' * ('noisy' in called), PLACE)} {row['side']:<5} σ {number_text(row['sigma']):<6}"
    zeta = row["zeta"]
    head += f" ζ {'–':>5}" if zeta is None else f" ζ {zeta:+5.1f}"
    head += f" q label {probability(row['q_dir']):>6}" if "q_dir" in row else ""
    if "judged" in row:
        head += f" list {row['judged'] or ' '} {probability(row['q_coherence'])} {verdict:<{CALLED}}"
    if order in row and order not in SHOWN:
        value = row[order]
        head += f" {order} {probability(value) if order.startswith(('p_', 'q_')) else number_text(value, 3):>6}"
    plus_first = row["judged"] == "+" if verdict and "judged" in row else (zeta or 0) >= 0
    poles = [("+", row["plus"]), ("−", row["minus"])][:: 1 if plus_first else -1]
    first, second = (f"{sign} " + " ".join(shown(label) for label in labels) for sign, labels in poles)
    free = width - cell_len(head) - len(" | " * 2)
    if free < LEAST:
        return f"{clip(head.rstrip(), width)}\n{clip(f'  {first} | {second}', width)}"
    room = free * 3 // 5
    return clip(f"{head} | {pad(clip(first, room), room)} | {second}", width)
