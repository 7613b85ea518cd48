"""Both poles of every direction: exactly the float64 extremes, ties by id, whatever the chunk or the screening."""

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from covector.errors import BadRequest, SpaceMismatch
from covector.linalg import grouped, topk
from covector.linalg.topk import Poles, poles, scores

LAWS = settings(max_examples=25, deadline=None, derandomize=True)
# Enough vectors that groups of two and more exist, so the two-stage selection is what runs.
MANY = 3 * grouped.GROUPS + 17


def normal(seed: int, *shape: int, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def by_sorting(directions: np.ndarray, vectors: np.ndarray, k: int, keep: np.ndarray | None = None) -> Poles:
    """The specification: sort float64 scores, ties by id. One row at a time, summed by Python's exact rules."""
    ids = np.arange(len(vectors)) if keep is None else np.flatnonzero(keep)
    exact = scores(directions, vectors)[:, ids]
    np.testing.assert_allclose(exact, directions.astype(float) @ vectors[ids].astype(float).T, rtol=1e-12, atol=1e-12)
    high = np.array([sorted(range(len(ids)), key=lambda i, s=row: (-s[i], i))[:k] for row in exact])
    low = np.array([sorted(range(len(ids)), key=lambda i, s=row: (s[i], i))[:k] for row in exact])
    rows = np.arange(len(exact))[:, None]
    return Poles(ids[high], exact[rows, high], ids[low], exact[rows, low])


def assert_same(one: Poles, other: Poles) -> None:
    for name in ("top", "top_score", "bottom", "bottom_score"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_poles_are_what_sorting_every_score_gives(dtype, k):
    directions, vectors = normal(1, 9, 32), normal(2, MANY, 32, dtype=dtype)
    assert_same(poles(directions, vectors, k), by_sorting(directions, vectors, k))


@LAWS
@given(seed=st.integers(0, 999), n=st.integers(1, 60), k=st.integers(1, 70), grid=st.sampled_from([1, 4, 1000]))
def test_poles_of_a_few_vectors_with_many_ties_are_those_of_sorting(seed, n, k, grid):
    directions = np.round(normal(seed, 3, 4) * grid) / grid
    vectors = np.round(normal(seed + 1, n, 4) * grid) / grid
    assert_same(poles(directions, vectors, k), by_sorting(directions, vectors, min(k, n)))


@pytest.mark.identity("SV-35")
@LAWS
@given(seed=st.integers(0, 999), k=st.integers(1, 40))
def test_the_top_of_a_direction_is_the_bottom_of_its_negative(seed, k):
    directions, vectors = normal(seed, 4, 16), normal(seed + 1, MANY, 16, dtype=np.float32)
    one, other = poles(directions, vectors, k), poles(-directions, vectors, k)
    assert_same(one, Poles(other.bottom, -other.bottom_score, other.top, -other.top_score))


@pytest.mark.identity("SV-35")
def test_asking_for_all_gives_a_permutation_in_order():
    directions, vectors = normal(3, 5, 8), normal(4, 200, 8, dtype=np.float32)
    everything = poles(directions, vectors, 200)
    np.testing.assert_array_equal(np.sort(everything.top, axis=1), np.tile(np.arange(200), (5, 1)))
    assert (np.diff(everything.top_score, axis=1) <= 0).all()
    np.testing.assert_array_equal(everything.top, everything.bottom[:, ::-1])
    assert_same(poles(directions, vectors, 1000), everything)


@pytest.mark.identity("SV-35")
@pytest.mark.parametrize("share", [0.95, 0.3])
def test_leaving_vectors_out_never_reranks_the_others(share):
    directions, vectors = normal(5, 6, 16), normal(6, MANY, 16, dtype=np.float32)
    keep = np.random.default_rng(0).random(MANY) < share
    some = poles(directions, vectors, 12, keep=keep)
    assert_same(some, by_sorting(directions, vectors, 12, keep))
    everything = poles(directions, vectors, MANY)
    for row in range(6):
        np.testing.assert_array_equal(some.top[row], [i for i in everything.top[row] if keep[i]][:12])


def test_equal_scores_are_ordered_by_id():
    vectors = np.tile(normal(7, 1, 8, dtype=np.float32), (MANY, 1))
    vectors[[40, 2000]] *= 2
    direction = vectors[:1].astype(float)
    found = poles(np.concatenate([direction, 0 * direction]), vectors, 5)
    assert found.top.tolist() == [[40, 2000, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert found.bottom[1].tolist() == [0, 1, 2, 3, 4]
    assert found.bottom[0].tolist() == [0, 1, 2, 3, 4]


def test_differences_below_float32_are_still_told_apart():
    # Scores 1 + i·1e-9: float32 screening sees them all equal, so it must not be what decides.
    directions = np.eye(2)[:1]
    vectors = np.zeros((MANY, 2))
    order = np.random.default_rng(1).permutation(MANY)
    vectors[:, 0] = 1 + order * 1e-9
    assert_same(poles(directions, vectors, 20), by_sorting(directions, vectors, 20))
    single, fine = vectors.astype(np.float32), np.array([[1.0, 1e-9]])
    single[:, 1] = order
    found = poles(fine, single, 20)
    np.testing.assert_array_equal(found.top[0], np.argsort(-order)[:20])


def test_screening_decides_most_rows_and_its_doubts_are_settled_exactly(monkeypatch):
    directions, vectors = normal(8, 64, 64), normal(9, MANY, 64, dtype=np.float32)
    expected = by_sorting(directions, vectors, 10)
    asked = []
    ranked = topk._ranked
    monkeypatch.setattr(topk, "_ranked", lambda d, v, s, ids, k: asked.append(ids.shape) or ranked(d, v, s, ids, k))
    assert_same(poles(directions, vectors, 10), expected)
    assert sum(rows for rows, width in asked if width == 10) > 0.9 * 2 * 64
    assert max(width for _, width in asked) <= 10 + topk.SLACK
    # With no trust in screening at all, every row is decided on everything and nothing changes.
    monkeypatch.setattr(topk.np, "finfo", _coarse_finfo)
    asked.clear()
    assert_same(poles(directions[:4], vectors, 10), by_sorting(directions[:4], vectors, 10))
    assert {width for _, width in asked} == {MANY}


class _coarse_finfo:
    """A float type of which nothing is known to two digits."""

    def __init__(self, _: type) -> None:
        self.eps, self.smallest_normal = 1.0, 1e-38


def test_results_do_not_depend_on_how_rows_are_chunked(monkeypatch):
    directions, vectors = normal(10, 11, 24), normal(11, MANY, 24, dtype=np.float32)
    whole = poles(directions, vectors, 7)
    monkeypatch.setattr(topk, "BUFFER_BYTES", 3 * MANY * 4)
    assert_same(poles(directions, vectors, 7), whole)
    assert_same(
        Poles(*(getattr(whole, f)[4:5] for f in ("top", "top_score", "bottom", "bottom_score"))),
        poles(directions[4:5], vectors, 7),
    )


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_a_direction_changes_scores_only(scale):
    directions, vectors = normal(12, 5, 16), normal(13, MANY, 16, dtype=np.float32)
    one, other = poles(directions, vectors, 9), poles(scale * directions, vectors, 9)
    np.testing.assert_array_equal(one.top, other.top)
    np.testing.assert_allclose(other.top_score, scale * one.top_score, rtol=1e-12)


def test_vectors_that_are_left_out_may_hold_anything():
    directions, vectors = normal(14, 3, 8), normal(15, MANY, 8, dtype=np.float32)
    vectors[[3, 2500]] = np.nan
    vectors[9] = np.inf
    keep = np.isfinite(vectors).all(axis=1)
    clean = np.where(keep[:, None], vectors, 0.0).astype(np.float32)
    assert_same(poles(directions, vectors, 6, keep=keep), by_sorting(directions, clean, 6, keep))


def test_no_directions_give_empty_tables():
    found = poles(np.zeros((0, 8)), normal(16, 20, 8), 5)
    assert found.top.shape == found.bottom_score.shape == (0, 5)


def test_scores_are_the_same_wherever_a_vector_stands():
    vectors = normal(17, 500, 129, dtype=np.float32)
    vectors[[7, 250, 499]] = vectors[0]
    table = scores(normal(18, 4, 129), vectors)
    for other in (7, 250, 499):
        np.testing.assert_array_equal(table[:, other], table[:, 0])


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda q, w: poles(q, w[:, :3], 2), SpaceMismatch, "must share d, came (2, 4) and (9, 3)"),
        (lambda q, w: poles(q, w, 0), BadRequest, "expected k >= 1 of at least one vector, came k = 0 of 9 kept"),
        (lambda q, w: poles(q, w, 1, keep=np.zeros(9, bool)), BadRequest, "came k = 1 of 0 kept"),
        (lambda q, w: poles(q, w, 1, keep=np.zeros(8, bool)), BadRequest, "keep must be 9 booleans"),
        (lambda q, w: poles(q * np.nan, w, 1), BadRequest, "directions (2, 4) must be finite"),
        (lambda q, w: poles(q, w * np.inf, 1), BadRequest, "kept vectors must be finite"),
    ],
)
def test_requests_that_cannot_be_met_say_why(wrong, error, text):
    with pytest.raises((error, TypeCheckError)) as refused:
        wrong(normal(1, 2, 4), normal(2, 9, 4))
    # Where the import hook checks shape strings, it may refuse first, in words of its own.
    if refused.type is error:
        assert text in str(refused.value)


@given(seed=st.integers(0, 200), k=st.integers(1, 9))
def test_lengths_give_cosines_without_a_normalised_copy(seed, k):
    rng = np.random.default_rng(seed)
    vectors = (rng.standard_normal((300, 8)) * rng.uniform(0.1, 30, (300, 1))).astype(np.float32)
    directions = rng.standard_normal((4, 8))
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    got = poles(directions, vectors, k, lengths=lengths)
    exact = directions @ (vectors.astype(np.float64) / lengths[:, None]).T
    np.testing.assert_array_equal(got.top, np.argsort(-exact, axis=1, kind="stable")[:, :k])
    np.testing.assert_allclose(got.bottom_score, np.sort(exact, axis=1)[:, :k], rtol=1e-12)


def test_a_length_of_zero_is_refused():
    with pytest.raises(BadRequest, match="lengths of kept vectors must be positive"):
        poles(np.ones((1, 3)), np.ones((4, 3)), 1, lengths=np.array([1.0, 0.0, 1.0, 1.0]))


@pytest.mark.parametrize("scale", [1e-40, 1e37])
def test_lengths_that_the_precision_of_the_vectors_cannot_hold_are_refused(scale):
    """In float32 they would be zero, infinite or a few digits, and cosines wrong; in float64 they are like others."""
    vectors = (scale * normal(16, 500, 4000)).astype(np.float32)
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    directions = normal(17, 2, 4000)
    with pytest.raises(BadRequest, match="which float32 holds in full"):
        poles(directions, vectors, 3, lengths=lengths)
    units = by_sorting(directions, wide / lengths[:, None], 3)
    np.testing.assert_array_equal(poles(directions, wide, 3, lengths=lengths).top, units.top)


def test_the_longest_vector_is_remembered_for_as_long_as_it_cannot_change():
    directions, vectors = normal(1, 4, 16), normal(2, MANY, 16, dtype=np.float32)
    expected = poles(directions, vectors, 5)
    assert not topk._longest_of
    vectors.flags.writeable = False
    assert_same(poles(directions, vectors, 5), expected)
    (longest,) = topk._longest_of.values()
    assert longest == pytest.approx(np.linalg.norm(vectors, axis=1).max(), rel=1e-5)
    assert longest >= np.linalg.norm(vectors.astype(float), axis=1).max() * (1 - 16 * 2**-24)
    assert_same(poles(directions, vectors, 5), expected)
    some = np.arange(MANY) < 3000
    poles(directions, vectors, 5, keep=some)
    assert len(topk._longest_of) == 1
    del vectors
    gc.collect()
    assert not topk._longest_of
