"""Packing of directions, by definition and against Welch's bound."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg import packing as module
from covector.linalg.packing import null_packings, packing, welch_bound


def unit(rng, n, d):
    rows = rng.standard_normal((n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_packing_is_what_the_gram_matrix_says(monkeypatch):
    monkeypatch.setattr(module, "ENTRIES", 100)  # several blocks
    rows = unit(np.random.default_rng(0), 30, 7)
    cosines = np.abs(rows @ rows.T)[np.triu_indices(30, 1)]
    found = packing(rows)
    assert found.largest == pytest.approx(cosines.max(), rel=1e-12)
    assert found.rms == pytest.approx(np.sqrt(np.mean(cosines**2)), rel=1e-12)
    values = np.linalg.eigvalsh(rows.T @ rows)
    assert found.dimensions == pytest.approx(values.sum() ** 2 / np.sum(values**2), rel=1e-12)


def test_an_equiangular_tight_frame_reaches_welchs_bound_twice():
    """Three unit vectors of the plane at 120°: |cos| = ½ = √((3 − 2)/(2·2))."""
    angles = 2 * np.pi * np.arange(3) / 3
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = packing(rows)
    assert welch_bound(3, 2) == pytest.approx(0.5)
    assert found.largest == pytest.approx(0.5)
    assert found.rms == pytest.approx(0.5)
    assert found.dimensions == pytest.approx(2.0)


@pytest.mark.parametrize(("n", "d"), [(9, 3), (40, 8), (100, 30)])
def test_nothing_is_packed_below_welchs_bound(n, d):
    for seed in range(20):
        found = packing(unit(np.random.default_rng(seed), n, d))
        assert found.largest >= found.rms >= welch_bound(n, d) - 1e-12


def test_few_directions_have_no_bound_and_orthogonal_ones_no_cosines():
    assert welch_bound(5, 5) == welch_bound(2, 9) == 0
    found = packing(np.eye(6)[:4])
    assert (found.largest, found.rms, found.dimensions) == (0, 0, 4)


def test_rotations_and_signs_change_nothing():
    rng = np.random.default_rng(1)
    rows, turn = unit(rng, 12, 5), np.linalg.qr(rng.standard_normal((5, 5)))[0]
    one, other = packing(rows), packing((rows * rng.choice([-1, 1], (12, 1))) @ turn)
    assert (one.largest, one.rms, one.dimensions) == pytest.approx((other.largest, other.rms, other.dimensions))


def test_random_sets_are_orthonormal_within_their_groups_and_haar_between():
    """Two groups of r and s: E cos² between = 1/d, so the mean rms² is 2·r·s/(n(n − 1)·d)."""
    null = null_packings([4, 6], 10, draws=400, seed=0)
    rms = np.mean([p.rms**2 for p in null])
    wanted = 2 * 4 * 6 / (10 * 9 * 10)
    assert rms == pytest.approx(wanted, abs=float(4 * np.std([p.rms**2 for p in null]) / 20))
    assert null_packings([10], 10, draws=3, seed=0)[0].largest == pytest.approx(0, abs=1e-12)
    assert null_packings([4, 6], 10, draws=2, seed=0) == null[:2]


def test_one_direction_has_no_neighbour():
    with pytest.raises(BadRequest, match="two directions or more"):
        packing(np.eye(3)[:1])
    with pytest.raises(BadRequest, match="groups of 1 to 3 directions"):
        null_packings([4], 3, draws=1, seed=0)
