"""The joint null of many faces, and how sure the first is: marginal laws, exact dependence, Student's law."""

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.chance import haar_directions, haar_frame, null_gain
from covector.linalg.location import Face, caught, gain, gain_sd, hyperplane, second_moment
from covector.linalg.location_null import Family, dealt, item_scores, null_scores, share_first

D = 12
S = np.array([3.0, 2.0, 1.0, 0.5])


def face(seed: int, gains: np.ndarray = S, d: int = D) -> Face:
    return Face(haar_frame(d, len(gains), seed), gains)


def dense(on: Face) -> np.ndarray:
    """The unit traceless form of a face."""
    M = on.directions.T * on.S
    A = M @ M.T * len(M) / np.sum(M**2) - np.eye(len(M))
    return A / np.linalg.norm(A)


@pytest.mark.identity("SV-19")
@pytest.mark.parametrize("n", [1, 3, 30])
def test_every_face_has_the_law_of_turned_vectors(n: int) -> None:
    vectors = haar_directions(n, D, 1)
    moment, on = second_moment(vectors), face(2)
    z = null_scores([Family(moment, [on])], draws=4000, seed=3)[:, 0]
    gains = 1 + gain_sd(on, moment) * z
    assert stats.ks_2samp(gains, null_gain(S, vectors, draws=4000, seed=4)).pvalue > 0.01
    assert z.mean() == pytest.approx(0, abs=4 / np.sqrt(4000))
    assert z.var() == pytest.approx(1, abs=4 * np.sqrt((stats.kurtosis(z, fisher=False) - 1) / 4000))


def test_the_same_turn_is_scored_at_every_face() -> None:
    whole = haar_frame(D, D, 5)
    one, rest, twin, other = Face(whole[:4], np.ones(4)), Face(whole[4:], np.ones(8)), face(6), face(7)
    faces = [one, rest, twin, other, face(6)]
    z = null_scores([Family(second_moment(haar_directions(3, D, 1)), faces)], draws=4000, seed=2)
    # What a subspace catches, its complement misses.
    np.testing.assert_allclose(z[:, 0], -z[:, 1], atol=1e-4)
    np.testing.assert_array_equal(z[:, 2], z[:, 4])
    # Two faces correlate by the cosine of their forms.
    for i, j in ((0, 2), (0, 3), (2, 3)):
        expected = np.sum(dense(faces[i]) * dense(faces[j]))
        assert np.mean(z[:, i] * z[:, j]) == pytest.approx(expected, abs=4 * 2 / np.sqrt(4000))


def test_in_the_hyperplane_one_dimension_less_is_used() -> None:
    raw = np.random.default_rng(1).standard_normal((3, D))
    units = hyperplane(raw - raw.mean(axis=1, keepdims=True))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    moment, on = second_moment(units), face(2, d=D - 1)
    z = null_scores([Family(moment, [on], centred=True)], draws=4000, seed=3)[:, 0]
    gains = 1 + gain_sd(on, moment) * z
    assert stats.ks_2samp(gains, null_gain(S, units, draws=4000, seed=4)).pvalue > 0.01


def test_stream_and_hyperplane_are_turned_together() -> None:
    raw = np.random.default_rng(1).standard_normal((1, D))
    raw -= raw.mean()
    raw /= np.linalg.norm(raw)
    rows = haar_frame(D, 4, 2)
    rows -= rows.mean(axis=1, keepdims=True)
    rows = np.linalg.svd(rows, full_matrices=False)[2]
    stream = Family(second_moment(raw), [Face(rows, S)])
    inside = Family(second_moment(hyperplane(raw)), [Face(hyperplane(rows), S)], centred=True)
    both = null_scores([stream, inside], draws=2000, seed=3)
    assert np.corrcoef(both.T)[0, 1] > 0.8
    # Each alone is what it is beside the other, but for which numbers are drawn.
    assert stats.ks_2samp(both[:, 0], null_scores([stream], draws=2000, seed=9)[:, 0]).pvalue > 0.01


@pytest.mark.identity("SV-33")
def test_draws_are_the_same_whatever_else_is_asked() -> None:
    moment = second_moment(haar_directions(2, D, 1))
    one = null_scores([Family(moment, [face(1), face(2)])], draws=50, seed=3)
    more = null_scores([Family(moment, [face(1), face(2), face(4)])], draws=70, seed=3)
    np.testing.assert_allclose(one, more[:50, :2], atol=1e-5)
    assert np.abs(one - null_scores([Family(moment, [face(1), face(2)])], draws=50, seed=4)).max() > 0.1


def test_faces_that_treat_all_alike_are_never_beyond_anything() -> None:
    moment = second_moment(haar_directions(2, D, 1))
    z = null_scores([Family(moment, [face(1, np.ones(D)), face(2)])], draws=20, seed=0)
    assert np.all(z[:, 0] == 0)
    assert np.all(z[:, 1] != 0)


# How sure the first is


@pytest.mark.parametrize("n", [5, 600])
def test_the_mean_of_the_items_is_the_set(n: int) -> None:
    vectors, faces = haar_directions(n, D, 1), [face(1), face(2)]
    moment = second_moment(vectors)
    groups = dealt(n, seed=3)
    items = item_scores(Family(moment, faces), vectors, groups)
    sizes = np.bincount(groups)
    assert sizes.sum() == n
    assert sizes.max() - sizes.min() <= 1
    expected = [(gain(f, caught(f, moment)) - 1) / gain_sd(f, moment) for f in faces]
    np.testing.assert_allclose(sizes @ items / n, expected, rtol=1e-4)


@pytest.mark.parametrize("k", [2, 3, 12])
def test_of_two_faces_the_share_is_that_of_a_paired_t_test(k: int) -> None:
    items = np.random.default_rng(k).normal([0.3, 0], 1, (k, 2))
    t = stats.ttest_rel(items[:, 0], items[:, 1]).statistic
    found = share_first(items, np.full(k, 3), draws=20_000, seed=1)
    np.testing.assert_allclose(found, [stats.t.cdf(t, k - 1), stats.t.sf(t, k - 1)], atol=4 * 0.5 / np.sqrt(20_000))
    assert found.sum() == pytest.approx(1)


def test_of_several_faces_means_are_drawn_from_the_multivariate_t_law() -> None:
    items = np.random.default_rng(5).standard_normal((6, 3)) @ np.array([[1, 0.8, 0], [0, 0.6, 0.3], [0, 0, 1.5]])
    law = stats.multivariate_t(items.mean(axis=0), np.cov(items.T) / 6, df=5, seed=3)
    expected = np.bincount(np.argmax(law.rvs(40_000), axis=1), minlength=3) / 40_000
    found = share_first(items, np.ones(6, int), draws=40_000, seed=1)
    assert expected.min() > 0.1
    np.testing.assert_allclose(found, expected, atol=4 * 0.5 * np.sqrt(2 / 40_000))


@pytest.mark.parametrize("k", [2, 3, 5, 20])
def test_two_faces_that_are_alike_seem_surely_different_as_rarely_as_they_should(k: int) -> None:
    """Either has a share of .95 or more in a tenth of sets. Items drawn with replacement: .45, .31, .21 and .13."""
    rng, sets = np.random.default_rng(k), 1500
    largest = [share_first(rng.standard_normal((k, 2)), np.ones(k, int), draws=400, seed=s).max() for s in range(sets)]
    # A share of 400 draws is off by .01 at .95, one way as often as the other.
    assert np.mean(np.array(largest) >= 0.95) == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 / sets))


def test_groups_count_by_their_size() -> None:
    items = np.array([[1.0, 0.0], [1.0, 0.0], [-3.5, 0.0]])
    shares = [share_first(items, np.array(sizes), draws=2000, seed=0)[0] for sizes in ([1, 1, 1], [2, 2, 1])]
    assert shares[0] < 0.5 < shares[1]


def test_one_item_cannot_vary_and_undefined_faces_are_never_first() -> None:
    assert np.isnan(share_first(np.ones((1, 4)), np.ones(1, int), draws=10, seed=0)).all()
    assert np.isnan(share_first(np.full((3, 4), np.nan), np.ones(3, int), draws=10, seed=0)).all()
    items = np.column_stack([np.full(5, np.nan), -np.ones(5), -2 * np.ones(5)])
    np.testing.assert_array_equal(share_first(items, np.ones(5, int), draws=10, seed=0), [0, 1, 0])


def test_random_groups_vary_as_single_vectors_do() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(5000) ** 2
    groups = dealt(5000, seed=1)
    sizes = np.bincount(groups)
    means = np.bincount(groups, values) / sizes
    # A standard deviation of 256 groups has a relative error of 1/√512 = 4.4 %.
    assert np.std(means, ddof=1) / np.sqrt(256) == pytest.approx(np.std(values) / np.sqrt(5000), rel=0.15)


def test_impossible_requests_are_refused() -> None:
    moment = second_moment(haar_directions(2, D, 1))
    with pytest.raises(BadRequest, match="a null needs draws >= 1, got 0"):
        null_scores([Family(moment, [face(1)])], draws=0, seed=0)
    with pytest.raises(BadRequest, match="shares of draws need draws >= 1"):
        share_first(np.ones((2, 2)), np.ones(2, int), draws=0, seed=0)
    with pytest.raises(BadRequest, match="family lives in 12 dimensions, the vectors in 5"):
        item_scores(Family(moment, [face(1)]), haar_directions(2, 5, 1), np.arange(2))
