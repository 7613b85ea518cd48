"""Which pairs of prompts are one piece of evidence: those that share a name, or a text where there are no names.

Sharing goes on through others: Sara/Max, Sara/Bob and Mia/Bob are one cluster. Intervals, p and held-out halves count
clusters.
"""

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

import numpy as np

from covector.axes import Int
from covector.run.prompts import Pair

Sides = tuple[tuple[str, ...], tuple[str, ...]]


def names_of(pair: Pair) -> Sides:
    """Names on both sides: those that were given or filled in, else the words in which the two texts differ.

    Neighbouring words that differ are one name. Empty for equal texts without names, and for an agent's inputs.
    """
    if any(pair.names):
        clean, corrupt = pair.filled if any(pair.filled) else ((pair.names[0],), (pair.names[1],))
        return _kept(clean), _kept(corrupt)
    return ((), ()) if pair.inputs is not None else _differing(*pair.texts)


def cluster_by(pairs: Sequence[Pair]) -> Callable[[Pair], str]:
    """What tells the cluster of any of these pairs: the connected components of pairs over names (else texts)."""
    above: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        while above.setdefault(key, key) != key:
            key = above[key]
        return key

    for pair in pairs:
        first, *rest = _keys(pair)
        for key in rest:
            above[root(key)] = root(first)
    told: dict[tuple[str, str], str] = {}
    for pair in pairs:
        told.setdefault(root(_keys(pair)[0]), _told(pair))
    return lambda pair: told[root(_keys(pair)[0])]


def clusters_of(pairs: Sequence[Pair]) -> Int[np.ndarray, " n"]:
    """The number of each pair's cluster, in order of first appearance."""
    of = cluster_by(pairs)
    known = {key: i for i, key in enumerate(dict.fromkeys(map(of, pairs)))}
    return np.array([known[of(pair)] for pair in pairs], dtype=np.int64)


def counted(pairs: Sequence[Pair]) -> str:
    """How many clusters there are, and of what: ``4 names``, ``3 groups of names`` (some pairs share one), ``6 texts``.

    A name here is what one pair of prompts is filled with, on both its sides.
    """
    n = len(set(clusters_of(pairs)))
    word = what_counts(pairs)
    if word == "groups of names":
        return f"{n} group{'s' * (n != 1)} of names"
    return f"{n} {word if n != 1 else word[:-1]}"


def pairs_told(pairs: Sequence[Pair]) -> str:
    """How many pairs, and of how many clusters: ``8 pairs of 4 names``, ``16 pairs, 3 groups of names``."""
    between = ", " if what_counts(pairs) == "groups of names" else " of "
    return f"{len(pairs)} pair{'s' * (len(pairs) != 1)}{between}{counted(pairs)}"


def no_interval(pairs: Sequence[Pair]) -> str:
    """A clause that says why there is no interval, where all pairs are one piece of evidence; empty where not."""
    if len(set(clusters_of(pairs))) > 1:
        return ""
    if len(pairs) == 1:
        return "; one pair has no interval"
    why = "are linked by names that they share" if what_counts(pairs) == "groups of names" else "are the same"
    return f"; {pairs_told(pairs)}, have no interval: all {why}"


def what_counts(pairs: Sequence[Pair]) -> str:
    """What clusters are made of: ``names``, ``groups of names`` where pairs share some of theirs, or ``texts``."""
    if not any(side for pair in pairs for side in names_of(pair)):
        return "texts"
    shared = len({names_of(pair) for pair in pairs}) > len(set(clusters_of(pairs)))
    return "groups of names" if shared else "names"


def found_in_texts(pairs: Sequence[Pair]) -> bool:
    """Whether names were not given but are the words in which texts differ."""
    return any(not any(pair.names) and any(names_of(pair)) for pair in pairs)


def _keys(pair: Pair) -> list[tuple[str, str]]:
    names = [("name", name) for side in names_of(pair) for name in side]
    return names or [("text", text) for text in pair.texts]


def _told(pair: Pair) -> str:
    sides = [" ".join(side) for side in names_of(pair)]
    return " / ".join(sides if any(sides) else pair.texts)


def _kept(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.strip() for name in names if name.strip())


def _differing(clean: str, corrupt: str) -> Sides:
    words = [re.findall(r"\w+", text) for text in (clean, corrupt)]
    changes = [c for c in SequenceMatcher(None, *words, autojunk=False).get_opcodes() if c[0] != "equal"]
    return _kept([" ".join(words[0][c[1] : c[2]]) for c in changes]), _kept(
        [" ".join(words[1][c[3] : c[4]]) for c in changes]
    )
