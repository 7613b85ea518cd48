"""Which pairs of prompts are one piece of evidence, and which fields of a file are their two texts."""

import json
from pathlib import Path

import numpy as np
import pytest

import covector
from covector.analyses.held_out import split_filled, split_pairs
from covector.analyses.patch import patch
from covector.analyses.steer_setup import halves
from covector.cli.main import run
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.run.clusters import clusters_of, counted, names_of, no_interval, pairs_told
from covector.run.prompts import Pair, fill_template, read_pairs

# Clusters by hand: 0–3 go together through Max and Bob, 4 alone, 5 and 6 through Jack (once clean, once corrupt).
NAMES = [("Sara", "Max"), ("Sara", "Bob"), ("Mia", "Bob"), ("Sue", "Max"), ("Lily", "Tim"), ("Lucy", "Jack"),
         ("Jack", "Tom")]  # fmt: skip
WANTED = [0, 0, 0, 0, 1, 2, 2]
FRAMES = ("{} was sad because", "Then {} ran, so")


def told(names: tuple[str, str], frame: str = FRAMES[0], given: bool = False, i: int = 0) -> Pair:
    clean, corrupt = (frame.format(name) for name in names)
    return Pair((i, 1), (i, 2), {"end": 1}, (clean, corrupt), names if given else ("", ""))


def joined(pairs: list[set[str]]) -> np.ndarray:
    """Whether two pairs are joined over shared marks: the transitive closure by powers of the matrix of sharing."""
    M = np.array([[float(bool(a & b)) for b in pairs] for a in pairs])
    return np.linalg.matrix_power(M, len(pairs)) > 0


@pytest.fixture(scope="module")
def demo() -> Model:
    return covector.open("demo-lm")


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("frames", [FRAMES[:1], FRAMES])
def test_pairs_that_share_a_name_are_one_cluster(given: bool, frames: tuple[str, ...]) -> None:
    pairs = [told(names, frame, given) for frame in frames for names in NAMES]
    assert clusters_of(pairs).tolist() == WANTED * len(frames)
    assert counted(pairs) == "3 groups of names"


@pytest.mark.parametrize("seed", range(6))
def test_clusters_are_the_transitive_closure_of_sharing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [told((f"n{a}", f"n{b}"), given=True) for a, b in rng.integers(0, 14, (12, 2)) if a != b]
    got = clusters_of(pairs)
    np.testing.assert_array_equal(got[:, None] == got, joined([set(p.names) for p in pairs]))


def test_names_are_the_words_in_which_texts_differ() -> None:
    assert names_of(told(("Sara", "Max"))) == (("Sara",), ("Max",))
    assert names_of(told(("old Sara", "Max"))) == (("old Sara",), ("Max",))
    two = Pair((1,), (2,), {"end": 0}, ("Ann and Bo met, Ann left", "Cy and Bo met, Di left"))
    assert names_of(two) == (("Ann", "Ann"), ("Cy", "Di"))
    same = Pair((1,), (1,), {"end": 0}, ("Ann left", "Ann left"))
    assert names_of(same) == ((), ())


def test_without_names_equal_texts_go_together() -> None:
    texts = ["one", "two", "one", "three"]
    pairs = [Pair((1,), (1,), {"end": 0}, (t, t), label="the same") for t in texts]
    assert clusters_of(pairs).tolist() == [0, 1, 0, 2]
    assert pairs_told(pairs) == "4 pairs of 3 texts"


def test_names_of_several_slots_are_shared_one_by_one(demo: Model) -> None:
    """What stands on both sides of a pair is no name of it."""
    fills = {"A": (["Mary", "Lisa", "Emma"], ["John", "Mark", "Paul"]), "B": (["Tom", "Tom", "John"],) * 2}
    form = "Yesterday [A] met [B] because"
    pairs = fill_template(demo, form, fills)
    assert clusters_of(pairs).tolist() == [0, 1, 2]
    # John is corrupt in the first pair and clean in the third.
    fills["B"] = (["Tom", "Jack", "John"], ["Mary", "Kate", "Laura"])
    assert clusters_of(fill_template(demo, form, fills)).tolist() == [0, 1, 0]


def lines(tmp_path: Path, *values: dict) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    return file


def test_a_file_gives_names(tmp_path: Path, demo: Model) -> None:
    both = {
        "clean": "Yesterday Mary was happy because",
        "corrupt": "Yesterday John was happy because",
        "label": "happy",
    }
    pairs = read_pairs(demo, lines(tmp_path, both | {"names": ["a", "b"]}, both | {"names": ["c"]}, both))
    assert [p.names for p in pairs] == [("a", "b"), ("c", "c"), ("", "")]
    assert clusters_of(pairs).tolist() == [0, 1, 2]  # texts are equal, but what names say counts
    assert {p.label for p in pairs} == {
        "happy",
    }
    for bad in (["a", "b", "c"], ["a", 1], 7, {"a": "b"}, ["a", ""]):
        with pytest.raises(BadRequest, match=r"line 1: expected 'names' as \[\"clean name\", \"corrupt name\"\], got"):
            read_pairs(demo, lines(tmp_path, both | {"names": bad}))


@pytest.mark.parametrize(("clean", "corrupt"), [("female_prompt", "male_prompt"), ("original", "counterfactual")])
def test_other_names_of_the_two_fields_are_known(tmp_path: Path, demo: Model, clean: str, corrupt: str) -> None:
    texts = ("Yesterday Mary was happy because", "Yesterday John was happy because")
    (pair,) = read_pairs(demo, lines(tmp_path, {"kind": "x", corrupt: texts[1], clean: texts[0]}))
    assert pair.texts == texts


def test_fields_that_could_be_several_are_refused(tmp_path: Path, demo: Model) -> None:
    with pytest.raises(
        BadRequest, match=r"got first, second; rename two: jq -c '\{clean: \.first, corrupt: \.second\}'"
    ):
        read_pairs(demo, lines(tmp_path, {"first": "a", "second": "b"}))
    with pytest.raises(BadRequest, match="got several pairs of them"):
        read_pairs(demo, lines(tmp_path, {"good": "a", "bad": "b", "female": "c", "male": "d"}))


def test_a_document_is_refused_with_the_options_that_say_the_same(shared: Path, demo: Model) -> None:
    with pytest.raises(
        BadRequest, match=r"female_names as clean\) are --template .*--fill NAME=Mary,Lisa.*:John,David"
    ):
        read_pairs(demo, shared / "data/gendered-pronouns-gpt2/prompts.json")


@pytest.mark.parametrize("seed", range(5))
def test_halves_share_no_name_and_lose_no_pair(seed: int) -> None:
    pairs = [told(names, frame, i=i) for i, frame in enumerate(FRAMES) for names in NAMES]
    split = split_pairs(pairs, seed=seed)
    for train, test in ((split.train, split.test), halves(pairs, 0.5, seed)):
        assert len(train) + len(test) == len(pairs)
        names = [{n for p in part for text in p.texts for n in sum(NAMES, ()) if n in text} for part in (train, test)]
        assert not names[0] & names[1]
        assert all(names)
    assert split.held == "names"


def test_where_all_share_names_what_is_left_out_is_said() -> None:
    pairs = [told((f"f{i % 4}", f"m{i // 4}"), given=True, i=i) for i in range(16)]  # all crossed: one cluster
    split = split_pairs(pairs, share=0.2, seed=1)
    lost = 16 - len(split.train) - len(split.test)
    assert lost > 0
    assert split.held == f"names ({lost} left out that share a name with training)"


@pytest.mark.parametrize("seed", range(5))
def test_where_all_share_names_these_are_parted_so_that_both_sides_keep_some(seed: int) -> None:
    """Six by six names, all crossed: half and half of either side keep 9 and 9 of 36 pairs at best."""
    pairs = [told((f"f{i % 6}", f"m{i // 6}"), given=True, i=i) for i in range(36)]
    split = split_pairs(pairs, seed=seed)
    known, new = ({name for pair in part for name in pair.names} for part in (split.train, split.test))
    assert not known & new
    assert min(len(split.train), len(split.test)) >= 6
    # Nothing is left out without a reason: what could be on either side is there.
    assert len(split.train) == sum(set(p.names) <= known for p in pairs)
    assert len(split.test) == sum(not set(p.names) & known for p in pairs)


def test_tables_without_intervals_say_why() -> None:
    crossed = [told((f"f{i % 2}", f"m{i // 2}"), given=True, i=i) for i in range(4)]
    assert no_interval(crossed).startswith("; 4 pairs, 1 group of names, have no interval: all are linked by names")
    assert no_interval(crossed[:1]) == "; one pair has no interval"
    assert no_interval([crossed[0], crossed[3]]) == ""
    assert no_interval([crossed[0]] * 2) == "; 2 pairs of 1 name, have no interval: all are the same"


def test_filled_entries_that_share_a_name_stay_together(demo: Model) -> None:
    fills = {"NAME": (["Mary", "Mary", "Lisa", "Emma"], ["John", "Mark", "Paul", "Jack"])}
    for seed in range(6):
        split = split_filled(demo, ["So, [NAME] was sad when"], fills, seed=seed)
        assert len(split.train) + len(split.test) == 4
        sides = [{name for p in part for name in p.names} for part in (split.train, split.test)]
        assert not sides[0] & sides[1]


def test_the_interval_of_a_patch_is_over_clusters(demo: Model, tmp_path: Path) -> None:
    """Cluster sums by hand, from each pair patched alone: mean ± t₀.₉₇₅(2) √(3/2 Σ(S_c − n_c m)²)/n."""
    names = [("Mary", "John"), ("Mary", "Mark"), ("Lisa", "Paul"), ("Emma", "Jack")]
    texts = [tuple(f"Yesterday {name} was happy because" for name in pair) for pair in names]
    pairs = read_pairs(demo, lines(tmp_path, *({"clean": a, "corrupt": b} for a, b in texts)))
    table = patch(demo, "' she' - ' he'", pairs)
    assert "4 pairs, 3 groups of names" in table.title
    each = [next(r["effect"] for r in patch(demo, "' she' - ' he'", [p]).rows if r["place"] == "L0H0") for p in pairs]
    mean = np.mean(each)
    sums = np.array([each[0] + each[1] - 2 * mean, each[2] - mean, each[3] - mean])
    error = 4.302653 * np.sqrt(1.5 * np.sum(sums**2)) / 4
    row = next(r for r in table.rows if r["place"] == "L0H0")
    assert (row["low"], row["high"]) == pytest.approx((mean - error, mean + error), rel=1e-6)
    alone = patch(demo, "' she' - ' he'", pairs[:1])
    assert "places have an effect" not in alone.says
    assert "nothing was tested: one pair has no interval" in alone.not_says


def test_the_commands_count_the_same_on_a_file_of_pairs(shared: Path, tmp_path: Path, capsys) -> None:
    source = shared / "data/pronouns-stories260k/pairs.jsonl"
    every = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    some = [row for row in every if row["kind"] == "subject-clause"]
    marks = [{row["female_prompt"].split()[0], row["male_prompt"].split()[0]} for row in some]
    groups = len({tuple(row) for row in joined(marks)})
    words = ["--prompts", str(lines(tmp_path, *some)), "--json"]
    model = str(shared / "models/stories260k")
    assert run(["patch", model, "' she' - ' he'", *words]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["meta"]["names"] == groups
    assert "female_prompt is taken as clean, male_prompt as corrupt" in shown.err
    assert run(["observe", "predict", model, "' she' - ' he'", "L4H2@end>out", *words]) == 0
    meta = json.loads(capsys.readouterr().out)["meta"]
    assert meta["train"] + meta["test"] == len(some)
