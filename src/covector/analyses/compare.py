"""How somebody else's SVD of a place relates to ours: the same, flipped, transposed, permuted, of another frame."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.errors import BadRequest, FrameUnavailable, SpaceMismatch
from covector.linalg.compare import relate
from covector.linalg.relation import Relation
from covector.linalg.svd import svd
from covector.model.frames import PRESERVING, VIEWS, Frame
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


def compare(model: Model, site: str, U: Any, S: Any, Vh: Any) -> Comparison:
    """Tell how the arrays that somebody calls U [n, k], S [k], Vh [k, m] relate to our SVD of `site`.

    The model's own frame is tried first, then every other frame that this model has, each with and without bias rows;
    the first that explains them wins, one in which they could be right but so could others is the next best. When none
    does, the relation in the first frame whose shapes fit is returned, with where it parts. NumPy arrays, torch tensors
    (whatever their device, gradients and dtype) and nested lists are taken; whole numbers as float64.
    Costs one SVD of the site per frame until one explains them: 12 if none does.
    Raises BadSite, SpaceMismatch when no reading of the shapes fits the map in any frame, BadRequest for arrays that
    are not of real numbers.
    """
    held = "bfloat16" if any("bfloat16" in str(getattr(a, "dtype", "")) for a in (U, S, Vh)) else None
    given = [_array(name, a) for name, a in (("U", U), ("S", S), ("Vh", Vh))]
    open_, parted, refused = None, None, None
    for view in _views(model, site):
        try:
            found = relate(svd(view.map(site)), *given, held=held)
        except SpaceMismatch as mismatch:
            refused = refused or mismatch
            continue
        named = Comparison(str(view.site(site)), str(view.frame), found)
        if found.kind not in ("different", "undetermined"):
            return named
        if found.kind == "undetermined":
            open_ = open_ or named
        parted = parted or Comparison(named.site, None, found)
    if best := open_ or parted:
        return best
    assert refused is not None  # the model's own frame is always available
    raise refused


def _views(model: Model, site: str) -> Iterator[Model]:
    """The model in its own frame and in each other that it has, bias rows added or left out where the site has them."""
    own = model.frame
    other = model.framed(Frame(own.name, not own.bias))
    biases = (own.bias, other.frame.bias) if other.map(site).shape != model.map(site).shape else (own.bias,)
    for name in (own.name, *(n for n in (*PRESERVING, *VIEWS) if n != own.name)):
        for bias in biases:
            try:
                yield model.framed(Frame(name, bias))
            except FrameUnavailable:
                break


def _array(name: str, given: Any) -> np.ndarray:
    """A real array of what was given; torch is not imported, its tensors are known by what they can do."""
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        # NumPy has no bfloat16.
        given = given.float() if "bfloat16" in str(given.dtype) else given
    array = np.asarray(given)
    if array.dtype.kind not in "fiub":
        raise BadRequest(f"expected real numbers for {name}, came {array.dtype}; give U, S, Vh as arrays of floats")
    return array if array.dtype.kind == "f" else array.astype(np.float64)
