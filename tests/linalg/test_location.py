"""Gain, energy and best cosine against dense algebra; their laws against independent simulations and closed forms."""

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.chance import haar_directions, haar_frame, null_gain, rotation_null, tail
from covector.linalg.location import (
    Face,
    best_cosine,
    caught,
    energy,
    gain,
    gain_bound,
    gain_sd,
    hyperplane,
    normal_score,
    null_energy,
    second_moment,
)

D = 12
S = np.array([3.0, 2.0, 1.0, 0.5])


def face(seed: int = 0, gains: np.ndarray = S, d: int = D) -> Face:
    return Face(haar_frame(d, len(gains), seed), gains)


def gain_of(vectors: np.ndarray, on: Face) -> float:
    return gain(on, caught(on, second_moment(vectors)))


@pytest.mark.identity("SV-19")
@pytest.mark.parametrize("n", [1, 5, 40])
def test_the_gain_is_the_mean_square_of_what_the_map_makes_of_unit_vectors(n: int) -> None:
    vectors, read, write = haar_directions(n, D, 1), haar_frame(D, 4, 2), haar_frame(9, 4, 3)
    M = read.T * S @ write  # reads D, writes 9
    scale = np.sum(M**2) / D
    assert gain_of(vectors, Face(read, S)) == pytest.approx(
        np.mean(np.sum((vectors @ M) ** 2, axis=1)) / scale, rel=1e-12
    )
    back = haar_directions(n, 9, 4)
    assert gain_of(back, Face(write, S)) == pytest.approx(
        np.mean(np.sum((M @ back.T) ** 2, axis=0)) / (np.sum(M**2) / 9), rel=1e-12
    )


@pytest.mark.identity("SV-19")
@pytest.mark.parametrize(("n", "r"), [(1, 4), (3, 4), (30, 4), (3, 12), (1, 1)])
def test_chance_gives_the_gain_mean_one_and_exactly_this_deviation(n: int, r: int) -> None:
    vectors, gains = haar_directions(n, D, 5), np.linspace(3, 1, r)
    null = null_gain(gains, vectors, draws=20_000, seed=6)  # an independent implementation, by corners
    sd = gain_sd(face(7, gains), second_moment(vectors))
    assert null.mean() == pytest.approx(1, abs=4 * sd / np.sqrt(20_000))
    # The error of a variance is √((κ − 1)/n) of it; its root halves that.
    kurtosis = stats.kurtosis(null, fisher=False)
    assert null.std() == pytest.approx(sd, rel=4 * np.sqrt((kurtosis - 1) / 20_000) / 2)


def test_z_is_a_cosine_between_symmetric_forms() -> None:
    vectors, on = haar_directions(5, D, 1), face(2)
    M = on.directions.T * on.S
    A, C = M @ M.T * D / np.sum(M**2) - np.eye(D), vectors.T @ vectors / 5 - np.eye(D) / D
    cosine = np.sum(A * C) / np.linalg.norm(A) / np.linalg.norm(C)
    z = (gain_of(vectors, on) - 1) / gain_sd(on, second_moment(vectors))
    assert z == pytest.approx(np.sqrt((D - 1) * (D + 2) / 2) * cosine, rel=1e-12)


@pytest.mark.identity("SV-36")
def test_nothing_depends_on_the_scale_of_the_map() -> None:
    vectors, on = haar_directions(3, D, 1), face(2)
    scaled, moment = Face(on.directions, 1e-200 * on.S), second_moment(vectors)
    assert gain_of(vectors, scaled) == pytest.approx(gain_of(vectors, on), rel=1e-12)
    assert gain_sd(scaled, moment) == pytest.approx(gain_sd(on, moment), rel=1e-12)


@pytest.mark.identity("SV-18")
def test_energy_is_the_share_of_a_unit_vector_in_the_subspace_and_says_nothing_of_a_full_one() -> None:
    vectors, on = haar_directions(6, D, 1), face(2)
    fitted = np.linalg.lstsq(on.directions.T, vectors.T, rcond=None)[0]
    expected = np.mean(np.sum((on.directions.T @ fitted) ** 2, axis=0))
    assert energy(on, caught(on, second_moment(vectors))) == pytest.approx(expected, rel=1e-12)
    full = face(3, np.arange(D, 0.0, -1))
    np.testing.assert_allclose(np.sum((vectors @ full.directions.T) ** 2, axis=1), 1, rtol=1e-12)
    assert np.isnan(energy(full, caught(full, second_moment(vectors))))


def test_flat_maps_and_whole_bases_leave_chance_no_freedom() -> None:
    moment = second_moment(haar_directions(3, D, 1))
    assert gain_sd(face(1, np.full(D, 2.0)), moment) == 0.0
    assert gain_sd(face(1), second_moment(haar_frame(D, D, 2))) == 0.0
    assert gain_bound(face(1, np.full(D, 2.0)), 1 + 1e-9) == 1.0


# Laws


@pytest.mark.parametrize("r", [1, 3, 11])
def test_the_bound_holds_and_is_close_for_one_vector(r: int) -> None:
    on = face(1, np.ones(r))
    for wanted in (0.3, 1e-2, 1e-4, 1e-6):
        # A flat map's gain of one vector is Beta: G·r/d = ‖P e‖² (SV-32).
        share = stats.beta.isf(wanted, r / 2, (D - r) / 2)
        bound = gain_bound(on, share * D / r)
        assert wanted <= bound * (1 + 1e-9)
        if share < 1 - 1e-11:  # nearer to 1 the bound allows for the rounding of a gain
            # For χ² of one degree, which r = 1 is nearly, Chernoff gives away √(eπ/2)·G = 2.07 G, and G <= d.
            assert bound <= min(1.0, 2.1 * D * wanted)
        assert float(tail(np.sqrt(share), D, r)) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_bound_holds_for_several_vectors(n: int) -> None:
    vectors, on = haar_directions(n, D, 3), face(4)
    null = null_gain(on.S, vectors, draws=20_000, seed=5)
    for level in np.quantile(null, [0.5, 0.9, 0.99, 0.999]):
        reached = np.mean(null >= level)
        assert gain_bound(on, level) >= reached - 4 * np.sqrt(reached / 20_000)


def test_the_bound_is_one_below_the_mean_and_never_zero() -> None:
    on = face(1)
    assert gain_bound(on, 1.0) == gain_bound(on, 0.2) == 1.0
    highest = float(on.shares.max())
    assert 0 < gain_bound(on, highest) < 1e-50
    assert 0 < gain_bound(on, highest * (1 + 1e-9)) < 1e-50
    falling = [gain_bound(on, g) for g in np.linspace(1.01, highest * 0.999, 50)]
    assert np.all(np.diff(falling) < 0)


def test_the_cube_root_brings_maps_of_all_spectra_to_one_scale() -> None:
    vectors = haar_directions(2, 64, 1)
    levels, plain = [], []
    for gains in (np.array([5.0, 1.0]), np.ones(16), np.linspace(2, 1, 60)):
        sd = gain_sd(face(1, gains, 64), second_moment(vectors))
        null = null_gain(gains, vectors, draws=20_000, seed=2)
        levels.append(np.quantile(normal_score(null, sd), 0.99))
        plain.append(np.quantile((null - 1) / sd, 0.99))
    # The normal law's 2.33, within a tenth or so; z itself runs from 2.4 to 3.6.
    assert np.allclose(levels, stats.norm.isf(0.01), atol=0.25)
    assert max(plain) - min(plain) > 4 * (max(levels) - min(levels))
    rising = normal_score(np.linspace(0, 9, 100), 0.3)
    assert np.all(np.diff(rising) > 0)


@pytest.mark.identity("SV-32")
def test_the_null_energy_of_one_vector_is_beta() -> None:
    null = null_energy(second_moment(haar_directions(1, D, 1)), 5, draws=4000, seed=2)
    assert stats.kstest(null, stats.beta(5 / 2, 7 / 2).cdf).pvalue > 0.01


@pytest.mark.identity("SV-18")
@pytest.mark.parametrize("n", [3, 30])
def test_the_null_energy_is_that_of_turned_vectors(n: int) -> None:
    vectors, P = haar_directions(n, D, 1), haar_frame(D, 5, 2)
    slow = rotation_null(lambda e: float(np.mean(np.sum((e @ P.T) ** 2, axis=1))), vectors, draws=2000, seed=3)
    quick = null_energy(second_moment(vectors), 5, draws=4000, seed=4)
    assert stats.ks_2samp(quick, slow).pvalue > 0.01
    assert quick.mean() == pytest.approx(5 / D, abs=4 * quick.std() / np.sqrt(4000))


# Cosines and coordinates


@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_cosine_is_found_with_its_sign_dyad_and_label(sign: int) -> None:
    vectors, on = haar_directions(7, D, 1), face(2)
    vectors[4] = 0.9 * sign * on.directions[2] + np.sqrt(1 - 0.81) * np.linalg.svd(on.directions)[2][-1]
    found = best_cosine(on, vectors)
    assert (found.dyad, found.label) == (2, 4)
    assert found.value == pytest.approx(0.9 * sign, rel=1e-12)


def test_the_hyperplane_keeps_inner_products_of_rows_without_a_mean() -> None:
    rows = np.random.default_rng(0).standard_normal((5, D))
    rows -= rows.mean(axis=1, keepdims=True)
    coordinates = hyperplane(rows)
    assert coordinates.shape == (5, D - 1)
    np.testing.assert_allclose(coordinates @ coordinates.T, rows @ rows.T, atol=1e-13)
    assert np.abs(hyperplane(np.ones((1, D)))).max() < 1e-14


# Input


def test_a_second_moment_is_the_same_in_pieces() -> None:
    vectors = haar_directions(20_000, 5, 1)
    moment = second_moment(vectors)
    np.testing.assert_allclose(moment.C, vectors.T @ vectors / 20_000, atol=1e-15)
    assert np.trace(moment.C) == pytest.approx(1, abs=1e-15)
    assert moment.weights.sum() == pytest.approx(1, abs=1e-14)
    assert len(second_moment(vectors[:3]).weights) == 3


@pytest.mark.identity("SV-40")
@pytest.mark.parametrize("bad", [0.0, np.nan, 2.0])
def test_vectors_without_a_direction_are_refused(bad: float) -> None:
    vectors = haar_directions(3, D, 1)
    vectors[1] *= bad
    with pytest.raises(BadRequest, match="takes finite unit vectors; divide by their norms and drop null ones"):
        second_moment(vectors)
    with pytest.raises(BadRequest, match="at least one unit vector in at least 2 dimensions"):
        second_moment(vectors[:0])


def test_faces_and_sets_of_different_spaces_are_refused() -> None:
    with pytest.raises(BadRequest, match="directions of 12 entries, the set of 11"):
        caught(face(1), second_moment(haar_directions(3, 11, 1)))
    with pytest.raises(BadRequest, match="gains above 0"):
        face(1, np.array([1.0, 0.0]))
    with pytest.raises(BadRequest, match="varies for ranks 1 to 11, got 12"):
        null_energy(second_moment(haar_directions(3, D, 1)), D, draws=5, seed=0)
