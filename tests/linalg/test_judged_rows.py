"""Rows judged without a second table: the numbers of the table that equation 3 writes down, and its memory."""

import tracemalloc

import numpy as np
import pytest

from covector.errors import SpaceMismatch
from covector.linalg.chance.haar import unit_rows
from covector.linalg.chance.laws import Hyperplane, covariance_root, root_of_moment
from covector.linalg.chance.lists import basis_lists, haar_lists, matched_lists
from covector.linalg.coherence import coherences
from covector.linalg.detection import heldout, intruder
from covector.linalg.dictionary import Dictionary, dictionary
from covector.linalg.list_scores import list_scores
from covector.linalg.topk import poles

N, D, KEPT = 700, 18, 650


def table() -> np.ndarray:
    """Unequal lengths, a common mean, variances over a factor of 100; the last 50 rows are nothing."""
    rng = np.random.default_rng(3)
    rows = (rng.standard_normal((N, D)) * np.geomspace(3, 0.3, D) + 0.4) * rng.uniform(0.2, 5, (N, 1))
    rows[KEPT:] = np.nan
    return rows


def by_hand(measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Judged rows of the kept ones, and the pull, from equation 3 in dense algebra."""
    rows = table()[:KEPT]
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    centred = units if measure == "raw" else units - units.mean(axis=0)
    if measure != "whitened":
        return centred, np.eye(D)
    sigma = np.cov(units.T, bias=True)
    shrunk = (KEPT * sigma + D * np.trace(sigma) / D * np.eye(D)) / (KEPT + D)
    values, axes = np.linalg.eigh(shrunk)
    return centred @ (axes / np.sqrt(values)) @ axes.T, (axes * np.sqrt(values)) @ axes.T


@pytest.fixture(params=["whitened", "centred", "raw"])
def words(request: pytest.FixtureRequest) -> Dictionary:
    return dictionary(table(), keep=np.arange(N) < KEPT, measure=request.param)


def directions(n: int = 300) -> np.ndarray:
    """More than are brought into the metric together."""
    return unit_rows(np.random.default_rng(8).standard_normal((n, D)))


def test_judged_rows_and_the_pull_are_those_of_equation_3(words: Dictionary) -> None:
    judged, pull = by_hand(words.measure)
    # 1e-11: whitening multiplies rounding by the root of the condition, about 10.
    np.testing.assert_allclose(words.judged[:KEPT], judged, atol=1e-11)
    np.testing.assert_array_equal(words.judged[KEPT:], 0)
    np.testing.assert_allclose(words.seen(directions()), directions() @ pull, atol=1e-12)
    assert (words.pull is None) == (words.measure != "whitened")
    np.testing.assert_allclose(words.view.squares[:KEPT], np.sum(judged**2, axis=1), rtol=1e-11)
    np.testing.assert_array_equal(words.view.squares[KEPT:], 0)


def test_scores_of_the_view_are_those_of_the_judged_table(words: Dictionary) -> None:
    judged, pull = by_hand(words.measure)
    rows = directions()
    rng = np.random.default_rng(1)
    lists = rng.permuted(np.tile(np.arange(KEPT), (300, 1)), axis=1)
    seen, aimed = rows @ pull, words.view.aim_of(rows)
    for ways in (aimed, words.seen(rows)):  # both forms of a direction
        found, wanted = coherences(ways, lists[:, :12], words.view), coherences(seen, lists[:, :12], judged)
        for name in ("beyond", "whole", "carries"):
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-11)
        split = lists[:, :9], lists[:, 9:29], lists[:, 29:50]
        held, by_table = heldout(ways, *split, words.view), heldout(seen, *split, judged)
        np.testing.assert_allclose(held.auc, by_table.auc, atol=1e-12)
        np.testing.assert_allclose(held.low, by_table.low, atol=1e-12)
        guessed = intruder(ways, lists[:, :20], lists[:, 20:25], words.view, seed=0)
        np.testing.assert_array_equal(
            guessed.accuracy, intruder(seen, lists[:, :20], lists[:, 20:25], judged, seed=0).accuracy
        )
    assert 0.05 < guessed.accuracy.mean() < 0.9  # neither of the two is a matter of course


def test_products_go_back_as_sums_go_in(words: Dictionary) -> None:
    """(û − μ)·back(m) = into(û − μ)·m, and the two forms of a direction are one: row·along = into(row)·own."""
    rng = np.random.default_rng(5)
    rows, m = rng.standard_normal((2, 6, D))
    np.testing.assert_allclose(rows @ words.view.back(m).T, words.view.into(rows) @ m.T, atol=1e-11)
    aimed = words.view.aim_of(m)
    np.testing.assert_allclose(rows @ aimed.along.T, words.view.into(rows) @ aimed.own.T, atol=1e-11)
    np.testing.assert_allclose(np.linalg.norm(aimed.own, axis=1), 1, atol=1e-12)


def test_lists_are_drawn_by_cosine_whatever_the_lengths(words: Dictionary) -> None:
    cosines = directions(20) @ (table()[:KEPT] / np.linalg.norm(table()[:KEPT], axis=1, keepdims=True)).T
    wanted = np.argsort(-cosines, axis=1)[:, : words.length]
    np.testing.assert_array_equal(words.lists(directions(20)).top, wanted)


def test_the_second_moment_is_of_kept_unit_vectors_and_not_centred(words: Dictionary) -> None:
    units = words.units[:KEPT]
    np.testing.assert_allclose(words.second_moment(), units.T @ units / KEPT, atol=1e-14)
    root = root_of_moment(words.second_moment())
    np.testing.assert_allclose(root.T @ root, covariance_root(units).T @ covariance_root(units), atol=1e-14)


def test_a_view_of_another_width_is_refused(words: Dictionary) -> None:
    with pytest.raises(SpaceMismatch, match="width 5"):
        coherences(np.ones((1, 5)), np.zeros((1, 4), int), words.view)


def test_directions_of_the_hyperplane_have_no_part_along_one_and_are_even_within_it() -> None:
    rows = Hyperplane().draw(np.random.default_rng(0), 40_000, 6)
    np.testing.assert_allclose(rows.sum(axis=1), 0, atol=1e-12)
    # Entries of a covariance of 40,000 draws have an error of 1/200; four of them.
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(6) - 1 / 6, atol=0.02)


def test_no_copy_of_the_table_is_made() -> None:
    """Neither for the dictionary nor by lists, scores and nulls: a tenth of the table is the most, less its own block.

    A block of scores (128 MB at most) is 60 rows of 120,000 here.
    """
    n, d = 120_000, 96
    vectors = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    rows = unit_rows(np.random.default_rng(1).standard_normal((16, d)))
    tracemalloc.start()
    try:
        words = dictionary(vectors)
        # Lengths, their inverses, squares and the covariate: four doubles per label, a twelfth of the table.
        assert tracemalloc.get_traced_memory()[0] < 4.5 * 8 * n
        assert tracemalloc.get_traced_memory()[1] < 0.3 * vectors.nbytes
        lists = words.lists(rows)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        list_scores(rows, lists, words)
        scored = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.reset_peak()
        matched_lists(words, draws=16)
        haar_lists(words, draws=16)
        basis_lists(words, np.linalg.qr(rows.T)[0].T, draws=16)
        drawn = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    block = 16 * n * 4
    assert scored < 0.5 * vectors.nbytes
    assert drawn < 6 * block
    assert 6 * block < vectors.nbytes * 1.01


@pytest.mark.parametrize("near", [3, 60])
def test_lists_among_more_vectors_than_may_be_listed_are_the_lists(monkeypatch: pytest.MonkeyPatch, near: int) -> None:
    """Of `near` vectors that no list may hold, all along one direction: more of them than places spared for them."""
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((900, 24)).astype(np.float32)
    vectors[:near] = vectors[0] + 0.1 * vectors[:near]
    all_of_them = np.arange(900) != 899
    words = dictionary(vectors, keep=all_of_them & (np.arange(900) >= near))
    directions = np.concatenate([rng.standard_normal((8, 24)), vectors[:1], -vectors[:1]])
    expected = words.lists(directions)
    size = words.listed_among(all_of_them)
    assert size == words.length + min(near, 16)
    found = poles(directions, vectors, size, keep=all_of_them, lengths=np.linalg.norm(vectors.astype(float), axis=1))
    asked = []
    lists = Dictionary.lists
    monkeypatch.setattr(Dictionary, "lists", lambda self, rows: asked.append(len(rows)) or lists(self, rows))
    among = words.lists_among(found, directions)
    np.testing.assert_array_equal(among.top, expected.top)
    np.testing.assert_array_equal(among.bottom, expected.bottom)
    assert (asked == []) if near == 3 else (len(asked) == 1 and 2 <= asked[0] < len(directions))
