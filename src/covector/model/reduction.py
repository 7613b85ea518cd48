"""The canonical tensors of a site whose map was rewritten on its own dyads: what a view or a run of it needs.

OV is rewritten on the write side (W_O), QK on the query's (W_Q): those arrays belong to one query head, so siblings of
a group are left alone. Where OV changes, b_V W_O changes with it, as if a hook had changed what the head writes; b_Q of
a rewritten W_Q stays.

Source: `docs/theory/changes.md`, equations 11 and 15.
"""

from collections.abc import Mapping

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.maps import Factored
from covector.linalg.rank_reduction import Side, with_core
from covector.linalg.svd import SVD
from covector.model.address import Site
from covector.model.circuits import map_at, site_tensors
from covector.model.weights import Weights


def side_of(site: Site) -> Side:
    """The side on which a site's map is rewritten."""
    return "read" if site.kind == "qk" else "write"


def replaced(
    weights: Weights,
    site: Site,
    found: SVD,
    core: Float[np.ndarray, "r r"],
    before: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Canonical name → whole array, in which the site's map is ``U S T Vh`` (QK: ``U T S Vh``).

    `before` holds arrays that other sites have changed already; they are carried on, and not written into. `found` are
    all dyads of the site's map in `weights`. A tied embedding is untied: the unembedding stays as it was, and the other
    way round. Raises BadRequest for dyads of another map.
    """
    changed = dict(before or {})
    m = map_at(weights, site)
    new = with_core(m, found, core, side_of(site))
    names = site_tensors(site)
    if isinstance(new, Factored):
        name, part = (names[0], new.A) if site.kind == "qk" else (names[1], new.B)
        changed[name] = _with_head(changed.get(name, weights[name]), site, part)
    elif site.head is not None:
        changed[names[0]] = _with_head(changed.get(names[0], weights[names[0]]), site, new.W)
    else:
        changed[names[0]] = new.W
        if names[0] in ("W_E", "W_U") and weights.spec.tied:
            twin = "W_U" if names[0] == "W_E" else "W_E"
            changed.setdefault(twin, np.array(weights[twin]))
    return changed


def _with_head(array: np.ndarray, site: Site, part: np.ndarray) -> np.ndarray:
    """A copy of the heads' arrays with one of them replaced."""
    if site.head is None:
        raise BadRequest(f"{site}: expected a head's place, it names none")
    made = array.astype(np.float64)
    made[site.head] = part
    return made
