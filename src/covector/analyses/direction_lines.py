"""How a direction of an atlas looks in a terminal: where, how near to its label, what it is called, both poles."""

from typing import Any

from covector.render.labels import cell_len, clip, pad, shown
from covector.render.number import number_text, probability

# Cells of the place, so that the columns stand below each other in models of up to 100 layers and heads.
PLACE = 15
# What the verdicts of an atlas are called where there is little room, the stronger first.
SHORT = {"svd_specific": "SVD-specific", "interpretable": "interpretable", "aligned": "aligned"}
CALLED = max(map(len, SHORT.values()))


def direction_line(row: dict[str, Any], width: int) -> str:
    """``L22H10.ov:1     write σ 3.14  ζ +13.2 q label 1e-08 list  .031 interpretable | + ·hear ·listen … | − ·see …``.

    The pole of the nearest label stands first. q of that label (`q_dir`), and of the list, which the verdict is about
    (`q_coherence`). A ~ behind the place: rounding may turn it.
    """
    called = row["called"].split()
    place = pad(row["place"] + "~" * ("noisy" in called), PLACE)
    head = f"{place} {row['side']:<5} σ {number_text(row['sigma']):<6} ζ {row['zeta']:+5.1f}"
    head += f" q label {probability(row['q_dir']):>6}" if "q_dir" in row else ""
    verdict = next((word for flag, word in SHORT.items() if flag in called), "")
    head += f" list {probability(row['q_coherence'])} {verdict:<{CALLED}} | " if "q_coherence" in row else " | "
    poles = [("+", row["plus"]), ("−", row["minus"])][:: 1 if row["zeta"] >= 0 else -1]
    near, far = (f"{sign} " + " ".join(shown(label) for label in labels) for sign, labels in poles)
    room = max(8, (width - cell_len(head) - 3) * 3 // 5)
    return clip(head + pad(clip(near, room), room) + " | " + far, width)
