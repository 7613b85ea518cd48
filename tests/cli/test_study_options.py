"""Options of `covector study`: each reaches the study that knows it; others refuse it with what they have."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import pytest

from covector.analyses.studies import studies
from covector.cli.main import run
from covector.render import Column, Table
from synthetic_atlas import synthetic

# Every option, as it is typed and as functions get it; then which studies have which.
TYPED = {
    "--kinds": ("mlp.out", "mlp.out"), "--cosine": ("0.2", 0.2), "--rule": ("coherent", "coherent"),
    "--leading": ("3", 3), "--number": ("5", 5), "--windows": ("4", 4), "--sites": ("embed,L0H0.ov", "embed,L0H0.ov"),
    "--bases": ("token_in, token_out", ["token_in", "token_out"]), "--frames": ("raw,folded", ["raw", "folded"]),
    "--path": ("0,.1,inf", [0.0, 0.1, float("inf")]), "-k": ("7", 7), "--rotations": ("50", 50),
    "--draws": ("300", 300), "--seed": ("0", 0), "--text": ("text.txt", None), "--cache": ("there", None),
    "--without-model": (None, None), "--device": ("cpu", None),
}  # fmt: skip
HAVE = {
    "activations": "--rotations --draws --seed --text --device",
    "basis": "--without-model",
    "dictionary": "--number --draws --seed",
    "factorial": "--leading --draws --seed",
    "frames": "--frames --leading --cache",
    "frequency": "--draws --seed --text",
    "index": "--sites --windows --number --draws --seed --without-model",
    "kinds": "--leading --draws --seed --without-model",
    "packing": "--rule --draws --seed --without-model",
    "poles": "-k --draws --seed",
    "ridge": "--path --kinds --draws --seed",
    "sides": "--bases --leading --draws --seed --without-model",
    "size": "--kinds",
    "width": "--kinds --cosine --without-model",
}
KEYWORDS = {"-k": "k", "--frames": "names"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    def change(columns, rng):
        columns["q_coherence"] = columns["p_coherence"] * 0.2

    return str(synthetic(tmp_path_factory.mktemp("study_options") / "a", change).folder)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What studies are called with by keyword; none is computed."""
    seen: dict = {}

    def known(name: str):
        study = studies()[name]

        @functools.wraps(study.function)
        def told(*_, **keywords):
            seen.update(keywords)
            return Table(columns=[Column("a", ["b"])], meta={}, title="", key=("a",))

        return dataclasses.replace(study, function=told)

    monkeypatch.setattr("covector.analyses.studies.study_of", known)
    monkeypatch.setattr("covector.cli.study._given", lambda *_: [])
    monkeypatch.setattr("covector.cli.study._text", lambda *_: None)
    return seen


@pytest.mark.parametrize("name", sorted(HAVE))
def test_options_that_a_study_has_reach_it_and_no_other_keyword_does(name: str, folder: str, given: dict) -> None:
    for option in HAVE[name].split():
        given.clear()
        words, value = TYPED[option]
        assert run(["study", name, folder, option, *([words] if words else [])]) == 0, option
        keyword = KEYWORDS.get(option, option.strip("-"))
        keyword = "kind" if (name, keyword) == ("ridge", "kinds") else keyword
        assert given == ({} if value is None else {keyword: value})


@pytest.mark.parametrize("name", sorted(HAVE))
def test_other_options_are_refused_in_one_line_that_names_those_it_has(
    name: str, given: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any atlas is opened or built: there is none at 'a'."""
    has = HAVE[name].split()
    for option, (words, _) in TYPED.items():
        if option in has:
            continue
        words = "cuda" if option == "--device" else words
        assert run(["study", name, "a", option, *([words] if words else [])]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        if option == "--without-model":
            assert "expected no --without-model, it needs the checkpoint" in err
        elif option == "--device":  # refused by the machine, or by the study
            assert "cuda" in err or "expected no --device" in err
        else:
            assert f"study {name}: expected no {option}; its options are " in err
            assert set(re.findall(r"-[-a-z]+\b", err.split("its options are ")[1])) == set(has)
    assert given == {}


def test_the_table_holds_every_study_and_the_help_names_the_studies_of_every_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(HAVE) == set(studies())
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["study", "--help"]) == 0
    parts = re.split(r"^ +(?:-\w, )?(?=-)", capsys.readouterr().out, flags=re.MULTILINE)
    helps = {part.split()[0].rstrip(","): " ".join(part.split()) for part in parts}
    for option in sorted(set(TYPED) - {"--without-model", "--device"}):
        told = helps[option].partition("(")[2].partition(")")[0] or helps[option]
        named = {name for name in HAVE if re.search(rf"\b{name}\b", told)}
        having = {name for name in HAVE if option in HAVE[name].split()}
        assert (set(HAVE) - named if told.startswith("all but") else named) == having, option


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ridge", "a", "--path", "1,x"], "--path: expected λ from 0 to inf"),
        (["ridge", "a", "--path", "nan"], "--path: expected λ from 0 to inf"),
        (["ridge", "a", "--path", "-1"], "--path: expected λ from 0 to inf"),
        (["sides", "a", "--bases", " ,"], "--bases: expected words with commas between"),
        (["kinds", "a", "--draws", "19"], "--draws: expected 20 or more"),
        (["sides", "a", "--bases", "token_in", "--without-model"], "expected no --bases with --without-model"),
        (["index", "a", "--draws", "50", "--without-model"], "expected no --draws with --without-model"),
        (["index", "a", "--number", "5", "--without-model"], "expected no --number with --without-model"),
        (["dictionary", "--number", "5"], "expected an atlas with --number"),
        (["--rule", "near"], "expected the name of a study with --rule"),
        (["packing", "{folder}", "--rule", "far"], "expected a rule (near, coherent, interpretable)"),
        (["width", "{folder}", "{wide}", "--kinds", "ov,ovv"], "expected directions of kind ovv"),
        (["width", "{folder}", "{wide}", "--kinds", ","], "expected directions of kind ''"),
    ],
)
def test_a_wrong_value_is_one_line(
    words: list[str], said: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = str(synthetic(tmp_path / "b", d=64).folder) if "{wide}" in words else ""
    assert run(["study", *(word.format(folder=folder, wide=wide) for word in words)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_what_is_asked_is_what_the_function_gives(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from covector.io.atlas import Atlas

    wide = str(synthetic(tmp_path / "b", d=64).folder)
    for words, same in (
        (["packing", folder, "--rule", "coherent", "--draws", "20"],
         lambda: studies()["packing"].function(Atlas(folder), rule="coherent", draws=20, seed=0)),
        (["width", folder, wide, "--kinds", "qk,mlp.out", "--cosine", ".3"],
         lambda: studies()["width"].function([Atlas(folder), Atlas(wide)], kinds="qk,mlp.out", cosine=0.3)),
    ):  # fmt: skip
        assert run(["study", *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["rows"] == json.loads(same().to_json())["rows"]


def test_a_model_is_as_good_as_an_atlas_which_is_built_once_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COVECTOR_CACHE", str(tmp_path / "a cache"))
    wide = str(synthetic(tmp_path / "b", d=64).folder)
    for words, follows in (
        (["width", "toy", wide, "--kinds", "ov"], f"covector study kinds {wide}"),
        (["poles", "toy", "-k", "2"], "covector study index toy"),
    ):
        assert run(["study", *words, "--json"]) == 0
        first = capsys.readouterr()
        (kept,) = (tmp_path / "a cache" / "atlases").iterdir()
        assert first.err == (f"the atlas of toy is built first, once: {kept}\n" if words[0] == "width" else "")
        assert run(["study", words[0], str(kept), *words[2:], "--json"]) == 0
        assert json.loads(first.out)["rows"] == json.loads(capsys.readouterr().out)["rows"]
        assert run(["study", *words]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"next: {follows}"
