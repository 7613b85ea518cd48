"""Every head of a model with the two thin factors of its OV, or of its QK, in float64, layer by layer.

With grouped heads a query head takes the matrices of the key/value head that it reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest, BadSite
from covector.linalg.svd import SVD, svd
from covector.model.address import Site
from covector.model.opened import Model


@dataclass(frozen=True, eq=False)
class HeadFactors:
    """One layer's heads: ``A[h] @ B[h]`` is the map of head h; `kind` says which (``ov`` or ``qk``)."""

    layer: int
    kind: str
    A: Float[np.ndarray, "h d r"]
    B: Float[np.ndarray, "h r d"]

    def names(self) -> list[str]:
        """Addresses of the heads, ``L3H1``."""
        return [f"L{self.layer}H{h}" for h in range(len(self.A))]


def each_layer(model: Model, kind: str = "ov") -> Iterator[HeadFactors]:
    """Factors of every head's OV (W_V, W_O) or QK (W_Q, W_Kᵀ), one layer at a time, in the model's frame; no biases.

    Layers without attention are passed over.
    """
    for i, block in enumerate(model.spec.blocks):
        if block.attn is None:
            continue
        attn, at = block.attn, f"L{i}."
        group = [attn.kv_of(h) for h in range(attn.n_heads)]
        if kind == "ov":
            read, write = model.weights[at + "W_V"][group], model.weights[at + "W_O"]
        else:
            read, write = model.weights[at + "W_Q"], model.weights[at + "W_K"][group].swapaxes(1, 2)
        yield HeadFactors(i, kind, read.astype(np.float64), write.astype(np.float64))


def head_svd(model: Model, layer: int, head: int, kind: str = "ov") -> SVD:
    """The dyads of one head's OV or QK, without biases."""
    return svd(model.map(Site(layer, head, kind)))


def without_bias(model: Model, frame: str | None) -> Model:
    """The model in `frame`, refused where the frame appends bias rows: head scores need a map from stream to stream.

    Raises BadRequest for a ``+bias`` frame, BadSite for a model without attention, UnknownFrame, FrameUnavailable.
    """
    view = model if frame is None or frame == str(model.frame) else model.framed(frame)
    if view.frame.bias:
        raise BadRequest(
            f"scores of heads need maps from the stream to the stream, frame '{view.frame}' appends a bias row; "
            f"use --frame {view.frame.name}"
        )
    if not view.spec.n_heads:
        raise BadSite(f"expected a model with attention heads, {view.name} ({view.spec.family}) has none")
    return view
