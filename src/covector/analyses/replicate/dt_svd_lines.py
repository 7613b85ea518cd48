"""How a claim looks in a terminal: the claim with its verdict, the corrected number with its chance, the published."""

from typing import Any

from covector.analyses.replicate.dt_svd_claim import NAN, at, short
from covector.render.labels import clip, pad, wrap

KEY, VERDICT = 4, 23


def claim_line(row: dict[str, Any], width: int) -> str:
    """``A2  does not   Those of V …``, then ``here`` and, where the code differed, ``as published``."""
    head = f"{pad(row['finding'], KEY)} {pad(row['verdict'], VERDICT)} {row['claim']}"
    indent = " " * (KEY + 1)
    lines = [clip(head, width)]
    if row["ours"] is None:
        told = [row["why"]]
    else:
        told = [f"{row['number']} {_told(row)} │ {row['why']}"]
        if row["defect"] is not None:
            words = f" → {row['as_published']}" if row["as_published"] else ""
            p = "" if row["defect_p"] is None else f" {at(row['defect_p'])}"
            told.append(f"as published: {short(row['defect'])}{p}{words}")
    return "\n".join(lines + [indent + line for text in told for line in wrap(text, max(width - len(indent), 20))])


def _told(row: dict[str, Any]) -> str:
    said = short(row["ours"])
    if row["low"] is not None:
        said += f" [{short(row['low'])}, {short(row['high'])}]"
    if row["chance"] is not None:
        said += f" (chance {short(row['chance'])})"
    return said + ("" if row["p"] is None else f" {at(NAN if row['p'] is None else row['p'])}")
