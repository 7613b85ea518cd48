"""How well a feature says its observable along a text: r² over positions, beside random directions and passages.

Source: `docs/theory/fires.md`, equations 5–6.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.axes import Float, Int
from covector.linalg.agreement import correlation
from covector.linalg.chance import monte_carlo_p
from covector.linalg.firing import level
from covector.linalg.passages import Association, association, each_r2
from covector.model.opened import Model
from covector.study.feature import Feature
from covector.study.observable import Observable

# Shuffles of passages behind p.
SHUFFLES = 999
ALPHA = 0.05
WHAT = (
    "squared Pearson correlation of the feature's projection with the observable at the same position, over all "
    "positions but the first of each window"
)


@dataclass(frozen=True, eq=False)
class Said:
    """What a feature says of its observable, the observable's values, and r² of the random directions beside it.

    `along` is over all positions, `last` is r² over the last position of each passage alone (`last_n` of them).
    """

    observable: Observable
    along: Association
    random: Float[np.ndarray, " draws"]
    last: float
    last_n: int

    @property
    def random_level(self) -> float:
        """r² that 95 % of random directions of the same space stay within."""
        return level(self.random, ALPHA)

    @property
    def p_random(self) -> float:
        """How often a random direction of the same space says as much."""
        return float(monte_carlo_p(self.along.r2, self.random).value)

    def to_meta(self) -> dict[str, Any]:
        """As JSON holds it; NaN is null."""
        told = {
            "observable": str(self.observable), "r": self.along.r, "r2": self.along.r2, "r2_low": self.along.low,
            "r2_high": self.along.high, "r2_n": self.along.n, "r2_passages": self.along.passages,
            "p_r2_passages": self.along.p, "r2_level": self.random_level, "p_r2": self.p_random,
            "r2_last": self.last, "r2_last_n": self.last_n,
        }  # fmt: skip
        kept = {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in told.items()}
        return kept | {"r2_is": WHAT, "r2_interval": "95 %, jackknife over passages", "r2_shuffles": SHUFFLES}

    def __str__(self) -> str:
        """As a sentence."""
        a = self.along
        where = f"over {a.n:,} positions of {a.passages} passage{'s' * (a.passages != 1)}"
        if np.isnan(a.r):
            return f"It or {self.observable} is the same at every position {where}: there is no r²."
        between = "no interval" if np.isnan(a.low) else f"95 % {_number(a.low)} to {_number(a.high)}"
        shuffled = "" if np.isnan(a.p) else f", p {_number(a.p)} with passages shuffled"
        return (
            f"r² with {self.observable} {where} is {_number(a.r2)} (r {a.r:+.2f}; {between}{shuffled}); 95 % of random "
            f"directions stay within {_number(self.random_level)} (p {_number(self.p_random)})."
        )


def said(
    observable: Observable,
    values: Float[np.ndarray, "m r"],
    observed: Float[np.ndarray, " m"],
    passage: Int[np.ndarray, " m"],
    seed: int,
) -> Said:
    """The r² of the first column of `values` with the observable, and of the others, which are of random directions."""
    y = np.asarray(observed, dtype=np.float64)
    ends = np.flatnonzero(np.r_[np.diff(passage) != 0, True])
    return Said(
        observable,
        association(values[:, 0], y, passage, draws=SHUFFLES, seed=seed),
        each_r2(values[:, 1:], y),
        correlation(values[ends, 0].astype(np.float64), y[ends]) ** 2,
        len(ends),
    )


def observable_of(feature: Feature, model: Model) -> Observable:
    """The observable that a feature was made of, in a model. Raises NotOneToken, UnknownBasis where it has none."""
    centred = feature.observable.startswith("centred(")
    words = feature.observable.removeprefix("centred(").removesuffix(")") if centred else feature.observable
    found = Observable.parse(words, model)
    return found.centred() if centred else found


def notes(feature: Feature, model: Model, hook: str) -> tuple[str, ...]:
    """What to know where a feature is measured elsewhere than where, or in another checkpoint than it was made of."""
    found = []
    if feature.hook and feature.hook != hook:
        found.append(f"the path {feature.path or '(none)'} reads the feature at {feature.hook}, not at {hook}")
    files, own = feature.origin.get("files"), dict(model.meta.get("files") or {})
    if files and own and dict(files) != own:
        found.append(f"the feature was made of other tensors ({feature.origin.get('model', 'another model')})")
    return tuple(found)


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"
