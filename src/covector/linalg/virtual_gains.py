"""What random functionals get through every path of heads: the baseline that features of a task are compared with.

A path takes functionals f on the end to y = f Xᵀ. For f of random direction the root of the mean of ‖y‖² is
‖f‖·‖X‖_F/√d, so ‖X‖_F is the path's *gain*. With C_bc = X_bc X_bcᵀ and H_ab = K_abᵀ K_ab of the link K_ab from head
b to head a, ‖X_abc‖_F² = ⟨C_bc, H_ab⟩: all triples through b are one product of r²-long rows.

Source: theory page §4.5 ("minus its random baseline"), `docs/theory/observables.md`, equation 11.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.virtual import Chain, check_length

# Longer paths would need an r × r × r product each.
LONGEST = 3


@dataclass(frozen=True, eq=False)
class Gains:
    """‖X‖_F of every path of up to three heads, read with `of`.

    ``through[b]`` are the triples through head b: rows are its earlier heads, columns its later ones.
    """

    singles: Float[np.ndarray, " n"]
    pairs: Float[np.ndarray, "n n"]
    through: tuple[Float[np.ndarray, "_ _"], ...]

    def of(self, heads: Int[np.ndarray, "k m"]) -> Float[np.ndarray, " k"]:
        """The gain of each path (one row each, earliest head first)."""
        if heads.shape[1] < LONGEST:
            return self.singles[heads[:, 0]] if heads.shape[1] == 1 else self.pairs[heads[:, 0], heads[:, 1]]
        found = np.empty(len(heads))
        order = np.argsort(heads[:, 1], kind="stable")
        edges = np.searchsorted(heads[order, 1], np.arange(len(self.through) + 1))
        for b, table in enumerate(self.through):
            rows = order[edges[b] : edges[b + 1]]
            found[rows] = table[heads[rows, 0], heads[rows, 2] - (len(self.singles) - table.shape[1])]
        return found


def all_gains(chain: Chain, length: int = LONGEST, *, centred: bool = False) -> Gains:
    """The gain of every path of 1 to `length` heads, for functionals of any direction.

    `centred`: for functionals without a part along 1. Exact to rounding, float64. Costs two links (2·d·r²) per pair
    and 2·r² per triple. Raises BadRequest for a length outside 1 to 3.
    """
    check_length(length)
    if length > LONGEST:
        raise BadRequest(f"expected paths of at most {LONGEST} heads where all gains are wanted, got {length}")
    n = chain.n_heads
    grams = _grams(chain, centred)
    singles = np.sqrt([np.trace(G) for G in grams])
    pairs, through = np.zeros((n, n)), []
    for b in range(n if length > 1 else 0):
        layer, _ = chain.within(b)
        first, after = int(chain.starts[layer]), int(chain.starts[layer + 1])
        later = [chain.link(b, c) for c in range(after, n)]
        C = np.array([K @ G @ K.T for K, G in zip(later, grams[after:], strict=True)])
        pairs[b, after:] = np.sqrt(np.maximum(np.trace(C, axis1=1, axis2=2), 0.0)) if len(C) else 0.0
        if length > 2:
            K = [chain.link(a, b) for a in range(first)]
            through.append(_contracted(np.array([k.T @ k for k in K]), C))
    return Gains(singles, pairs, tuple(through))


def _contracted(H: np.ndarray, C: np.ndarray) -> Float[np.ndarray, "m k"]:
    """√⟨H_a, C_c⟩ of all pairs."""
    if not (len(H) and len(C)):
        return np.zeros((len(H), len(C)))
    return np.sqrt(np.maximum(H.reshape(len(H), -1) @ C.reshape(len(C), -1).T, 0.0))


def _grams(chain: Chain, centred: bool) -> list[np.ndarray]:
    """XXᵀ of every head alone."""
    found = []
    for head in range(chain.n_heads):
        X = chain.operator((head,), centred=centred)
        found.append(X @ X.T)
    return found
