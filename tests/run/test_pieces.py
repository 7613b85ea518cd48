"""Activations, norms, soft caps and rotary turns, each against a definition written down independently."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import norm as gaussian
from transformers.activations import ACT2FN

from covector.errors import UnsupportedConfig
from covector.model.spec import Norm, Rotary
from covector.run.pieces import ACTIVATIONS, activation, as_tensor, normalize, softcap, turn

X = torch.linspace(-4, 4, 161, dtype=torch.float64)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_is_the_one_that_transformers_has_under_that_name(name):
    assert torch.allclose(activation(name)(X), ACT2FN[name](X), rtol=0, atol=1e-14)


def test_gelu_is_x_times_the_gaussian_distribution_function():
    assert np.allclose(activation("gelu")(X).numpy(), X.numpy() * gaussian.cdf(X.numpy()), rtol=0, atol=1e-15)


def test_silu_and_quick_gelu_are_x_times_a_logistic_curve():
    assert np.allclose(activation("silu")(X).numpy(), X.numpy() * expit(X.numpy()), rtol=0, atol=1e-15)
    assert np.allclose(activation("quick_gelu")(X).numpy(), X.numpy() * expit(1.702 * X.numpy()), rtol=0, atol=1e-15)


def test_the_tanh_form_of_the_gelu_is_near_the_exact_one_and_not_the_same():
    apart = (activation("gelu_new")(X) - activation("gelu")(X)).abs().max()
    assert 1e-5 < apart < 1e-3


def test_an_unknown_activation_is_refused_by_name():
    with pytest.raises(UnsupportedConfig, match=r"activation 'swiglu' changes the function.*supported: relu"):
        activation("swiglu")


def test_layer_norm_centres_and_divides_by_the_standard_deviation():
    x, gain, bias = draws(5, 7), draws(7, seed=1), draws(7, seed=2)
    rows = x.numpy()
    centred = rows - rows.mean(1, keepdims=True)
    want = centred / np.sqrt(rows.var(1, keepdims=True) + 1e-3) * gain.numpy() + bias.numpy()
    assert np.allclose(normalize(x, Norm("layer", 1e-3), gain, bias).numpy(), want, rtol=0, atol=1e-14)


def test_rms_norm_divides_by_the_root_mean_square_and_does_not_centre():
    x = draws(5, 7) + 3
    want = x.numpy() / np.sqrt((x.numpy() ** 2).mean(1, keepdims=True) + 1e-3)
    assert np.allclose(normalize(x, Norm("rms", 1e-3), None, None).numpy(), want, rtol=0, atol=1e-14)


def test_the_offset_of_a_norm_is_never_applied_again():
    x, gain = draws(3, 4), draws(4, seed=1)
    assert torch.equal(
        normalize(x, Norm("rms", 1e-6, offset=1.0), gain, None), normalize(x, Norm("rms", 1e-6), gain, None)
    )


def test_a_soft_cap_keeps_small_values_and_bounds_large_ones():
    capped = softcap(torch.tensor([1e-3, -1e3], dtype=torch.float64), 5.0)
    assert abs(capped[0] - 1e-3) < 1e-9
    assert capped[1] == pytest.approx(-5.0)
    assert softcap(X, None) is X


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_rotary_turn_multiplies_each_pair_by_a_complex_phase(interleaved):
    rotary, x, positions = Rotary(6, 100.0, interleaved), draws(2, 5, 3, 8), torch.arange(5)[None]
    turned = turn(x, rotary, positions).numpy()
    rows = x.numpy()
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + 3) for i in range(3)]
    for i, (a, b) in enumerate(pairs):
        phase = np.exp(1j * np.arange(5) * 100.0 ** (-2 * i / 6))[None, :, None]
        want = (rows[..., a] + 1j * rows[..., b]) * phase
        assert np.allclose(turned[..., a], want.real, rtol=0, atol=1e-14)
        assert np.allclose(turned[..., b], want.imag, rtol=0, atol=1e-14)
    assert np.array_equal(turned[..., 6:], rows[..., 6:])


def test_a_turned_product_depends_on_the_distance_alone():
    rotary, q, k = Rotary(4, 50.0), draws(1, 1, 1, 4), draws(1, 1, 1, 4, seed=1)

    def product(at: int, other: int) -> float:
        turned = [turn(x, rotary, torch.tensor([[p]])) for x, p in ((q, at), (k, other))]
        return float((turned[0] * turned[1]).sum())

    assert product(7, 4) == pytest.approx(product(103, 100), abs=1e-13)
    assert product(7, 4) != pytest.approx(product(4, 7), abs=1e-3)


def test_angles_are_as_exact_in_float32_as_its_values():
    # In float32 an angle of 31,624 radians is only known to 2e-3.
    angle = 100_003 / math.sqrt(10)
    turned = turn(torch.ones(1, 1, 1, 4), Rotary(4, 10.0), torch.tensor([[100_003]]))[0, 0, 0]
    assert float(turned[1]) == pytest.approx(math.cos(angle) - math.sin(angle), abs=1e-6)
    assert float(turned[3]) == pytest.approx(math.cos(angle) + math.sin(angle), abs=1e-6)


PARAMETERLESS = {
    **{f"activation {name}": f for name, f in ACTIVATIONS.items()},
    "layer norm": lambda x: normalize(x, Norm("layer", 1e-5), None, None),
    "rms norm": lambda x: normalize(x, Norm("rms", 1e-5), None, None),
    "soft cap": lambda x: softcap(x, 1.5),
    "rotary halves": lambda x: turn(x, Rotary(4, 10.0), torch.arange(3)[None]),
    "rotary pairs": lambda x: turn(x, Rotary(4, 10.0, interleaved=True), torch.arange(3)[None]),
}


@pytest.mark.parametrize("name", sorted(PARAMETERLESS))
def test_gradients_equal_finite_differences(name, slopes):
    x = draws(2, 3, 2, 6, seed=3)
    # Away from 0, where relu and relu² have their kink or the jump of its slope.
    exact, measured = slopes(PARAMETERLESS[name], x + 0.15 * x.sign())
    assert exact == pytest.approx(measured, rel=1e-10, abs=1e-10)


def test_an_array_becomes_a_tensor_of_its_own_memory_whatever_its_flags_and_strides():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    array.flags.writeable = False
    tensor = as_tensor(array.T[::-1], torch.float64, "cpu")
    assert tensor.tolist() == [[2, 5], [1, 4], [0, 3]]
    assert tensor.dtype == torch.float64
    tensor += 1
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_tensor_is_copied_too():
    given = torch.zeros(2)
    as_tensor(given, torch.float32, "cpu").add_(1)
    assert given.tolist() == [0, 0]
