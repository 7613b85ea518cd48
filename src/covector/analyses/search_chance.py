"""What directions of a basis' own covariance reach of a concept: one of them, and the best of a whole search.

Source: `docs/theory/search.md`, equations 4 and 9.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from covector.analyses.query import Query, basis_named
from covector.axes import Float
from covector.linalg import chance
from covector.linalg.chance.laws import Matched
from covector.linalg.chance.quadratic import matched_tail
from covector.model.opened import Model

# Draws of p_cov (its error is about 1/√draws of it), and vectors of the basis, evenly spaced, that its covariance is
# taken from: of 16 per dimension, tr Σ² is too large by a sixteenth of its least value, which moves p by less.
DRAWS, VECTORS_PER_DIMENSION = 1000, 16
# Cosines whose p is found at a time when looking for the least that is beyond chance.
AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class Covariance:
    """The laws of directions of each basis' own covariance, and the concept there; a query of one direction."""

    query: Query
    laws: Mapping[str, Matched]
    seed: int

    def p(self, name: str, cos: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Chance that one direction of this basis' covariance reaches each |cos|; equation 4."""
        found = matched_tail(cos, self.query.rows[name][0], self.laws[name], draws=DRAWS, seed=self.seed)
        return np.asarray(found.value, dtype=np.float64)

    def p_of(self, basis: list[str], cos: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The same, each against the basis of its own."""
        of, p = np.array(basis), np.full(len(cos), np.nan)
        for name in sorted(set(basis)):
            p[of == name] = self.p(name, cos[of == name])
        return p

    def beyond(self, basis: list[str], cos: Float[np.ndarray, " n"], level: float) -> int:
        """How many have p <= level. p falls with |cos|, so that few are computed, however many there are."""
        of, size = np.array(basis), np.abs(cos)
        return sum(self._beyond(name, np.sort(size[of == name])[::-1], level) for name in sorted(set(basis)))

    def _beyond(self, name: str, falling: Float[np.ndarray, " n"], level: float) -> int:
        low, high = 0, len(falling)  # the first `low` pass, those from `high` on do not
        while low < high:
            at = np.unique(np.linspace(low, high - 1, min(AT_ONCE, high - low)).astype(np.int64))
            passed = self.p(name, falling[at]) <= level
            first = int(np.argmin(passed)) if not passed.all() else len(at)
            low, high = (int(at[first - 1]) + 1 if first else low), (int(at[first]) if first < len(at) else high)
        return low


def covariance_of(model: Model, query: Query, seed: int) -> Covariance:
    """The laws of every basis that the query has rows in."""
    return Covariance(query, {name: _law(model, name) for name in query.rows}, seed)


def _law(model: Model, name: str) -> Matched:
    """Directions of a basis' own covariance: v ∝ Σ^½ g, Σ the second moment of its unit vectors."""
    basis = basis_named(model, name)
    usable = np.flatnonzero(basis.usable)
    some = usable[:: max(1, len(usable) // (VECTORS_PER_DIMENSION * model.spec.d_model))]
    units = basis.vectors[some] / basis.norms[some, None]
    return Matched(chance.covariance_root(units))


def familywise(p: Float[np.ndarray, " n"], p_cov: Float[np.ndarray, " n"], n: int) -> Float[np.ndarray, " n"]:
    """Chance, at most, that the best of n directions comes as near, by the law of the two that is nearer; equation 9.

    NaN where p_cov is.
    """
    return np.minimum(n * np.maximum(p, p_cov), 1.0)
