"""How few terms make up a sum, and how few do in a random basis of the same space (singular-vectors §2 F18)."""

from itertools import combinations

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.bilinear import contributing, contributing_in_turned_bases, largest_in_turned_bases
from covector.linalg.chance.haar import rotation


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_no_smaller_set_of_terms_reaches_the_share(seed: int, share: float) -> None:
    terms = np.random.default_rng(seed).standard_normal(7)
    total = terms.sum()
    reach = [
        n
        for n in range(1, 8)
        if any(np.sign(total) * sum(some) >= share * abs(total) - 1e-12 for some in combinations(terms, n))
    ]
    assert contributing(terms, share) == reach[0]
    assert contributing(-3 * terms, share) == reach[0]


def test_contributing_sets_are_counted_row_by_row_and_a_sum_of_zero_has_none() -> None:
    rows = np.array([[4.0, 3.0, 3.0], [-4.0, -3.0, -3.0], [10.0, 1.0, -1.0], [1.0, -1.0, 0.0]])
    assert contributing(rows, 0.65).tolist() == [2, 2, 1, 0]
    for share in (0.0, 1.5):
        with pytest.raises(BadRequest, match="expected a share of the sum above 0"):
            contributing(rows, share)


def test_in_a_turned_plane_one_term_suffices_as_often_as_the_closed_form_says() -> None:
    # a = c: the terms are cos² θ and sin² θ of the sum, so one has nine tenths for 4 arccos √.9 of the half turn.
    a = np.array([3.0, 0.0])
    found = contributing_in_turned_bases(a, a, share=0.9, draws=20000, seed=0)
    wanted = 4 * np.arccos(np.sqrt(0.9)) / np.pi
    assert set(found) == {1, 2}
    assert abs(np.mean(found == 1) - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 20000)


def test_the_null_counts_what_explicit_rotations_of_both_sides_give() -> None:
    a, c = np.random.default_rng(5).standard_normal((2, 9))
    c += 2 * a
    null = contributing_in_turned_bases(a, c, share=0.9, draws=4000, seed=1)
    turns = [rotation(9, seed=(3, i)) for i in range(4000)]
    each = np.array([contributing((a @ turned) * (c @ turned), 0.9) for turned in turns])
    assert len(set(each)) > 3
    # Difference of two means of 4000 draws.
    assert abs(null.mean() - each.mean()) < 4 * np.hypot(null.std(), each.std()) / np.sqrt(4000)


def test_with_one_direction_there_is_one_basis() -> None:
    one = np.array([2.0]), np.array([-3.0])
    assert largest_in_turned_bases(*one, draws=3, seed=0).tolist() == [6.0] * 3
    assert contributing_in_turned_bases(*one, share=0.9, draws=3, seed=0).tolist() == [1] * 3
