"""Groups of directions: planted ones are found, silhouettes are those of their definition, turned ones have none."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.clusters import apart, clusters, silhouettes, turned_clusters


def frame(rng: np.random.Generator, r: int, d: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((d, r)))[0].T


def planted(rng: np.random.Generator, places: int = 5, groups: int = 3, d: int = 12) -> list[np.ndarray]:
    """Every place reads the same few axes, each with a little noise and any sign."""
    axes = frame(rng, groups, d)
    made = []
    for _ in range(places):
        rows = axes + 0.05 * rng.standard_normal((groups, d))
        made.append(rng.choice([-1.0, 1.0], size=(groups, 1)) * np.linalg.qr(rows.T)[0].T)
    return made


def test_planted_groups_are_found_whatever_their_signs():
    rng = np.random.default_rng(0)
    found = clusters(np.concatenate(planted(rng)))
    assert found.count == 3
    np.testing.assert_array_equal(np.bincount(found.labels), [5, 5, 5])
    for group in range(3):
        assert len(set(found.labels[group::3])) == 1
    assert found.mean > 0.9
    assert found.cophenetic > 0.9


def test_silhouettes_follow_their_definition():
    rng = np.random.default_rng(1)
    distance, labels = apart(rng.standard_normal((9, 4))), np.array([0, 0, 0, 0, 1, 1, 1, 2, 0])
    found = silhouettes(distance, labels)
    for i in range(9):
        own = [j for j in range(9) if labels[j] == labels[i] and j != i]
        if not own:
            assert found[i] == 0
            continue
        a = np.mean(distance[i, own])
        b = min(np.mean(distance[i, labels == k]) for k in range(3) if k != labels[i])
        assert found[i] == pytest.approx((b - a) / max(a, b))


def test_planted_axes_are_beyond_turned_ones_and_the_shared_subspace_alone_is_not():
    """The null keeps what all places read. Groups in it are found; the same subspace with any axes gives none."""
    rng, labels = np.random.default_rng(2), np.random.default_rng(3).standard_normal((40, 12))
    places = planted(rng)
    null = turned_clusters(places, labels, draws=60, seed=0)
    assert clusters(np.concatenate(places) @ labels.T).mean > null[:, 0].max()
    p = []
    for i in range(12):
        turned = [frame(rng, 3, 3) @ rows for rows in places]
        observed = clusters(np.concatenate(turned) @ labels.T).mean
        p.append((1 + np.sum(turned_clusters(turned, labels, draws=19, seed=i)[:, 0] >= observed)) / 20)
    assert np.mean(p) > 0.525 - 4 * np.sqrt(1 / 12 / 12)


def test_p_is_uniform_where_axes_mean_nothing():
    """40 sets of random frames: their p has mean ½ within 4 standard errors."""
    rng, labels = np.random.default_rng(4), np.random.default_rng(5).standard_normal((20, 8))
    p = []
    for i in range(40):
        places = [frame(rng, 3, 8) for _ in range(3)]
        observed = clusters(np.concatenate(places) @ labels.T).mean
        null = turned_clusters(places, labels, draws=19, seed=i)[:, 0]
        p.append((1 + np.sum(null >= observed)) / 20)
    assert abs(np.mean(p) - 0.525) < 4 * np.sqrt(1 / 12 / 40)


def test_requests_without_enough_are_refused():
    with pytest.raises(BadRequest, match="4 or more profiles"):
        clusters(np.eye(3))
    with pytest.raises(BadRequest, match="draws >= 1"):
        turned_clusters([np.eye(4)], np.eye(4), draws=0, seed=0)
