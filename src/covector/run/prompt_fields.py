"""Fields of a file of prompts: which two are the clean and the corrupt text, by the names that data sets give them."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covector.errors import BadRequest

# (clean, corrupt) as data sets of paired prompts name them, besides these two words themselves.
ALIASES = (
    ("clean_prompt", "corrupt_prompt"),
    ("clean_prompt", "corrupted_prompt"),
    ("clean", "corrupted"),
    ("clean_text", "corrupt_text"),
    ("prompt", "corrupt_prompt"),
    ("original", "counterfactual"),
    ("original_prompt", "counterfactual_prompt"),
    ("base", "source"),
    ("female_prompt", "male_prompt"),
    ("female", "male"),
    ("positive", "negative"),
    ("sentence_good", "sentence_bad"),
    ("good", "bad"),
)


def fields_of(value: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The names of the clean and the corrupt text in a line. Raises BadRequest where none or several are."""
    if "clean" in value and ("corrupt" in value or "corrupted" not in value):
        return "clean", "corrupt"
    found = [both for both in ALIASES if all(isinstance(value.get(name), str) for name in both)]
    if len(found) == 1:
        return found[0]
    texts = [name for name, text in value.items() if isinstance(text, str)]
    told = f"several pairs of them ({', '.join(map('/'.join, found))})" if found else f"{', '.join(texts) or 'no text'}"
    a, b = [*texts[:2], "A", "B"][:2] if not found else found[0]
    raise BadRequest(
        f"{where}: expected an object with 'clean' (a text), and 'corrupt', 'slots', 'names', 'label' if wanted, got "
        f"{told}; rename two: jq -c '{{clean: .{a}, corrupt: .{b}}}' FILE > pairs.jsonl"
    )


def taken(path: Path) -> str:
    """In words, which fields of a file were taken as clean and corrupt; empty where they have these names."""
    lines = [line for line in path.expanduser().read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    found = dict.fromkeys(fields_of(json.loads(line), str(path)) for line in lines)
    return "; ".join(
        f"{clean} is taken as clean, {corrupt} as corrupt"
        for clean, corrupt in found
        if (clean, corrupt) != ("clean", "corrupt")
    )


def refuse_document(text: str, path: Path) -> None:
    """Raise BadRequest where a file is one JSON document, not an object a line; says how its prompts are given."""
    try:
        value = json.loads(text)
    except ValueError:
        return
    if "\n" not in text.strip() and isinstance(value, dict):
        return
    raise BadRequest(f"{path}: expected one JSON object a line, got one JSON document; {_instead(value)}")


def _instead(value: Any) -> str:
    """The options, or the command, that give the same prompts."""
    if isinstance(value, list):
        return "a list of objects becomes one with: jq -c '.[]' FILE > pairs.jsonl"
    listed = {
        name: x for name, x in value.items() if isinstance(x, list) and x and all(isinstance(i, str) for i in x)
    } if isinstance(value, dict) else {}  # fmt: skip
    templates = [name for name, x in listed.items() if all("{" in text for text in x)]
    names = sorted(name for name in listed if name.endswith("names"))
    if not templates or len(names) != 2:
        return "write 'clean' and 'corrupt' on each line"
    written = [re.sub(r"\{\w*\}", "[NAME]", text) for text in listed[templates[0]]]
    words = " ".join(f"--template {shlex.quote(text)}" for text in written)
    sides = ":".join(",".join(listed[name]) for name in names)
    return f"its {templates[0]} and names ({names[0]} as clean) are {words} --fill NAME={sides}"
