"""Coherence of lists: what is shared beyond the direction, with it, and what projecting out does and does not do."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.chance import haar_directions
from covector.linalg.coherence import coherence, coherences
from covector.linalg.dictionary import dictionary, list_sizes
from covector.linalg.topk import poles

RNG = np.random.default_rng(5)


def by_hand(v: np.ndarray, ids: np.ndarray, units: np.ndarray, project: bool = True) -> float:
    """Mean over pairs, one pair at a time, projector written out."""
    v = v / np.linalg.norm(v)
    take_out = np.eye(len(v)) - np.outer(v, v) if project else np.eye(len(v))
    rows = [take_out @ units[i] for i in ids]
    rows = [row / np.linalg.norm(row) for row in rows]
    return float(np.mean([rows[i] @ rows[j] for i in range(len(rows)) for j in range(i)]))


def test_coherence_is_the_mean_cosine_over_pairs_of_projected_vectors() -> None:
    units, directions = RNG.standard_normal((60, 9)), RNG.standard_normal((7, 9))
    lists = RNG.permuted(np.tile(np.arange(60), (7, 1)), axis=1)[:, :5]
    found = coherences(directions, lists, units)
    rows = list(zip(directions, lists, strict=True))
    # 1e-13: sums of 45 products of numbers near 1.
    np.testing.assert_allclose(found.beyond, [by_hand(v, ids, units) for v, ids in rows], atol=1e-13)
    np.testing.assert_allclose(found.whole, [by_hand(v, ids, units, False) for v, ids in rows], atol=1e-13)
    cosines = (units / np.linalg.norm(units, axis=1, keepdims=True)) @ directions.T / np.linalg.norm(directions, axis=1)
    products = [
        np.outer(c, c)[np.triu_indices(5, 1)].mean() for c in (cosines[ids, i] for i, (_, ids) in enumerate(rows))
    ]
    np.testing.assert_allclose(found.carries, products, atol=1e-13)


def test_coherence_depends_on_neither_lengths_nor_the_sign_of_the_direction_nor_blocks() -> None:
    units, directions = RNG.standard_normal((900, 64)), RNG.standard_normal((700, 64))
    lists = RNG.integers(0, 900, (700, 20))
    plain = coherence(directions, lists, units)
    stretched = coherence(-3 * directions, lists, units * RNG.uniform(0.1, 9, (900, 1)))
    np.testing.assert_allclose(stretched, plain, atol=1e-12)
    np.testing.assert_array_equal(coherence(directions[650:], lists[650:], units), plain[650:])


def test_lists_of_random_directions_are_coherent_with_the_direction_and_not_beyond_it() -> None:
    """D11: tokens picked by any direction share it. Evenly spread vectors share nothing else."""
    units, directions = haar_directions(4000, 32, seed=1), haar_directions(600, 32, seed=2)
    lists = poles(directions, units, 20).top
    found = coherences(directions, lists, units)
    error = found.beyond.std() / np.sqrt(len(found.beyond))
    assert abs(found.beyond.mean()) < 4 * error
    # With the direction left in, exactly what it carries is added.
    assert found.whole.mean() > 50 * error
    assert found.whole.mean() - found.carries.mean() == pytest.approx(0, abs=4 * error)


def test_members_of_a_mean_have_no_coherence_beyond_it_however_alike_they_are() -> None:
    """Σ (e − (e·v)v) = 0 for v ∝ Σe: the blind spot, exact when all cosines with the mean are equal."""
    for likeness in (0.0, 0.3, 0.9):
        m = 6
        gram = np.full((m, m), likeness) + (1 - likeness) * np.eye(m)
        units = np.linalg.cholesky(gram)
        found = coherences(units.sum(axis=0, keepdims=True), np.arange(m)[None], units)
        assert found.beyond[0] == pytest.approx(-1 / (m - 1), abs=1e-12)
        assert found.whole[0] == pytest.approx(likeness, abs=1e-12)
        assert found.carries[0] == pytest.approx(likeness + (1 - likeness) / m, abs=1e-12)


def test_a_vector_that_is_the_direction_itself_is_left_out() -> None:
    units = np.concatenate([np.eye(4), [[0, 1, 1, 0]]]).astype(np.float32)
    direction = np.array([[1.0, 0, 0, 0]])
    assert coherence(direction, np.array([[0, 1, 4]]), units)[0] == pytest.approx(np.sqrt(0.5), abs=1e-7)
    assert np.isnan(coherence(direction, np.array([[0, 1]]), units)[0])


def test_lists_that_do_not_fit_are_refused() -> None:
    units, one = np.eye(4), np.array([[0, 1]])
    with pytest.raises((SpaceMismatch, TypeCheckError)):
        coherence(np.eye(4)[:2], one, units)
    with pytest.raises(BadRequest, match=r"rows 0 … 3 of the units, came 0 … 4"):
        coherence(np.eye(4)[:1], np.array([[0, 4]]), units)
    with pytest.raises(BadRequest, match="not null"):
        coherence(np.zeros((1, 4)), one, units)


def test_whitening_makes_the_kept_covariance_nearly_one_and_keeps_the_cosine_that_drew_the_lists() -> None:
    stretch = np.diag(np.linspace(0.2, 3, 12))
    vectors = RNG.standard_normal((6000, 12)) @ stretch + 0.7
    d = dictionary(vectors)
    # Shrunk by d/(n + d) = 0.2 %; eigenvalues run over a factor of 200, so the least one is off by 0.2 % of the mean.
    covariance = np.cov(d.judged.T, bias=True)
    np.testing.assert_allclose(np.diag(covariance), 1, atol=0.1)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.1
    directions = RNG.standard_normal((5, 12))
    drawn, seen = d.units @ directions.T, d.judged @ d.seen(directions).T
    np.testing.assert_allclose(seen - seen.mean(axis=0), drawn - drawn.mean(axis=0), atol=1e-10)


def test_what_is_not_kept_moves_nothing() -> None:
    vectors = RNG.standard_normal((400, 8))
    keep = np.arange(400) < 300
    spoiled = vectors.copy()
    spoiled[350:] = np.nan
    spoiled[300:350] = 0
    one, other = dictionary(vectors, keep=keep), dictionary(spoiled, keep=keep)
    np.testing.assert_array_equal(one.judged[keep], other.judged[keep])
    directions = RNG.standard_normal((6, 8))
    np.testing.assert_array_equal(one.lists(directions).top, other.lists(directions).top)


def test_lists_are_shorter_in_smaller_dictionaries() -> None:
    assert list_sizes(50_257) == list_sizes(6400) == (20, 20, 40)
    assert list_sizes(1684) == (20, 10, 20)
    assert min(list_sizes(144)) == 3
    with pytest.raises(BadRequest, match="keeps 27"):
        dictionary(RNG.standard_normal((27, 8))).check()
    with pytest.raises(BadRequest, match="whitened, centred, raw, came 'pca'"):
        dictionary(np.eye(3), measure="pca")
