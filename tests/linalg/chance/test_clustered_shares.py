"""Shares of clustered things, and groups that may be exchanged."""

from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.chance.clustered import clustered_share, exchange_p


def test_without_clusters_the_interval_is_cloppers_and_pearsons():
    hits = np.arange(40) < 4
    found = clustered_share(hits, np.arange(40))
    wanted = stats.binomtest(4, 40).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-9)
    assert (found.value, found.n, found.clusters) == (0.1, 40, 40)
    assert found.design == pytest.approx(1.0, rel=1e-12)


def test_none_and_all_reach_the_end_of_the_scale():
    none, every = (clustered_share(np.full(50, hit), np.arange(50) // 5) for hit in (False, True))
    assert none.low == 0 < none.high < 0.35
    assert every.high == 1 > every.low > 0.65


def test_none_of_many_directions_is_none_of_as_many_heads_as_there_are():
    """Heads may vary as wholes, and no hit shows otherwise: a share q goes unseen with (1 − q)^40, .025 at the end."""
    for hit in (False, True):
        found = clustered_share(np.full(2560, hit), np.repeat(np.arange(40), 64))
        assert found.high - found.low == pytest.approx(1 - 0.025 ** (1 / 40), rel=1e-9)
        assert found.design == pytest.approx(64, rel=1e-12)
    lone = clustered_share(np.arange(2560) < 3, np.repeat(np.arange(40), 64))
    assert lone.high > 1 - 0.025 ** (1 / 40)


def test_hits_of_a_single_cluster_among_tries_of_their_own_are_judged_as_single_tries():
    """One hit of 40 that are clusters each: the exact interval, though a single cluster holds all hits."""
    found = clustered_share(np.arange(40) < 1, np.arange(40))
    wanted = stats.binomtest(1, 40).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-9)


def test_hits_that_come_in_whole_clusters_have_the_design_effect_of_their_size():
    """Every cluster of 8 all or nothing: its variance is that of 30 tries, 8 times that of 240."""
    whole = np.repeat(np.arange(30) < 12, 8)
    found = clustered_share(whole, np.repeat(np.arange(30), 8))
    assert found.design == pytest.approx(8 * 239 / 240 * 30 / 29, rel=1e-3)
    alone = clustered_share(np.arange(30) < 12, np.arange(30))
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), rel=1e-9)


def coverage(sizes: np.ndarray, share: float, alike: float, *, draws: int, seed: int) -> float:
    """How often the interval holds `share`, clusters being of a Beta law with correlation `alike` (1: all or none)."""
    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    covered = 0
    for _ in range(draws):
        of = rng.random(len(sizes)) < share
        if alike < 1:
            size = (1 - alike) / alike if alike else 1e9
            of = rng.beta(share * size, (1 - share) * size, len(sizes))
        hits = rng.random(len(cluster)) < np.asarray(of, np.float64)[cluster]
        found = clustered_share(hits, cluster)
        covered += found.low <= share <= found.high
    return covered / draws


@pytest.mark.parametrize(
    ("number", "size", "share", "alike"),
    [(6, 20, 0.2, 1 / 11), (10, 20, 0.05, 1.0), (16, 64, 0.05, 0.3), (20, 20, 0.02, 0.3), (5, 20, 0.15, 1.0)],
)
def test_the_interval_covers_the_share_of_clustered_tries(number, size, share, alike):
    """500 draws each: 95 % less 3 standard errors (.0097). Few hit clusters are what an estimated spread misses."""
    assert coverage(np.full(number, size), share, alike, draws=500, seed=0) > 0.95 - 3 * 0.0097


def test_the_interval_covers_where_a_few_clusters_hold_most_tries():
    """Four clusters of 128 and sixteen of 8: the spread is that of four, not of twenty."""
    assert coverage(np.repeat([128, 8], [4, 16]), 0.15, 0.3, draws=500, seed=1) > 0.95 - 3 * 0.0097


@pytest.mark.slow
@pytest.mark.parametrize(("number", "size"), [(3, 20), (5, 20), (10, 20), (16, 64), (40, 64), (144, 64)])
@pytest.mark.parametrize("share", [0.005, 0.02, 0.05, 0.15, 0.5])
def test_the_interval_covers_at_every_likeness_of_a_cluster(number, size, share):
    """The page's table: 95 %, less the half point that is said and 3 standard errors of 1000 draws (.0069)."""
    for alike in (0.0, 0.1, 0.3, 1.0):
        assert coverage(np.full(number, size), share, alike, draws=1000, seed=2) > 0.945 - 3 * 0.0069, alike


def test_the_order_of_hits_and_the_names_of_clusters_do_not_matter():
    rng = np.random.default_rng(1)
    hits, cluster = rng.random(60) < 0.3, rng.integers(0, 7, 60)
    order = rng.permutation(60)
    one, other = (clustered_share(hits, cluster), clustered_share(hits[order], 90 - 3 * cluster[order]))
    assert astuple(one) == pytest.approx(astuple(other), rel=1e-12)


def test_nothing_has_no_share_and_a_level_lies_inside_its_range():
    assert np.isnan(clustered_share(np.zeros(0, bool), np.zeros(0, int)).value)
    with pytest.raises(BadRequest, match="expected one cluster per hit"):
        clustered_share(np.zeros(3, bool), np.zeros(3, int), level=95.0)


def test_exchange_counts_the_arrangements_that_differ_as_much():
    """Three against three, the largest possible difference: 2 of 20 arrangements, both directions counted."""
    p = exchange_p(np.array([5.0, 6, 7]), np.array([1.0, 2, 3]), draws=20_000, seed=0)
    assert p == pytest.approx(2 / 20, abs=4 * np.sqrt(0.1 * 0.9 / 20_000))


def test_strata_are_compared_within_not_across():
    """Layers differ by 100, groups by 1 within each of them: seen only where labels stay in their layer."""
    layer = np.repeat(np.arange(6), 3)
    base, noise = 100.0 * layer, np.random.default_rng(2).normal(0, 0.1, 18)
    first, second = base + noise + 1, base[::3] + noise[::3]
    across = exchange_p(first, second, draws=2000, seed=0)
    within = exchange_p(first, second, (layer, layer[::3]), draws=2000, seed=0)
    assert within < 0.01 < 0.5 < across


def test_p_of_groups_that_are_alike_is_uniform():
    rng = np.random.default_rng(3)
    p = [
        exchange_p(rng.normal(size=8), rng.normal(size=4), (np.arange(8) // 2, np.arange(4)), draws=199, seed=i)
        for i in range(400)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_groups_that_share_no_stratum_cannot_be_compared():
    assert np.isnan(exchange_p(np.ones(2), np.zeros(2), (np.zeros(2, int), np.ones(2, int)), draws=10, seed=0))
