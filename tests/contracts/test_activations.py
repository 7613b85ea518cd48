"""Two implementations of every activation, one in NumPy and one in torch, are the same function."""

import numpy as np
import pytest
import torch

from covector.model.activations import _BY_NAME
from covector.run.pieces import ACTIVATIONS


def test_both_know_the_same_names() -> None:
    assert set(_BY_NAME) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_numpy_and_torch_agree(name: str) -> None:
    x = np.linspace(-6, 6, 241)
    np.testing.assert_allclose(_BY_NAME[name](x), ACTIVATIONS[name](torch.from_numpy(x)).numpy(), rtol=0, atol=1e-14)
