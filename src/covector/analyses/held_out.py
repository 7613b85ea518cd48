"""Pairs of prompts in two parts that share no names, no templates, or neither: one to make things from, one to test.

Every name and every text of the test part is new, on both sides of a pair; what would stand in both is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from covector.errors import BadRequest
from covector.linalg.chance.streams import generator
from covector.model.opened import Model
from covector.run.prompts import Pair, fill_template

HOLDS = ("names", "templates", "both")


@dataclass(frozen=True)
class Split:
    """Pairs to make from and pairs to test on; ``held`` says what they do not share."""

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

    A name that stands in several entries of the lists is on one side only. Raises BadRequest for another `hold`, a
    share that leaves a side empty, one template where templates are to be held, and what `fill_template` refuses.
    """
    if hold not in HOLDS:
        raise BadRequest(f"expected --hold {', '.join(HOLDS)}, got '{hold}'")
    by_template = [fill_template(model, t, fills, bos) for t in templates]
    n = min(map(len, by_template), default=0)
    names, forms = _halves(n, share, seed, "names"), _halves(len(by_template), share, seed, "templates")
    every = set(range(len(by_template)))
    if hold == "names":
        forms = every, every
    elif hold == "templates":
        names = set(range(n)), set(range(n))
    train = [by_template[t][i] for t in sorted(forms[0]) for i in sorted(names[0])]
    known = {side for pair in train for side in pair.names} if hold != "templates" else set()
    test = [by_template[t][i] for t in sorted(forms[1]) for i in sorted(names[1])]
    held = "names and templates" if hold == "both" else hold
    return _split(train, [p for p in test if not known & set(p.names)], held)


def split_pairs(pairs: Sequence[Pair], *, share: float = 0.5, seed: int = 0) -> Split:
    """Pairs in two parts without a common text (pairs of a file carry no names)."""
    first, second = _halves(len(pairs), share, seed, "prompts")
    train = [pairs[i] for i in sorted(first)]
    known = {text for pair in train for text in pair.texts}
    return _split(train, [pairs[i] for i in sorted(second) if not known & set(pairs[i].texts)], "texts")


def _split(train: Sequence[Pair], test: Sequence[Pair], held: str) -> Split:
    if not train or not test:
        raise BadRequest(
            f"held-out {held}: {len(train)} pairs for training and {len(test)} for testing; expected some of both: give"
            " more names or templates, or change --train"
        )
    return Split(tuple(train), tuple(test), held)


def _halves(n: int, share: float, seed: int, what: str) -> tuple[set[int], set[int]]:
    if not 0 < share < 1:
        raise BadRequest(f"--train: expected a share between 0 and 1, got {share}")
    order = generator(seed, f"split {what}").permutation(n)
    first = {int(i) for i in order[: round(share * n)]}
    return first, set(range(n)) - first
