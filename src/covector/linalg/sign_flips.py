"""Whether a mean is there at all: random signs of the measurements."""

import numpy as np

from covector.axes import Float


def sign_flips(effects: Float[np.ndarray, "place n"], seed: int, draws: int = 2000) -> Float[np.ndarray, " place"]:
    """Two-sided p of each mean under random signs of the pairs (all 2ⁿ of them where n ≤ 10); NaN for one pair."""
    n = effects.shape[1]
    if n < 2:
        return np.full(len(effects), np.nan)
    if n <= 10:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        null = np.abs(signs @ effects.T)
        return np.mean(null >= np.abs(effects.sum(axis=1)) * (1 - 1e-12), axis=0)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (draws, n))
    null = np.abs(signs @ effects.T)
    return (1 + np.sum(null >= np.abs(effects.sum(axis=1)) * (1 - 1e-12), axis=0)) / (1 + draws)
