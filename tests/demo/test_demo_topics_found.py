"""docs/what-is-found.md is what its program prints, and the program's own nulls and power are as they should be."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import covector
from covector.demo.corpus import load_truth
from covector.io.atlas import Atlas
from covector.model.opened import Model
from known_truths import (
    LEVEL,
    PAGE,
    Concept,
    Traced,
    arrays_of,
    atlas_of,
    concept_lines,
    concepts,
    count_text,
    facts,
    heldout,
    line_text,
    rotated_internals,
    traced,
    with_arrays,
)


@pytest.fixture(scope="module")
def demo() -> Model:
    return covector.open("demo-lm")


@pytest.fixture(scope="module")
def atlas(demo: Model, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return atlas_of(demo, tmp_path_factory.mktemp("demo") / "a")


@pytest.fixture(scope="module")
def known(demo: Model, atlas: Atlas) -> Traced:
    return Traced(demo, atlas)


@pytest.fixture(scope="module")
def named(demo: Model) -> dict[str, Concept]:
    return {concept.name: concept for concept in concepts(demo)}


def table() -> list[str]:
    """The rows of the table of concepts, as they stand on the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if "| nearest direction |" in line) + 2
    return lines[first : first + lines[first:].index("")]


def test_the_concepts_are_those_of_the_truth(demo: Model, named: dict[str, Concept]) -> None:
    truth, labels = load_truth(), demo.bases["token_in"].labels
    for topic, words in truth.data["topics"].items():
        assert {labels[i] for i in named[topic].weights} == {f" {w}" for w in words} & set(labels)
        assert len(named[topic].weights) >= 0.75 * len(words)
    pronouns = {labels[i]: weight for i, weight in named["she − he"].weights.items()}
    assert pronouns == {" she": 1, " her": 1, " She": 1, " he": -1, " him": -1, " his": -1, " He": -1}


def test_a_row_of_the_page_is_what_the_program_prints(demo: Model, known: Traced, named: dict[str, Concept]) -> None:
    rows = {row.split("|")[1].strip(): row for row in table()}
    assert list(rows) == list(named)
    for name in ("school", "sea", "she − he"):
        line = traced(known, named[name])
        found = rows[name].endswith("| yes |")
        # All but the verdict, which needs the q of the whole table.
        assert line_text(line, 0.0 if found else 1.0) == rows[name]


def test_the_page_counts_its_own_rows(demo: Model) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert count_text(table(), [concept.kind for concept in concepts(demo)]) in page.splitlines()


def test_the_cosine_on_the_page_is_that_of_dense_algebra(demo: Model, named: dict[str, Concept]) -> None:
    """ "school": the mean of its centred unit vectors against the singular vectors of L3H0, from the weights."""
    row = next(row for row in table() if row.startswith("| school |"))
    place, side = row.split("|")[3].split()
    assert place.startswith("L3H0.ov:")
    assert side == "write"
    E = np.asarray(demo.weights["W_E"], dtype=np.float64)
    centred = E - E.mean(axis=0)
    ids = list(named["school"].weights)
    mean = (centred[ids] / np.linalg.norm(centred[ids], axis=1, keepdims=True)).sum(axis=0)
    W_V, W_O = (np.asarray(demo.weights[f"L3.W_{r}"], dtype=np.float64)[0] for r in "VO")
    v = np.linalg.svd(W_V @ W_O)[2][int(place.rpartition(":")[2])]
    assert abs(v @ mean) / np.linalg.norm(mean) == pytest.approx(float(row.split("|")[4]), abs=0.006)


def test_lists_that_mean_nothing_have_uniform_p(known: Traced, named: dict[str, Concept]) -> None:
    """Random lists of topic words in place of a topic: p <= .05 for one in twenty, as for its own null."""
    rng, among = np.random.default_rng(4), named["sea"].among
    assert among is not None
    p = np.array(
        [
            traced(known, Concept(f"nothing {i}", "topic", dict.fromkeys(ids.tolist(), 1.0), among), groups=99).p
            for i, ids in enumerate(rng.choice(among, 13, replace=False) for _ in range(80))
        ]
    )
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert (p <= LEVEL).sum() <= stats.binom.isf(1e-4, len(p), LEVEL)


def test_a_topic_that_no_direction_carries_is_found_once_a_head_writes_it(
    demo: Model, named: dict[str, Concept], known: Traced, tmp_path: Path
) -> None:
    """Power, beside the calibration above: the same line says no of the trained model and yes of the planted one."""
    sea = named["sea"]
    assert traced(known, sea).p > LEVEL
    weights = np.zeros((1, len(known.tokens)))
    weights[0, list(sea.weights)] = 1.0
    wanted = weights[0] @ known.tokens
    arrays = arrays_of(demo)
    W_O = arrays["L1.W_O"].copy()
    gain = 3 * np.linalg.norm(W_O[2], 2)
    inner = np.ones(W_O.shape[1]) / np.sqrt(W_O.shape[1])
    W_O[2] += gain * np.outer(inner, wanted / np.linalg.norm(wanted))
    planted = with_arrays(demo, arrays | {"L1.W_O": W_O})
    line = traced(Traced(planted, atlas_of(planted, tmp_path / "a", kinds=("ov",))), sea)
    assert (line.place, line.side) == ("L1H2.ov:0", "write")
    assert line.p == 1 / 1000
    assert line.beyond >= 1
    assert line.auc > 0.9


def test_rotated_blocks_carry_no_topic(demo: Model, tmp_path: Path) -> None:
    turned = rotated_internals(demo, 5)
    lines = concept_lines(turned, atlas_of(turned, tmp_path / "a"), groups=199)
    # 38 concepts share one rotation and one embedding: a handful together is one accident.
    assert sum(line.endswith("| yes |") for line in lines) <= 2


def test_the_auc_is_one_half_for_directions_that_know_nothing_and_one_for_the_truth(
    known: Traced, named: dict[str, Concept]
) -> None:
    school = named["school"]
    ids, ones = np.array(list(school.weights)), np.ones(len(school.weights))
    truth = known.tokens[ids].sum(axis=0)
    assert heldout(known.with_rows(truth[None]), school, ids, ones) == 1.0
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        some = rng.choice(np.array(school.among), len(ids), replace=False)
        concept = dataclasses.replace(school, weights=dict.fromkeys(some.tolist(), 1.0))
        found.append(heldout(known.with_rows(rng.standard_normal((1, known.tokens.shape[1]))), concept, some, ones))
    # The pole is chosen by the first half, the words left over are others: nothing is selected twice.
    assert abs(np.mean(found) - 0.5) < 4 * np.std(found) / np.sqrt(len(found))


def test_heads_join_facts_in_the_trained_model_and_not_once_rotated(demo: Model) -> None:
    joined = facts(demo, shuffles=199)
    assert joined.pairs >= 30
    assert joined.right > 2 * joined.by_chance
    assert joined.p_head == 1 / 200
    turned = facts(rotated_internals(demo, 2), shuffles=199)
    assert turned.p_head > 0.01
    assert turned.right < joined.right
