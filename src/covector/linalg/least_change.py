"""The change of a map that alters its answer to one input and everything else least.

Source: Q14 of the theory page; `docs/theory/edits.md`, equation 16.
"""

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest


def least_rows(
    inputs: Float[np.ndarray, "n d"],
    moment: Float[np.ndarray, "d d"],
    share: float = 1.0,
    ridge: float = 0.0,
) -> Float[np.ndarray, "n d"]:
    """For each row e the row w with which M' = (I + wᵀe)M answers e with (1 − share) eM, and other inputs alike.

    w = −share · eΣ⁻¹ / (eΣ⁻¹eᵀ). `moment` is Σ = E[xᵀx]; `ridge`·tr(Σ)/d is added to its diagonal. For ridge 0 the
    change ΔM is the exact minimiser of E‖xΔM‖² among all with eΔM = −share · eM, of any rank. Raises BadRequest for a
    null row, or for a Σ that is not definite: give it a ridge.
    """
    d = len(moment)
    whole = moment + np.eye(d) * (ridge * float(np.trace(moment)) / d)
    try:
        root = np.linalg.cholesky(whole)
    except np.linalg.LinAlgError as error:
        raise BadRequest(
            f"expected inputs in all {d} directions, theirs leave some out; give a ridge above 0 ({ridge:g} here)"
        ) from error
    turned = np.linalg.solve(root, inputs.T)  # L⁻¹eᵀ: eΣ⁻¹eᵀ is its square
    sizes = np.sum(turned**2, axis=0)
    if not (sizes > 0).all():
        raise BadRequest("expected inputs other than 0: a map answers 0 with 0 whatever it is")
    return -share * np.linalg.solve(root.T, turned).T / sizes[:, None]
