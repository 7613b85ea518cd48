"""Directions fitted to labelled rows: mean difference, least squares with a small ridge, logistic regression.

Rows are centred by the training mean; d may exceed the number of rows. Source: theory page §2.10, §3 (B13).
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize

from covector.axes import Bool, Float

Rows = Float[np.ndarray, "n d"]
# Penalty on a direction, as a share of the rows' mean square length; the same for all sizes and never tuned on a test.
RIDGE = 1e-2


def mean_difference(x: Rows, positive: Bool[np.ndarray, " n"], _y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " d"]:
    """Mean of one class less mean of the other."""
    return x[positive].mean(axis=0) - x[~positive].mean(axis=0)


def least_squares(x: Rows, _positive: Bool[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " d"]:
    """The direction whose reading (plus a constant) is nearest to y, with a ridge of 1 % of the mean square length."""
    c = x - x.mean(axis=0)
    gram = c @ c.T
    penalty = RIDGE * max(float(np.trace(gram)) / len(x), 1e-300)
    return c.T @ np.linalg.solve(gram + penalty * np.eye(len(x)), y - y.mean())


def logistic(x: Rows, positive: Bool[np.ndarray, " n"], _y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " d"]:
    """The direction of an L2-penalised logistic regression, to a gradient of 1e-6; in the span of the rows."""
    c = x - x.mean(axis=0)
    scale = np.sqrt(max(float(np.mean(np.sum(c * c, axis=1))), 1e-300))
    # The optimum lies in the span of the rows: coordinates there are as many as rows at most.
    _, S, Vh = np.linalg.svd(c / scale, full_matrices=False)
    rows, sign = (c / scale) @ Vh.T, np.where(positive, 1.0, -1.0)

    def loss(wb: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = wb[:-1], wb[-1]
        margin = sign * (rows @ w + b)
        pull = -sign / (1 + np.exp(np.minimum(margin, 700)))
        value = np.logaddexp(0, -margin).sum() + 0.5 * RIDGE * len(x) * (w @ w)
        return float(value), np.append(rows.T @ pull + RIDGE * len(x) * w, pull.sum())

    found = minimize(loss, np.zeros(len(S) + 1), jac=True, method="L-BFGS-B", options={"gtol": 1e-6, "maxiter": 1000})
    return found.x[:-1] @ Vh / scale


PROBES: dict[str, Callable[[Rows, np.ndarray, np.ndarray], np.ndarray]] = {
    "mean difference": mean_difference,
    "least squares": least_squares,
    "logistic": logistic,
}
