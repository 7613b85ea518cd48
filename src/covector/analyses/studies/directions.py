"""The directions of an atlas, grouped as studies ask about them: by kind and side, with the site as the unit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.families import bh

_PLACES = ("site", "layer", "head", "kind", "side", "dyad", "basis")
# Lists of tokens are judged only where an atlas was built with scores.
_JUDGED = ("coherence", "p_coherence", "z_coherence", "p_coherence_svd", "interpretable")


@dataclass(frozen=True, eq=False)
class Directions:
    """Places of n directions, row by row as the atlas has them; `unit` numbers their sites, `layer` is −1 for none."""

    site: np.ndarray
    layer: Int[np.ndarray, " n"]
    kind: np.ndarray
    side: np.ndarray
    dyad: Int[np.ndarray, " n"]
    unit: Int[np.ndarray, " n"]
    is_head: Bool[np.ndarray, " n"]

    def of(self, kind: str, side: str) -> Bool[np.ndarray, " n"]:
        """Which directions are of this kind and side."""
        return (self.kind == kind) & (self.side == side)

    def groups(self, *, heads: bool = False) -> Iterator[tuple[str, str, Bool[np.ndarray, " n"]]]:
        """(kind, side, which) in a fixed order: heads, MLPs, the rest; with `heads` only the kinds of heads."""
        found = dict.fromkeys(zip(self.kind.tolist(), self.side.tolist(), strict=True))
        for kind, side in sorted(found, key=lambda pair: (_order(pair[0]), pair[1] in ("write", "key"))):
            at = self.of(kind, side)
            if not heads or self.is_head[at].all():
                yield kind, side, at


def _order(kind: str) -> tuple[int, str]:
    known = ("ov", "qk", "mlp.in", "mlp.gate", "mlp.out", "mlp slice")
    return (known.index(kind), "") if kind in known else (len(known), kind)


def directions(atlas: Atlas) -> Directions:
    """The places of an atlas' directions."""
    told = atlas.columns(*_PLACES)
    layer = np.array([-1 if value is None or value != value else int(value) for value in told["layer"]])
    head = np.array([value is not None and value == value for value in told["head"]])
    _, unit = np.unique(told["site"].astype(str), return_inverse=True)
    return Directions(told["site"], layer, told["kind"], told["side"], told["dyad"], unit, head)


def judged(atlas: Atlas, *names: str) -> dict[str, np.ndarray]:
    """Columns of an atlas; BadRequest, saying how, where they are scores and it was built without any."""
    missing = [name for name in names if name in _JUDGED and name not in atlas.names]
    if missing:
        raise BadRequest(
            f"{atlas.folder}: expected an atlas whose token lists are judged ({missing[0]}), it was built with "
            "--no-scores; build one without that"
        )
    told = atlas.columns(*names)
    scores = [told[name] for name in names if name in ("p_coherence", "z_coherence")]
    if scores and all(np.isnan(column).all() for column in scores):
        raise BadRequest(
            f"{atlas.folder}: expected token lists that can be judged, its bases hold fewer than 144 labels; "
            "covector locate and covector svd read single cosines"
        )
    return told


def unit_means(values: Float[np.ndarray, " n"], unit: Int[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """Mean over every unit, in the order of the units' numbers; NaN values are left out."""
    _, at = np.unique(unit, return_inverse=True)
    there = ~np.isnan(values)
    totals = np.bincount(at[there], values[there], minlength=at.max() + 1)
    numbers = np.bincount(at[there], minlength=at.max() + 1)
    return np.divide(totals, numbers, out=np.full(len(totals), np.nan), where=numbers > 0)


def stand_ins(unit: Int[np.ndarray, " n"], draws: int) -> Int[np.ndarray, " n"]:
    """A random draw to stand in for every direction: units get draws of their own, as many as they have directions.

    What a unit shows less what its stand-ins show lies symmetrically around zero if its directions are random ones:
    the error of a mean over draws is in the difference, not shared by all units. Draws are used again, in the same
    order, where there are fewer than directions; the test is exact up to there.
    """
    made = np.empty(len(unit), dtype=np.int64)
    made[np.argsort(unit, kind="stable")] = np.arange(len(unit)) % draws
    return made


def adjusted(p: Sequence[float] | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Benjamini–Hochberg over the values that are there; NaN stays."""
    values = np.asarray(p, dtype=np.float64)
    q, there = np.full(len(values), np.nan), ~np.isnan(values)
    if there.any():
        q[there] = bh(values[there])
    return q


def told_of(atlas: Atlas) -> str:
    """The model and frame of an atlas, as titles name them."""
    meta = atlas.manifest["meta"]
    return f"{meta['model']} · frame {meta['frame']}"


def of_share(p: float) -> str:
    """A share in words of a sentence: 12 %."""
    return f"{100 * p:.0f} %" if p >= 0.0995 or p == 0 else f"{100 * p:.1f} %"


def of_p(p: float) -> str:
    """A probability as sentences quote it: p = .031, p < .001."""
    if p != p:
        return "p not defined"
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1) if p < 0.9995 else "p = 1"
