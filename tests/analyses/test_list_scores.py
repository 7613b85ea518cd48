"""The scores of a place and the written rule: power on planted concepts, silence on noise, and honesty in between."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import covector
from covector.analyses.labels import labelled, nulls_needed, tokens_themselves
from covector.analyses.score import (
    ALIGNED,
    INTERPRETABLE,
    ScoreNulls,
    Scores,
    judged,
    rule_text,
    score_lists,
    score_nulls,
    verdict_text,
)
from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.chance import haar_directions, haar_frame, rotate_inside
from covector.linalg.chance.lists import basis_lists
from covector.linalg.dictionary import Dictionary, Lists, dictionary
from covector.linalg.npmi import Counter
from covector.model.bases import undertrained

D, TOPICS, SIZE, DRAWS = 48, 30, 60, 1000


def vocabulary() -> tuple[Dictionary, np.ndarray]:
    """3000 vectors: 30 topics of 60 related ones (mean pairwise cosine .4), the rest alone; topics' unit centres."""
    rng = np.random.default_rng(0)
    centres = haar_directions(TOPICS, D, seed=1)
    alone = haar_directions(3000, D, seed=2)
    vectors = alone.copy()
    vectors[: TOPICS * SIZE] = np.sqrt(0.4) * np.repeat(centres, SIZE, axis=0) + np.sqrt(0.6) * alone[: TOPICS * SIZE]
    return dictionary(vectors * rng.uniform(0.8, 1.2, (3000, 1)), covariate=rng.permutation(3000)), centres


@pytest.fixture(scope="module")
def words() -> Dictionary:
    return vocabulary()[0]


@pytest.fixture(scope="module")
def nulls(words: Dictionary) -> ScoreNulls:
    return score_nulls(words, draws=DRAWS, seed=0)


def towards(strength: float, count: int = 3) -> np.ndarray:
    """Unit directions whose cosine with a topic's centre is about `strength`, `count` per topic."""
    centres = np.repeat(vocabulary()[1], count, axis=0)
    return strength * centres + np.sqrt(1 - strength**2) * haar_directions(len(centres), D, seed=3)


def scored(directions: np.ndarray, words: Dictionary, nulls: ScoreNulls, stable: float = 1.0) -> Scores:
    stability = np.full(len(directions), stable)
    return score_lists(directions, words.lists(directions), words, nulls, stability=stability, seed=0)


def test_the_rule_calls_most_of_strong_planted_concepts(words: Dictionary, nulls: ScoreNulls) -> None:
    scores = scored(towards(0.65), words, nulls)
    assert judged(scores).interpretable.mean() > 0.8
    assert np.median(scores.z) > 3


def test_the_rule_calls_next_to_nothing_among_random_directions(words: Dictionary, nulls: ScoreNulls) -> None:
    verdict = judged(scored(haar_directions(900, D, seed=11), words, nulls))
    # All claims are false here, so BH at 5 % makes any with probability 5 % only; two is beyond that.
    assert verdict.interpretable.sum() <= 2
    assert verdict.aligned.sum() <= 2


def test_more_of_the_concept_is_more_effect(words: Dictionary, nulls: ScoreNulls) -> None:
    effects = [np.median(scored(towards(s), words, nulls).z) for s in (0.0, 0.3, 0.45, 0.6)]
    assert effects == sorted(effects)
    assert effects[-1] > effects[0] + 2.5


def test_a_direction_that_is_its_own_topic_is_marked_and_not_denied(words: Dictionary, nulls: ScoreNulls) -> None:
    """Means of all 60 vectors of a topic: their lists share the direction and nothing beyond it."""
    means = words.judged[: TOPICS * SIZE].reshape(TOPICS, SIZE, D).mean(axis=1).astype(np.float64)
    assert words.pull is not None
    directions = np.linalg.solve(words.pull, means.T).T  # seen in the judging metric they are the means
    scores = scored(directions / np.linalg.norm(directions, axis=1, keepdims=True), words, nulls)
    verdict = judged(scores)
    assert np.median(scores.z) < 1
    assert np.median(scores.z_whole) > 4
    assert verdict.aligned.mean() > 0.8
    assert not (verdict.aligned & verdict.interpretable).any()
    assert "which the rule cannot judge" in verdict_text(verdict, scores)


def test_every_clause_is_needed(words: Dictionary, nulls: ScoreNulls) -> None:
    scores = scored(towards(0.65), words, nulls)
    for spoiled in (
        replace(scores, stability=np.full(90, 0.89)),
        replace(scores, stability=np.full(90, np.nan)),
        replace(scores, heldout_low=np.full(90, 0.5)),
        replace(scores, p_dir=np.full(90, 0.06)),
    ):
        assert not judged(spoiled).interpretable.any()
    assert rule_text(INTERPRETABLE) == "q_coherence < 0.05, heldout_low > 0.5, stability >= 0.9"
    assert rule_text(ALIGNED).startswith("q_whole < 0.05, carried >= 0.5")


def test_q_of_a_larger_family_is_used_where_given(words: Dictionary, nulls: ScoreNulls) -> None:
    scores = scored(towards(0.65), words, nulls)
    assert not judged(scores, q_coherence=np.full(90, 0.2)).interpretable.any()
    with pytest.raises(SpaceMismatch, match="one q per direction"):
        judged(scores, q_coherence=np.zeros(3))


def test_directions_found_in_a_subspace_of_topics_are_specific_and_rotated_ones_are_not(
    words: Dictionary, nulls: ScoreNulls
) -> None:
    """A subspace of 6 noisy topic directions: they themselves, and another orthonormal basis of what they span."""
    topical = np.linalg.qr(towards(0.65, 1)[:6].T)[0].T
    topical = topical * np.sign(np.sum(topical * towards(0.65, 1)[:6], axis=1))[:, None]
    within = basis_lists(words, topical, draws=1200, seed=0, intruders=True)
    lists = words.lists(topical)
    found = score_lists(topical, lists, words, nulls, within=within, stability=np.ones(6))
    turned = rotate_inside(topical, seed=4)
    other = score_lists(turned, words.lists(turned), words, nulls, within=within, stability=np.ones(6))
    assert found.p_basis < 0.05 < other.p_basis
    assert np.median(found.p_svd) < 0.2 < np.median(other.p_svd)
    assert np.isnan(scored(topical, words, nulls).p_svd).all()


def test_the_text_says_when_rotated_bases_score_alike(words: Dictionary, nulls: ScoreNulls) -> None:
    scores = replace(scored(towards(0.65), words, nulls), p_svd=np.full(90, 0.4))
    said = verdict_text(judged(scores), scores)
    assert "0 of these also against random bases" in said
    assert "Rotated bases of this place score like its singular vectors" in said
    specific = replace(scores, p_svd=np.full(90, 1e-4))
    assert "Rotated bases" not in verdict_text(judged(specific), specific)
    assert "not defined here" in verdict_text(
        judged(replace(scores, p_svd=np.full(90, np.nan))), scored(towards(0.65), words, nulls)
    )


def test_spellings_score_as_spellings_and_not_as_coherence(words: Dictionary) -> None:
    """Topic 0's labels are synonyms; 60 labels with one stem belong to vectors that have nothing in common."""
    rng = np.random.default_rng(6)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    labels = ["".join(rng.choice(letters, 6)) for _ in range(3000)]
    alone = np.arange(TOPICS * SIZE, TOPICS * SIZE + 20)
    for i in alone:
        labels[i] = "writ" + labels[i][:2]
    nulls = score_nulls(words, labels=tuple(labels), draws=500, seed=0)
    direction = towards(0.65, 1)[:1]
    lists = words.lists(direction)
    top = np.concatenate([alone, lists.top[0, 20:]])[None]
    spelled = score_lists(direction, replace(lists, top=top, bottom=top), words, nulls, labels=tuple(labels))
    meant = score_lists(direction, lists, words, nulls, labels=tuple(labels))
    assert spelled.p_lexical[0] < 0.005
    assert spelled.p_dir[0] > 0.05
    assert meant.p_lexical[0] > 0.05
    assert meant.p_dir[0] < 0.005


def test_npmi_is_scored_where_a_corpus_was_counted(words: Dictionary) -> None:
    """Texts about one topic each: members of a topic's list meet, those of random lists do not."""
    rng = np.random.default_rng(2)
    bare = score_nulls(words, draws=300, seed=0)
    direction = towards(0.65, 1)[:5]
    counted = np.concatenate([bare.p_dir.scores.members[:, :20].ravel(), words.lists(direction).top[:, :20].ravel()])
    counted = np.concatenate([counted, words.lists(direction).bottom[:, :20].ravel()])
    counter = Counter(counted[None], 3000, window=10)
    for topic in range(TOPICS):
        for _ in range(20):
            counter.add(rng.integers(topic * SIZE, (topic + 1) * SIZE, 60))
    counter.add(rng.integers(0, 3000, 20_000))
    nulls = score_nulls(words, cooccurrence=counter.counts, draws=300, seed=0)
    scores = score_lists(direction, words.lists(direction), words, nulls, cooccurrence=counter.counts)
    assert np.median(scores.p_npmi) < 0.02
    assert (scores.npmi_pairs > 150).all()


def test_scores_do_not_depend_on_what_else_is_scored(words: Dictionary, nulls: ScoreNulls) -> None:
    directions = towards(0.5)
    whole, part = scored(directions, words, nulls), scored(directions[40:60], words, nulls)
    for name in ("coherence", "heldout", "intruder", "p_dir", "whole"):
        # Products with the metric are taken for many directions at a time: the last bits depend on how many.
        np.testing.assert_allclose(getattr(part, name), getattr(whole, name)[40:60], rtol=0, atol=1e-13)


def test_the_pole_is_where_the_concept_is(words: Dictionary, nulls: ScoreNulls) -> None:
    directions = towards(0.65, 1)
    assert (scored(directions, words, nulls).pole == 1).mean() > 0.9
    assert (scored(-directions, words, nulls).pole == -1).mean() > 0.9


def test_what_is_interpretable_is_not_called_aligned_as_well(words: Dictionary, nulls: ScoreNulls) -> None:
    scores = scored(towards(0.65), words, nulls)
    both = replace(scores, p_whole=np.full(90, 1e-4), carried=np.full(90, 0.6))
    verdict = judged(both)
    np.testing.assert_array_equal(verdict.aligned, ~verdict.interpretable)


def test_turning_a_direction_around_swaps_its_poles_and_changes_no_score(words: Dictionary, nulls: ScoreNulls) -> None:
    directions = towards(0.5)[:20]
    one, other = scored(directions, words, nulls), scored(-directions, words, nulls)
    np.testing.assert_array_equal(one.pole, -other.pole)
    for name in ("coherence", "heldout", "p_dir", "whole", "intruder"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-12)


def test_a_trained_models_lists_are_scored() -> None:
    model = covector.open("demo-lm")
    basis = model.bases["token_out"]
    words = dictionary(basis.vectors, keep=basis.usable & ~undertrained(basis))
    nulls = score_nulls(words, labels=basis.labels, draws=500, seed=0)
    found = covector.svd(model.map("L2H0.ov"))
    scores = score_lists(found.Vh, words.lists(found.Vh), words, nulls, labels=basis.labels)
    for name in ("coherence", "p_dir", "p_cov", "heldout", "intruder", "lexical", "whole"):
        assert np.isfinite(getattr(scores, name)).all(), name


def excess(p: np.ndarray, draws: int, level: float) -> float:
    """How far P(p <= level) lies above it, in standard errors of both samples: of these p and of the null's draws."""
    return (np.mean(p <= level) - level) / np.sqrt(level * (1 - level) * (1 / len(p) + 1 / draws))


def least_alike(p: np.ndarray, draws: int) -> float:
    """Fisher's exact p, least over the values that a counted p takes: observations that reach it against draws."""
    reached = [(np.sum(p <= value), round(value * (draws + 1)) - 1) for value in np.unique(p)]
    return min(stats.fisher_exact([[seen, len(p) - seen], [null, draws - null]]).pvalue for seen, null in reached)


@pytest.fixture(scope="module")
def trained() -> tuple[Dictionary, ScoreNulls, tuple[str, ...]]:
    basis = covector.open("demo-lm").bases["token_out"]
    words = dictionary(basis.vectors, keep=basis.usable & ~undertrained(basis))
    return words, score_nulls(words, labels=basis.labels, draws=2000, seed=0), basis.labels


def test_random_directions_of_a_trained_vocabulary_earn_small_p_no_oftener_than_told(
    trained: tuple[Dictionary, ScoreNulls, tuple[str, ...]],
) -> None:
    """Of intruders, held-out detection and spelling, whose lists are those of the pole that was chosen by looking."""
    words, nulls, labels = trained
    rows = haar_directions(4000, words.vectors.shape[1], seed=21)
    scores = score_lists(rows, words.lists(rows), words, nulls, labels=labels, seed=0)
    for p in (scores.intruder_p, scores.p_heldout, scores.p_lexical):
        # At .01 four standard errors are .011: of the null's 2000 draws and of these 4000 directions.
        assert max(excess(p, 2000, level) for level in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)) < 4
    for p in (scores.p_heldout, scores.p_lexical):
        assert min(excess(p, 2000, level) for level in (0.01, 0.05, 0.2, 0.5)) > -4
    assert least_alike(scores.intruder_p, 2000) > 1e-4
    assert scores.intruder_p.min() >= 1 / 2001
    guessed = stats.binom.sf(np.round(5 * scores.intruder) - 1, 5, scores.intruder_chance)
    assert excess(guessed, 2000, 0.01) > 4, "lists of random directions do better than guessing"


def test_directions_of_the_other_nulls_are_held_against_their_like(
    trained: tuple[Dictionary, ScoreNulls, tuple[str, ...]],
) -> None:
    """Those of the labels' covariance find more strangers than Haar ones do; and random bases of a subspace."""
    words, nulls, labels = trained
    units = words.units[words.keep].astype(np.float64)
    rows = np.random.default_rng(5).standard_normal((2000, len(units))) @ units
    scores = score_lists(rows, words.lists(rows), words, nulls, labels=labels, seed=0)
    assert least_alike(scores.intruder_p_cov, 2000) > 1e-4
    for p in (scores.p_heldout_cov, scores.p_lexical_cov):
        assert max(abs(excess(p, 2000, level)) for level in (0.01, 0.05, 0.2, 0.5)) < 4
    assert excess(scores.intruder_p, 2000, 0.05) > 4
    basis = np.linalg.qr(units[:8].T)[0].T
    within = basis_lists(words, basis, draws=2000, seed=0, intruders=True)
    turned = np.stack([rotate_inside(basis, seed=i)[0] for i in range(1000)])
    scores = score_lists(turned, words.lists(turned), words, nulls, within=within, labels=labels, seed=0)
    assert least_alike(scores.intruder_p_svd, 2000) > 1e-4
    for p in (scores.p_heldout_svd, scores.p_lexical_svd):
        # Of eight dimensions a part of the lists is told from others without an error: there p is too large.
        assert max(excess(p, 2000, level) for level in (0.01, 0.05, 0.2, 0.5)) < 4
        assert min(excess(p, 2000, level) for level in (0.2, 0.5)) > -4
    assert max(excess(p, 2000, 0.2) for p in (scores.p_heldout, scores.p_lexical)) > 4, "another subspace's null"


def test_strangers_in_planted_lists_are_found_oftener_than_in_lists_of_random_directions(
    words: Dictionary, nulls: ScoreNulls
) -> None:
    """Lists of one topic each; the directions are random and have no part in it."""
    topics = np.arange(TOPICS * SIZE).reshape(TOPICS, SIZE)[:, : words.length]
    rows = haar_directions(TOPICS, D, seed=12)
    planted = score_lists(rows, Lists(topics, topics), words, nulls, seed=0).intruder_p
    assert np.mean(planted < 0.02) > 0.8
    assert np.mean(scored(rows, words, nulls).intruder_p < 0.02) < 0.02 + 4 * np.sqrt(0.02 / TOPICS)


def test_null_lists_are_named_blind_and_counted() -> None:
    real = [[f"city{i}", f"town{i}", "x"] for i in range(14)]
    fake = [[f"q{i}", f"z{i}", "x"] for i in range(6)]
    seen: list[str] = []

    def labeller(words: tuple[str, ...]) -> str:
        seen.append(words[0])
        return "places" if words[0].startswith("city") or words[0] in ("q1", "q4") else " "

    found = labelled(real, fake, labeller, seed=1)
    assert nulls_needed(14) == 6
    assert found.labels == ("places",) * 14
    assert [bool(name) for name in found.null_labels] == [False, True, False, False, True, False]
    assert found.false_rate == pytest.approx(1 / 3)
    # Clopper–Pearson of 2 in 6, from tables.
    assert (found.low, found.high) == pytest.approx((0.0433, 0.7772), abs=5e-5)
    kinds = [word.startswith("city") for word in seen]
    assert len(seen) == 20
    assert kinds != sorted(kinds, reverse=True)
    assert kinds != sorted(kinds)


def test_tokens_themselves_claim_nothing() -> None:
    found = labelled([["·a", "b", "c", "d"]], [["e", "f", "g", "h"]])
    assert found.labels == ("·a, b, c",)
    assert found.false_rate == 1
    assert tokens_themselves([" x ", "y"]) == "x, y"


def test_too_few_or_shorter_null_lists_are_refused() -> None:
    with pytest.raises(BadRequest, match="at least 6 null lists beside 14, came 5"):
        labelled([["a"]] * 14, [["b"]] * 5)
    with pytest.raises(BadRequest, match="as long as the real ones"):
        labelled([["a", "b"]], [["b"]])
    with pytest.raises(BadRequest, match="returns text"):
        labelled([["a"]], [["b"]], lambda words: None)  # type: ignore[arg-type,return-value]


def test_random_frames_of_the_stream_are_not_called(words: Dictionary, nulls: ScoreNulls) -> None:
    frame = haar_frame(D, D, seed=8)
    verdict = judged(scored(frame, words, nulls))
    assert verdict.interpretable.sum() <= 1
