"""`poles(see=…)`: every block of cosines passes by once, so sums over a vocabulary need no second product."""

import numpy as np
import pytest

from covector.linalg import topk
from covector.linalg.topk import poles


def normal(seed: int, *shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


class Seen:
    """Keeps copies: the block itself is overwritten afterwards."""

    def __init__(self) -> None:
        self.blocks: list[tuple[slice, np.ndarray]] = []

    def __call__(self, rows: slice, scores: np.ndarray) -> None:
        self.blocks.append((rows, scores.copy()))

    def whole(self) -> np.ndarray:
        return np.concatenate([scores for _, scores in self.blocks])


@pytest.mark.parametrize("buffer", [topk.BUFFER_BYTES, 4 * 50 * 3])
def test_every_score_is_shown_once_whatever_the_blocks(monkeypatch, buffer):
    monkeypatch.setattr(topk, "BUFFER_BYTES", buffer)
    directions, vectors, seen = normal(1, 10, 16), normal(2, 50, 16), Seen()
    lengths = np.linalg.norm(vectors.astype(float), axis=1)
    poles(directions, vectors, 3, lengths=lengths, see=seen)
    starts = [rows.start for rows, _ in seen.blocks]
    assert starts == list(np.cumsum([0, *(len(s) for _, s in seen.blocks)])[:-1])
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    # float32 products of unit rows over 16 terms
    np.testing.assert_allclose(seen.whole(), unit @ (vectors / lengths[:, None]).T, atol=2e-6)


@pytest.mark.parametrize("kept", [45, 10])
def test_vectors_that_are_left_out_show_zero_also_where_few_are_kept(kept):
    directions, vectors, seen = normal(1, 4, 8), normal(2, 50, 8), Seen()
    vectors[kept:] = np.nan
    keep = np.arange(50) < kept
    found = poles(directions, vectors, 5, keep=keep, see=seen)
    assert (seen.whole()[:, ~keep] == 0).all()
    assert (np.abs(seen.whole()[:, keep]) > 0).all()
    assert (found.top < kept).all()


def test_looking_on_changes_no_winner():
    directions, vectors = normal(1, 6, 12), normal(2, 4000, 12)
    one, other = poles(directions, vectors, 10), poles(directions, vectors, 10, see=Seen())
    for name in ("top", "top_score", "bottom", "bottom_score"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_null_direction_shows_zeros():
    seen = Seen()
    poles(np.zeros((1, 8)), normal(2, 20, 8), 3, see=seen)
    assert not seen.whole().any()
