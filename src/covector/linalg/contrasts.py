"""What a softmax can see of a direction: differences of its output vectors, and names for them.

Adding the same number to every logit changes no probability, so of a written direction only its part in
span{a_i − a_j}, of dimension (number of outputs − 1) at most, can change what is chosen.

Source: Q3 of the theory page; `docs/theory/location.md`, equations 19–21.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest

# Outputs on one side of a contrast that is named: pairs are read at a glance, triples are not.
TOGETHER = 2
# A set of vectors this much shorter than the longest has no difference worth the name.
FLAT = 1e-10


@dataclass(frozen=True)
class Contrast:
    """The mean of some outputs less the mean of others; ``plus`` and ``minus`` are their numbers."""

    name: str
    plus: tuple[int, ...]
    minus: tuple[int, ...]

    def weights(self, n: int) -> Float[np.ndarray, " n"]:
        """Weights over n outputs; they sum to 0."""
        made = np.zeros(n)
        made[list(self.plus)] += 1 / len(self.plus)
        made[list(self.minus)] -= 1 / len(self.minus)
        return made


def contrast_frame(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "r d"]:
    """Orthonormal rows spanning all differences of the vectors; r = n − 1 unless they are degenerate.

    Raises BadRequest for fewer than two vectors, or vectors that are all the same.
    """
    wide = np.asarray(vectors, dtype=np.float64)
    if len(wide) < 2:
        raise BadRequest(f"a contrast is between two outputs or more, got {len(wide)}; look at the cosine instead")
    _, values, spanning = np.linalg.svd(wide - wide.mean(axis=0), full_matrices=False)
    kept = values > FLAT * np.linalg.norm(wide, axis=1).max()
    if not kept.any():
        raise BadRequest("the outputs have the same vector, so there is no contrast between them; check the head")
    return spanning[kept]


def named_contrasts(names: Sequence[str]) -> list[Contrast]:
    """All contrasts that can be said in a few words: one or two outputs against one or two, and one against the rest.

    Each is there in one direction only. Left and right together are called turning.
    """
    n, made = len(names), dict[tuple[tuple[int, ...], tuple[int, ...]], Contrast]()
    groups = [g for size in range(1, min(TOGETHER, n - 1) + 1) for g in combinations(range(n), size)]
    pairs = [(a, b) for a in groups for b in groups if not set(a) & set(b)]
    pairs += [((i,), tuple(j for j in range(n) if j != i)) for i in range(n)]
    for plus, minus in pairs:
        if (minus, plus) not in made:
            made.setdefault((plus, minus), Contrast(_name(names, plus, minus), plus, minus))
    return list(made.values())


def contrast(text: str, names: Sequence[str]) -> Contrast:
    """``left + right - forward``: the mean of the ones against the mean of the others. Raises BadRequest."""
    parts = text.replace("+", " + ").replace(" - ", " \0 ").replace("−", " \0 ").split()
    side, sides, word = 1, {1: list[int](), -1: list[int]()}, list[str]()
    for part in [*parts, "+"]:
        if part not in ("+", "\0"):
            word.append(part)
            continue
        if word:
            sides[side].append(_index(" ".join(word), names, text))
        side, word = (1 if part == "+" else -1), []
    if not sides[1] or not sides[-1] or set(sides[1]) & set(sides[-1]):
        raise BadRequest(
            f"--contrast '{text}': expected outputs against others, as in '{names[0]} - {names[-1]}', "
            f"of {', '.join(names)}"
        )
    plus, minus = tuple(sides[1]), tuple(sides[-1])
    return Contrast(_name(names, plus, minus), plus, minus)


def _index(word: str, names: Sequence[str], text: str) -> int:
    if word not in names:
        raise BadRequest(f"--contrast '{text}': expected outputs among {', '.join(names)}, got '{word}'")
    return list(names).index(word)


def _name(names: Sequence[str], plus: tuple[int, ...], minus: tuple[int, ...]) -> str:
    return f"{_group(names, plus)} against {_rest(names, plus, minus)}"


def _rest(names: Sequence[str], plus: tuple[int, ...], minus: tuple[int, ...]) -> str:
    everything = len(plus) + len(minus) == len(names) and len(minus) > TOGETHER
    return "the rest" if everything else _group(names, minus)


def _group(names: Sequence[str], group: tuple[int, ...]) -> str:
    words = [names[i] for i in group]
    return "turn" if sorted(words) == ["left", "right"] else " or ".join(words)
