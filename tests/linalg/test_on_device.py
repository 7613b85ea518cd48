"""Products on a card: the same winners to the last bit, sums to float32, and cards that round more are refused.

There is no graphics card in these tests: `far_device` stands in for one (tests/far_device.py).
"""

import gc
from pathlib import Path

import numpy as np
import pytest

import covector
from covector.atlas.build import compute
from covector.atlas.plan import Options, units
from covector.errors import BadRequest
from covector.linalg import on_device
from covector.linalg.on_device import Card, a_card, card_for, exact_float32, products_on
from covector.linalg.topk import Poles, poles
from far_device import FAR, FarTensor, far_device

torch = pytest.importorskip("torch")
MANY = 3 * 1024 + 17


@pytest.fixture(autouse=True)
def all_work_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "LEAST", 0.0)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def assert_same(one: Poles, other: Poles) -> None:
    for name in ("top", "top_score", "bottom", "bottom_score"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.7])
def test_winners_are_the_same_bits_and_sums_the_same_numbers(by_length, share):
    directions, vectors = normal(1, 30, 64).astype(float), normal(2, MANY, 64)
    keep = np.random.default_rng(3).random(MANY) < share
    vectors[~keep] = np.nan
    lengths = np.where(keep, np.linalg.norm(vectors.astype(float), axis=1), 1.0) if by_length else None
    here, there = np.zeros(MANY), np.zeros(MANY)

    def summed(into):
        return lambda rows, scores: np.add(into, np.einsum("rn,rn->n", scores, scores), out=into)

    one = poles(directions, vectors, 10, keep=keep, lengths=lengths, see=summed(here))
    with far_device(), products_on(Card(FAR)):
        other = poles(directions, vectors, 10, keep=keep, lengths=lengths, see=summed(there))
    assert_same(one, other)
    np.testing.assert_allclose(there, here, rtol=1e-5)
    assert not there[~keep].any()


def test_products_are_made_there_and_nowhere_else(monkeypatch):
    asked = []
    multiply = Card.multiply
    monkeypatch.setattr(Card, "multiply", lambda self, *given: asked.append(1) or multiply(self, *given))
    directions, vectors = normal(1, 5, 16), normal(2, MANY, 16)
    with far_device():
        far = Card(FAR)
        asked.clear()
        with products_on(far):
            poles(directions, vectors, 3)
            poles(directions.astype(float), vectors.astype(float), 3)  # float64 tables stay here
        assert len(asked) == 1
        poles(directions, vectors, 3)
        with products_on(None):
            poles(directions, vectors, 3)
        assert len(asked) == 1
        monkeypatch.setattr(on_device, "LEAST", 6.0 * vectors.size)
        with products_on(far):
            assert card_for(5, vectors) is None
            assert card_for(6, vectors) is far


def test_a_table_that_cannot_change_is_sent_once_and_goes_with_its_owner():
    directions, vectors = normal(1, 5, 16), normal(2, MANY, 16)
    with far_device():
        far = Card(FAR)
        with products_on(far):
            poles(directions, vectors, 3)
            assert not far._tables
            vectors.flags.writeable = False
            poles(directions, vectors, 3)
            (table,) = far._tables.values()
            assert isinstance(table, FarTensor)
            np.testing.assert_array_equal(table.cpu().numpy(), vectors)
            poles(directions, vectors, 3)
            (again,) = far._tables.values()
            assert again is table
            del vectors
            gc.collect()
            assert not far._tables


@pytest.mark.parametrize("digits", [11, 8])
def test_a_card_that_rounds_to_fewer_digits_is_refused(monkeypatch, digits):
    """TensorFloat-32 keeps eleven binary digits with the hidden one, bfloat16 eight."""
    to = torch.Tensor.to

    def rounded(self, *args, **named):
        mantissa, exponent = torch.frexp(self)
        return to(torch.ldexp(torch.round(mantissa * 2**digits) / 2**digits, exponent), *args, **named)

    with far_device():
        Card(FAR)
        monkeypatch.setattr(torch.Tensor, "to", rounded)
        with pytest.raises(BadRequest, match="expected float32 products, came coarser ones"):
            Card(FAR)


def test_shortcuts_are_off_within_and_as_they_were_afterwards():
    torch.set_float32_matmul_precision("high")
    try:
        with exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_devices_that_are_not_there_are_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(BadRequest, match="expected auto, cpu, cuda or cuda:N of a card that is there, came 'qpu'"):
        covector.build_atlas("demo-lm", tmp_path / "a", device="qpu")
    if not torch.cuda.is_available():
        with pytest.raises(BadRequest, match="--device cuda:3: expected a graphics card"):
            covector.build_atlas("demo-lm", tmp_path / "a", device="cuda:3")
    assert not (tmp_path / "a").exists()


def test_auto_asks_torch_only_where_a_driver_is(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(on_device, "DRIVERS", (str(tmp_path / "none"),))
    monkeypatch.setitem(on_device.__dict__, "torch", None)
    assert a_card() == "cpu"
    (tmp_path / "driver").touch()
    monkeypatch.setattr(on_device, "DRIVERS", (str(tmp_path / "driver"),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert a_card() == "cuda"


def test_parts_of_an_atlas_made_there_are_those_made_here():
    model, options = covector.open("demo-lm"), Options(kinds=("ov", "mlp"), rank=8, draws=60)
    with far_device():
        on_device.card.cache_clear()
        asked = set()
        for unit in [u for u in units(model, options) if u.basis or u.sites[0].layer == 1]:
            here, there = compute(model, unit, options), compute(model, unit, options, FAR)
            assert here.arrays.keys() == there.arrays.keys()
            for name, values in here.arrays.items():
                asked.add(name)
                if name == "p_svd":  # from squared lengths summed over 32 scores of float32, in tails of some hundred
                    np.testing.assert_allclose(there.arrays[name], values, rtol=1e-3)
                else:
                    np.testing.assert_array_equal(there.arrays[name], values, err_msg=name)
        assert {"p_svd", "top", "cos", "vectors", "coherence", "p_coherence_svd"} <= asked
    on_device.card.cache_clear()
