"""What a finding is: a claim, the number that answers it, chance, and a verdict; and what findings are asked of.

Source: `docs/replicate.md`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from covector.analyses.spectrum import spectrum
from covector.analyses.studies.kinds import kinds
from covector.axes import Float
from covector.io.atlas import Atlas
from covector.model.address import Site
from covector.model.opened import Model
from covector.render import Table

# The sprint's findings as claims that a model can bear out or not; C stands for both of its parts.
CLAIMS = {
    "A.i": "Spectra of heads grow over depth.",
    "A.ii": "A late layer jumps out of line with the others.",
    "B": "Singular directions of heads are individually interpretable.",
    "B.i": "Directions are more interpretable without folding and centring.",
    "B.ii": "Full and truncated decompositions differ in sign.",
    "C": "Directions are interpretable at either pole, some at both.",
    "C.i": "Directions are interpretable at either pole.",
    "C.ii": "Some directions are interpretable at both poles.",
    "D": "What heads read (left) is interpretable as well.",
    "D.i": "Left directions read through the transpose mean something, through pinv(W_E) not.",
    "D.ii": "What heads read is less interpretable than what they write.",
    "E": "Sometimes the ten leading directions of a head are one semantic unit.",
    "F": "Cosines with a threshold find the directions of a concept.",
    "G": "Removing a traced direction changes the probability of its concept's tokens.",
}
ALPHA = 0.05
HOLDS, FAILS, SILENT = "holds", "does not hold", "cannot be asked here"
# What is traced unless concepts are given: what the sprint and the post that it replicates write about.
CONCEPTS = ("fire + flame + smoke", "rain + snow + storm", "write + read + book", "doctor + nurse + hospital")
# Random directions, and random maps, drawn for one finding.
DRAWS = 1000


@dataclass(frozen=True)
class Finding:
    """One claim and the answer: `ours` against `chance` (or with an interval, or p), NaN where it cannot be asked."""

    key: str
    number: str
    ours: float
    chance: float
    verdict: str
    why: str
    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")

    @property
    def claim(self) -> str:
        """What was found, in a sentence."""
        return CLAIMS[self.key]


@dataclass(frozen=True)
class Traced:
    """What concept tracing found for one concept: the written side nearest to it, and whether that is beyond chance."""

    words: str
    site: Site
    dyad: int
    cos: float
    tau: float
    tokens: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Removal:
    """What removing traced dyads does: mean change of the log-probability of their concepts' tokens (nats).

    `null` are removals of random directions of the same heads with the same norm, `places` how many tokens counted.
    """

    effect: float
    null: Float[np.ndarray, " draws"]
    places: int
    words: str


@dataclass(frozen=True, eq=False)
class Asked:
    """What the findings are asked of: a model, the atlas of its heads, and what else they need where it is there.

    `made` gives the atlas of another frame; `removed` measures what removing traced dyads does (it runs the model).
    """

    model: Model
    atlas: Atlas
    made: Callable[[str], Atlas] | None = None
    removed: Callable[[Model, Sequence[Traced]], Removal] | None = None
    concepts: tuple[str, ...] = CONCEPTS
    draws: int = DRAWS
    seed: int = 0

    @cached_property
    def spectra(self) -> Table:
        """Spectra of every head's OV."""
        return spectrum(self.model, "L*H*.ov", draws=max(100, self.draws // 10), seed=self.seed)

    @cached_property
    def shares(self) -> Table:
        """Shares of coherent lists by kind and side."""
        return kinds(self.atlas)


def silent(key: str, why: str) -> Finding:
    """A finding that cannot be asked, and why."""
    return Finding(key, "", float("nan"), float("nan"), SILENT, why)


def verdict(holds: Any) -> str:
    """In words."""
    return HOLDS if holds else FAILS


def number(value: float | None) -> float:
    """A number of a row, NaN where it is not defined."""
    return float("nan") if value is None else value


def p_of(row: dict[str, Any]) -> float:
    """p of a row, 1 where it is not defined."""
    return 1.0 if row["p"] is None else float(row["p"])
