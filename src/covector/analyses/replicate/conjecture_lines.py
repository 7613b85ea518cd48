"""How a recipe, and a published list beside ours, look in a terminal: one line each."""

from typing import Any

from covector.render.labels import cell_len, clip, pad, shown

NAME, RECIPE, PLACE = 9, 56, 14


def recipe_line(row: dict[str, Any], width: int) -> str:
    """``tl-demo *s tl_demo, write, token_out, product, all │ .98 (.01) labels .97 values .99 │ behind p 1``.

    ``*``: beyond chance and not told apart from the best; ``s``: the recipe that the source states. In parentheses the
    score that random directions stay below.
    """
    marks = ("*" if row["named"] else " ") + ("s" if row["stated"] else " ")
    score = f"{_share(row['score'])} ({_share(row['chance'])})"
    parts = [
        f"{pad(clip(row['source'], NAME), NAME)} {marks} {pad(clip(row['recipe'], RECIPE), RECIPE)}",
        f"{score} labels {_share(row['labels'])} values {_share(row['values'])}",
        f"behind p {_p(row['p_behind'])}",
    ]
    return clip(" │ ".join(parts), width)


def list_line(row: dict[str, Any], width: int) -> str:
    """``L22H10.ov:1 + │ published: hear listeners │ ours: hear listeners``."""
    head = f"{pad(row['dyad'], PLACE)} {row['pole']}"
    ours = _side(row["ours"], row["our_values"])
    if not row["published"] and not row["published_values"]:
        return clip(f"{head} │ ours {ours}", width)
    published = _side(row["published"], row["published_values"])
    each = max((width - cell_len(head) - len(" │ published  │ ours ")) // 2, 8)
    return clip(f"{head} │ published {pad(clip(published, each), each)} │ ours {ours}", width)


def _side(labels: list[str], values: list[float | None]) -> str:
    values = values or [None] * len(labels)
    labels = labels or [""] * len(values)
    told = ["" if v is None else f" {v:+.2f}".replace("0.", ".") for v in values]
    return " ".join(f"{shown(label)}{value}".strip() for label, value in zip(labels, told, strict=True))


def _share(value: float | None) -> str:
    return "  –" if value is None else "1.0" if value > 0.995 else f"{value:.2f}".removeprefix("0")


def _p(value: float) -> str:
    return "1   " if value > 0.9995 else f"{value:.3f}".removeprefix("0") if value >= 0.001 else "<.001"
