"""How a scored list looks in a terminal: what it is called and judged, then its scores, each beside chance."""

from typing import Any

from covector.analyses.labels import tokens_themselves
from covector.render.labels import cell_len, clip, pad, shown
from covector.render.number import UNDEFINED, number_text, probability

# Cells of the place, so that verdicts stand below each other in models of up to 100 layers and heads.
PLACE = 16


def scored_lines(row: dict[str, Any], width: int) -> str:
    """What it is called, its words, and its scores, each with the level that 95 % of random directions stay below.

    ``L2H3.ov:1 write + interpretable | weather: ·rain …``, ``coherence .31 (.12) z 8.2 q .004 · …``, and a third line
    where a text was counted.
    """
    head = f"{pad(row['direction'], PLACE)} {row['side']:<5} {row['pole']} {row['verdict']} | "
    own = row["label"] == tokens_themselves(row["words"])
    label = "" if own else f"{UNDEFINED if row['label'] is None else shown(row['label'])}: "
    words = " ".join(shown(w) for w in row["words"])
    lines = [head + clip(label + words, max(8, width - cell_len(head)))]
    scores = [
        f"coherence {_beside(row, 'coherence')} z {number_text(row['z'], 1)} q {_p(row['q'])}",
        f"held-out {_beside(row, 'heldout')} {_short(row['heldout_low'])}–{_short(row['heldout_high'])}",
        f"intruders {_beside(row, 'intruder')} p {_p(row['intruder_p'])}",
        f"spelling {_beside(row, 'lexical')}",
    ]
    lines.append("  " + " · ".join(scores))
    if "npmi" in row:
        lines.append(f"  npmi {_beside(row, 'npmi')} p {_p(row['p_npmi'])} over {row['npmi_pairs']} pairs")
    return "\n".join(clip(line, width) for line in lines)


def _beside(row: dict[str, Any], name: str) -> str:
    """A score, and in brackets its chance level."""
    return f"{_short(row[name])} ({_short(row[f'{name}_level'])})"


def _short(value: float | None) -> str:
    """Two decimals without the zero in front: ``.31``."""
    text = number_text(value, 2)
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def _p(value: float | None) -> str:
    return probability(value).strip()
