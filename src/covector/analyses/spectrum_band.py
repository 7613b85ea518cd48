"""The band of noise beside the spectra of an atlas: what maps of the same shape and norm have at each index.

Source: `docs/theory/spectra.md`, equations 6, 8, 9 and 14.
"""

from collections.abc import Mapping, Set
from functools import lru_cache
from typing import Any

import numpy as np

from covector.analyses.site_spectra import PRODUCTS
from covector.axes import Float
from covector.io.atlas import Atlas
from covector.linalg.chance.random_matrix import norm_band, spectrum_null
from covector.linalg.lapack import at_most_threads

# The edges of a band are known to 6 % of its width from so many draws; a picture shows no more.
DRAWS = 200
# The part of a float16 unit row along 1 that is rounding: Σ 2⁻¹¹|vᵢ|/√d is no more than this.
ROUNDED = 2.0**-11

Shape = tuple[int, int, int | None]


def spectrum_bands(atlas: Atlas, *, draws: int = DRAWS, seed: int = 0) -> list[Float[np.ndarray, "2 r"]]:
    """Per place of the atlas the lower and upper 95 % level of each of its singular values under noise of its norm.

    As many values as the place has in the atlas. Every draw has the norm of the place: of noise 95 % of the values at
    an index lie in the band. A side without a part along **1** has one dimension less. Simulated once per shape (a map
    and its transpose have one null); beyond the twelve largest of a single matrix whose shorter side is above 256 the
    band is the limit law's (it holds 97 % of noise at 300 × 1200, 94 % at 500 × 600, to 2 %).
    """
    centred = _centred(atlas)
    with at_most_threads(1):  # small matrices, many of them: one thread is faster
        return [
            _band(np.array(r["sigma"], dtype=np.float64), _unit_band(_shape(r, centred), draws, seed))
            for r in atlas.sized_sites
        ]


def _centred(atlas: Atlas) -> Set[tuple[str, str]]:
    """Places and sides all of whose directions have no part along 1, to float16."""
    given = atlas.columns("site", "side")
    along = np.abs(atlas.vectors @ np.ones(atlas.vectors.shape[1], np.float32))
    along_one = along > ROUNDED * np.sqrt(atlas.vectors.shape[1])
    every = dict.fromkeys(zip(given["site"], given["side"], strict=True))
    return every.keys() - set(zip(given["site"][along_one], given["side"][along_one], strict=True))


def _shape(record: Mapping[str, Any], centred: Set[tuple[str, str]]) -> Shape:
    """The shape of the null: the sizes of the map less a direction that the frame has taken off a side, shorter first.

    A map whose factors are thinner than it, a head's or a low-rank change, is a product.
    """
    first, second = ("query", "key") if record["kind"] == "qk" else ("read", "write")
    site, n, m = record["site"], int(record["n"]), int(record["m"])
    inner = int(record["inner"]) if record["inner"] is not None else min(n, m)
    product = record["kind"] in PRODUCTS or inner < min(n, m)
    n, m = n - ((site, first) in centred), m - ((site, second) in centred)
    return min(n, m), max(n, m), inner if product else None


@lru_cache(maxsize=16)
def _unit_band(shape: Shape, draws: int, seed: int) -> Float[np.ndarray, "2 r"]:
    levels = norm_band(spectrum_null(*shape, draws=draws, seed=seed))
    levels.flags.writeable = False
    return levels


def _band(S: Float[np.ndarray, " r"], levels: Float[np.ndarray, "2 k"]) -> Float[np.ndarray, "2 r"]:
    band = np.zeros((2, len(S)))
    shown = min(len(S), levels.shape[1])
    band[:, :shown] = levels[:, :shown] * np.linalg.norm(S)
    return band
