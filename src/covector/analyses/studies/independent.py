"""ICA axes of an embedding beside its leading principal components: scores, and those of random axes of the same span.

Axes of an ICA have no order, so what is told is their mean normal score and their share of coherent lists. The span
alone may be coherent; ICA is therefore held against random bases of it, drawn as ICA draws its own: orthogonal in
whitened coordinates.

Source: Q19 of the theory page; `docs/theory/studies.md`, equations 35–36.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from covector.analyses.studies.directions import of_p, of_share
from covector.analyses.studies.judges import Judge
from covector.axes import Bool, Float
from covector.errors import BadRequest
from covector.linalg.independent import independent, random_turns
from covector.linalg.principal import Principal
from covector.model.bases import Basis

ALPHA = 0.05
# Axes that ICA looks for. Their number squared should be far below the labels: with fewer labels ICA finds outliers.
NUMBER = 64
# Random bases beside ICA: no p is below 1/50. Each costs as much as judging the axes themselves.
TURNS = 49
# A score of p = 0 or 1 has no place on the normal axis. A p that was counted and is 1 says "below so many draws" and
# no more: given their number it stands half a draw from 1.
EDGE = 1e-12


@dataclass(frozen=True, eq=False)
class Axes:
    """Normal scores of one set of axes; which are coherent, and which beyond the labels' covariance where asked."""

    scores: Float[np.ndarray, " k"]
    coherent: Bool[np.ndarray, " k"]
    beyond: Bool[np.ndarray, " k"] | None = None

    @property
    def mean(self) -> float:
        """Mean normal score."""
        return float(self.scores.mean())

    @property
    def share(self) -> float:
        """Share of coherent axes."""
        return float(self.coherent.mean())


@dataclass(frozen=True, eq=False)
class Compared:
    """ICA axes, as many leading components, and random bases of their span.

    `variance` is the share of the labels' variance in that span, `alike` the mean |cos| between two ICA axes.
    """

    ica: Axes
    leading: Axes
    turns: list[Axes]
    converged: bool
    steps: int
    labels: int
    variance: float
    alike: float

    def p(self, axes: Axes) -> float:
        """Share of random bases, these axes with them, whose mean score is as high: at least 1/(turns + 1)."""
        return (1 + sum(one.mean >= axes.mean for one in self.turns)) / (len(self.turns) + 1)

    def of_turns(self, *, share: bool = False) -> tuple[float, float, float]:
        """Mean, and 95 % range, of the random bases' mean scores, or of their shares of coherent axes."""
        values = np.array([one.share if share else one.mean for one in self.turns])
        low, high = np.quantile(values, [0.025, 0.975])
        return float(values.mean()), float(low), float(high)

    def told(self) -> dict:
        """What meta keeps of it."""
        score, low, high = self.of_turns()
        return {
            "axes": len(self.ica.scores), "labels": self.labels, "variance": self.variance, "alike": self.alike,
            "converged": self.converged, "steps": self.steps, "turns": len(self.turns),
            "score": self.ica.mean, "coherent": self.ica.share, "p_turned": self.p(self.ica),
            "score_leading": self.leading.mean, "coherent_leading": self.leading.share,
            "p_turned_leading": self.p(self.leading), "score_turned": score, "score_turned_range": [low, high],
            "coherent_turned": self.of_turns(share=True)[0],
        }  # fmt: skip


def normal(p: Float[np.ndarray, " n"], draws: int | None = None) -> Float[np.ndarray, " n"]:
    """Φ⁻¹(1 − p): standard normal where p is uniform; `draws` are those that p was counted among."""
    return -special.ndtri(np.clip(p, EDGE, 1 - (EDGE if draws is None else 0.5 / (draws + 1))))


def compared(
    own: Basis, found: Principal, judge: Judge, cov: Judge, *, number: int = NUMBER, turns: int = TURNS, seed: int = 0
) -> Compared | None:
    """ICA of a basis' labels in the span of their leading `number` components, beside those and `turns` random bases.

    `found` are the components, `judge` has random directions for its null, `cov` those of the labels' covariance. None
    where there are too few labels or components. Raises BadRequest for number < 2, MissingExtra without scikit-learn.
    """
    if number < 2:
        raise BadRequest(f"expected number >= 2 axes, got {number}; leave it out for {NUMBER}")
    k, labels = min(number, len(found.axes)), int(own.usable.sum())
    if k < 2 or labels <= k:
        return None
    ica = independent(own.vectors, found, k, own.usable, seed)

    def axes(rows: Float[np.ndarray, "k d"], *, both: bool = True) -> Axes:
        p = judge(rows).p
        return Axes(normal(p, judge.null.draws), p < ALPHA, cov(rows).p < ALPHA if both else None)

    return Compared(
        axes(ica.axes),
        axes(found.axes[:k]),
        [axes(rows, both=False) for rows in random_turns(found, k, turns, seed)],
        ica.converged,
        ica.steps,
        labels,
        float(found.variances[:k].sum() / found.variances.sum()),
        float(np.abs(ica.axes @ ica.axes.T)[np.triu_indices(k, 1)].mean()),
    )


def said(one: Compared) -> str:
    """ICA in a sentence, with what its span scores by chance, and whether it came to an end."""
    k, p = len(one.ica.scores), one.p(one.ica)
    score, low, high = one.of_turns()
    how = "more coherent than" if p < ALPHA else "no more coherent than"
    words = (
        f"{k} ICA axes in the span of the first {k} components ({of_share(one.variance)} of the variance) are {how} "
        f"random axes of that span ({of_p(p)}): {one.ica.mean:+.2f} sd, {of_share(one.ica.share)} coherent; those "
        f"components {one.leading.mean:+.2f}, {of_share(one.leading.share)}; random axes {score:+.2f} "
        f"({low:+.2f} to {high:+.2f}), {of_share(one.of_turns(share=True)[0])}."
    )
    return words if one.converged else f"{words} ICA did not converge in {one.steps} steps."
