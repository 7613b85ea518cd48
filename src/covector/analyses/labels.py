"""Names for token lists, from anyone who gives names, with the rate at which they name lists that mean nothing.

A labeller is a function from the words of a list to a name, or to nothing where it sees none. Lists of random
directions are mixed in among the real ones, in an order and a number the labeller cannot tell from them; how often it
names those is its false-label rate. A labeller that names everything has said nothing.

Source: `docs/theory/scores.md`, equation 15; F10(v) and D12 of the theory page.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import stats

from covector.errors import BadRequest
from covector.linalg.chance.streams import Seed, generator

Labeller = Callable[[Sequence[str]], str]

# Of all lists that a labeller sees, at least this share are of random directions.
NULL_SHARE = 0.3
# Words of a list that stand for it where nobody names it.
SHOWN = 3


@dataclass(frozen=True)
class Labelled:
    """A label per list ("" where the labeller declined), and how often null lists were named.

    `false_rate` is that rate, `low` … `high` its exact (Clopper–Pearson) 95 % interval, `nulls` how many were shown.
    """

    labels: tuple[str, ...]
    null_labels: tuple[str, ...]
    false_rate: float
    low: float
    high: float

    @property
    def nulls(self) -> int:
        """How many null lists were mixed in."""
        return len(self.null_labels)


def tokens_themselves(words: Sequence[str]) -> str:
    """The default labeller: the first three words. Never declines, has a false-label rate of 1, claims nothing."""
    return ", ".join(word.strip() for word in words[:SHOWN])


def nulls_needed(lists: int) -> int:
    """How many null lists make at least 30 % of everything shown."""
    return -(-3 * lists // 7)


def labelled(
    lists: Sequence[Sequence[str]],
    null_lists: Sequence[Sequence[str]],
    labeller: Labeller = tokens_themselves,
    *,
    seed: Seed = 0,
) -> Labelled:
    """Label lists blind: null lists are mixed in by `seed`, and the labeller is called once per list, in that order.

    All null lists given are used, and they must be at least 30 % of the total and as long as the real ones, or they
    would show. Raises BadRequest otherwise, or where the labeller returns no text.
    """
    if len(null_lists) < nulls_needed(len(lists)) or not null_lists:
        raise BadRequest(
            f"expected at least {max(1, nulls_needed(len(lists)))} null lists beside {len(lists)}, came "
            f"{len(null_lists)}; take them from the lists of the null"
        )
    if {len(words) for words in lists} - {len(words) for words in null_lists}:
        raise BadRequest("null lists must be as long as the real ones, or a labeller can tell them apart; cut them")
    shown = [*lists, *null_lists]
    names = [""] * len(shown)
    for place in generator(seed, "labels").permutation(len(shown)):
        name = labeller(tuple(shown[place]))
        if not isinstance(name, str):
            raise BadRequest(f"a labeller returns text, or '' for nothing, came {type(name).__name__}")
        names[place] = name.strip()
    labels, null_labels = tuple(names[: len(lists)]), tuple(names[len(lists) :])
    named = sum(map(bool, null_labels))
    interval = stats.binomtest(named, len(null_labels)).proportion_ci()
    return Labelled(labels, null_labels, named / len(null_labels), float(interval.low), float(interval.high))
