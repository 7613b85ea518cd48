"""What is wished of an edit that is to be found: the concept, where, how strongly, and what it may cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest

# What a head or an MLP writes: where the source documents look for a concept.
SITES = ("L*H*.ov", "L*.mlp.out")


@dataclass(frozen=True, eq=False)
class Wish:
    """A concept, and how to spend a change on it. Raises BadRequest for wishes that contradict each other.

    `concepts`: texts of weighted tokens (several span a subspace), or rows in the stream. In proportion: what is left
    is `keep` of a direction that is all concept, `mu` the price of a change (default τ², or the least within
    `max_kl`); `every`: directions that are no closer than chance too. `optimise`: ε by gradients within `max_kl`, the
    KL per token that may be spent, lowering what is observed unless it `raises`.
    """

    concepts: tuple[str, ...] | Float[np.ndarray, "k d_model"]
    sites: tuple[str, ...] = SITES
    keep: float = 0.0
    mu: float | None = None
    every: bool = False
    max_kl: float | None = None
    optimise: bool = False
    raises: bool = False

    def __post_init__(self) -> None:
        if self.raises and not self.optimise:
            raise BadRequest("--raise belongs to --optimise; to amplify in proportion: --keep 2")
        if not self.keep >= 0:
            raise BadRequest(
                f"--keep: expected a share of at least 0 (1 changes nothing, 2 doubles), got {self.keep:g}"
            )
        if self.optimise and (self.mu is not None or self.keep != 0.0):
            raise BadRequest("--optimise finds ε itself: expected no --mu and no --keep beside it")
        if self.optimise and self.max_kl is None:
            raise BadRequest("--optimise: expected --max-kl, the KL per token that may be spent; for example 0.01")
        if self.max_kl is not None and not self.max_kl > 0:
            raise BadRequest(
                f"{'--max-kl' if self.optimise else '--budget-kl'}: expected a KL above 0 (nothing but the unedited "
                f"model has KL 0), got {self.max_kl:g}"
            )


def concepts_of(given: str | Sequence[str] | Float[np.ndarray, "*k d_model"]) -> tuple[str, ...] | np.ndarray:
    """One text or several, or rows."""
    if isinstance(given, np.ndarray):
        return np.atleast_2d(given)
    return (given,) if isinstance(given, str) else tuple(given)
