"""Held-out detection, intruders, matched distractors, likeness of strings, NPMI."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.chance import haar_directions
from covector.linalg.detection import heldout, intruder, matched
from covector.linalg.lexical import lexical
from covector.linalg.npmi import Counter, npmi
from covector.linalg.topk import poles

RNG = np.random.default_rng(8)


def drawn(n: int = 3000, d: int = 24, r: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    units, directions = haar_directions(n, d, seed=3), haar_directions(r, d, seed=4)
    return units, directions, poles(directions, units, 60).top


def test_auc_is_the_share_of_pairs_won_with_ties_half() -> None:
    units = RNG.integers(-2, 3, (200, 6)).astype(float) + 0.5  # coarse on purpose: scores tie
    directions = np.tile(np.eye(6)[0], (3, 1))
    first, later, others = (RNG.integers(0, 200, (3, k)) for k in (4, 7, 9))
    found = heldout(directions, first, later, others, units)
    for row in range(3):
        rest = units[:, 1:] / np.linalg.norm(units[:, 1:], axis=1, keepdims=True)
        centroid = rest[first[row]].sum(axis=0)
        yes, no = np.round(rest[later[row]] @ centroid, 9), np.round(rest[others[row]] @ centroid, 9)
        u = stats.mannwhitneyu(yes, no).statistic
        assert found.auc[row] == pytest.approx(u / 63, abs=1 / 63)  # rounding may break a tie either way


def test_held_out_tokens_of_random_directions_are_found_half_of_the_time_and_intervals_cover() -> None:
    units, directions, lists = drawn()
    later, covariate = lists[:, 20:], np.arange(3000.0)
    others = matched(later, lists, covariate, np.ones(3000, bool), seed=0)
    found = heldout(directions, lists[:, :20], later, others, units)
    error = found.auc.std() / 20
    assert abs(found.auc.mean() - 0.5) < 4 * error
    covered = np.mean((found.low < 0.5) & (found.high > 0.5))
    # 400 directions: 95 % ± 4 standard errors of a binomial.
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 400)


def test_separated_scores_have_newcombes_interval() -> None:
    units = np.concatenate([np.tile([0.0, 1, 0], (9, 1)), np.tile([0.0, 0, 1], (6, 1))])
    found = heldout(np.array([[1.0, 0, 0]]), np.arange(3)[None], np.arange(3, 9)[None], np.arange(9, 15)[None], units)
    assert (found.auc[0], found.high[0]) == (1.0, 1.0)
    low, z = found.low[0], stats.norm.ppf(0.975)
    extra = 5.0  # (6 + 6)/2 − 1
    variance = low * (1 - low) * (1 + extra * ((1 - low) / (2 - low) + low / (1 + low))) / 36
    assert 1 - low == pytest.approx(z * np.sqrt(variance), abs=1e-12)


def test_an_intruder_is_found_by_chance_once_in_k_plus_one() -> None:
    units, directions, lists = drawn()
    strangers = matched(lists[:, :5], lists, np.arange(3000.0), np.ones(3000, bool), seed=1)
    found = intruder(directions, lists[:, :20], strangers, units, seed=0)
    assert (found.chance, found.trials) == (1 / 5, 5)
    hits = round(found.accuracy.sum() * 5)
    assert stats.binomtest(hits, 2000, 1 / 5).pvalue > 1e-3


def test_a_stranger_among_like_vectors_is_always_found() -> None:
    """Twenty vectors around one axis, strangers around another, both orthogonal to the direction."""
    units = np.eye(6)[[1] * 20 + [2] * 5] + 0.05 * RNG.standard_normal((25, 6))
    found = intruder(np.eye(6)[:1], np.arange(20)[None], np.arange(20, 25)[None], units, seed=0)
    assert found.accuracy[0] == 1
    alike = np.tile(np.eye(6)[1], (25, 1))
    assert intruder(np.eye(6)[:1], np.arange(20)[None], np.arange(20, 25)[None], alike, seed=0).accuracy[0] == 0


def test_matches_are_near_in_the_covariate_outside_the_list_kept_and_not_repeated() -> None:
    covariate = RNG.lognormal(size=5000)
    keep = RNG.random(5000) < 0.8
    lists = np.stack([RNG.permutation(np.flatnonzero(keep))[:60] for _ in range(50)])
    found = matched(lists[:, 20:], lists, covariate, keep, seed=0)
    place = np.empty(5000, int)
    ids = np.flatnonzero(keep)
    place[ids[np.argsort(covariate[ids])]] = np.arange(len(ids))
    assert keep[found].all()
    assert np.abs(place[found] - place[lists[:, 20:]]).max() <= 0.02 * len(ids)
    for row in range(50):
        assert not set(found[row]) & set(lists[row])
        assert len(set(found[row])) == 40
    np.testing.assert_array_equal(matched(lists[30:, 20:], lists[30:], covariate, keep, seed=0), found[30:])
    assert (matched(lists[:, 20:], lists, covariate, keep, seed=1) != found).any()
    with pytest.raises(BadRequest, match="keep the listed ids"):
        matched(lists, lists, covariate, np.zeros(5000, bool), seed=0)


def test_spellings_of_one_word_are_alike_as_strings_and_synonyms_are_not() -> None:
    labels = ("·write", "Writing", "writes", "writer", "·big", "large", "huge", "vast", "·Big", "big")
    alike = lexical(np.array([[0, 1, 2, 3], [4, 5, 6, 7]]), labels)
    assert alike[0] > 0.4 > 0.1 > alike[1]
    assert lexical(np.array([[4, 8, 9]]), labels)[0] == pytest.approx(1)
    with pytest.raises(BadRequest, match="one label per id"):
        lexical(np.array([[0, 10]]), labels)


def test_likeness_of_strings_is_the_mean_cosine_of_pair_and_triple_counts() -> None:
    labels = ["abab", "ab", "cd"]

    def runs(word: str) -> dict[str, int]:
        word = f"<{word}>"
        parts = [word[i : i + n] for n in (2, 3) for i in range(len(word) - n + 1)]
        return {part: parts.count(part) for part in parts}

    def cosine(a: dict[str, int], b: dict[str, int]) -> float:
        dot = sum(a[part] * b.get(part, 0) for part in a)
        return dot / np.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))

    expected = np.mean([cosine(runs(a), runs(b)) for a, b in combinations(labels, 2)])
    assert lexical(np.array([[0, 1, 2]]), labels)[0] == pytest.approx(expected, abs=1e-12)


def windows(text: np.ndarray, size: int) -> list[set[int]]:
    return [set(text[i : i + size].tolist()) for i in range(max(1, len(text) - size + 1))]


def test_npmi_equals_the_formula_over_all_windows_of_all_texts() -> None:
    texts = [RNG.integers(0, 12, n) for n in (400, 3, 90, 1)]
    lists = np.array([[0, 3, 5], [1, 2, 11]])
    counter = Counter(lists, 13, window=4)
    for text in texts:
        counter.add(text)
    found, pairs = npmi(lists, counter.counts)
    seen = [w for text in texts for w in windows(text, 4)]
    assert counter.counts.windows == len(seen)
    for row, ids in enumerate(lists):
        values = []
        for a, b in combinations(ids, 2):
            p_a, p_b = (np.mean([x in w for w in seen]) for x in (a, b))
            p_ab = np.mean([a in w and b in w for w in seen]) + 1e-12
            values.append(np.log(p_ab / (p_a * p_b)) / -np.log(p_ab))
        assert found[row] == pytest.approx(np.mean(values), abs=1e-9)
    assert pairs.tolist() == [3, 3]


def test_npmi_is_one_for_companions_and_lowest_for_strangers_and_undefined_for_the_absent() -> None:
    text = np.array([0, 1] + [9] * 50 + [2] + [9] * 50)
    lists = np.array([[0, 1], [0, 2], [0, 3]])
    counter = Counter(lists, 10, window=5)
    counter.add(text)
    found, pairs = npmi(lists, counter.counts)
    # 0 and 1 stand at the text's edge: 0 in one window, 1 in two; together in one.
    total = len(text) - 4
    assert found[0] == pytest.approx(np.log(total / 2) / np.log(total), abs=1e-9)
    assert -1 <= found[1] < -0.5
    assert np.isnan(found[2])
    assert pairs.tolist() == [1, 1, 0]


def test_sub_words_count_at_the_place_of_their_word() -> None:
    """Two words of three tokens each: within a window of two words although five tokens apart."""
    starts = np.array([True, False, False, True, False, False, True])
    text = np.array([0, 1, 2, 3, 4, 5, *[6] * 20])
    lists = np.array([[0, 5]])
    plain, merged = Counter(lists, 7, window=2), Counter(lists, 7, window=2, starts=starts)
    for counter in (plain, merged):
        counter.add(text)
    assert plain.counts.pairs.toarray()[0, 1] == 0
    assert merged.counts.pairs.toarray()[0, 1] == 1
    assert merged.counts.windows == 21


def test_counting_in_steps_is_counting_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text, lists = RNG.integers(0, 30, 500), np.arange(20)[None]
    whole = Counter(lists, 30, window=6)
    whole.add(text)
    monkeypatch.setattr("covector.linalg.npmi.WORDS", 37)
    steps = Counter(lists, 30, window=6)
    steps.add(text)
    np.testing.assert_array_equal(whole.counts.pairs.toarray(), steps.counts.pairs.toarray())
    with pytest.raises(BadRequest, match="not counted"):
        npmi(np.array([[0, 29]]), whole.counts)
