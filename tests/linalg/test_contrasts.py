"""Contrasts of outputs: what softmax sees of a direction, and the names of what it sees."""

import numpy as np
import pytest
from scipy import special

from covector.errors import BadRequest
from covector.linalg.contrasts import Contrast, contrast, contrast_frame, named_contrasts

A = np.random.default_rng(0).standard_normal((4, 9))
NAMES = ("left", "right", "forward", "toggle")


def test_probabilities_change_with_the_part_in_the_contrasts_and_with_nothing_else() -> None:
    frame = contrast_frame(A)
    assert frame.shape == (3, 9)
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    x, v = np.random.default_rng(1).standard_normal((2, 9))
    seen = v @ frame.T @ frame
    np.testing.assert_allclose(special.softmax((x + v) @ A.T), special.softmax((x + seen) @ A.T), atol=1e-12)
    np.testing.assert_allclose(special.softmax((x + v - seen) @ A.T), special.softmax(x @ A.T), atol=1e-12)
    assert np.abs(special.softmax((x + seen) @ A.T) - special.softmax(x @ A.T)).max() > 0.01


def test_degenerate_outputs_have_fewer_contrasts_and_equal_ones_none() -> None:
    assert len(contrast_frame(np.stack([A[0], A[1], (A[0] + A[1]) / 2]))) == 1
    with pytest.raises(BadRequest, match="same vector"):
        contrast_frame(np.stack([A[0], A[0]]))
    with pytest.raises(BadRequest, match="two outputs or more"):
        contrast_frame(A[:1])


def test_named_contrasts_are_all_splits_of_one_or_two_and_one_against_the_rest_once_each() -> None:
    found = named_contrasts(NAMES)
    # 6 of one and one, 4·3 of one and two, 3 of two and two, 4 of one and the rest.
    assert len(found) == 6 + 12 + 3 + 4
    assert len({c.name for c in found}) == len(found)
    for c in found:
        assert c.weights(4).sum() == pytest.approx(0, abs=1e-15)
        assert not set(c.plus) & set(c.minus)
    names = {c.name for c in found}
    assert {"left against right", "turn against forward", "left against the rest"} & names
    assert "turn against forward" in names or "forward against turn" in names
    # With three outputs "the rest" is the two others, and is said so.
    assert len(named_contrasts(NAMES[:3])) == 6
    assert [c.name for c in named_contrasts(("a", "b"))] == ["a against b"]


def test_a_contrast_is_read_from_its_words() -> None:
    assert contrast("left + right - forward", NAMES) == Contrast("turn against forward", (0, 1), (2,))
    np.testing.assert_allclose(contrast("left + right - forward", NAMES).weights(4), [0.5, 0.5, -1, 0])
    pushes = ("push left", "push right")
    assert contrast("push left - push right", pushes).plus == (0,)
    for text in ("left", "left - left", "left - up", "- left"):
        with pytest.raises(BadRequest, match="--contrast"):
            contrast(text, NAMES)
