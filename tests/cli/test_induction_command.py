"""`covector induction`: as it is typed on a toy, what it writes, and what it refuses."""

import json
from pathlib import Path

import pytest

from covector.cli.main import run

TOY = ["induction", "toy-induction", "--pairs", "4"]


def test_one_token_breaks_and_the_edit_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit, picture = tmp_path / "edit.json", tmp_path / "square.svg"
    words = ["--token", " b", "--save-edit", str(edit), "--plot", str(picture), "--out", str(tmp_path / "all")]
    assert run([*TOY, *words]) == 0
    out = capsys.readouterr().out
    assert "Only it breaks: p(b)" in out
    assert "With 7 other tokens p cannot be below 0.12" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 120
    assert out.splitlines()[-1] == "next: covector induction toy-induction --token ' b' --by token"
    assert json.loads(edit.read_text())["frame"] == "raw"
    assert picture.stat().st_size > 1000
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert {f"selective_induction{kind}.json" for kind in ("", "_tokens", "_heads")} <= names


def test_json_is_all_there_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*TOY, "--all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["verdict"] for row in found["rows"]] == ["only it"] * 8
    assert found["meta"]["heads_found"] == ["L1H0"]


@pytest.mark.parametrize("by", ["token", "head"])
def test_the_other_tables_are_shown(by: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*TOY, "--token", " b", "--by", by]) == 0
    assert capsys.readouterr().out.count("\n") > 5


def test_a_saved_edit_is_one_that_edit_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """@FILE is read back, finds the tensors by their hashes, and changes the head's W_V alone."""
    path = tmp_path / "edit.json"
    assert run([*TOY, "--token", " b", "--save-edit", str(path), "-q"]) == 0
    from covector import open as open_model
    from covector.study.edit import Edit

    edit = Edit.parse(f"@{path}")
    assert edit.change(open_model("toy-induction")).tensors == ("L1.W_V",)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--token", " b", "--all"], "expected --token for one token or --all"),
        (["--save-edit", "x.json"], "--save-edit: expected --token"),
        (["--token", " b", "--save-edit", "no such folder/x.json"], "--save-edit: expected a folder that is there"),
        (["--by", "row"], "--by: expected target, token, head"),
        (["--token", "zebra"], "expected one token of toy-induction"),
        (["--heads", "L7H0"], "L7H0"),
        (["--by", "head", "--plot", "x.png"], "has no picture"),
    ],
)
def test_bad_words_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*TOY, *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
