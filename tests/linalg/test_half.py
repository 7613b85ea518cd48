"""Extremes by way of bfloat16 products: the answers of float64, and bounds that hold where rounding is at its worst."""

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covector.errors import BadRequest
from covector.linalg import half
from covector.linalg.topk import Poles, poles

torch = pytest.importorskip("torch")

LAWS = settings(max_examples=40, deadline=None, derandomize=True)
MANY = 3 * 1024 + 17  # enough that groups of several exist


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> list[half.HalfTable]:
    """Half precision is used whatever the sizes; the tables that were asked for."""
    asked: list[half.HalfTable] = []
    table = half.table
    monkeypatch.setattr(half, "pays", lambda *_: True)
    monkeypatch.setattr(half, "table", lambda *given: asked.append(table(*given)) or asked[-1])
    return asked


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def without(directions: np.ndarray, vectors: np.ndarray, k: int, **named: np.ndarray | None) -> Poles:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half, "pays", lambda *_: False)
        return poles(directions, vectors, k, **named)  # type: ignore[arg-type]


def assert_same(one: Poles, other: Poles) -> None:
    for name in ("top", "top_score", "bottom", "bottom_score"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


KINDS = {
    "spread": lambda seed, d: normal(seed, MANY, d),
    "far from zero": lambda seed, d: normal(seed, MANY, d) + 50 * normal(seed + 1, d),
    "long and short": lambda seed, d: normal(seed, MANY, d) * np.geomspace(1e-3, 1e3, MANY, dtype=np.float32)[:, None],
    "near ties": lambda seed, d: 1 + 1e-4 * np.round(normal(seed, MANY, d)),
    "all alike": lambda seed, d: np.ones((MANY, d), np.float32),
    "tiny": lambda seed, d: 1e-30 * normal(seed, MANY, d),
    "of one sign": lambda seed, d: -np.abs(normal(seed, MANY, d)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 3, 48])
@pytest.mark.parametrize("by_length", [False, True])
def test_the_answer_is_that_of_float64_whatever_the_vectors(always, kind, d, by_length):
    vectors = KINDS[kind](3, d).astype(np.float32)
    directions = np.concatenate([normal(4, 6, d), np.zeros((1, d)), 1e-200 * normal(5, 1, d), 1e30 * normal(6, 1, d)])
    lengths = np.linalg.norm(vectors.astype(float), axis=1) if by_length else None
    for k in (1, 10):
        assert_same(poles(directions, vectors, k, lengths=lengths), without(directions, vectors, k, lengths=lengths))
    assert always


@LAWS
@given(seed=st.integers(0, 9999), d=st.integers(1, 40), k=st.integers(1, 30), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_the_answer_is_that_of_float64_with_vectors_left_out(seed, d, k, scale):
    vectors = scale * np.round(normal(seed, MANY, d) * 8) / 8
    keep = np.random.default_rng(seed).random(MANY) < 0.7
    vectors[~keep] = np.nan if seed % 2 else 1e3 * vectors[~keep]
    directions = normal(seed + 1, 4, d).astype(float)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half, "pays", lambda *_: True)
        found = poles(directions, vectors.astype(np.float32), k, keep=keep)
    assert_same(found, without(directions, vectors.astype(np.float32), k, keep=keep))


@pytest.mark.parametrize("d", [1, 2, 3, 17, 256])
def test_no_score_lies_farther_from_what_is_shown_than_is_said(d):
    """In few dimensions rounding errors do not average out: there the bound is nearly reached."""
    vectors, rng = normal(1, 4000, d) + 3, np.random.default_rng(2)
    directions = rng.standard_normal((200, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    table = half.table(vectors, None, None)
    shown = table.shown(directions, table.room(200))
    scores = half._as_scores(shown.places.ravel()).reshape(shown.places.shape)
    off = np.abs(directions @ vectors.astype(float).T - scores - shown.moved[:, None])
    allowed = shown.doubt[:, None] + half.COARSE * np.abs(scores)
    assert (off <= allowed).all()
    assert d > 3 or (off / allowed).max() > 0.3  # not a bound that could be ten times smaller
    mean = vectors.astype(float).mean(axis=0)
    assert np.linalg.norm(table.mean - mean) < 0.2 * np.linalg.norm(mean)


@pytest.mark.parametrize("sign", [1, -1])
def test_everything_that_may_reach_a_score_is_named_and_little_else(sign):
    vectors, directions = normal(1, 4000, 64), np.eye(64)[:5]
    table = half.table(vectors, None, None)
    shown = table.shown(directions, table.room(5))
    true = sign * directions @ vectors.astype(float).T
    for row, least in enumerate((2.5, 1.0, 0.0, -1.0, -3.0)):
        named = shown.reaching(row, least, sign)
        assert set(np.flatnonzero(true[row] >= least)) <= set(named)
        assert set(named) <= set(np.flatnonzero(true[row] >= least - 3 * shown.doubt[row] - 0.03))
    found, others = shown.best(20, sign)
    left_out = np.ones(shown.places.shape, bool)
    np.put_along_axis(left_out, found, False, axis=1)
    assert (np.where(left_out, true, -np.inf).max(axis=1) <= others).all()


@given(st.floats(-1e30, 1e30, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-30))
def test_places_are_in_the_order_of_scores(score):
    place = half._place_below(score)
    below, above = (float(half._as_scores(np.array([p]))[0]) for p in (place, place + 3))
    assert below <= score <= above
    assert float(half._as_scores(np.array([half._mirrored(place)]))[0]) == -below


def test_most_rows_need_no_second_look(monkeypatch, always):
    again = []
    reaching = half.Shown.reaching
    monkeypatch.setattr(half.Shown, "reaching", lambda *given: again.append(1) or reaching(*given))
    poles(normal(1, 300, 256), normal(2, 6000, 256), 10)
    assert len(again) < 0.15 * 600


def test_a_table_is_made_once_for_vectors_that_cannot_change_and_goes_with_them(always):
    directions, vectors = normal(1, 4, 16), normal(2, MANY, 16)
    poles(directions, vectors, 3)
    poles(directions, vectors, 3)
    assert always[0] is not always[1]
    vectors.flags.writeable = False
    poles(directions, vectors, 3)
    poles(directions, vectors, 3)
    assert always[2] is always[3]
    lengths = np.linalg.norm(vectors.astype(float), axis=1)
    lengths.flags.writeable = False
    poles(directions, vectors, 3, lengths=lengths)
    assert always[4] is not always[3]
    del always[:], lengths
    gc.collect()
    assert not half._held
    poles(directions, vectors, 3)
    assert len(half._held) == 1
    del vectors
    gc.collect()
    assert not half._held


def test_a_view_of_what_can_change_is_not_held(always):
    directions, whole = normal(1, 4, 16), normal(2, MANY, 16)
    view = whole[:]
    view.flags.writeable = False
    before = poles(directions, view, 3)
    whole *= -1
    assert_same(poles(directions, view, 3), without(directions, view, 3))
    assert (poles(directions, view, 3).top == before.bottom).all()
    assert not half._held
    fixed = np.frombuffer(whole.tobytes(), np.float32).reshape(whole.shape)
    assert half.is_fixed(fixed.T)
    assert not half.is_fixed(np.frombuffer(bytearray(fixed.tobytes()), np.float32))


def test_vectors_that_are_not_finite_are_refused_as_ever(always):
    vectors = normal(2, MANY, 8)
    vectors[5, 3] = np.nan
    with pytest.raises(BadRequest, match="kept vectors must be finite"):
        poles(normal(1, 4, 8), vectors, 3)


def test_it_is_for_much_work_on_machines_that_gain_by_it_where_memory_is_not_counted(monkeypatch):
    monkeypatch.setattr(half, "is_quick", lambda: True)
    assert half.pays(1000, 50257, 1024)
    assert not half.pays(100, 50257, 1024)
    assert not half.pays(1000, 100, 1024)
    with half.only_float32():
        assert not half.pays(1000, 50257, 1024)
    assert half.pays(1000, 50257, 1024)
    monkeypatch.setattr(half, "is_quick", lambda: False)
    assert not half.pays(1000, 50257, 1024)


def test_torch_is_imported_for_a_process_that_has_much_to_do(monkeypatch):
    monkeypatch.setattr(half, "is_quick", lambda: True)
    monkeypatch.setattr(half, "_done", 0.0)
    monkeypatch.delitem(half.sys.modules, "torch")
    calls = [half.pays(1000, 50257, 1024) for _ in range(5)]
    assert calls == [False, False, False, True, True]  # 5e10 multiplications each
    monkeypatch.setattr(half, "find_spec", lambda _: None)
    assert not half.pays(1000, 50257, 1024)


def test_a_sum_kept_in_half_precision_is_not_trusted(monkeypatch):
    """A library that adds up in bfloat16 is off by more than its factors' rounding says."""
    half.is_quick.cache_clear()
    calls = []

    def coarse(one, other):
        calls.append(1)
        return (one.double() @ other.double()).bfloat16() + torch.tensor(1.0).bfloat16()

    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: coarse(a, b) if a.dtype == torch.bfloat16 else torch.mm(a, b)
    )
    try:
        assert not half.is_quick()
        assert calls
    finally:
        half.is_quick.cache_clear()
