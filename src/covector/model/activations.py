"""Activation functions and their derivatives by the names that configs use, on NumPy arrays in float64."""

from collections.abc import Callable

import numpy as np

from covector.errors import UnsupportedConfig

# √(2/π) and the cubic coefficient of the tanh approximation of GELU (Hendrycks and Gimpel, 2016).
_ROOT, _CUBIC = np.sqrt(2 / np.pi), 0.044715
# FastGELU was published, and its checkpoints trained, with the root rounded to ten digits.
_FAST_ROOT = 0.7978845608


def _gelu(x: np.ndarray) -> np.ndarray:
    # Imported here: scipy.special adds 0.05 s to every start, and few commands apply an activation.
    from scipy.special import erf

    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def _gelu_tanh(x: np.ndarray, root: float = _ROOT) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(root * (x + _CUBIC * x**3)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # e^−|x| never overflows: 1/(1 + e^−x) from the right of 0, e^x/(1 + e^x) from the left.
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1.0) / (1 + small)


_BY_NAME: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "relu2": lambda x: np.maximum(x, 0.0) ** 2,
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": lambda x: _gelu_tanh(x, _FAST_ROOT),
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "silu": lambda x: x * _sigmoid(x),
    "swish": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "linear": lambda x: x,
}


def activation(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function called `name`. Raises UnsupportedConfig, listing the names, for another."""
    if name not in _BY_NAME:
        raise UnsupportedConfig(f"activation '{name}' is not implemented; supported: {', '.join(sorted(_BY_NAME))}")
    return _BY_NAME[name]


def _gelu_slope(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return 0.5 * (1 + erf(x / np.sqrt(2))) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def _gelu_tanh_slope(x: np.ndarray, root: float = _ROOT) -> np.ndarray:
    inner = np.tanh(root * (x + _CUBIC * x**3))
    return 0.5 * (1 + inner) + 0.5 * x * (1 - inner**2) * root * (1 + 3 * _CUBIC * x**2)


def _silu_slope(x: np.ndarray, steep: float = 1.0) -> np.ndarray:
    s = _sigmoid(steep * x)
    return s + steep * x * s * (1 - s)


# A kink of relu has slope 0 at 0, as autograd has it.
_SLOPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.where(x > 0, 1.0, 0.0),
    "relu2": lambda x: 2 * np.maximum(x, 0.0),
    "gelu": _gelu_slope,
    "gelu_python": _gelu_slope,
    "gelu_new": _gelu_tanh_slope,
    "gelu_accurate": _gelu_tanh_slope,
    "gelu_fast": lambda x: _gelu_tanh_slope(x, _FAST_ROOT),
    "gelu_pytorch_tanh": _gelu_tanh_slope,
    "quick_gelu": lambda x: _silu_slope(x, 1.702),
    "silu": _silu_slope,
    "swish": _silu_slope,
    "tanh": lambda x: 1 - np.tanh(x) ** 2,
    "sigmoid": lambda x: _sigmoid(x) * (1 - _sigmoid(x)),
    "linear": np.ones_like,
}


def derivative(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The derivative of the function called `name`. Raises UnsupportedConfig, listing the names, for another."""
    activation(name)
    return _SLOPES[name]
