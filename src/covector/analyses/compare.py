"""How somebody else's SVD of a place relates to ours: the same, flipped, transposed, permuted, of another frame."""

from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import FrameUnavailable
from covector.linalg.compare import relate
from covector.linalg.relation import Relation
from covector.linalg.svd import svd
from covector.model.frames import PRESERVING, VIEWS
from covector.model.opened import Model


@dataclass(frozen=True)
class Comparison:
    """The frame in which their arrays are this site's SVD (None: in none), and how they relate there."""

    site: str
    frame: str | None
    relation: Relation

    @property
    def words(self) -> str:
        """The finding in one line."""
        where = f"in frame {self.frame}" if self.frame else "in no frame that this model has"
        return f"{self.site}, {where}: {self.relation.words}"


def compare(
    model: Model,
    site: str,
    U: Float[np.ndarray, "_ _"],
    S: Float[np.ndarray, " _"],
    Vh: Float[np.ndarray, "_ _"],
) -> Comparison:
    """Tell how the arrays that somebody calls U, S, Vh relate to our SVD of `site`.

    The model's own frame is tried first, then every other frame that this model has; the first that explains them
    wins. When none does, the relation in the model's own frame is returned, with where it parts. Torch tensors and
    lists are taken as arrays.
    Raises BadSite, SpaceMismatch when no reading of the shapes fits the map.
    """
    given = [np.asarray(a) for a in (U, S, Vh)]
    own = str(model.frame)
    plain: Comparison | None = None
    for frame in (own, *(f for f in (*PRESERVING, *VIEWS) if f != own)):
        try:
            view = model.framed(frame)
        except FrameUnavailable:
            continue
        found = relate(svd(view.map(site)), *given)
        if found.kind != "different":
            return Comparison(str(view.site(site)), frame, found)
        plain = plain or Comparison(str(view.site(site)), None, found)
    assert plain is not None  # the model's own frame is always available
    return plain
