"""`covector heads`: its four questions as they are typed, and what it refuses."""

import json
import re
from pathlib import Path

import pytest

from covector.cli.main import run


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert run(["heads", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_heads_prints_one_line_per_head_within_120_columns(capsys: pytest.CaptureFixture[str]) -> None:
    out = lines(capsys, "toy-induction")
    rows = [line for line in out if re.match(r"L\d+H\d+ ", line)]
    assert len(rows) == 2
    assert max(map(len, out)) <= 120
    assert "copy  1.00*" in rows[1]
    assert "previous 1.00" in rows[0]
    assert out[-1] == "next: covector svd toy-induction L1H0"


def test_compose_puts_the_induction_circuit_first(capsys: pytest.CaptureFixture[str]) -> None:
    out = lines(capsys, "toy-induction", "--compose", "--top", "1")
    assert next(line for line in out if line.startswith("L0H0")).split()[:3] == ["L0H0", "L1H0", "k"]
    assert max(map(len, out)) <= 120
    assert out[-1] == "next: covector svd toy-induction L1H0.qk"


def test_compose_of_named_heads_tells_every_pair_of_dyads(capsys: pytest.CaptureFixture[str]) -> None:
    out = lines(capsys, "toy-induction", "--compose", "--between", "L1H0,L0H0", "--dyads", "--top", "3")
    rows = [line.split() for line in out if line.startswith("L0H0")]
    assert [(row[0], row[2], row[3]) for row in rows] == [("L0H0", "L1H0", "k")] * 3
    assert max(map(len, out)) <= 120
    assert run(["heads", "toy-induction", "--compose", "--dyads", "--top", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["meta"]["analysis"] == "compose_dyads"
    assert [row["cos"] for row in found["rows"]] == pytest.approx([1, 1, 1])


def test_a_relation_is_read_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sounds.tsv"
    path.write_text("cat\tmeow\ndog\tbark\ncow\tmoo\n", encoding="utf-8")
    out = lines(capsys, "toy", "--relation", str(path), "-k", "1")
    first = next(line for line in out if re.match(r"L\d+H\d+ ", line))
    assert first.split()[:2] == ["L0H1", "1.00"]
    assert max(map(len, out)) <= 120


def test_units_of_a_model_are_judged(capsys: pytest.CaptureFixture[str]) -> None:
    out = lines(capsys, "toy", "--units", "--rank", "3", "-k", "3", "--draws", "20")
    assert sum(bool(re.match(r"L\d+H\d+ ", line)) for line in out) == 2
    assert max(map(len, out)) <= 120


def test_json_and_files_of_every_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, name in (
        ([], "heads"),
        (["--compose"], "compose"),
        (["--units", "-k", "3", "--rank", "3"], "joint_units"),
    ):
        out, picture = tmp_path / name, tmp_path / f"{name}.svg"
        given = ["toy-induction", *words, "--json", "--out", str(out), "--plot", str(picture)]
        assert run(["heads", *given]) == 0
        found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert found["meta"]["analysis"] == name
        assert {p.name for p in out.iterdir()} - {f"{name}.picture.json"} == {f"{name}.json", f"{name}.parquet"}
        assert picture.stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--units", "--compose"],
            "expected one of --relation, --units, --compose at a time, got --units and --compose",
        ),
        (["--dyads"], r"covector heads takes no --dyads; it belongs to covector heads --compose"),
        (["--top", "3"], r"covector heads takes no --top; it belongs to covector heads --compose"),
        (
            ["--compose", "-k", "3"],
            r"takes no -k; it belongs to covector heads, covector heads --relation, covector heads",
        ),
        (["--relation", "gone.tsv"], "expected a file of pairs at 'gone.tsv': No such file"),
        (["--compose", "--between", "layers"], r"expected between heads or all, or places .*, got 'layers'"),
        (["--frame", "raw+bias"], r"appends a bias row; use --frame raw"),
        (["--device", "cuda"], "--device: expected cpu"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["heads", "toy-induction", *words]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert len(streams.err.splitlines()) == 1
    assert re.search(told, streams.err), streams.err
