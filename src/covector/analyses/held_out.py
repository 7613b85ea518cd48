"""Pairs of prompts in two parts that share no names, no templates, or neither: one to make things from, one to test.

Every name and every text of the test part is new, on both sides of a pair; what would stand in both is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covector.errors import BadRequest
from covector.linalg.chance.streams import generator
from covector.model.opened import Model
from covector.run.clusters import clusters_of, names_of
from covector.run.prompts import Pair, fill_template

HOLDS = ("names", "templates", "both")
TRIES = 500


@dataclass(frozen=True)
class Split:
    """Pairs to make from and pairs to test on; ``held`` says what they do not share, and how many were left out."""

    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    held: str


def split_filled(
    model: Model,
    templates: Sequence[str],
    fills: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    *,
    hold: str = "names",
    share: float = 0.5,
    bos: str = "auto",
    seed: int = 0,
) -> Split:
    """Templates filled with names, split: `hold` names, templates or both; `share` of each for training.

    A name that stands in several entries of the lists is on one side only: entries that share names go together. Where
    all of them do, so that none could be held out, those entries are left out that share a name with training.
    Raises BadRequest for another `hold`, a share that leaves a side empty, one template where templates are to be held,
    and what `fill_template` refuses.
    """
    if hold not in HOLDS:
        raise BadRequest(f"expected --hold {', '.join(HOLDS)}, got '{hold}'")
    by_template = [fill_template(model, t, fills, bos) for t in templates]
    n = min(map(len, by_template), default=0)
    names = _parts(by_template[0][:n] if by_template else [], share, seed, "names")
    forms = _halves(len(by_template), share, seed, "templates")
    every = set(range(len(by_template)))
    if hold == "names":
        forms = every, every
    elif hold == "templates":
        names = set(range(n)), set(range(n))
    train = [by_template[t][i] for t in sorted(forms[0]) for i in sorted(names[0])]
    test = [by_template[t][i] for t in sorted(forms[1]) for i in sorted(names[1])]
    held = "names and templates" if hold == "both" else hold
    return _split(train, test, held) if hold == "templates" else _without_shared(train, test, held)


def split_pairs(pairs: Sequence[Pair], *, share: float = 0.5, seed: int = 0) -> Split:
    """Pairs of a file in two parts without a common name, or text where they have no names (`names_of`).

    Pairs that share one go together (`clusters_of`); where all of them do, names are parted, and pairs left out that
    have one on either side; ``held`` says how many. Raises BadRequest where nothing is left.
    """
    first, second = _parts(pairs, share, seed, "prompts")
    held = "names" if any(side for pair in pairs for side in names_of(pair)) else "texts"
    return _without_shared([pairs[i] for i in sorted(first)], [pairs[i] for i in sorted(second)], held)


def _parts(pairs: Sequence[Pair], share: float, seed: int, what: str) -> tuple[set[int], set[int]]:
    """Whole clusters on either side, nearest to the share; where all are one, the pairs of two sets of names."""
    clusters = clusters_of(pairs)
    if len(set(clusters)) == len(pairs):
        return _halves(len(pairs), share, seed, what)
    if len(set(clusters)) < 2:
        return _by_names(pairs, share, seed, what)
    order = generator(seed, f"split {what}").permutation(len(set(clusters)))
    sizes = np.cumsum(np.bincount(clusters)[order])
    first = set(order[: 1 + int(np.argmin(np.abs(sizes[:-1] - share * len(pairs))))])
    train = {i for i, c in enumerate(clusters) if c in first}
    return train, set(range(len(pairs))) - train


def _by_names(pairs: Sequence[Pair], share: float, seed: int, what: str) -> tuple[set[int], set[int]]:
    """Pairs within one part of the names, and all others; the part, of `TRIES` drawn, that keeps most on both sides.

    Most by the smaller of training and testing, each over the share that it is meant to have; then by their sum.
    """
    marks = [_marks(pair) for pair in pairs]
    names = sorted(set().union(*marks))
    rng, best, kept = generator(seed, f"split {what}"), _halves(len(pairs), share, seed, what), (0.0, 0)
    for _ in range(TRIES):
        known = {name for name, drawn in zip(names, rng.random(len(names)) < rng.random(), strict=True) if drawn}
        train = {i for i, own in enumerate(marks) if own <= known}
        test = sum(not own & known for own in marks)
        worth = min(len(train) / share, test / (1 - share)), len(train) + test
        if worth[0] and worth > kept:
            best, kept = (train, set(range(len(pairs))) - train), worth
    return best


def _without_shared(train: Sequence[Pair], test: Sequence[Pair], held: str) -> Split:
    """Test pairs that share no name (no text, where they have none) with training; what is left out is told."""
    known = {key for pair in train for key in _marks(pair)}
    kept = [pair for pair in test if not known & _marks(pair)]
    lost = len(test) - len(kept)
    return _split(train, kept, held, f" ({lost} left out that share a name with training)" if lost else "")


def _marks(pair: Pair) -> set[str]:
    clean, corrupt = names_of(pair)
    return set(clean + corrupt) or set(pair.texts)


def _split(train: Sequence[Pair], test: Sequence[Pair], held: str, told: str = "") -> Split:
    if not train or not test:
        raise BadRequest(
            f"held-out {held}: {len(train)} pairs for training and {len(test)} for testing{told}; expected some of "
            "both: give more names or templates, or change --train"
        )
    return Split(tuple(train), tuple(test), held + told)


def _halves(n: int, share: float, seed: int, what: str) -> tuple[set[int], set[int]]:
    if not 0 < share < 1:
        raise BadRequest(f"--train: expected a share between 0 and 1, got {share}")
    order = generator(seed, f"split {what}").permutation(n)
    first = {int(i) for i in order[: round(share * n)]}
    return first, set(range(n)) - first
