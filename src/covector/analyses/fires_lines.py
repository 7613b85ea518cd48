"""How a passage looks in a terminal: how strong, and the token that fires between what stands before and after it."""

from typing import Any

from rich.text import Text

from covector.render.labels import ELLIPSIS, cell_len, printable
from covector.render.picture import colour, ink_on

# Tokens below this part of the strongest one shown stay uncoloured: a line full of pale cells cannot be read.
COLOURED = 0.3
Part = tuple[str, str]


def passage_line(row: dict[str, Any], width: int, reach: float = 0.0) -> Text:
    """``+  +9.1 sd | … from the «nurse» who had been …``: the token that fires begins in the middle of the line.

    Tokens are coloured by strength, up to `reach`. A newline is a ¶, and no line is wider than `width` cells.
    """
    reach = reach or max((abs(v) for v in row["strengths"] if v is not None), default=1.0) or 1.0
    head = f"{row['pole']} {row['z']:+6.1f} sd | "
    parts = [(_one_line(t), _style(v, reach)) for t, v in zip(row["tokens"], row["strengths"], strict=True)]
    token = parts[row["at"]][0] or _one_line(row["token"])
    bare = token.lstrip(" ")
    middle = cell_len(head) + max((width - cell_len(head)) // 2 - 4, 0)
    left = _ending([*parts[: row["at"]], (token[: len(token) - len(bare)], "")], middle - cell_len(head))
    fired = [("«", "bold"), (bare, f"bold {parts[row['at']][1]}".strip()), ("»", "bold")]
    used = middle + sum(cell_len(text) for text, _ in fired)
    return Text.assemble((head, ""), *left, *fired, *_beginning(parts[row["at"] + 1 :], width - used))


def _style(strength: float | None, reach: float) -> str:
    level = 0.0 if strength is None else strength / reach
    if abs(level) < COLOURED:
        return ""
    background = colour(level)
    return f"{ink_on(background)} on {background}"


def _beginning(parts: list[Part], room: int) -> list[Part]:
    """As much of the parts as fits into `room` cells, ended by … where something was cut."""
    if sum(cell_len(text) for text, _ in parts) <= room:
        return parts
    taken: list[Part] = []
    room -= 1
    for text, style in parts:
        kept = ""
        for character in text:
            if cell_len(character) > room:
                return [*taken, (kept, style), (ELLIPSIS, "")] if room >= 0 else taken
            kept += character
            room -= cell_len(character)
        taken.append((kept, style))
    return taken


def _ending(parts: list[Part], room: int) -> list[Part]:
    """The end of the parts in exactly `room` cells: begun by … where something was cut, filled with spaces else."""
    backwards = [(text[::-1], style) for text, style in reversed(parts)]
    fitted = [(text[::-1], style) for text, style in reversed(_beginning(backwards, room))]
    missing = room - sum(cell_len(text) for text, _ in fitted)
    return [(" " * missing, ""), *fitted]


def _one_line(text: str) -> str:
    return printable(text.replace("\r\n", "\n").replace("\n", "¶"))
