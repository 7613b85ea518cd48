"""What a user sees of a wrong request: at once, one line, the command that helps; and commands worth pasting."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from covector.cli.main import app, run
from covector.cli.retyped import TYPED, retyped
from covector.render import Column, Table
from covector.render.terminal import table_text

TEMPLATE = ["--template", "Yesterday [NAME] was happy because", "--fill", "NAME=Mary,Lisa:John,Mark"]
TASK = "' she' - ' he'"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["patch", "demo-lm", TASK, *TEMPLATE, "--what", "haeds"], "expected --what heads, ov, qk"),
        (["patch", "demo-lm", TASK, *TEMPLATE, "--first-order", "second"], "plain, integrated, softmax"),
        (["patch", "demo-lm", TASK], "expected either --template with --fill, or --prompts FILE; of an agent"),
        (["patch", "demo-lm", TASK, "--template", "[NAME] is"], "expected --fill NAME="),
        (["observe", "paths", "demo-lm", TASK], "expected either --template"),
        (["observe", "layernorm", "demo-lm", TASK], "expected either --template"),
        (["steer", "demo-lm", TASK], "expected either --template"),
        (["debias", "demo-lm", "--bias", TASK, "--keep", TASK], "expected either --template"),
        (["attribute", "demo-lm", TASK], "expected either --prompt TEXT or --inputs FILE"),
        (["attribute", "demo-lm", TASK, "--prompt", "a", "--by", "layer"], "component, head, token, lens"),
        (["attend", "demo-lm", "L0H0", "--prompt", "a", "--by", "layer"], "dyads, writers, pairs, tokens, keys"),
        (["patch", "demo-lm", TASK, *TEMPLATE, "--plot", "a.pdf"], "ends in .png, .svg or .html, got 'a.pdf'"),
        (["patch", "demo-lm", TASK, *TEMPLATE, "--slot", "end", "--plot", "a.png"], "has no picture; leave --plot out"),
        (["observe", "neurons", "demo-lm", TASK, "--plot", "a.png"], "has no picture"),
        (["observe", "ioi", "demo-lm", "--plot", "a.png"], "has no picture"),
        (["inspect", "demo-lm", "--plot", "a.png"], "has no picture"),
        (["study", "--plot", "a.png"], "has no picture"),
        (["steer", "demo-lm", TASK, *TEMPLATE, "--split", "--plot", "a.png"], "has no picture"),
        (["replicate", "obprop", "demo-lm", "--plot", "a.png"], "has no picture"),
    ],
)
def test_what_can_be_seen_without_a_model_is_said_before_anything_is_opened(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr("covector.cli.opening.opened", fail)
    assert run(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert told in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("words", [["patch", "demo-lm", TASK, "--what", "x"], ["attribute", "demo-lm", TASK]])
def test_such_a_refusal_does_not_wait_for_torch(words: list[str]) -> None:
    code = (
        f"import sys; from covector.cli.main import run; assert run({words!r}) == 2; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["observe", "align"], "covector observe align --help"),
        (["observe", "norms", "demo-lm", TASK, "--nope"], "covector observe norms --help"),
        (["observe", "nroms"], "covector observe --help"),
        (["patch"], "covector patch --help"),
        (["nope"], "covector --help"),
    ],
)
def test_a_usage_error_names_the_help_of_its_own_command(
    words: list[str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    assert f"See {command}." in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["observe", "norms", "demo-lm", TASK, "--draws", "50"],
        ["observe", "couple", "demo-lm", TASK, "' her' - ' him'"],
        ["observe", "align", "demo-lm", TASK, "L2H3"],
        ["observe", "virtual", "demo-lm", TASK, "--length", "2", "--top", "2", "--draws", "50"],
    ],
)
def test_the_next_command_keeps_the_frame(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--frame", "folded"]) == 0
    following = capsys.readouterr().out.splitlines()[-1]
    assert following.startswith("next: covector ")
    assert following.endswith(" --frame folded")
    assert run(words) == 0
    assert "--frame" not in capsys.readouterr().out.splitlines()[-1]


def test_the_next_command_of_steering_is_one_that_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["steer", "demo-lm", TASK, "--path", "L2H3>out", "--token", "NAME", *TEMPLATE, "--draws", "2"]
    assert run(words) == 0
    following = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: "))
    assert following == ["covector", *words[:-2], "--split"]
    assert run(following[1:]) == 0
    assert "asymmetry" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["-k", "--k"])
def test_how_many_tokens_is_asked_for_alike(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["attend", "demo-lm", "L0H0", "--prompt", "Yesterday Mary was", "--by", "tokens", "--draws", "20"]
    assert run([*words, option, "2", "-q"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("at", ["Mary", " Mary", "2"])
def test_a_position_may_be_said_as_the_text_of_its_token(at: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["attribute", "demo-lm", TASK, "--prompt", "Yesterday Mary was happy", "--json"]
    values = []
    for place in (at, "end-2"):
        assert run([*words, "--at", place]) == 0
        values.append(json.loads(capsys.readouterr().out)["meta"]["value"])
    assert values[0] == values[1]


def test_a_token_that_stands_twice_or_nowhere_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for at, told in (("Mary", "stands at 3, 5"), ("Bob", "a position or a token")):
        assert run(["attribute", "demo-lm", TASK, "--prompt", "was Mary and Mary", "--at", at]) == 2
        assert told in capsys.readouterr().err


def test_what_a_row_is_about_is_never_cut_in_eighty_columns() -> None:
    names = ["embed@NAME>L0H0@NAME>L0.mlp@end>L2.mlp@end>out", "L2.mlp@end>out"]
    more = [Column(f"share{i}", [1.25, 2.5], "logits", 3, "a part") for i in range(8)]
    words = Column("what", ["a text that is far too long for what is left of the line", "b"])
    text = table_text(Table([Column("path", names), *more[:2], words, *more[2:]], key=("path",)), 80).plain
    assert names[0] in text
    assert max(map(len, text.splitlines())) <= 80
    assert "share0" in text


def test_a_command_is_typed_again_without_what_only_says_where_results_go() -> None:
    token = TYPED.set(("steer", "demo-lm", TASK, "--out", "o", "--plot=p.png", "--json", "--scale", "-2,2", "-q"))
    try:
        found = retyped("--split", without=("--out", "--plot"), flags=("--json", "-q"))
    finally:
        TYPED.reset(token)
    assert found == f'covector steer demo-lm "{TASK}" --scale -2,2 --split'


@pytest.mark.parametrize("words", [[], ["observe"]])
def test_help_lists_every_command_once_with_its_first_sentence_whole(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*words, "--help"]) == 0
    listed = capsys.readouterr().out.split("\n\n", 3)[-1]
    names = re.findall(r"^  (\S+)  ", listed, flags=re.MULTILINE)
    whole = app()
    inner = next(group.typer_instance for group in whole.registered_groups if group.name == "observe")
    assert inner is not None
    made = inner.registered_commands if words else whole.registered_commands
    assert sorted(names) == sorted([c.name for c in made if c.name] + ([] if words else ["observe"]))
    assert "..." not in listed
    assert max(map(len, listed.splitlines())) <= 80
