"""How far an observable can go: rows behind a norm have bounded length.

Source: theory page §2.8, identity OP-26; `docs/theory/steering.md`, equation 5.
"""

import numpy as np

from covector.model.opened import Model
from covector.model.spec import Norm
from covector.model.weights import Weights
from covector.study.observable import Observable


def saturation(model: Model, observable: Observable) -> tuple[float, float]:
    """(constant, reach): whatever the input, |observable − constant| ≤ reach. (NaN, inf) where nothing bounds it.

    With the norm in front of the output: reach = √d·‖P(γ⊙W_U n)‖, constant = β·W_U n + b_U·n (P only for LayerNorm).
    A soft-cap or a tanh bounds each output by itself: |weights| times the cap, constant 0; the smaller reach counts.
    Without a final norm it is the last block's, behind its addition: a vector added behind that one is not bounded.
    Exact as an inequality; it is met where the stream is parallel to the feature.
    """
    out = model.spec.output(observable.output)
    assert out is not None, observable.output
    found: list[tuple[float, float]] = [(float("nan"), float("inf"))]
    size = float(np.abs(observable.vector).sum())
    if out.activation in ("tanh", "sigmoid"):
        found.append((0.0, size))
    elif out.activation is None and out.softcap is not None:
        found.append((0.0, out.softcap * size))
    elif out.activation is None:
        name, norm = _norm(model, out.transform is not None, out.transform_norm, f"out.{out.name}.norm")
        if norm is not None:
            found.append(_behind(model.weights, observable.readout(model), observable.constant(model), name, norm))
    return min(found, key=lambda pair: pair[1])


def _norm(model: Model, transformed: bool, own: Norm | None, name: str) -> tuple[str, Norm | None]:
    """The norm whose output the output matrix multiplies."""
    if transformed or own is not None:
        return name, own
    if model.spec.final_norm is not None:
        return "final_norm", model.spec.final_norm
    blocks = model.spec.blocks
    last = blocks[-1].sublayers[-1] if blocks and blocks[-1].sublayers else None
    return (f"L{len(blocks) - 1}.{last.name}_after", last.after) if last else ("", None)


def _behind(weights: Weights, v: np.ndarray, constant: float, name: str, norm: Norm) -> tuple[float, float]:
    gain = weights[f"{name}.gain"].astype(np.float64) if f"{name}.gain" in weights else 1.0
    w = v * gain
    w = w - w.mean() if norm.kind == "layer" else w
    if f"{name}.bias" in weights:
        constant += float(weights[f"{name}.bias"].astype(np.float64) @ v)
    return constant, float(np.sqrt(len(v)) * np.linalg.norm(w))
