"""Relations: a planted one is found in its head, permuted targets are its null, bad pairs are told."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import covector
from covector.analyses.relation import relation
from covector.arch.toy import TOYS, Plant, planted
from covector.errors import BadRequest
from covector.model.opened import Model

PAIRS = [(" cat", " meow"), (" dog", " bark"), (" cow", " moo")]
LABELS = TOYS["toy"]()[1]


def animals(sign: float = 1.0) -> Model:
    """L0H1 sends three animals to their sounds, with a sign; L0H0 is random."""
    weights = planted([Plant(0, 1, sign * 3.0), Plant(2, 3, sign * 2.0), Plant(4, 5, sign)], "L0H1.ov")
    return Model("animals", weights, weights, labels={"token": LABELS})


def by_head(model: Model, pairs: list = PAIRS, **given: object) -> dict:
    return {r["head"]: r for r in relation(model, pairs, **given).rows}


def test_the_planted_head_sends_every_animal_to_its_sound_and_no_other_does() -> None:
    rows = by_head(animals(), k=1)
    assert rows["L0H1"]["reach"] == 1.0
    assert rows["L0H1"]["suppress"] == 0.0
    assert rows["L0H0"]["reach"] < 1.0


def test_the_sign_flipped_is_suppression() -> None:
    rows = by_head(animals(-1.0), k=1)
    assert (rows["L0H1"]["reach"], rows["L0H1"]["suppress"]) == (0.0, 1.0)


def test_the_other_way_round_is_another_relation() -> None:
    rows = by_head(animals(), [(t, s) for s, t in PAIRS], k=1)
    assert rows["L0H1"]["reach"] == 0.0


def test_p_is_the_share_of_permutations_that_do_as_well() -> None:
    """Three pairs have six permutations; the planted table of hits is diagonal, so one of them does as well."""
    row = by_head(animals(), k=1, draws=20_000)["L0H1"]
    hits = np.eye(3)
    every = [hits[np.arange(3), list(p)].mean() for p in permutations(range(3))]
    assert row["reach_chance"] == pytest.approx(np.mean(every), rel=1e-12)
    assert row["reach_p"] == pytest.approx(
        np.mean(np.array(every) >= 1), abs=4 * np.sqrt(1 / 6 * 5 / 6 / 20_000) + 1e-4
    )
    assert row["reach_p_max"] >= row["reach_p"] - 1e-12


def test_a_head_that_always_writes_the_same_word_carries_no_relation() -> None:
    weights = planted([Plant(0, 1, 3.0)], "L0H1.ov")
    tokens = weights["W_E"]
    read, write = np.zeros((2, 16, 8)), np.zeros((2, 8, 16))
    read[1, :, 0], write[1, 0] = tokens[[0, 2, 4]].sum(axis=0), tokens[1]
    from covector.model.weights import ArrayWeights

    same = ArrayWeights(weights.spec, dict(weights.arrays) | {"L0.W_V": read, "L0.W_O": write})
    model = Model("same", same, same, labels={"token": LABELS})
    row = by_head(model, [*PAIRS[1:], (" cat", " meow")], k=1)["L0H1"]
    # The word is one of the targets: every permutation hits it once.
    assert row["reach"] == row["reach_chance"] == pytest.approx(1 / 3)
    assert row["reach_p"] == 1.0


def test_pairs_come_from_a_file_with_tabs_or_commas_and_bare_words_get_their_space(tmp_path: Path) -> None:
    tabs, commas = tmp_path / "a.tsv", tmp_path / "b.csv"
    tabs.write_text("cat\tmeow\n\n dog\t bark\n·cow\tmoo\nunicorn\tsparkle\n", encoding="utf-8")
    commas.write_text("cat,meow\ndog,bark\ncow,moo\n", encoding="utf-8")
    known = LABELS
    direct = relation(animals(), PAIRS, k=1)
    assert relation(animals(), commas, k=1).meta["pairs"] == direct.meta["pairs"] == [list(p) for p in PAIRS]
    found = relation(animals(), tabs, k=1)
    assert "unicorn → sparkle" in found.meta["left_out"]
    assert "left out" in found.not_says
    assert known == LABELS


@pytest.mark.parametrize(
    ("text", "told"),
    [("cat meow\n", "line 1: expected source, tab, target; got 1 columns"),
     ("cat\tmeow\n", "expected at least 2 pairs of single tokens, got 1 of 1"),
     ("x\ty\nu\tv\n", r"got 0 of 2 \(left out: x → y, u → v\)")],
)  # fmt: skip
def test_a_file_that_holds_no_pairs_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadRequest, match=told):
        relation(animals(), path)
    with pytest.raises(BadRequest, match=r"expected a file of pairs at '.*gone': No such file"):
        relation(animals(), tmp_path / "gone")


def test_impossible_requests_say_what_is_possible() -> None:
    with pytest.raises(BadRequest, match="expected 1 <= k < 12 labels of token_out, got 12"):
        relation(animals(), PAIRS, k=12)
    with pytest.raises(BadRequest, match="expected draws >= 100"):
        relation(animals(), PAIRS, draws=1)


def test_an_agent_has_no_relations_between_words() -> None:
    from covector.arch.toy import random_model

    with pytest.raises(BadRequest, match="reads and writes the same labels"):
        relation(covector.open(random_model(agent="interleaved", positions="none")), PAIRS)


def test_random_heads_carry_no_relation() -> None:
    """p ≤ .05 in 5 % of heads at the most: permutations are exact, ties make them conservative."""
    from random_checkpoints import random_model

    labels = tuple(f" word{i}" for i in range(61))
    pairs = [(f" word{i}", f" word{i + 30}") for i in range(20)]
    tables = [relation(random_model("gpt2", seed, labels={"token": labels}), pairs, draws=400) for seed in range(15)]
    p = np.concatenate([t["reach_p"] for t in tables])
    assert np.mean(p <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / len(p))
