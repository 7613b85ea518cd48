"""Semantic heads by their count of significant directions, and correlations over layers."""

from itertools import permutations
from math import comb

import numpy as np
import pytest
from scipy import stats

from covector.analyses.studies.directions import Directions
from covector.analyses.studies.semantic import over_layers, semantic_heads


def spearman(x, y) -> float:
    """Pearson's correlation of the ranks."""
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def heads_of(sizes: list[int], per_layer: int = 2) -> Directions:
    """Directions of heads with so many each, written by OV."""
    unit = np.repeat(np.arange(len(sizes)), sizes)
    n = len(unit)
    site = np.array([f"L{u // per_layer}H{u % per_layer}.ov" for u in unit], dtype=object)
    kind, side = np.array(["ov"] * n, dtype=object), np.array(["write"] * n, dtype=object)
    return Directions(site, unit // per_layer, kind, side, np.arange(n), unit, np.ones(n, bool))


def test_q_is_that_of_the_hypergeometric_tail_counted_by_hand():
    places = heads_of([4, 4, 6, 6])
    significant = np.isin(np.arange(20), [0, 1, 2, 3, 4, 8, 9])  # 4, 1, 2, 0 of 7 among 20
    found = semantic_heads(places, np.ones(20, bool), significant)
    tails = [
        sum(comb(7, j) * comb(13, m - j) for j in range(k, min(m, 7) + 1)) / comb(20, m)
        for k, m in ((4, 4), (1, 4), (2, 6), (0, 6))
    ]
    assert found.names.tolist() == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert (found.hits.tolist(), found.of.tolist()) == ([4, 1, 2, 0], [4, 4, 6, 6])
    assert found.q == pytest.approx(stats.false_discovery_control(tails))
    assert found.found.tolist() == [True, False, False, False]
    assert found.among(1).names.tolist() == ["L1H0", "L1H1"]
    assert found.among(1).q.tolist() == found.q[2:].tolist()


def test_heads_with_equal_shares_are_not_semantic_however_many_directions_are_significant():
    places = heads_of([16] * 8)
    for every in (1, 2, 4):
        found = semantic_heads(places, np.ones(128, bool), np.arange(128) % every == 0)
        assert (found.hits == 16 // every).all()
        assert not found.found.any()


def test_on_a_random_spread_a_semantic_head_is_as_rare_as_q_says():
    places, rng = heads_of([32] * 16), np.random.default_rng(0)
    any_found = [semantic_heads(places, np.ones(512, bool), rng.random(512) < 0.3).found.any() for _ in range(400)]
    assert np.mean(any_found) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_both_circuits_of_a_head_count_together_and_mlps_not_at_all():
    places = heads_of([5, 5])
    places.site[:5] = ["L0H0.ov"] * 3 + ["L0H0.qk"] * 2
    places.is_head[5:] = False
    found = semantic_heads(places, np.ones(10, bool), np.arange(10) < 4)
    assert (found.names.tolist(), found.hits.tolist(), found.of.tolist()) == (["L0H0"], [4], [5])
    assert len(semantic_heads(places, ~places.is_head, np.ones(10, bool)).names) == 0


@pytest.mark.parametrize("x", [[1.0, 4.0, 2.0, 3.0, 9.0], [0.0, 0.5, 0.0, 1.0, 0.5]])
def test_the_correlation_over_layers_has_the_p_of_all_orders(x):
    y = np.array([0.3, 0.9, 0.1, 1.2, 0.8])
    rho = [spearman(x, order) for order in permutations(y)]
    found = over_layers(np.array(x), y)
    assert found.rank == pytest.approx(spearman(x, y))
    assert found.p == pytest.approx(np.mean(np.abs(rho) >= abs(found.rank) - 1e-12))
    assert found.least == pytest.approx(np.mean(np.abs(rho) >= np.abs(rho).max() - 1e-12))


def test_few_layers_have_no_small_p_and_layers_without_packing_are_left_out():
    four = over_layers(np.array([1.0, 2.0, np.nan, 3.0, 4.0]), np.array([5.0, 6.0, 0.0, 7.0, 8.0]))
    assert (four.n, four.rank, four.p, four.least) == pytest.approx((4, 1, 2 / 24, 2 / 24))
    assert np.isnan(over_layers(np.arange(2.0), np.arange(2.0)).p)
    assert np.isnan(over_layers(np.ones(5), np.arange(5.0)).rank)
