"""The activations that need no torch, against those of the decoder."""

import numpy as np
import pytest
import torch

from covector.errors import UnsupportedConfig
from covector.model.activations import activation
from covector.run import pieces

NAMES = sorted(pieces.ACTIVATIONS)


@pytest.mark.parametrize("name", NAMES)
def test_numpy_and_torch_have_the_same_activation_under_one_name(name):
    x = np.concatenate([np.linspace(-4, 4, 161), [-40.0, 40.0]])
    expected = pieces.activation(name)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(activation(name)(x), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", ["sigmoid", "silu", "quick_gelu"])
def test_a_logistic_curve_does_not_overflow_far_out(name):
    with np.errstate(all="raise", under="ignore"):
        low, high = activation(name)(np.array([-1e4, 1e4]))
    assert low == 0
    assert high == (1 if name == "sigmoid" else 1e4)


def test_an_unknown_activation_is_refused_with_the_names_that_exist():
    with pytest.raises(UnsupportedConfig, match="activation 'rleu' is not implemented; supported: gelu, "):
        activation("rleu")
