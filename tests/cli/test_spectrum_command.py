"""`covector spectrum` as it is typed: lines, JSON, files, failures."""

import json
import re
from pathlib import Path

import pytest

from covector.cli.main import run


def test_one_line_per_place_within_120_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["spectrum", "demo-lm", "--draws", "100"]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if re.match(r"L\d", line)]
    assert len(lines) == 32
    assert all("stable" in line and "spikes" in line for line in lines)
    assert max(map(len, out.splitlines())) <= 120
    assert "the 32 most out of line" in out
    assert out.rstrip().splitlines()[-1].startswith("next: covector ")


def test_json_has_every_place_whatever_the_screen_shows(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "spectrum",
        "demo-lm",
        "L1-2H*.ov,L0.mlp.in",
        "--json",
        "--rows",
        "2",
        "--frame",
        "folded",
        "--draws",
        "100",
    ]
    assert run(words) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert len(found["rows"]) == 9
    assert found["meta"]["frame"] == "folded"
    assert len(found["meta"]["tensors"]) > 0


def test_kinds_may_be_repeated_or_joined(capsys: pytest.CaptureFixture[str]) -> None:
    for kinds in (["--kind", "in", "--kind", "embed"], ["--kind", "in,embed"]):
        assert run(["spectrum", "demo-lm", *kinds, "--json", "--draws", "100"]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert [r["kind"] for r in rows] == ["in"] * 4 + ["embed"]


@pytest.mark.parametrize("view", ["spectra", "depth"])
def test_a_picture_and_files_are_written(view: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["spectrum", "demo-lm", "--kind", "ov", "--view", view, "--plot", str(tmp_path / "p.svg"), "--out"]
    assert run([*words, str(tmp_path / "o"), "--draws", "100"]) == 0
    assert {p.name for p in (tmp_path / "o").iterdir()} == {
        "spectrum.json",
        "spectrum.parquet",
        "spectrum.picture.json",
    }
    assert "median" in (tmp_path / "p.svg").read_text()
    assert capsys.readouterr().err.count("written:") == 2


@pytest.mark.parametrize("words", [["--kind", "nothing"], ["L99H0"], ["--rows", "0"], ["--draws", "1"]])
def test_a_wrong_request_is_one_line_and_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["spectrum", "demo-lm", *words]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert len(found.err.splitlines()) == 1
    assert "expected" in found.err or "outside" in found.err
