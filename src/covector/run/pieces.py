"""The small parts of a forward pass: activations, norms, soft caps and rotary turns, each as written in a paper."""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from covector.errors import UnsupportedConfig
from covector.model.spec import Norm, Rotary

# Coefficient of the cubic term, and sqrt(2/π), in Hendrycks and Gimpel's tanh form of the GELU (arXiv 1606.08415).
_CUBIC, _SLOPE = 0.044715, math.sqrt(2 / math.pi)
# FastGELU was published with the slope rounded to ten digits; the checkpoints were trained with the rounded one.
_FAST_SLOPE = 0.7978845608
# Slope of the logistic form of the GELU in the same paper.
_LOGISTIC = 1.702


def _gelu_tanh(x: Tensor, slope: float = _SLOPE) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(slope * (x + _CUBIC * x**3)))


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


# Named as in Hugging Face's ACT2FN, so that a config's word is looked up as it stands.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x) ** 2,
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": lambda x: _gelu_tanh(x, _FAST_SLOPE),
    "quick_gelu": lambda x: x * torch.sigmoid(_LOGISTIC * x),
    "silu": _silu,
    "swish": _silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "linear": lambda x: x,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of that Hugging Face name; UnsupportedConfig, with the list, for one that is not known."""
    if name not in ACTIVATIONS:
        raise UnsupportedConfig(
            f"activation '{name}' changes the function and is not implemented; supported: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def normalize(
    x: Float[Tensor, "*batch d"], norm: Norm, gain: Float[Tensor, " d"] | None, bias: Float[Tensor, " d"] | None
) -> Float[Tensor, "*batch d"]:
    """Each row centred (layer norm only), divided by the root of its mean square plus eps, times gain, plus bias."""
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + norm.eps)
    if gain is not None:
        x = x * gain
    return x if bias is None else x + bias


def softcap(x: Float[Tensor, "*batch"], cap: float | None) -> Float[Tensor, "*batch"]:
    """``cap * tanh(x / cap)``; x itself without a cap."""
    return x if cap is None else cap * torch.tanh(x / cap)


def turn(
    x: Float[Tensor, "batch position head d_head"], rotary: Rotary, positions: Int[Tensor, "#batch position"]
) -> Float[Tensor, "batch position head d_head"]:
    """Rotary positions: coordinate pair i of each head turned by ``position * frequency_i``.

    Angles are computed in float64 whatever the dtype of x. Source: Su et al., RoFormer; pairs as `Rotary` says.
    """
    # mps has no float64: there the angles are made on the CPU.
    where = torch.device("cpu") if x.device.type == "mps" else x.device
    speed = torch.tensor(rotary.frequencies(), dtype=torch.float64, device=where)
    angle = positions[..., None, None].to(where).to(torch.float64) * speed
    cos, sin = (wave(angle).to(x.dtype).to(x.device) for wave in (torch.cos, torch.sin))
    turning, still = x[..., : rotary.dim], x[..., rotary.dim :]
    if rotary.interleaved:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = turning.chunk(2, dim=-1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return torch.cat((turned, still), dim=-1)


# Gives a canonical tensor by name (in a block: by role), or None where the model has none.
Part = Callable[[str], Tensor | None]


def need(part: Part, name: str) -> Tensor:
    """A tensor that the anatomy cannot do without; the decoder has checked that it is there."""
    value = part(name)
    assert value is not None, name
    return value


def as_tensor(array: np.ndarray | Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """An array (read-only or of any strides) or tensor as a tensor of its own memory; widening is exact."""
    if isinstance(array, np.ndarray):
        return torch.from_numpy(np.array(array, order="C")).to(device, dtype)
    return array.detach().to(device, dtype, copy=True)
