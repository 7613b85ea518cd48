"""How what a search found looks in a terminal: directions one by one, or places."""

from typing import Any

from covector.render.labels import cell_len, clip, pad, shown
from covector.render.number import number_text, probability

# Cells of the place, so that the columns stand below each other in models of up to 100 layers and heads.
PLACE = 15
# Cells for tokens, below which they get a line of their own.
LEAST = 16


def hit_line(row: dict[str, Any], width: int) -> str:
    """``L22H10.ov:1 write + cos +.412 ζ +13.2 q 1e-08 FWER .031 effect +.993× | ·hear …``; ~: rounding may turn it."""
    place = pad(row["place"] + ("~" if row["noisy"] else ""), PLACE)
    head = f"{place} {row['side']:<5} {row['pole']} cos {row['cos']:+.3f} ζ {row['zeta']:+5.1f}"
    effect = f"{row['effect']:+.3g}×"
    head += f" q {probability(row['q'])} FWER {probability(row['familywise'])} effect {effect:<8}| "
    return _with(head, row["tokens"], width)


def effect_words(side: str, effect: float) -> str:
    """What σ·cos is, on each side of a dyad: ``+1.03 along it per unit of what is read``."""
    told = {"write": "along it per unit of what is read", "read": "written per unit of it"}
    return f"{effect:+.3g}× {told.get(side, 'of the score per unit on both sides')}"


def place_line(row: dict[str, Any], width: int) -> str:
    """``L22H10.ov write FWER 1e-05 | gain 3.10 q 1e-05 | fit .312 (chance .062) q .002 | 72% in dyad 1 + ·hear …``."""
    head = f"{pad(row['site'], PLACE - 2)} {row['side']:<5} FWER {probability(row['familywise'])}"
    head += f" | gain {_number(row['gain'], 2)} q {probability(row['q_gain'])}"
    head += f" | fit {_number(row['fit'], 3)} (chance {row['fit_chance']:.3f}) q {probability(row['q_fit'])}"
    head += f" | {row['share']:3.0%} in dyad {row['dyad']} {row['pole']} "
    return _with(head, row["tokens"], width)


def _with(head: str, tokens: list[str], width: int) -> str:
    """The tokens behind the numbers; on a line of their own in a narrow terminal, where they would not be seen."""
    words = " ".join(shown(t) for t in tokens)
    if width - cell_len(head) >= LEAST:
        return head + clip(words, width - cell_len(head))
    return f"{clip(head.rstrip(' |'), width)}\n{clip('  ' + words, width)}"


def _number(value: float | None, digits: int) -> str:
    return number_text(value, digits).rjust(5)
