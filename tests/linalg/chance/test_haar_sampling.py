"""Random directions, frames and rotations are Haar, and random bases stay in their subspace."""

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.chance import haar_directions, haar_frame, rotate_inside, rotation, tail
from covector.linalg.chance.haar import draw_corners, draw_frames

D, DRAWS = 6, 20_000


def unsigned_frames(rng, count, d, r):
    """The planted defect: LAPACK's factor as it comes, without the sign of R's diagonal."""
    return np.swapaxes(np.linalg.qr(rng.standard_normal((count, d, r)))[0], -1, -2)


def haar_violations(frames):
    """Largest departures, in standard errors, of E[Q] = 0, E[Q²] = 1/d and of the trace of Q·A from Q's."""
    count, _, d = frames.shape
    mean = frames.mean(axis=0) * np.sqrt(count * d)  # sd of an entry is 1/√d
    square_sd = np.sqrt(2 * (d - 1) / (d + 2)) / d  # Beta(½, (d−1)/2)
    squares = ((frames**2).mean(axis=0) - 1 / d) * np.sqrt(count) / square_sd
    return np.abs(mean).max(), np.abs(squares).max()


@pytest.mark.identity("SV-31")
def test_rotations_are_haar_and_without_the_sign_fix_they_are_not():
    # 36 entries twice: 4.5 standard errors are exceeded once in 2000 seeds.
    fixed = haar_violations(draw_frames(np.random.default_rng(0), DRAWS, D, D))
    assert max(fixed) < 4.5
    unfixed = haar_violations(unsigned_frames(np.random.default_rng(0), DRAWS, D, D))
    assert unfixed[0] > 100


@pytest.mark.identity("SV-31")
def test_turning_a_haar_rotation_by_a_fixed_one_changes_nothing():
    turn = rotation(D, seed=9)
    frames = draw_frames(np.random.default_rng(1), DRAWS, D, D)
    unsigned = unsigned_frames(np.random.default_rng(1), DRAWS, D, D)

    def difference(rotations):
        # The trace is not invariant by itself: only Haar gives Q and Q·A the same law of it.
        traces = [np.trace(q, axis1=1, axis2=2) for q in (rotations[::2], rotations[1::2] @ turn)]
        return stats.ks_2samp(*traces).pvalue

    assert difference(frames) > 0.01
    assert difference(unsigned) < 1e-6


@pytest.mark.parametrize(("d", "r"), [(1, 1), (5, 1), (64, 64), (128, 10)])
def test_a_frame_is_orthonormal(d, r):
    frame = haar_frame(d, r, seed=2)
    assert frame.shape == (r, d)
    np.testing.assert_allclose(frame @ frame.T, np.eye(r), atol=1e-14 * d)


@pytest.mark.identity("SV-18")
def test_energies_of_a_vector_in_a_full_frame_sum_to_one_and_below_to_the_projection():
    vector = haar_directions(1, 40, seed=3)[0]
    assert np.sum((rotation(40, seed=4) @ vector) ** 2) == pytest.approx(1, rel=1e-13)
    frame = haar_frame(40, 7, seed=4)
    assert np.sum((frame @ vector) ** 2) == pytest.approx(vector @ (frame.T @ frame) @ vector, rel=1e-12)


def test_directions_are_unit_and_each_is_uniform_on_the_sphere():
    directions = haar_directions(2000, 50, seed=8)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-14)
    assert stats.kstest(tail(directions @ haar_directions(1, 50, seed=9)[0], 50), "uniform").pvalue > 0.01


def test_a_basis_rotated_inside_its_subspace_keeps_the_projector_and_nothing_else():
    basis = haar_frame(30, 5, seed=1)
    turned = rotate_inside(basis, seed=2)
    np.testing.assert_allclose(turned.T @ turned, basis.T @ basis, atol=1e-14)
    assert not np.allclose(np.abs(turned @ basis.T), np.eye(5), atol=0.1)


def test_a_basis_rotated_inside_its_subspace_is_haar_there():
    basis = haar_frame(30, 4, seed=1)
    first_rows = np.array([rotate_inside(basis, seed=(2, draw))[0] for draw in range(1500)])
    target = haar_directions(1, 30, seed=5)[0]
    reach = np.linalg.norm(basis @ target)
    assert stats.kstest(tail(first_rows @ target / reach, 4), "uniform").pvalue > 0.01


@pytest.mark.parametrize(("rows", "columns"), [(2, 5), (5, 2), (6, 6), (1, 1)])
def test_a_corner_of_a_rotation_follows_the_law_of_the_cut_rotation(rows, columns):
    cut = draw_frames(np.random.default_rng(2), 4000, 6, 6)[:, :rows, :columns]
    corners = draw_corners(np.random.default_rng(3), 4000, 6, rows, columns)
    assert corners.shape == cut.shape
    for statistic in (lambda c: (c**2).sum(axis=(1, 2)), lambda c: np.abs(c).max(axis=(1, 2)), lambda c: c[:, 0, -1]):
        if rows == columns == 6 and np.ptp(statistic(cut)) < 1e-12:
            continue  # the energy of a whole rotation is 6, up to rounding
        assert stats.ks_2samp(statistic(cut), statistic(corners)).pvalue > 0.01


def test_bases_that_are_not_orthonormal_and_empty_sizes_are_refused():
    with pytest.raises(BadRequest, match="rows of the basis must be orthonormal"):
        rotate_inside(np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), seed=0)
    with pytest.raises(BadRequest, match="got d = 3, r = 4"):
        haar_frame(3, 4, seed=0)
    with pytest.raises(BadRequest, match="got n = 0"):
        haar_directions(0, 4, seed=0)
