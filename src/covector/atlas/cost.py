"""How long a unit of an atlas takes, about: what its share of the work is reckoned by.

Measured on one core: demo-lm, and one layer of the shape of gpt2-medium with its vocabulary (50,257 tokens, d = 1024),
judged and not, 2,000 and 10,000 draws, all dyads and 32: the layer to 30 percent, of demo-lm what takes 50 ms and more
to a factor of two. Other machines are faster or slower in all of it alike, which is all that a share asks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from covector.model.address import Site

# Multiplications and additions per second, of scores in float32 and of decompositions in float64.
SCORED, DECOMPOSED = 90e9, 45e9
# Seconds: of one direction whatever it is compared with; per dimension, of judging one list, and of moving one
# direction by noise; per label, of summing the lengths within a head's subspace.
EACH, JUDGED, MOVED, WITHIN = 45e-6, 1.65e-6, 1.0e-6, 8e-9
# Decompositions of a map that is moved by noise, for one of it as it is.
AGAIN = 2


@dataclass(frozen=True)
class Sizes:
    """Width of the stream, labels of the larger basis, and what is asked: draws, judged lists, rotations of a head."""

    d: int
    vocabulary: int
    draws: int
    scores: bool
    rotations: int

    def compared(self, rows: int) -> float:
        """Seconds of comparing so many directions with every label."""
        return rows * (2 * self.d * self.vocabulary / SCORED + EACH)


def of_nulls(sizes: Sizes) -> float:
    """Seconds of the null draws of a basis: two laws, and of judged lists two more."""
    moment = (2 * sizes.vocabulary * sizes.d**2 + 9 * sizes.d**3) / DECOMPOSED
    lists = 2 * sizes.draws if sizes.scores else 0
    return moment + sizes.compared(2 * sizes.draws + lists) + lists * JUDGED * sizes.d


def of_sites(
    sites: Sequence[Site],
    sizes: Sizes,
    rows_of: Callable[[Site], tuple[int, int]],
    flops: Callable[[Site], float],
) -> float:
    """Seconds of sites; `rows_of` tells how many directions are kept and compared, `flops` what a decomposition is."""
    total = 0.0
    for site in sites:
        kept, compared = rows_of(site)
        is_head = site.head is not None
        total += flops(site) / DECOMPOSED * (1 + AGAIN * (sizes.scores and not is_head)) + sizes.compared(compared)
        total += compared * WITHIN * sizes.vocabulary if is_head else 0
        if sizes.scores:
            rotated = sizes.rotations * compared if is_head else 0
            total += sizes.compared(rotated) + ((kept + rotated) * JUDGED + kept * MOVED) * sizes.d
    return total
