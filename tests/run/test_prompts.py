"""Prompts: templates and files become pairs of equal length with named places; what does not fit is told by name."""

import json
from pathlib import Path

import numpy as np
import pytest

import covector
from covector.arch.toy import random_model
from covector.errors import BadRequest
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.pairs import worlds_of
from covector.run.points import captured
from covector.run.prompts import Pair, batches, fill_template, parse_fill, read_pairs, single, start_ids
from covector.study.observable import Observable

WORDS = ("<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz,.", " Mary", " John", " Lisa", " Mark", " is", " so", " glad")


class Words:
    """Whole words where they are known, letters elsewhere; a space goes with what follows it."""

    labels = WORDS

    def encode(self, text: str) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            known = [w for w in WORDS[1:] if text.startswith(w, at)]
            best = max(known, key=len, default="")
            if best:
                ids.append(WORDS.index(best))
            at += len(best) or 1
        return ids

    def one(self, text: str) -> int:
        return WORDS.index(text)


def reading(labels: tuple[str, ...] = WORDS) -> Model:
    weights = random_model(n_vocab=len(WORDS), n_ctx=32)
    return Model("words", weights, weights, Frame(), {"token": labels}, Words())


def ids(text: str) -> tuple[int, ...]:
    return tuple(Words().encode(text))


def test_a_template_gives_pairs_with_their_slots() -> None:
    pairs = fill_template(reading(), "so,[NAME] is glad", {"NAME": ([" Mary", " Lisa"], [" John", " Mark"])})
    assert len(pairs) == 2
    first = pairs[0]
    # start token, s, o, comma, name, is, glad
    assert first.clean == (0, *ids("so, Mary is glad"))
    assert first.corrupt == (0, *ids("so, John is glad"))
    assert first.slots == {"NAME": 4, "end": 6}
    assert first.names == (" Mary", " John")
    assert pairs[1].texts == ("so, Lisa is glad", "so, Mark is glad")
    assert [first.slot_of(t) for t in range(7)] == ["0", "1", "2", "3", "NAME", "NAME+1", "end"]


def test_the_slot_of_a_filling_of_several_tokens_is_its_last_one() -> None:
    (pair,) = fill_template(reading(), "[WHO] is [HOW]", {"WHO": (["abc"], ["xyz"]), "HOW": ([" so"], [" glad"])}, "no")
    assert pair.slots == {"WHO": 2, "HOW": 4, "end": 4}
    assert len(pair) == 5
    assert pair.names == ("abc  so", "xyz  glad")
    assert pair.slot_of(3) == "WHO+1"


def test_every_template_meets_every_name_template_first() -> None:
    names = {"NAME": ([" Mary", " Lisa"], [" John", " Mark"])}
    pairs = fill_template(reading(), ["so[NAME]", "glad[NAME]"], names)
    assert [p.texts[0] for p in pairs] == ["so Mary", "so Lisa", "glad Mary", "glad Lisa"]


@pytest.mark.parametrize(
    ("template", "fills", "told"),
    [
        ("so,[NAME] is", {"NAME": ([" Mary"], ["jim"])}, r"'so, Mary is' \(6 tokens\) and 'so,jim is' \(8 tokens\)"),
        ("so,[NAME] is[X]", {"NAME": ([" Mary"], [" John"])}, r"got no names for \[X\]"),
        ("so, Mary", {"NAME": ([" Mary"], [" John"])}, r"expected a slot of the template \(it has none\)"),
        ("[NAME]", {"NAME": ([" Mary", " Lisa"], [" John"])}, r"as many names on both sides .*\(2, 1\)"),
        ("[A][B]", {"A": ([" Mary"], [" John"]), "B": (["a", "b"], ["c", "d"])}, "as many names on both sides"),
        # Equal length in all, slots at different places.
        ("[A][B]", {"A": (["ab"], ["a"]), "B": (["c"], ["cd"])}, "slots at the same tokens"),
    ],
)
def test_fillings_that_do_not_fit_are_refused(template: str, fills: dict, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        fill_template(reading(), template, fills)


def test_what_a_slot_means_and_where_it_ends() -> None:
    pair = Pair((1,) * 9, (2,) * 9, {"NAME": 3, "end": 8}, ("", ""))
    wanted = {"NAME": 3, "NAME+2": 5, "NAME-3": 0, "end": 8, "end-2": 6, "4": 4, "4+1": 5}
    assert {slot: pair.position(slot) for slot in wanted} == wanted
    for position in range(9):
        assert pair.position(pair.slot_of(position)) == position
    for slot, told in (("NAME+6", "is position 9 of a prompt of 9 tokens"), ("NAME-4", "is position -1"),
                       ("WHO", "expected a slot among NAME, end or a number, got 'WHO'")):  # fmt: skip
        with pytest.raises(BadRequest, match=told):
            pair.position(slot)


def test_the_start_token_is_put_in_front_where_it_is_known() -> None:
    model, bare = reading(), reading(labels=tuple("x" * len(w) for w in WORDS))
    assert start_ids(model, "auto") == start_ids(model, "yes") == [0]
    assert start_ids(model, "no") == start_ids(bare, "auto") == []
    with pytest.raises(BadRequest, match="words has no start token that is known; use --bos no"):
        start_ids(bare, "yes")
    with pytest.raises(BadRequest, match="--bos: expected auto, yes or no, got 'maybe'"):
        start_ids(model, "maybe")
    assert single(model, "glad", "no").clean == ids("glad")
    assert single(model, "glad").slots == {"end": 4}
    with_start, without = (fill_template(model, "[N]", {"N": ([" Mary"], [" John"])}, b)[0] for b in ("yes", "no"))
    assert (with_start.slots["N"], without.slots["N"]) == (1, 0)


def test_fillings_are_typed_or_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("Mary\n\n Lisa \n", encoding="utf-8")
    (tmp_path / "m.txt").write_text("\ufeffJohn\nMark\n", encoding="utf-8")
    found = parse_fill([f"NAME={tmp_path}/f.txt:{tmp_path}/m.txt", "[X]=a, b:c,d"])
    assert found == {"NAME": (["Mary", "Lisa"], ["John", "Mark"]), "X": (["a", "b"], ["c", "d"])}
    for wrong in ("NAME", "NAME=a", "=a:b", "NAME=:b"):
        with pytest.raises(BadRequest, match=r"--fill: expected NAME=clean\.txt:corrupt\.txt"):
            parse_fill([wrong])
    with pytest.raises(BadRequest, match=r"expected names, one a line, in '.*none\.txt'"):
        parse_fill([f"NAME={tmp_path}/none.txt:a"])


def lines(tmp_path: Path, *values: object) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(v if isinstance(v, str) else json.dumps(v) for v in values), encoding="utf-8")
    return file


def test_pairs_are_read_from_jsonl(tmp_path: Path) -> None:
    file = lines(
        tmp_path,
        {
            "clean": "so, Mary is",
            "corrupt": "so, John is",
            "slots": {"who": " Mary", "verb": " is", "last": -1, "s": 1},
        },
        "",
        {"clean": " Mary is", "label": "alone"},
    )
    first, second = read_pairs(reading(), file)
    assert first.slots == {"who": 4, "verb": 5, "last": 5, "s": 1, "end": 5}
    assert first.clean == (0, *ids("so, Mary is"))
    assert second.corrupt == second.clean
    assert second.label == "alone"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{nonsense", "line 2: expected a JSON object, got"),
        ("[1]", "line 2: expected an object with 'clean'"),
        ({"corrupt": "a"}, "line 2: expected an object with 'clean'"),
        ({"clean": 3}, "line 2: expected an object with 'clean'"),
        ({"clean": "a", "corrupt": 3}, "line 2: "),
        ({"clean": "ab", "corrupt": "a"}, "line 2: expected prompts of equal length, got 3 and 2 tokens"),
        ({"clean": "ab", "slots": {"x": "z"}}, "line 2: expected slot text 'z' once .* found 0 places"),
        ({"clean": "abc", "corrupt": "cba", "slots": {"x": "a"}}, "line 2: expected slot text 'a' .* found 2 places"),
        ({"clean": "ab", "slots": {"x": 7}}, "line 2: "),
        ({"clean": "ab", "slots": {"x": -4}}, "line 2: "),
        ({"clean": "ab", "slots": 7}, "line 2: "),
        ({"clean": "ab", "slots": ["x"]}, "line 2: "),
        ({"clean": "ab", "slots": {"x": None}}, "line 2: "),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, line: object, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        read_pairs(reading(), lines(tmp_path, {"clean": "abc"}, line))


def test_files_without_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"expected prompts, one JSON object a line, got none"):
        read_pairs(reading(), lines(tmp_path, "", ""))
    with pytest.raises(BadRequest, match=r"expected a UTF-8 JSONL file of prompts at '.*nowhere\.jsonl'"):
        read_pairs(reading(), tmp_path / "nowhere.jsonl")
    with pytest.raises(BadRequest, match="has no tokenizer"):
        single(covector.open(random_model()), "a")


def test_batches_hold_one_length_each_and_lose_nothing() -> None:
    pairs = [Pair((i,) * n, (i + 50,) * n, {"end": n - 1}, ("", "")) for i, n in enumerate([3, 4, 3, 3, 4, 2])]
    made = list(batches(pairs, size=2))
    assert [[p.clean[0] for p in b.pairs] for b in made] == [[0, 2], [3], [1, 4], [5]]
    assert made[0].clean.tolist() == [[0] * 3, [2] * 3]
    assert made[0].corrupt.tolist() == [[50] * 3, [52] * 3]
    assert made[2].at("end").tolist() == [3, 3]


@pytest.mark.identity("OP-30")
def test_pairs_of_all_lengths_give_what_each_gives_alone() -> None:
    """Worlds of mixed prompts against each pair by itself: the same measurements and shares, in batch order."""
    model = reading()
    observable = Observable({" so": 1.0, " is": -1.0}, model)
    names = {"NAME": ([" Mary", " Lisa"], [" John", " Mark"])}
    pairs = fill_template(model, ["so,[NAME] is", "abc[NAME] is so", "ab,[NAME] is"], names)
    worlds, measured = worlds_of(model, observable, pairs)
    ordered = [p for b in batches(pairs) for p in b.pairs]
    assert [len(p) for p in ordered] == [6, 6, 6, 6, 7, 7]
    values = np.concatenate([np.sum(w.start * w.model.change("L1.resid_post"), axis=(1, 2)) for w in worlds])
    np.testing.assert_allclose(values, measured[:, 0] - measured[:, 1], rtol=1e-10, atol=1e-12)
    decoder = Decoder(model.weights)
    for pair, both in zip(ordered, measured, strict=True):
        alone = [captured(decoder, np.array([ids]))["out.token"][0, -1] for ids in (pair.clean, pair.corrupt)]
        np.testing.assert_allclose(both, observable.of(np.array(alone)), rtol=1e-10, atol=1e-12)


def test_a_slot_that_ends_inside_a_token_is_refused() -> None:
    with pytest.raises(BadRequest, match="no token ends after ' gl'"):
        fill_template(reading(), "[NAME]ad", {"NAME": ([" gl"], [" gl"])})
