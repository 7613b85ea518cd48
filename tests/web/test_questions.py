"""The page's questions: the words that are shown do what the page does, and what is typed stays what it is."""

import ast
import contextlib
import io
import json
import shlex
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import covector
from covector.cli.main import run
from covector.errors import BadRequest
from covector.io.agent_file import read_agent
from covector.io.checkpoint import open_checkpoint
from covector.render import Table
from covector.run.prompts import fill_template, parse_fill
from covector.study.observable import Observable
from covector.web.asking import Asking
from covector.web.fitting import fitted, unopened
from covector.web.questions import LONGEST, Field, Question, Subject, find
from covector.web.questions_asked import QUESTIONS
from covector.web.shown import Shown

DEMO = Subject("demo-lm", "demo-lm", "", "covector.open('demo-lm')")
# Settings at which every question ends in seconds.
TINY = {"draws": "4", "expand": "10", "episodes": "4", "controls": "2", "film": ""}
NASTY = ("--json", "-q", "--out=/etc", "--help", "-", "--", "--record=x.gif", "; rm -rf x", "$(id)", "`id`", "a=b")


class ByName(Shown):
    """A model that is shown by its name, as `covector view MODEL` does; its atlas is not needed to ask."""

    def __init__(self, ref: str) -> None:
        self.ref, self.is_model = ref, True

    atlas = None
    model = cached_property(lambda self: covector.open(self.ref))


class ByAtlas(Shown):
    """An atlas of which the manifest alone is looked at."""

    def __init__(self, ref: str, manifest: Mapping[str, Any]) -> None:
        self.ref, self.is_model = ref, False
        self.manifest = manifest

    @property
    def bundle(self) -> Any:
        """What a manifest can say."""
        return SimpleNamespace(atlas=SimpleNamespace(manifest=self.manifest))


def asking(ref: str) -> Asking:
    return Asking(ByName(ref))


def defaults(form: Mapping[str, Any]) -> dict[str, str]:
    """The form as it stands when it is opened, with tiny settings."""
    return {f["name"]: str(TINY.get(f["name"], f["default"])) for f in form["fields"]}


def python_table(text: str) -> Table:
    """The table that the Python lines give: the value of the last."""
    tree = ast.parse(text)
    last = tree.body.pop()
    assert isinstance(last, ast.Expr)
    names: dict[str, Any] = {}
    exec(compile(tree, "page", "exec"), names)
    return eval(compile(ast.Expression(last.value), "page", "eval"), names)


def ran(arguments: list[str]) -> tuple[int, str]:
    """The exit code of a command and what it said on standard error."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = run(arguments)
    return code, said.getvalue()


def check_same_rows(
    ref: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, more: Mapping[str, str] | None = None
) -> None:
    """The command writes what the Python lines give, with every example of the form, and `more` in their places."""
    questions = asking(ref)
    form = next(f for f in questions.forms() if f["name"] == name)
    assert form["refused"] == ""
    values = defaults(form) | (more or {})
    arguments = questions.arguments(name, values, folder)
    code, said = ran(arguments)
    assert code == 0, said
    monkeypatch.chdir(folder)  # a document is opened by the name under which the page says to save it
    table = python_table(questions.words(name, values)[1])
    kept = Table.load(folder / f"{table.meta['analysis']}.json")
    assert len(table) > 0
    assert json.loads(table.to_json())["rows"] == json.loads(kept.to_json())["rows"]


LANGUAGE = ("norms", "paths", "predict", "couple", "edit", "tokens", "steer")


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGE)
def test_python_and_command_give_the_same_rows_of_a_language_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_same_rows("demo-lm", name, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["norms", "couple", "rollout", "locate", "map"])
def test_python_and_command_give_the_same_rows_of_an_agent(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_same_rows("demo-dt", name, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ref", "name"),
    [*(("stories260k", name) for name in ("paths", "edit", "tokens")), ("induction-gpt2", "predict")],
)
def test_python_and_command_give_the_same_rows_of_real_models(
    ref: str, name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_same_rows(str(shared / "models" / ref), name, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("edit", {"reflect": "yes", "edits": "L2H3.ov:0*-0.5", "neutral": ""}),
        ("tokens", {"reflect": "yes", "edits": "L2H3.ov:0*0\nL2H1.ov:1*2", "doses": "-1,1,1.5"}),
        ("steer", {"scale": "-0.02,0.01"}),
        ("couple", {"others": "' is' - ' was'\n' the' - ' a'"}),
    ],
)
def test_python_and_command_give_the_same_rows_where_fields_are_filled_otherwise(
    name: str, more: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_same_rows("demo-lm", name, tmp_path, monkeypatch, more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"), [("locate", {"by": "dyads"}), ("locate", {"by": "contrasts"}), ("rollout", {"by": "control"})]
)
def test_python_and_command_give_the_same_rows_by_every_choice(
    name: str, more: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_same_rows("demo-dt", name, tmp_path, monkeypatch, more)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.name)
def test_the_words_that_are_shown_are_the_words_that_are_run(question: Question) -> None:
    values = {f.name: _some(f) for f in question.fields}
    shown = shlex.split(question.command(DEMO, values))
    run_words = question.arguments(DEMO, values)
    joined = [w for w in run_words if w != "--"]
    assert shown[0] == "covector"
    assert sorted(" ".join(shown[1:]).split()) == sorted(" ".join(_parted(joined, shown)).split())


def _some(field: Field) -> str:
    kinds = {"number": "3", "numbers": "-1,2.5", "flag": "yes" if field.name != "film" else ""}
    return kinds.get(field.kind, field.choices[0] if field.choices else "x y 'z' * $1")


def _parted(words: list[str], shown: list[str]) -> list[str]:
    """Options as they are shown: joined to their value by = or a space."""
    return [w if w in shown or not w.startswith("--") else w.replace("=", " ", 1) for w in words]


@pytest.mark.parametrize("value", NASTY)
@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.name)
def test_a_value_never_becomes_an_option(question: Question, value: str, tmp_path: Path) -> None:
    flags = {f.flag for f in question.fields if f.flag} | {"--out", "--layout", "--by"}
    for field in (f for f in question.fields if f.kind in ("text", "lines", "document")):
        given = {f.name: "x" for f in question.fields if f.needed} | {field.name: value}
        if field.name == "fill" and "/" in value:  # may be a file's name: refused
            with pytest.raises(BadRequest, match="got a file"):
                question.run_arguments(DEMO, given, tmp_path)
            continue
        words = question.run_arguments(DEMO, given, tmp_path)
        at = words.index("--")
        assert words[at + 1] == "demo-lm"
        for word in words[len(question.words) : at]:
            assert word.partition("=")[0] in flags
            assert "=" in word or any(f.flag == word and f.kind == "flag" for f in question.fields)
        assert f"--out={tmp_path}" in words[:at]


def test_the_command_line_reads_a_value_behind_the_dashes_as_a_value(tmp_path: Path) -> None:
    code, said = ran(find(QUESTIONS, "norms").run_arguments(DEMO, {"task": "--json"}, tmp_path))
    assert code == 2
    assert "--json" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("norms", "task", "@/etc/passwd"),
        ("norms", "task", "  @task.json"),
        ("couple", "others", "' a' - ' b'\n@task.json"),
        ("edit", "edits", "@edit.json"),
        ("edit", "observe", "@task.json"),
        ("rollout", "arm", "late=@edit.json"),
        ("rollout", "arm", "late='@edit.json'"),
        ("rollout", "arm", "late= @edit.json"),
        ("map", "map", "feature.safetensors"),
        ("paths", "fill", "NAME=/etc/passwd:/etc/hosts"),
        ("paths", "fill", "NAME=Mary:names.txt"),
        ("paths", "fill", "NAME=~/names:Mary"),
    ],
)
def test_a_value_never_names_a_file(name: str, field: str, value: str) -> None:
    question = find(QUESTIONS, name)
    needed = {f.name: "x" for f in question.fields if f.needed}
    with pytest.raises(BadRequest, match="expected what is meant itself, got a file"):
        question.arguments(DEMO, needed | {field: value})


def test_a_list_of_names_that_happens_to_be_a_file_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"task": "x", "template": "[A] b", "fill": "A=secret:Mary"}
    assert find(QUESTIONS, "paths").arguments(DEMO, values)
    (tmp_path / "secret").write_text("Mary")
    with pytest.raises(BadRequest, match="got a file"):
        find(QUESTIONS, "paths").arguments(DEMO, values)


@pytest.mark.parametrize("value", ["' a'\n' b'", "' a'\r--json", "a\x00b", "a\x1b[2Jb", "\n--json"])
def test_one_line_is_one_line(value: str) -> None:
    with pytest.raises(BadRequest):
        find(QUESTIONS, "norms").arguments(DEMO, {"task": value})


def test_several_lines_are_several_values_and_empty_ones_none() -> None:
    values = {"task": "x", "second": "y", "others": "a\r\n\n  \nb"}
    words = find(QUESTIONS, "couple").arguments(DEMO, values)
    assert words[-4:] == ["x", "y", "a", "b"]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"task": "x", "model": "gpt2"}, "expected the fields task, got 'model'"),
        ({"task": "x", "--out": "/etc"}, "expected the fields"),
        ({}, "^$|Observable|expected"),
        ({"task": ""}, "expected a value, got none"),
        ({"task": True}, "expected a text or a number, got bool"),
        ({"task": ["x"]}, "expected a text or a number, got list"),
        ({"task": "x" * (LONGEST + 1)}, f"at most {LONGEST} characters"),
    ],
)
def test_fields_that_are_unknown_missing_or_of_another_kind_are_refused(values: dict[str, Any], match: str) -> None:
    question = find(QUESTIONS, "norms")
    if not values:  # a default stands in for what is left out
        assert question.arguments(DEMO, values)
        return
    with pytest.raises(BadRequest, match=match):
        question.arguments(DEMO, values)


@pytest.mark.parametrize("value", ["many", "1;2", "nan", "inf", "1e999", "0x10", "1 2", "1\n"])
def test_numbers_are_numbers(value: str) -> None:
    values = {"arm": "x"}
    with pytest.raises(BadRequest):
        find(QUESTIONS, "rollout").arguments(DEMO, values | {"episodes": value})
    with pytest.raises(BadRequest):
        find(QUESTIONS, "rollout").arguments(DEMO, values | {"target": f"1,{value}"})


def test_a_choice_is_one_of_its_choices_and_a_flag_is_yes_or_no() -> None:
    question = find(QUESTIONS, "rollout")
    with pytest.raises(BadRequest, match="expected one of arm, control, episode, target, got 'workers'"):
        question.arguments(DEMO, {"by": "workers"})
    with pytest.raises(BadRequest, match="expected yes or no"):
        question.arguments(DEMO, {"film": "/etc/film.gif"})


def test_an_unknown_question_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadRequest, match=r"expected a question .*norms.*, got 'atlas'"):
        find(QUESTIONS, "atlas")


def test_a_document_lands_in_the_folder_of_its_job_and_nowhere_else(tmp_path: Path) -> None:
    job, outside = tmp_path / "job", tmp_path / "outside"
    job.mkdir()
    outside.mkdir()
    values = {"edits": "x", "observe": "x", "template": "x", "fill": "x", "neutral": "../outside/a\n--json\n@b é"}
    words = find(QUESTIONS, "edit").run_arguments(DEMO, values, job)
    assert [p.name for p in job.iterdir()] == ["neutral.txt"]
    assert (job / "neutral.txt").read_text(encoding="utf-8") == values["neutral"]
    assert f"--neutral={job / 'neutral.txt'}" in words
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("text", ["a\x00b", "x" * (LONGEST + 1)])
def test_a_document_is_text_of_some_length(text: str, tmp_path: Path) -> None:
    values = {"edits": "x", "observe": "x", "template": "x", "fill": "x", "neutral": text}
    with pytest.raises(BadRequest, match="characters of text"):
        find(QUESTIONS, "edit").run_arguments(DEMO, values, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_showing_the_words_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"edits": "x", "observe": "x", "template": "x", "fill": "x", "neutral": "text"}
    assert "--neutral neutral.txt" in find(QUESTIONS, "edit").command(DEMO, values)
    find(QUESTIONS, "edit").in_python(DEMO, values)
    assert list(tmp_path.iterdir()) == []


def test_a_film_is_recorded_into_the_folder_of_the_job_where_it_is_asked_for(tmp_path: Path) -> None:
    question = find(QUESTIONS, "rollout")
    assert f"--record={tmp_path / 'film.gif'}" in question.run_arguments(DEMO, {"film": "yes"}, tmp_path)
    assert "--record film.gif" in question.command(DEMO, {"film": True})
    assert not any("--record" in word for word in question.run_arguments(DEMO, {"film": "no"}, tmp_path))


def test_episodes_are_asked_of_the_checkpoint_with_its_layout_and_not_of_an_atlas() -> None:
    subject = Subject("a.atlas", "folder of dt", "my layout.toml", "covector.open('folder of dt', 'my layout.toml')")
    question = find(QUESTIONS, "rollout")
    words = question.arguments(subject, {"arm": ""})
    assert words[words.index("--") + 1] == "folder of dt"
    assert "--layout=my layout.toml" in words
    assert "layout='my layout.toml'" in question.in_python(subject, {"arm": ""})
    assert "a.atlas" in find(QUESTIONS, "norms").arguments(subject, {"task": "x"})


def test_an_atlas_tells_its_checkpoint_by_the_words_it_was_built_with() -> None:
    manifest = {"reference": "'folder of dt' --layout 'my layout.toml'", "meta": {"frame": "raw"}}
    subject = Asking(ByAtlas("a.atlas", manifest)).subject
    assert (subject.words, subject.reference, subject.layout) == ("a.atlas", "folder of dt", "my layout.toml")


def test_examples_are_labels_of_the_vocabulary_and_names_that_the_tokenizer_splits_alike() -> None:
    model = covector.open("demo-lm")
    fit = fitted(model, None)
    for text in fit.offers["task"]:
        assert Observable.parse(text, model).size >= 2
    pairs = fill_template(model, [fit.values["template"]], parse_fill([fit.values["fill"]]))
    assert len(pairs) == 4
    assert len({name for pair in pairs for name in pair.names}) == 8


def test_a_vocabulary_of_letters_gets_strings_of_letters(shared: Path) -> None:
    fit = fitted(covector.open(str(shared / "models" / "induction-gpt2")), None)
    assert fit.values["template"] == "mk[L]zqk"
    assert fit.values["fill"] == "L=a,b,c,d:e,f,g,h"
    assert "neutral" not in fit.values


def test_a_language_model_has_no_episodes_and_an_agent_no_prompts() -> None:
    by_name = {f["name"]: f["refused"] for f in asking("demo-lm").forms()}
    assert {n for n, why in by_name.items() if why} == {"rollout", "locate", "map"}
    assert by_name["rollout"] == "demo-lm is no agent: it has no actions and plays no episodes"
    by_name = {f["name"]: f["refused"] for f in asking("demo-dt").forms()}
    assert {n for n, why in by_name.items() if why} == {"paths", "predict", "edit", "tokens", "steer"}
    assert "episodes, not prompts" in by_name["edit"]


def test_what_is_not_installed_is_said_where_it_is_needed_and_nowhere_else() -> None:
    without_torch = fitted(covector.open("demo-lm"), None, has=lambda name: name != "torch")
    refused = {q.name for q in QUESTIONS if "torch" in q.told(without_torch)["refused"]}
    assert refused == {"paths", "predict", "edit", "tokens", "steer"}
    checkpoint = open_checkpoint("demo-dt")
    assert checkpoint.folder is not None
    agent = read_agent(checkpoint.folder / "agent.json")
    without_gym = fitted(covector.open("demo-dt"), agent, has=lambda name: name != "gymnasium")
    assert {q.name for q in QUESTIONS if "gymnasium" in q.told(without_gym)["refused"]} == {"rollout"}
    without_file = fitted(covector.open("demo-dt"), None)
    assert "no agent.json" in find(QUESTIONS, "rollout").told(without_file)["refused"]


def test_a_model_that_cannot_be_opened_can_be_asked_nothing_and_says_why() -> None:
    fit = unopened("no such folder")
    assert all(q.told(fit)["refused"] == "the model cannot be opened: no such folder" for q in QUESTIONS)


def test_a_question_beside_another_takes_the_fields_that_they_share() -> None:
    for question in (q for q in QUESTIONS if q.beside):
        other = find(QUESTIONS, question.beside)
        shared_fields = {f.name for f in question.fields} & {f.name for f in other.fields}
        assert {f.name for f in other.fields if f.needed} <= shared_fields
