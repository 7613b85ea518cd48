"""Operators of edits: I + readsᵀ writes, laid on a matrix from the right, or its transpose from the left.

Source: `docs/theory/edits.md`, equations 2 and 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.study.edit_sides import Target

# Two changes commute when what their order makes is below this share of what they do to each other's rows.
COMMUTES = 1e-9
# 1 + ε below this cannot be undone: what was removed is not in the weights any more.
REMOVED = 1e-12


@dataclass(frozen=True, eq=False)
class Operator:
    """Rows read and rows written: x ↦ x + (x readsᵀ) writes for rows x of the matrix, M' = M(I + readsᵀ writes).

    From the left the same rows mean M' = (I + writesᵀ reads)M.
    """

    reads: Float[np.ndarray, "k m"]
    writes: Float[np.ndarray, "k m"]

    def then(self, other: "Operator") -> "Operator":
        """(I + A₁ᵀB₁)(I + A₂ᵀB₂) as one operator: what laying `other` after this one gives, from either side."""
        cross = self.writes @ other.reads.T
        reads = np.concatenate([self.reads, other.reads + cross.T @ self.reads])
        return Operator(reads, np.concatenate([self.writes, other.writes]))


def composed(operators: Sequence[Operator]) -> Operator:
    """All of them as one."""
    made = operators[0]
    for one in operators[1:]:
        made = made.then(one)
    return made


def check_commuting(laid: Sequence[tuple[Target, Operator, str, str]]) -> None:
    """Raise BadRequest for two changes of one matrix from one hand whose order matters, offering an order.

    Each comes with the site and the words of its term. Changes of the two hands of a matrix always commute.
    """
    for (at, one, site, words), (other_at, other, other_site, other_words) in combinations(laid, 2):
        if (at.tensor, at.head, at.hand) != (other_at.tensor, other_at.head, other_at.hand):
            continue
        share = _disorder(one, other)
        if share > COMMUTES:
            raise BadRequest(
                f"edits of {site} and {other_site} overlap and do not commute (their order makes {share:.2g} of the "
                f"change): say which is first: '{words} then {other_words}'"
            )


def _disorder(one: Operator, other: Operator) -> float:
    """‖A₁ᵀ(B₁A₂ᵀ)B₂ − A₂ᵀ(B₂A₁ᵀ)B₁‖_F over the size of the two changes."""
    left = np.concatenate([(one.writes @ other.reads.T).T @ one.reads, -(other.writes @ one.reads.T).T @ other.reads])
    right = np.concatenate([other.writes, one.writes])
    size = min(_norm(one.reads, one.writes), _norm(other.reads, other.writes))
    return _norm(left, right) / size if size else 0.0


def _norm(reads: np.ndarray, writes: np.ndarray) -> float:
    """‖readsᵀ writes‖_F through triangles of thin rows: what cancels leaves rounding, where Grams leave its root."""
    return float(np.linalg.norm(np.linalg.qr(reads.T)[1] @ np.linalg.qr(writes.T)[1].T))


def inverse_writes(operator: Operator, words: str) -> Float[np.ndarray, "k m"]:
    """Rows B' with (I + AᵀB)⁻¹ = I + AᵀB', B' = −(I + BAᵀ)⁻¹B. Raises BadRequest where there is none."""
    core = np.eye(len(operator.reads)) + operator.writes @ operator.reads.T
    if np.linalg.svd(core, compute_uv=False)[-1] < REMOVED * max(1.0, float(np.linalg.norm(core, 2))):
        raise BadRequest(
            f"expected an edit that can be undone, '{words}' removes a direction (ε −1): only the base still has it"
        )
    return -np.linalg.solve(core, operator.writes)
