"""Where a function of one number crosses zero."""

from collections.abc import Callable

from scipy.optimize import root_scalar


def crossing(function: Callable[[float], float], low: float, high: float, within: float) -> float:
    """The zero of a continuous function between two places where its signs differ, to `within` (Brent's method)."""
    return float(root_scalar(function, bracket=(low, high), method="brentq", xtol=within).root)
