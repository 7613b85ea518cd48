"""Shares of positions: planted heads look where they were planted, random ones nowhere."""

import numpy as np
import pytest
from scipy.stats import kstest

from covector.linalg.offsets import null_offset_shares, offset_shares, queries_of

N = 12
POSITIONS = np.eye(N)


def scores_of(target: str, queries: np.ndarray) -> np.ndarray:
    """Scores of a head that looks at exactly one place."""
    places = {"previous": queries - 1, "current": queries, "first": 0 * queries}[target]
    return np.eye(N)[places][None]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("target", ["previous", "current", "first"])
def test_a_planted_head_has_share_one_for_its_place_alone(target: str, causal: bool) -> None:
    queries = queries_of(N)
    shares = offset_shares(scores_of(target, queries), queries, causal)[0]
    index = ["previous", "current", "first"].index(target)
    assert shares[index] == 1
    # Each of the others ties with all but the planted one, and that one is above it.
    assert np.all(np.delete(shares, index) < 0.5)


def test_a_head_without_scores_has_share_one_half() -> None:
    queries = queries_of(N)
    np.testing.assert_array_equal(offset_shares(np.zeros((2, len(queries), N)), queries, True), 0.5)


def test_the_share_counts_keys_below_by_hand() -> None:
    # Query 3 sees keys 0 … 3 with scores 4, 1, 3, 2; the later key is not seen.
    scores = np.array([[[4.0, 1.0, 3.0, 2.0, 9.0]]])
    assert offset_shares(scores, np.array([3]), True)[0].tolist() == pytest.approx([2 / 3, 1 / 3, 1.0])
    assert offset_shares(scores, np.array([3]), False)[0].tolist() == pytest.approx([2 / 4, 1 / 4, 3 / 4])


def test_turning_all_scores_round_turns_the_shares_round() -> None:
    scores = np.random.default_rng(0).standard_normal((3, len(queries_of(N)), N))
    queries = queries_of(N)
    np.testing.assert_allclose(offset_shares(-scores, queries, True), 1 - offset_shares(scores, queries, True))


def test_queries_start_where_the_position_before_is_not_the_first() -> None:
    assert queries_of(5).tolist() == [2, 3, 4]
    assert queries_of(2).size == 0
    assert len(queries_of(1000)) == 32
    assert queries_of(1000)[-1] == 999


def test_the_null_is_uniform_for_heads_drawn_from_it() -> None:
    rng = np.random.default_rng(1)
    positions = rng.standard_normal((N, 8)).cumsum(axis=0)  # smooth, as learned positions are
    queries = queries_of(N)
    asked = rng.standard_normal((1, len(queries), 3))
    null, drawn = (
        null_offset_shares(asked, positions, queries, causal=True, centred=False, draws=n, seed=s)[:, 0]
        for n, s in ((2000, 2), (500, 3))
    )
    for target in range(3):
        # Shares are multiples of a step: the mid-p is uniform up to that.
        p = [(null[:, target] > x).mean() + 0.5 * (null[:, target] == x).mean() for x in drawn[:, target]]
        assert kstest(p, "uniform").pvalue > 1e-3
    np.testing.assert_allclose(null.mean(axis=0), 0.5, atol=4 * 0.5 / np.sqrt(2000))
