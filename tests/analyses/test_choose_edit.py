"""Finding an edit of a concept: from Python and from the command line; nothing beyond a budget is written."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import covector
from covector.analyses import choose_edit as module
from covector.analyses.choose import dampened
from covector.analyses.choose_candidates import candidates
from covector.analyses.choose_wish import Wish
from covector.arch.toy import random_model
from covector.cli.main import run
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.run.neutral import read_neutral
from covector.run.prompts import Pair
from covector.study.observable import Observable

FIRE = "' flame' + ' smoke' + ' ash' + ' spark' + ' candle'"


@pytest.fixture(scope="module")
def small() -> Model:
    return covector.open(random_model())


def prompts(model: Model, n: int = 6) -> list[Pair]:
    ids = np.random.default_rng(3).integers(0, model.spec.n_vocab, (n, 5)).tolist()
    return [Pair(tuple(a), tuple(a), {"end": 4}, ("", ""), (f"n{i}", f"n{i}")) for i, a in enumerate(ids)]


def text(model: Model, seed: int = 1, windows: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, model.spec.n_vocab, (windows, 8))


def test_in_proportion_is_the_closed_form_on_the_candidates() -> None:
    """Nothing is run; the edit is that of equation 12 on all dyads beyond chance, and reads back from its text."""
    model = covector.open("demo-lm")
    found = covector.choose_edit(model, FIRE)
    same = dampened(candidates(model, (FIRE,)))
    np.testing.assert_array_equal(found.choice.epsilon, same.epsilon)
    assert found.table.meta["edit"]["edit"] == str(found.edit)
    told, own = covector.Edit.parse(str(found.edit)).change(model), found.edit.change(model)
    assert told.tensors == own.tensors
    for name in own.tensors:
        one, two = (sum(u.delta for u in c.updates if u.tensor == name) for c in (told, own))
        np.testing.assert_allclose(one, two, atol=1e-12)
    assert not found.beyond


def test_a_concept_of_several_words_says_what_became_of_them() -> None:
    """One --concept of five tokens is one direction; five are five; one token says nothing."""
    model = covector.open("demo-lm")
    words = [w.strip() for w in FIRE.split("+")]
    assert "one direction, the weighted sum of 5 tokens" in covector.choose_edit(model, FIRE).table.says
    apart = covector.choose_edit(model, words)
    assert len(apart.choice.candidates.concept) == 5
    assert "direction" not in apart.table.says
    both = covector.choose_edit(model, [" + ".join(words[:2]), words[2]]).table.says
    assert "span of 2 directions, each a weighted sum (2 tokens, 1 token)" in both
    edit = covector.Edit.parse(f"L3H1.ov:({' + '.join(words[:2])})*0")
    assert "(one direction, their weighted sum) removed" in edit.in_words()
    assert "sum" not in covector.Edit.parse(f"L3H1.ov:({words[0]})*0").in_words()


@pytest.mark.slow
def test_an_optimum_tells_how_far_it_is_and_whether_it_is_beyond(small: Model) -> None:
    """`beyond` is the held-out KL against the budget; the sentence leads with it; shares of the work only grow."""
    told: list[tuple[int, int, float, str]] = []
    seen = set()
    for seed in range(6):
        found = covector.choose_edit(
            small, np.random.default_rng(seed).standard_normal(small.spec.d_model), optimise=True, max_kl=1e-3,
            observable=Observable({"token 3": 1, "token 5": -1}, small), prompts=prompts(small),
            neutral=text(small, seed, 16), sites=["L1H0.ov"], tell=lambda *now: told.append(now),
        )  # fmt: skip
        assert found.choice.kl <= 1e-3
        assert found.beyond == (found.choice.kl_held > 1e-3)
        assert found.table.says.startswith("BEYOND THE BUDGET: KL") == found.beyond
        assert (", within the budget" in found.table.says) != found.beyond
        assert found.table.meta["beyond_budget"] == found.beyond
        seen.add(found.beyond)
        shares = [share for _, _, share, _ in told]
        assert shares == sorted(shares)
        assert shares[-1] > 0.9
        told.clear()
    assert seen == {True, False}  # both are met, so that both are tested


def test_ways_are_compared_from_python_too(small: Model) -> None:
    concept = np.random.default_rng(0).standard_normal((1, small.spec.d_model))
    table = covector.choose_curve(
        small, concept, observable=Observable({"token 3": 1}, small), prompts=prompts(small), neutral=text(small),
        tokens=48,
    )  # fmt: skip
    assert set(table["way"]) == set(module.WAYS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"raises": True}, "--raise belongs to --optimise"),
        ({"keep": -1.0}, "--keep: expected a share of at least 0"),
        ({"optimise": True}, "--optimise: expected --max-kl"),
        ({"optimise": True, "max_kl": 0.1, "mu": 1.0}, "expected no --mu"),
        ({"max_kl": 0.0}, "--budget-kl: expected a KL above 0"),
        ({"optimise": True, "max_kl": -1.0}, "--max-kl: expected a KL above 0"),
    ],
)
def test_wishes_that_contradict_each_other(options: dict, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        Wish(("' she'",), **options)


def test_directions_need_something_to_observe(small: Model) -> None:
    with pytest.raises(BadRequest, match="expected an observable and prompts beside directions"):
        covector.choose_edit(small, np.ones(small.spec.d_model), optimise=True, max_kl=0.1, neutral=text(small))


@pytest.fixture
def two_texts(tmp_path: Path) -> Path:
    """Two windows: the longer one, which chooses, has nothing of the concept; the other is all about it."""
    lines = [
        " ".join(["The teacher wrote a letter to the doctor in Paris and went home."] * 3),
        " ".join(["The flame and the smoke and the ash of the candle, a spark."] * 2),
    ]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.mark.slow
def test_beyond_the_budget_nothing_is_written_unless_asked(
    two_texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the verdict of this text is, the command obeys it; a budget above it is written without a word."""
    words = ["edit", "demo-lm", "--concept", FIRE, "--sites", "L3.mlp.out", "--keep", "5", "--neutral", str(two_texts)]
    found = covector.choose_edit(covector.open("demo-lm"), FIRE, sites=["L3.mlp.out"], keep=5.0, max_kl=0.004,
                                 neutral=read_neutral([str(two_texts)]))  # fmt: skip
    assert found.beyond, "the text was made so that the half which did not choose costs more"
    out = tmp_path / "edited"
    assert run([*words, "--budget-kl", "0.004", "--save", str(out), "--lora", str(out / "lora")]) == 2
    said = capsys.readouterr()
    assert "covector: BEYOND THE BUDGET" in said.err
    assert "--over-budget to write it all the same" in said.err
    assert said.out.count("BEYOND THE BUDGET") == 1  # the table that was worked for is shown all the same
    assert not out.exists()
    assert run([*words, "--budget-kl", "0.004", "-q"]) == 0
    assert "BEYOND THE BUDGET" in capsys.readouterr().err
    assert run([*words, "--budget-kl", "0.004", "--save", str(out), "--over-budget"]) == 0
    assert (out / "edit.json").exists()
    capsys.readouterr()
    assert run([*words, "--budget-kl", "9", "--save", str(tmp_path / "other")]) == 0
    assert "BEYOND" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["L1H0.ov:0*0", "--raise"], "--raise belongs to --concept"),
        (["L1H0.ov:0*0", "--by", "curve"], "--by curve shows how --concept finds an edit"),
        (["--concept", "' she'", "--max-kl", "0.1"], "--max-kl belongs to --optimise"),
        (["--concept", "' she'", "--optimise", "--max-kl", "0.1", "--budget-kl", "1"], "--optimise takes --max-kl"),
        (["--concept", "' she'", "--by", "dyad"], "--by dyad shows what happens on prompts"),
        (["--concept", "' she'", "--template", "[N] is", "--fill", "N=Mary:John"], "expected --observe"),
    ],
)
def test_a_wrong_command_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["edit", "demo-lm", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_interrupted_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "optimised", interrupted)
    monkeypatch.setattr(module, "sampled", lambda *_: np.random.default_rng(0).integers(0, 200, (4, 8)))
    words = ["--concept", FIRE, "--optimise", "--max-kl", "0.1", "--save", str(tmp_path / "edited")]
    assert run(["edit", "demo-lm", *words]) == 130
    assert capsys.readouterr().err == "covector: interrupted\n"
    assert not list(tmp_path.iterdir())


def test_a_choice_without_a_budget_is_within_it(small: Model) -> None:
    found = covector.choose_edit(small, np.ones(small.spec.d_model), every=True)
    assert not replace(found.choice, kl_held=1e9).beyond
