"""Edits as they are typed, and as they are said.

L22H10.ov:3*0                 dyad 3 removed           L22H10.ov:3=-1       the same, as ε
L22H10.ov:0,2-4*0.3           dyads 0, 2, 3, 4 kept at 30 %
L22H10.ov:0=replace(ones/d)   its direction replaced by 1/d everywhere (replace(@vector.safetensors) in Python)
L22H10.ov:(' fire' + ' flame')*0      the direction of a concept erased
L22H10.ov:3*0@read            taken by the factor that reads (default: the one that writes; QK: the query's)
A; B                          both at once             A then B             one after the other
"""

import re
from collections.abc import Sequence

from covector.errors import BadRequest
from covector.study.edit_terms import CONSTANTS, SIDES, Along, Dyads, Replace, Term
from covector.study.expression import parse as parse_expression

_NUMBER = r"[+\-−]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(
    rf"""(?P<site>[^\s:;()@']+)\s*:\s*
    (?:(?P<dyads>\d+(?:-\d+)?(?:\s*,\s*\d+(?:-\d+)?)*)|\((?P<concept>.*)\))\s*
    (?:\*\s*(?P<factor>{_NUMBER})|=\s*(?P<epsilon>{_NUMBER})|=\s*replace\((?P<replace>[^)]*)\))\s*
    (?:@\s*(?P<side>\w+))?""",
    re.VERBOSE | re.DOTALL,
)
# More terms than this are counted instead of named.
MOST_SAID = 6
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_FORM = "L22H10.ov:3*0, L22H10.ov:0,2-4*0.3, L22H10.ov:0=replace(ones/d), L22H10.ov:(' fire')*0; A; B or A then B"


def parse(text: str) -> tuple[tuple[Term, ...], ...]:
    """The steps that a text means. Raises BadRequest, showing the part that cannot be read."""
    steps = _split(text, re.compile(r"\s+then\s+"))
    return tuple(tuple(_term(part) for part in _split(step, re.compile(r"\s*;\s*")) if part.strip()) for step in steps)


def _split(text: str, at: re.Pattern[str]) -> list[str]:
    """Cut where the pattern stands outside quotes."""
    hidden = _QUOTED.sub(lambda found: "\0" * len(found[0]), text)
    cuts = [(m.start(), m.end()) for m in at.finditer(hidden)]
    starts, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
    return [text[a:b] for a, b in zip(starts, ends, strict=True)]


def _term(text: str) -> Term:
    found = _TERM.fullmatch(text.strip())
    if not found:
        raise BadRequest(f"expected an edit such as {_FORM}; cannot read {text.strip()!r}")
    site, side = found["site"], found["side"] or ""
    if side not in ("", *SIDES):
        raise BadRequest(f"edit of {site}: expected @write or @read, got '@{side}'")
    if found["replace"] is not None:
        return _replacement(site, found["dyads"], found["replace"].strip(), side)
    epsilon = _value(found["factor"]) - 1 if found["factor"] else _value(found["epsilon"])
    if found["concept"] is not None:
        words = str(parse_expression(found["concept"]))
        return Along(site, (epsilon,), None, words, side)
    indices = _indices(site, found["dyads"])
    return Dyads(site, indices, (epsilon,) * len(indices), side)


def _replacement(site: str, dyads: str | None, vector: str, side: str) -> Replace:
    indices = _indices(site, dyads or "")
    if len(indices) != 1:
        raise BadRequest(f"edit of {site}: expected one dyad to replace, got {dyads or 'a concept'}")
    if vector not in CONSTANTS:
        raise BadRequest(
            f"edit of {site}: expected replace({'), replace('.join(CONSTANTS)}), got replace({vector}); "
            "Edit.replace_direction takes any vector"
        )
    return Replace(site, indices[0], None, vector, side)


def _indices(site: str, text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if low > high:
            raise BadRequest(f"edit of {site}: a range of dyads runs upwards, got {part}")
        found += range(low, high + 1)
    return tuple(dict.fromkeys(found))


def _value(text: str) -> float:
    return float(text.replace("−", "-"))


def written(steps: Sequence[Sequence[Term]]) -> str:
    """The edit in the grammar that `parse` reads; a vector that has no name stands as ``<its words>``."""
    return " then ".join("; ".join(part for term in step for part in _written(term)) for step in steps)


def _written(term: Term) -> list[str]:
    side = f"@{term.side}" if term.side else ""
    if isinstance(term, Dyads):
        by_epsilon: dict[float, list[int]] = {}
        for index, epsilon in zip(term.indices, term.epsilon, strict=True):
            by_epsilon.setdefault(epsilon, []).append(index)
        return [f"{term.site}:{_runs(i)}{_operation(e)}{side}" for e, i in by_epsilon.items()]
    if isinstance(term, Along):
        named = term.rows is None or term.said.lstrip("+- ").startswith("'")
        what = f"({term.said})" if named else f"<{term.said}>"
        return [f"{term.site}:{what}{_operation(e)}{side}" for e in dict.fromkeys(term.epsilon)]
    if isinstance(term, Replace):
        return [f"{term.site}:{term.index}=replace({term.said}){side}"]
    return [f"{term.site}:<{term.said}>{side}"]


def _operation(epsilon: float) -> str:
    """``*factor``, or the ε form where the factor cannot say it exactly."""
    factor = 1 + epsilon
    short = f"{factor:.12g}"
    return f"*{short}" if float(short) - 1 == epsilon else f"={epsilon!r}"


def _runs(indices: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for i in sorted(indices):
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def in_words(steps: Sequence[Sequence[Term]]) -> str:
    """What it does: ``L22H10.ov: dyad 3 removed (ε −1)``; of many terms how many there are, and their ε."""
    terms = [term for step in steps for term in step]
    if len(terms) > MOST_SAID and all(isinstance(term, Dyads) for term in terms):
        epsilon = [e for term in terms if isinstance(term, Dyads) for e in term.epsilon]
        sites = len({term.site for term in terms})
        told = f"ε from {min(epsilon):.3g} to {max(epsilon):.3g}".replace("-", "−")
        return f"{len(epsilon)} dyads of {sites} sites changed, {told}"
    return ", then ".join("; ".join(part for term in step for part in _said(term)) for step in steps)


def _said(term: Term) -> list[str]:
    side = {"": "", "write": ", on the side that writes", "read": ", on the side that reads"}[term.side]
    if isinstance(term, Dyads):
        by_epsilon: dict[float, list[int]] = {}
        for index, epsilon in zip(term.indices, term.epsilon, strict=True):
            by_epsilon.setdefault(epsilon, []).append(index)
        return [f"{term.site}: dyad{'s' * (len(i) > 1)} {_runs(i)} {_effect(e)}{side}" for e, i in by_epsilon.items()]
    if isinstance(term, Along):
        what = (
            term.said
            if term.rows is not None or _is_one(term.said)
            else f"{term.said} (one direction, their weighted sum)"
        )
        return [f"{term.site}: what lies along {what} {_effect(e)}{side}" for e in dict.fromkeys(term.epsilon)]
    if isinstance(term, Replace):
        return [f"{term.site}: the direction of dyad {term.index} replaced by {term.said}{side}"]
    return [f"{term.site}: {term.said}{side}"]


def _is_one(words: str) -> bool:
    return len(parse_expression(words).terms) == 1


def _effect(epsilon: float) -> str:
    told = f"(ε {epsilon:g})".replace("-", "−")
    if epsilon == 0:
        return f"left as it is {told}"
    if epsilon == -1:
        return f"removed {told}"
    if -1 < epsilon < 0:
        return f"kept at {100 * (1 + epsilon):.3g} % {told}"
    return f"amplified {1 + epsilon:.3g}-fold {told}" if epsilon > 0 else f"turned to {1 + epsilon:.3g}-fold {told}"
