"""`covector score`: every score held against another way to get it, and the verdict against the atlas that it is of."""

import json
import shlex
from collections.abc import Iterator, Sequence
from itertools import combinations
from math import log
from pathlib import Path

import numpy as np
import pytest

import covector
from covector.analyses.labels import nulls_needed
from covector.analyses.score_places import place_of
from covector.atlas.plan import Options
from covector.cli.main import run
from covector.demo.corpus import documents
from covector.errors import BadRank, BadRequest, BadSite
from covector.linalg.chance import haar_directions
from covector.linalg.chance.lists import haar_lists, matched_lists
from covector.linalg.list_scores import list_scores
from covector.model.opened import Model
from covector.render import Table

DRAWS, ATLAS_DRAWS = 1000, 10_000


@pytest.fixture(scope="module")
def model() -> Model:
    return covector.open("demo-lm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scored") / "lm.atlas"
    covector.build_atlas("demo-lm", made, options=Options(draws=ATLAS_DRAWS))
    return made


@pytest.fixture
def called(folder: Path) -> covector.Atlas:
    """The atlas with verdicts: q over its 3328 directions calls nothing, so p times five stands in for q.

    The written rule on those, once more: what `score` says of them is what these columns say.
    """
    atlas = covector.open_atlas(folder)
    told = atlas.columns("p_coherence", "heldout_low", "stability")
    q = 5 * told["p_coherence"]
    rule = (q < 0.05) & (told["heldout_low"] > 0.5) & (told["stability"] >= 0.9)
    atlas._read |= {"q_coherence": q, "interpretable": rule}
    return atlas


@pytest.fixture(scope="module")
def text() -> str:
    return "\n<|endoftext|>\n".join(d.text for d in documents(seed=3, count=40))


@pytest.fixture(scope="module")
def head(model: Model, text: str) -> Table:
    return covector.score(model, "L3H0:0-3", corpus=text, draws=DRAWS)


def interpretable(table: Table) -> list[bool]:
    return [str(verdict).startswith("interpretable") for verdict in table["verdict"]]


# The atlas


def test_without_a_place_it_shows_what_the_atlas_calls_interpretable(called: covector.Atlas) -> None:
    index = called.columns("site", "side", "dyad", "interpretable", "q_coherence", "z_coherence")
    rows = np.flatnonzero(index["interpretable"])
    assert len(rows) > 3, "the bundled model has some"
    table = covector.score(called, rank=len(rows), draws=200)
    names = {(f"{index['site'][i]}:{index['dyad'][i]}", index["side"][i]) for i in rows}
    assert set(zip(table["direction"], table["side"], strict=True)) == names
    assert all(interpretable(table))
    index["q_coherence"][rows] = np.sort(index["q_coherence"][rows])[np.argsort(index["z_coherence"][rows])]
    fewer = covector.score(called, rank=2, draws=200)
    assert len(fewer) == 2
    assert list(fewer["q"]) == sorted(index["q_coherence"][rows])[:2]
    assert f"strongest of {len(rows)}" in fewer.says


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "draws", "some"),
    [
        ("L3.mlp.out:0-9", ATLAS_DRAWS, True),
        ("L3H1.ov:0-31", DRAWS, True),
        ("L2H0.qk:20-31", DRAWS, True),
        ("L1.mlp.in", DRAWS, False),
        ("embed", DRAWS, True),
    ],
)
def test_verdict_and_scores_are_those_of_the_atlas(called: covector.Atlas, place: str, draws: int, some: bool) -> None:
    """The atlas was judged by other code, all heads of a layer together, its nulls drawn in another unit."""
    table = covector.score(called, place, draws=draws)
    asked = ("site", "side", "dyad", "interpretable", "coherence", "z_coherence", "p_coherence", "heldout_low",
             "intruder", "p_intruder", "p_heldout", "lexical", "q_coherence", "stability", "whole",
             "p_whole", "p_heldout_cov", "p_intruder_cov", "p_lexical", "p_lexical_cov")  # fmt: skip
    index = called.columns(*asked)
    keys = [f"{s}:{d} {side}" for s, d, side in zip(index["site"], index["dyad"], index["side"], strict=True)]
    at = [keys.index(f"{d} {s}") for d, s in zip(table["direction"], table["side"], strict=True)]
    assert interpretable(table) == index["interpretable"][at].tolist()
    assert any(interpretable(table)) == some
    same = [("z", "z_coherence"), ("p_dir", "p_coherence"), ("intruder_p", "p_intruder"), ("p_heldout", "p_heldout")]
    same += [("intruder_p_cov", "p_intruder_cov")] + [(n, n) for n in ("p_heldout_cov", "p_lexical", "p_lexical_cov")]
    for ours, theirs in (
        ("coherence", "coherence"), ("heldout_low", "heldout_low"), ("intruder", "intruder"), ("whole", "whole"),
        ("lexical", "lexical"), ("q", "q_coherence"), ("stability", "stability"),
        *(same if draws == ATLAS_DRAWS else []),
    ):  # fmt: skip
        # The same algebra in products of other sizes: the last digits differ, a list or a draw must not.
        np.testing.assert_allclose(table[ours], index[theirs][at], rtol=1e-6, atol=1e-9, err_msg=ours)


def test_where_the_atlas_calls_nothing_the_strongest_by_z_are_shown(folder: Path) -> None:
    atlas = covector.open_atlas(folder)
    index = atlas.columns("site", "side", "dyad", "interpretable", "z_coherence", "q_coherence")
    atlas._read["interpretable"] = np.zeros(len(atlas), dtype=bool)
    table = covector.score(atlas, rank=4, draws=200)
    order = np.argsort(-index["z_coherence"])[:4]
    wanted = {(f"{index['site'][i]}:{index['dyad'][i]}", index["side"][i]) for i in order}
    assert set(zip(table["direction"], table["side"], strict=True)) == wanted


def test_an_atlas_refuses_what_it_does_not_hold(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="expected a place that it holds"):
        covector.score(folder, "L0H0.q")
    with pytest.raises(BadRank, match="keeps dyads 0 to 31"):
        covector.score(folder, "L0H0:32")
    with pytest.raises(BadRequest, match="its own frame, raw"):
        covector.score(folder, "L0H0", frame="folded")
    covector.build_atlas("demo-lm", tmp_path / "bare", options=Options(kinds=("ov",), draws=200, scores=False))
    with pytest.raises(BadRequest, match="built without scores"):
        covector.score(tmp_path / "bare")
    bare = covector.score(tmp_path / "bare", "L3H0:0", draws=200)
    assert bare.meta["family"] == "the directions of this request"


# The scores


def words_of(model: Model, text: str) -> Iterator[list[list[int]]]:
    """Each document as words, each a list of its tokens: a token with a space or a mark in front begins one."""
    assert model.vocabulary is not None
    labels = model.vocabulary.labels
    for piece in text.split("\n<|endoftext|>\n"):
        words: list[list[int]] = []
        for token in model.vocabulary.encode(piece):
            if not words or labels[token].startswith(" ") or not labels[token][0].isalnum():
                words.append([])
            words[-1].append(token)
        yield words


def test_npmi_is_what_counting_windows_one_by_one_gives(model: Model, text: str, head: Table) -> None:
    windows = [
        {token for word in words[i : i + 10] for token in word}
        for words in words_of(model, text)
        for i in range(max(1, len(words) - 9))
    ]
    labels = model.bases["token_out"].labels
    for row in (0, 3, 5):
        ids = [labels.index(str(word)) for word in head["words"][row]]
        values = []
        for a, b in combinations(ids, 2):
            one, other = (sum(t in w for w in windows) / len(windows) for t in (a, b))
            both = sum(a in w and b in w for w in windows) / len(windows) + 1e-12
            if one and other:
                values.append(log(both / (one * other)) / -log(both))
        assert head["npmi_pairs"][row] == len(values)
        assert head["npmi"][row] == pytest.approx(np.mean(values), abs=1e-12)
    assert head.meta["corpus_tokens"] == sum(len(w) for words in words_of(model, text) for w in words)


def test_the_intruder_p_counts_random_directions_that_find_as_many_and_guessing_stands_beside(
    model: Model, head: Table
) -> None:
    assert list(head["intruder_level"]) == [0.2] * len(head)
    assert len(set(head["intruder"])) > 2
    assert head.meta["intruder_p_least"] == 1 / (DRAWS + 1)
    for side, basis in (("read", "token_in"), ("write", "token_out")):
        words, at = model.bases.dictionary(basis), np.flatnonzero(np.asarray(head["side"]) == side)
        for name, null in (("intruder_p", haar_lists), ("intruder_p_cov", matched_lists)):
            found = null(words, draws=DRAWS, intruders=True).scores.intruder
            wanted = [(1 + np.sum(found >= head["intruder"][i])) / (DRAWS + 1) for i in at]
            np.testing.assert_allclose(head[name][at], wanted, rtol=1e-12, err_msg=name)


def test_ninety_five_of_a_hundred_other_random_directions_stay_below_the_levels(model: Model, head: Table) -> None:
    words = model.bases.dictionary("token_out")
    rows = haar_directions(1000, model.spec.d_model, seed=77)
    other = list_scores(rows, words.lists(rows), words)
    at = list(head["side"]).index("write")
    for values, name in ((other.coherence, "coherence"), (other.auc, "heldout"), (other.whole, "whole")):
        below = np.mean(values < head[f"{name}_level"][at])
        # Both the level and this share are of 1000 draws: sd √(2 · .05 · .95 / 1000) = .0097; four of them.
        assert abs(below - 0.95) < 0.039, name


def test_q_is_that_of_the_lists_asked_for_where_there_is_no_atlas(head: Table) -> None:
    p, n = np.sort(head["p_dir"]), len(head)
    by_hand = [min(n * p[j] / (j + 1) for j in range(i, n)) for i in range(n)]
    np.testing.assert_allclose(np.sort(head["q"]), by_hand, rtol=1e-12)
    assert head.meta["family"] == "the directions of this request"


def test_rotated_bases_are_said_to_score_alike_where_they_do(model: Model, head: Table) -> None:
    """Bases of the head's subspace turned by rotations of our own: how often their mean coherence is as large."""
    words, found = model.bases.dictionary("token_out"), covector.svd(model.map("L3H0.ov"))
    own = list_scores(found.Vh, words.lists(found.Vh), words).coherence.mean()
    rng, means = np.random.default_rng(5), []
    for _ in range(60):
        turned = np.linalg.qr(rng.standard_normal((found.rank, found.rank)))[0] @ found.Vh
        means.append(list_scores(turned, words.lists(turned), words).coherence.mean())
    p = np.mean(np.array(means) >= own)
    told = float(head["p_basis"][list(head["side"]).index("write")])
    # 32 bases there and 60 here, at p about a half: sd √(.25/32 + .25/60) = .11 at most; four of them.
    assert abs(told - p) < 0.44
    assert told > 0.05
    assert "L3H0.ov write" in head.meta["rotated_alike"]
    assert "Rotated bases score like the singular vectors" in head.says


# The labeller


@pytest.mark.parametrize(("name", "rate"), [("a thing", 1.0), ("", 0.0)])
def test_false_labels_of_one_who_always_and_one_who_never_names(model: Model, name: str, rate: float) -> None:
    seen: list[Sequence[str]] = []

    def labeller(words: Sequence[str]) -> str:
        seen.append(words)
        return name

    table = covector.score(model, "L3H0:0-3", labeller=labeller, draws=300)
    assert table.meta["false_label_rate"] == rate
    assert list(table["label"]) == [name or None] * 8
    assert len(seen) == 8 + table.meta["null_lists"]
    assert table.meta["null_lists"] >= nulls_needed(8)
    # Clopper–Pearson of none or all of n in closed form: 1 − (.025)^(1/n).
    reach = 1 - 0.025 ** (1 / table.meta["null_lists"])
    low, high = (1 - reach, 1.0) if rate else (0.0, reach)
    assert (table.meta["false_label_low"], table.meta["false_label_high"]) == pytest.approx((low, high), abs=1e-12)
    # Blind: every list shown is as long, the real ones are not the first ones, and every real one was shown.
    real = {tuple(words) for words in table["words"]}
    kinds = [tuple(words) in real for words in seen]
    assert sum(kinds) == 8
    assert kinds != sorted(kinds, reverse=True)
    assert len({len(words) for words in seen}) == 1
    assert f"named {8 if name else 0} of 8 lists, and {rate:.0%} of {table.meta['null_lists']} lists" in table.says


def test_without_a_labeller_words_stand_for_themselves_and_claim_nothing(head: Table) -> None:
    for label, words in zip(head["label"], head["words"], strict=True):
        assert label == ", ".join(word.strip() for word in words[:3])
    assert head.meta["false_label_rate"] == 1
    assert "claim nothing" in head.says


def test_null_lists_come_from_every_basis_in_its_proportion(model: Model) -> None:
    table = covector.score(model, "L3H0", rank=30, labeller=lambda words: "", draws=300)
    assert len(table) == 60
    assert table.meta["null_lists"] == nulls_needed(60)


# Requests


@pytest.mark.slow
def test_the_command_tells_the_same_and_its_next_one_runs(
    text: str, head: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.txt").write_text(text, encoding="utf-8")
    (tmp_path / "score_names.py").write_text(
        "def always(words):\n    return 'thing'\n\ndef bad(words):\n    return 1/0\n"
    )
    line = f"score demo-lm L3H0:0-3 --text demo.txt --draws {DRAWS}"
    assert run([*line.split(), "--labeller", "score_names:always", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["npmi"] for row in told["rows"]] == pytest.approx(list(head["npmi"]))
    assert told["meta"]["labeller"] == "score_names:always"
    assert told["meta"]["false_label_rate"] == 1
    assert run([*line.split(), "--plot", "p.svg", "--out", "found"]) == 0
    shown = capsys.readouterr().out
    assert "next: covector svd demo-lm L3H0.ov --rank 10" in shown
    assert all(len(row) <= 120 for row in shown.splitlines())
    assert run(shlex.split(head.next)[1:]) == 0
    for words, message in (
        ("score_names:bad", "ZeroDivisionError"),
        ("score_names:nobody", "expected module:function"),
        ("no_such_module:f", "expected module:function"),
    ):
        assert run(["score", "demo-lm", "L3.mlp.out:0", "--draws", "100", "--labeller", words]) == 2
        assert message in capsys.readouterr().err
    assert run(["score", "demo-lm", "L3H0", "--text", "missing.txt"]) == 2
    assert run(["score", "demo-lm"]) == 2
    assert "expected a place of it" in capsys.readouterr().err


def test_places_are_read_as_they_are_typed(model: Model) -> None:
    assert place_of(model, "L3H0").dyads is None
    assert place_of(model, "3.0:2").dyads == range(2, 3)
    assert place_of(model, "L3.mlp.out:0-4").dyads == range(5)
    for wrong in ("L3H0:4-2", "L3H0:", "L3H0:a"):
        with pytest.raises(BadRequest):
            place_of(model, wrong)
    with pytest.raises(BadSite):
        place_of(model, "L9H0")
    with pytest.raises(BadRank, match="expected dyads 0 to 31"):
        covector.score(model, "L3H0:30-40", draws=200)
    for rank, draws in ((0, 200), (10, 50)):
        with pytest.raises(BadRequest, match="expected rank >= 1 and draws >= 100"):
            covector.score(model, "L3H0", rank=rank, draws=draws)


def test_a_side_with_too_few_labels_is_left_out_and_named() -> None:
    table = covector.score("demo-dt", "L0H0:0", draws=200)
    assert list(table["side"]) == ["read"]
    assert "L0H0.ov write" in table.says
    assert table.meta["left_out"] == ["L0H0.ov write"]
    with pytest.raises(BadRequest, match="a dictionary of 144 vectors"):
        covector.score("demo-dt", "L2.mlp.out:0", draws=200)
