"""How one dyad looks in a terminal: both poles, reads → writes, and the score with its chance, on one line."""

from typing import Any

from covector.render.labels import cell_len, clip, pad, shown
from covector.render.number import probability

# Tokens per list at the most; fewer where the line is narrow.
TOKENS = 6
# Cells that one pole needs to name a label on either side.
READABLE = 16
# A list narrower than this shows nothing worth reading.
NARROW = 8


def dyad_line(row: dict[str, Any], width: int) -> str:
    """``3 σ 2.41 gap .08 | + reads … → writes … | − reads … → writes … | ζ 5.9 p_dir 1e-5 p_svd .02``.

    In parentheses the |ζ| that the best label of a random direction stays below with 95 %. A ``~`` behind the gap marks
    a dyad that rounding of the stored weights may turn, a ``†`` a label that looks hardly trained.
    """
    head = f"{row['dyad']:>2} σ {_short(row['sigma'], 3)} gap {_short(row['gap'], 2)}{'~' if row['noisy'] else ' '}"
    tail = _chance(row) + "".join(_asked(row, name) for name in row if name.startswith("zeta: "))
    free = width - cell_len(head) - cell_len(tail) - len(" |  | ") - 2
    if free < 2 * READABLE:  # a narrow terminal: the labels matter more than the second probability
        tail = tail.split(" p_svd")[0]
        free = width - cell_len(head) - cell_len(tail) - len(" |  | ") - 2
    order = ("plus", "minus") if (row.get("write_skew") or row.get("read_skew") or 0) >= 0 else ("minus", "plus")
    each = max(NARROW, free // 2)
    poles = " | ".join(pad(clip(_pole(row, pole, each), each), each) for pole in order)
    return f"{head}| {poles} | {tail}"


def _pole(row: dict[str, Any], pole: str, width: int) -> str:
    """`+ a b → c d`: as many tokens of each side as fit."""
    sign = "+" if pole == "plus" else "−"
    room = (width - len("+  → ")) // 2
    read = _tokens(_marked(row, "read", pole), room)
    write = _tokens(_marked(row, "write", pole), room + max(room - cell_len(read), 0))
    return f"{sign} {read} → {write}"


def _marked(row: dict[str, Any], side: str, pole: str) -> list[str]:
    """Labels as they are shown; a dagger behind those that look hardly trained."""
    hardly = set(row.get(f"{side}_flagged") or [])
    return [shown(t) + ("†" if t in hardly else "") for t in (row.get(f"{side}_{pole}") or [])[:TOKENS]]


def _tokens(tokens: list[str], width: int) -> str:
    text = ""
    for token in tokens:
        longer = f"{text} {token}".strip()
        if cell_len(longer) > width:
            break
        text = longer
    return text or clip(tokens[0], max(width, 1)) if tokens else ""


def _chance(row: dict[str, Any]) -> str:
    """The headline side's score: what is written where that is measured, else what is read."""
    side = "write" if row.get("write_zeta") is not None else "read"
    if row.get(f"{side}_zeta") is None:
        return ""
    level = f"({row[f'{side}_level']:.1f})"
    p_dir, p_svd = (probability(row[f"{side}_{question}"]) for question in ("p_dir", "p_svd"))
    return f"ζ {row[f'{side}_zeta']:+5.1f} {level} p_dir {p_dir} p_svd {p_svd}"


def _asked(row: dict[str, Any], name: str) -> str:
    """The score of a token that the user asked about."""
    return f" {shown(name.removeprefix('zeta: '))} {row[name]:+.1f}"


def _short(value: float, digits: int) -> str:
    """A few significant digits without a leading zero, in five cells."""
    if value and value < 0.001:
        return f"{value:.0e}".rjust(5)
    text = f"{value:.{digits}g}" if value < 1e4 else f"{value:.0e}"
    return text.removeprefix("0").rjust(5) if text.startswith("0.") else text.rjust(5)
