"""How a finding looks in a terminal: the claim with its verdict, and under it the number with its chance."""

from typing import Any

from covector.render.labels import clip, pad, wrap

KEY, VERDICT = 5, 14


def finding_line(row: dict[str, Any], width: int) -> str:
    """Two lines or three: ``B    holds          Singular directions …`` and the number with its chance below it."""
    verdict = row["verdict"] if row["ours"] is not None else "not asked"
    head = f"{pad(row['finding'], KEY)} {pad(verdict, VERDICT)} {row['claim']}"
    indent = " " * (KEY + VERDICT + 2)
    lines = [clip(head, width)]
    told = f"{row['why']}" if row["ours"] is None else f"{row['number']} {_told(row)} │ {row['why']}"
    lines += [indent + line for line in wrap(told, max(width - len(indent), 20))]
    return "\n".join(lines)


def _told(row: dict[str, Any]) -> str:
    """``.086 (.050) [.060, .119] p .003``: in parentheses what chance gives."""
    said = f"{_number(row['ours'])} (chance {_number(row['chance'])})"
    if row["low"] is not None:
        said += f" [{_number(row['low'])}, {_number(row['high'])}]"
    if row["p"] is not None:
        said += f" p {_p(row['p'])}"
    return said


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value == int(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0") if value < 0.9995 else "1"
