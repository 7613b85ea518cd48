"""Draws depend on the seed, the purpose and the place in the sequence, and on nothing else."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.chance import (
    haar_directions,
    haar_frame,
    max_in_frame,
    null_gain,
    null_max_of_frame,
    null_maxima,
    rotation,
    rotation_null,
)
from covector.linalg.chance.streams import generator

VECTORS = haar_directions(5, 12, seed=1)
WIDE = haar_directions(30, 12, seed=2)

# Every sequence of draws, as a function of (draws, first).
SEQUENCES = {
    "null_maxima": lambda draws, first=0: null_maxima(WIDE, draws=draws, seed=7, first=first),
    "null_max_of_frame": lambda draws, first=0: null_max_of_frame(VECTORS, 8, draws=draws, seed=7, first=first),
    "max_in_frame": lambda draws, first=0: max_in_frame(12, 4, draws=draws, seed=7, first=first),
    "rotation_null": lambda draws, first=0: rotation_null(np.max, VECTORS, draws=draws, seed=7, first=first),
    "null_gain": lambda draws, first=0: null_gain(np.arange(1.0, 7), VECTORS, draws=draws, seed=7, first=first),
}


@pytest.mark.identity("SV-33")
@pytest.mark.parametrize("draw", SEQUENCES.values(), ids=SEQUENCES)
def test_a_shared_sequence_has_the_bits_of_an_unshared_one(draw):
    whole = draw(700)
    shared = np.concatenate([draw(1), draw(255, 1), draw(44, 256), draw(400, 300)])
    assert np.array_equal(whole, shared)
    # The check sees a worker that starts one draw late.
    assert not np.array_equal(whole[:44], draw(44, 1))


@pytest.mark.parametrize("draw", SEQUENCES.values(), ids=SEQUENCES)
def test_draws_do_not_repeat_between_blocks(draw):
    assert len(np.unique(draw(700))) == 700


def test_same_seed_same_numbers_and_another_seed_others():
    assert np.array_equal(haar_frame(8, 3, seed=4), haar_frame(8, 3, seed=4))
    assert not np.allclose(haar_frame(8, 3, seed=4), haar_frame(8, 3, seed=5))
    assert not np.allclose(rotation(8, (4, 1)), rotation(8, (4, 2)))


def test_a_longer_run_begins_with_the_shorter_one():
    assert np.array_equal(haar_directions(100, 8, seed=4)[:10], haar_directions(10, 8, seed=4))


def test_the_null_is_not_made_of_the_directions_under_test():
    # With one stream for both, the tested directions would be draws of their own null.
    tested = np.abs(haar_directions(256, 12, seed=7) @ WIDE.T).max(axis=1)
    assert not np.isin(np.round(tested, 9), np.round(null_maxima(WIDE, draws=256, seed=7), 9)).any()


def test_a_trailing_zero_makes_another_seed():
    first, second = (generator(seed, "any").standard_normal() for seed in ((3,), (3, 0)))
    assert first != second
    assert generator(3, "any").standard_normal() == first


def test_negative_and_empty_seeds_and_counts_are_refused():
    with pytest.raises(BadRequest, match=r"a seed is a whole number >= 0.*-1"):
        haar_directions(3, 3, seed=-1)
    with pytest.raises(BadRequest, match="a seed is a whole number"):
        rotation(3, seed=())
    with pytest.raises(BadRequest, match="draws >= 1 and first >= 0"):
        null_maxima(WIDE, draws=0, seed=0)
