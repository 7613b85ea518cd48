"""J is the best mean similarity over all choices of poles, found by trying them one by one."""

from itertools import product

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.units import centroids, joint_similarity


def by_hand(poles: np.ndarray) -> float:
    m = len(poles)
    best = -np.inf
    for choice in product((0, 1), repeat=m):
        chosen = [poles[i, side] for i, side in enumerate(choice)]
        pairs = [chosen[i] @ chosen[j] for i in range(m) for j in range(m) if i != j]
        best = max(best, float(np.mean(pairs)))
    return best


def test_j_is_the_best_over_all_choices_of_poles() -> None:
    poles = np.random.default_rng(0).standard_normal((3, 5, 2, 7))
    J, chosen = joint_similarity(poles)
    np.testing.assert_allclose(J, [by_hand(p) for p in poles], rtol=1e-12)
    for b in range(3):
        picked = poles[b, np.arange(5), chosen[b]]
        gram = picked @ picked.T
        assert (gram.sum() - np.trace(gram)) / 20 == pytest.approx(J[b], rel=1e-12)


def test_swapping_the_poles_of_a_direction_changes_the_choice_and_not_j() -> None:
    poles = np.random.default_rng(1).standard_normal((4, 2, 6))
    swapped = poles.copy()
    swapped[2] = swapped[2, ::-1]
    (J, chosen), (other, again) = joint_similarity(poles), joint_similarity(swapped)
    assert other == pytest.approx(float(J), rel=1e-12)
    np.testing.assert_array_equal(chosen ^ [0, 0, 1, 0], again)


def test_a_topic_hidden_in_one_pole_of_each_direction_is_found() -> None:
    rng = np.random.default_rng(2)
    topic = np.eye(30)[0]
    poles = 0.1 * rng.standard_normal((6, 2, 30))
    sides = rng.integers(2, size=6)
    poles[np.arange(6), sides] += topic
    J, chosen = joint_similarity(poles)
    np.testing.assert_array_equal(chosen, sides)
    assert pytest.approx(1, abs=0.3) == J


def test_centroids_are_unit_means_without_the_direction_that_chose_them() -> None:
    units = np.concatenate([np.eye(4), -np.eye(4)])
    lists = np.array([[[0, 1, 2], [0, 4, 3]]])  # e₀ and −e₀ cancel
    made = centroids(units, lists, np.array([[5.0, 0, 0, 0]]))
    np.testing.assert_allclose(made[0, 0], [0, np.sqrt(0.5), np.sqrt(0.5), 0])
    np.testing.assert_allclose(made[0, 1], [0, 0, 0, 1])
    np.testing.assert_array_equal(centroids(units, np.array([[[0], [1]]]), np.array([[1.0, 0, 0, 0]]))[0, 0], 0)


@pytest.mark.parametrize("m", [1, 13])
def test_too_few_or_too_many_directions_are_refused(m: int) -> None:
    with pytest.raises(BadRequest, match=f"expected 2 to 12 directions with two poles, got {m}"):
        joint_similarity(np.zeros((m, 2, 3)))
