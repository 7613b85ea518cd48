"""Fewer dyads, or other gains: exact, in factors, and never worse than any other subspace of that rank."""

import numpy as np
import pytest

from covector.errors import BadRank, BadRequest
from covector.linalg.chance.streams import generator
from covector.linalg.maps import Dense, Factored, Space
from covector.linalg.rank_reduction import change_size, kept_rank, random_core, rescaling, truncation, with_core
from covector.linalg.svd import svd

D, HEAD, MLP = 24, 6, 40
RESIDUAL, NEURONS = Space("residual", D), Space("neurons", MLP)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def head(seed: int) -> Factored:
    return Factored(normal(seed, D, HEAD) * np.geomspace(1, 0.3, HEAD), normal(seed + 1, HEAD, D), RESIDUAL, RESIDUAL)


def mlp(seed: int) -> Dense:
    return Dense(normal(seed, D, MLP), RESIDUAL, NEURONS)


EVERY = pytest.mark.parametrize("kind", [head, mlp], ids=["head", "mlp"])
SIDES = pytest.mark.parametrize("side", ["write", "read"])


@pytest.mark.identity("SV-16")
@SIDES
@EVERY
def test_truncation_leaves_out_exactly_the_gains_that_follow(kind, side):
    m = kind(0)
    found, M = svd(m), np.asarray(m.dense(), dtype=np.float64)
    for k in (0, 1, 3, found.rank):
        core = truncation(found, k)
        left_out = M - with_core(m, found, core, side).dense()
        assert np.sum(left_out**2) == pytest.approx(np.sum(found.S[k:] ** 2), rel=1e-10, abs=1e-20)
        assert change_size(found, core, side) == pytest.approx(np.sqrt(np.sum(found.S[k:] ** 2)), rel=1e-10, abs=1e-12)
        if k < found.rank:
            assert np.linalg.norm(left_out, 2) == pytest.approx(found.S[k], rel=1e-10)
        assert np.linalg.matrix_rank(with_core(m, found, core, side).dense(), tol=1e-9) == k


@pytest.mark.identity("SV-16")
@SIDES
@EVERY
def test_no_random_projection_of_that_rank_does_better(kind, side):
    m, k = kind(2), 3
    found, M = svd(m), np.asarray(m.dense(), dtype=np.float64)
    best = np.linalg.norm(M - with_core(m, found, truncation(found, k), side).dense())
    for i in range(20):
        core = random_core(found, k, generator(0, "test", i), side)
        new = with_core(m, found, core, side).dense()
        assert np.linalg.matrix_rank(new, tol=1e-9) == k
        assert np.linalg.norm(M - new) > best


@SIDES
@EVERY
def test_a_random_subspace_takes_off_as_much_as_the_truncation_when_told_to(kind, side):
    m, k = kind(3), 2
    found, M = svd(m), np.asarray(m.dense(), dtype=np.float64)
    size = change_size(found, truncation(found, k), side)
    for i in range(5):
        core = random_core(found, k, generator(1, "test", i), side, size)
        assert np.linalg.norm(M - with_core(m, found, core, side).dense()) == pytest.approx(size, rel=1e-10)
        assert change_size(found, core, side) == pytest.approx(size, rel=1e-10)


@pytest.mark.parametrize(("side", "kept"), [("write", "A"), ("read", "B")])
def test_a_head_changes_on_one_side_only_and_stays_in_its_factors(side, kept):
    m = head(4)
    new = with_core(m, svd(m), truncation(svd(m), 2), side)
    assert isinstance(new, Factored)
    assert (new.A.shape, new.B.shape) == (m.A.shape, m.B.shape)
    np.testing.assert_array_equal(getattr(new, kept), getattr(m, kept))


@EVERY
def test_rescaled_gains_are_the_old_ones_times_their_factors(kind):
    m = kind(5)
    found, z = svd(m), np.array([2.0, 0.5, 0.0])
    new = svd(with_core(m, found, rescaling(found, z)))
    expected = np.sort(found.S * np.r_[z, np.ones(found.rank - 3)])[::-1]
    np.testing.assert_allclose(new.S, expected[: new.rank], rtol=1e-9)
    assert new.rank == found.rank - 1


@EVERY
def test_renormalising_keeps_the_sum_of_the_gains_and_undoes_a_common_factor(kind):
    m = kind(6)
    found = svd(m)
    new = svd(with_core(m, found, rescaling(found, np.array([3.0, 0.1]), renormalise=True)))
    assert np.sum(new.S) == pytest.approx(np.sum(found.S), rel=1e-10)
    same = rescaling(found, np.full(found.rank, 1.7), renormalise=True)
    np.testing.assert_allclose(same, np.eye(found.rank), atol=1e-12)


@pytest.mark.parametrize(
    ("share", "largest", "expected"),
    [(0.0, 64, 0), (0.01, 64, 0), (0.05, 64, 3), (0.29, 100, 29), (0.3, 10, 3), (0.999, 64, 63), (1.0, 64, 64)],
)
def test_a_share_of_the_rank_is_rounded_down(share, largest, expected):
    assert kept_rank(share, largest) == expected


def test_what_makes_no_sense_is_refused():
    m = head(7)
    found = svd(m)
    with pytest.raises(BadRequest, match=r"between 0 and 1, got 1\.2"):
        kept_rank(1.2, 10)
    with pytest.raises(BadRank, match="got -1"):
        truncation(found, -1)
    with pytest.raises(BadRequest, match="finite factors >= 0"):
        rescaling(found, np.array([-1.0]))
    with pytest.raises(BadRequest, match="at most 6"):
        rescaling(found, np.ones(7))
    with pytest.raises(BadRequest, match="left over"):
        rescaling(found, np.zeros(6), renormalise=True)
    with pytest.raises(BadRequest, match="every dyad"):
        with_core(m, svd(m, 3), np.eye(3))
