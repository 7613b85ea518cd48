"""Which dyad, by the weights alone, writes the most of a read-out: where one would look first.

No prompt is run: nothing is said of what the dyad reads there, nor of what later layers and the last norm make of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import CovectorError
from covector.io.atlas import Atlas
from covector.linalg.svd import svd
from covector.model.opened import Model

# Places that are decomposed where the atlas has none of them: the last ones, some seconds at GPT-2's size.
MOST_PLACES = 12


@dataclass(frozen=True)
class Writer:
    """A dyad (``L2H3.ov:0``), and how far a unit of what it reads moves the read-outs: σ·‖rows·v‖, before the norm."""

    dyad: str
    moved: float


def strongest_writer(
    model: Model, places: Sequence[str], rows: Float[np.ndarray, "k d_model"], atlas: Atlas | None = None
) -> Writer | None:
    """Return the dyad of `places` whose written vector v, times its gain σ, moves the read-outs `rows` the most.

    Taken from `atlas` where it has write sides of these places (float16 directions: right to a thousandth); else the
    last `MOST_PLACES` of them are decomposed, exactly. None where none of them writes. One of many: no chance level.
    """
    if atlas is not None:
        told = atlas.columns("site", "side", "dyad", "sigma")
        among = np.flatnonzero((told["side"] == "write") & np.isin(told["site"].astype(str), list(places)))
        if len(among):
            written = atlas.units(among, np.float32) @ rows.T.astype(np.float32)
            moved = np.linalg.norm(written, axis=1) * told["sigma"][among]
            best = int(moved.argmax())
            return Writer(f"{told['site'][among[best]]}:{told['dyad'][among[best]]}", float(moved[best]))
    found: Writer | None = None
    for place in places[-MOST_PLACES:]:
        try:
            d = svd(model.map(place))
        except CovectorError:
            continue
        moved = np.linalg.norm(np.asarray(d.Vh, dtype=np.float64) @ rows.T, axis=1) * d.S
        if len(moved) and moved.max() > (found.moved if found else 0.0):
            found = Writer(f"{place}:{int(moved.argmax())}", float(moved.max()))
    return found
