"""The band of noise beside the spectra of an atlas: what maps of the same shape and norm have at each index.

Source: `docs/theory/spectra.md`, equations 8–10.
"""

from functools import lru_cache

import numpy as np
from threadpoolctl import threadpool_limits

from covector.analyses.site_spectra import PRODUCTS
from covector.axes import Float
from covector.io.atlas import Atlas
from covector.linalg.chance.random_matrix import SpectrumNull, frobenius_scale, null_band, spectrum_null

# The levels of 95 % of a singular value are known to 2 % of the band from so many draws; a picture shows no more.
DRAWS = 200


def spectrum_bands(atlas: Atlas, *, draws: int = DRAWS, seed: int = 0) -> list[Float[np.ndarray, "2 r"]]:
    """Per place of the atlas the lower and upper 95 % level of each of its singular values under noise of its norm.

    As many values as the place has in the atlas; simulated once per shape (a map and its transpose have one null).
    """
    with threadpool_limits(limits=1, user_api="blas"):  # small matrices, many of them: one thread is faster
        return [_band(np.array(r["sigma"], dtype=np.float64), _null(_shape(r), draws, seed)) for r in atlas.sites]


def _shape(record: dict) -> tuple[int, int, int | None]:
    n, m = int(record["n"]), int(record["m"])
    return min(n, m), max(n, m), int(record["inner"]) if record["kind"] in PRODUCTS else None


@lru_cache(maxsize=16)
def _null(shape: tuple[int, int, int | None], draws: int, seed: int) -> SpectrumNull:
    return spectrum_null(*shape, draws=draws, seed=seed)


def _band(S: Float[np.ndarray, " r"], null: SpectrumNull) -> Float[np.ndarray, "2 r"]:
    band = np.zeros((2, len(S)))
    if len(S):
        levels = null_band(null) * frobenius_scale(S, null)
        shown = min(len(S), null.rank)
        band[:, :shown] = levels[:, :shown]
    return band
