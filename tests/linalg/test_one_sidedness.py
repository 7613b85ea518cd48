"""One-sidedness of poles."""

import numpy as np

from covector.linalg.one_sided import one_sidedness


def test_equal_poles_are_no_ray_and_a_missing_pole_is_one():
    found = one_sidedness(np.array([2.0, 3, 0, 2]), np.array([2.0, 1, 4, -1]))
    np.testing.assert_allclose(found, [0, 0.5, -1, 1])


def test_turning_directions_round_turns_the_sign_and_scale_does_not_matter():
    rng = np.random.default_rng(0)
    top, bottom = rng.random((2, 50))
    np.testing.assert_allclose(one_sidedness(top, bottom), -one_sidedness(bottom, top))
    np.testing.assert_allclose(one_sidedness(7 * top, 7 * bottom), one_sidedness(top, bottom))


def test_where_neither_pole_reaches_nothing_is_defined():
    assert np.isnan(one_sidedness(np.zeros(1), np.array([-1.0]))).all()
