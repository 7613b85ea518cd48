"""`covector sweep` as it is typed: its forms on the demo, and refusals in one line before any model is opened."""

import json
from pathlib import Path

import pytest

from covector.cli.main import run
from covector.cli.sweep_forms import named

PROMPTS = ["--template", "So, [NAME] really is a good friend, isn't",
           "--fill", "NAME=Mary,Lisa,Emma,Laura:John,Mark,Paul,Jack"]  # fmt: skip
SHE = "' she' - ' he'"
SEA = "sea=' wave' + ' ship' + ' boat' + ' tide' + ' sailor' + ' island' + ' shore'"
FIRE = "fire=' flame' + ' smoke' + ' ash' + ' spark' + ' candle' + ' torch' + ' coal'"
TEXT = "I remember the wave. The boat was near the ship and the tide. Do you like the flame or the smoke?"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert run(["sweep", "demo-lm", *words, "--json", "-q"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    sea, other = tmp_path / "sea.txt", tmp_path / "other.txt"
    sea.write_text("<|endoftext|>".join([TEXT, TEXT[:40], TEXT[20:]]))
    other.write_text(
        "<|endoftext|>".join(["Mary met John, and she thanked him.", "Paul was happy when he saw the map."])
    )
    return ["--neutral", f"sea={sea}", "--neutral", f"other={other}"]


def test_dyads(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--observe", SHE, *PROMPTS, "--sites", "L2H3.ov", "--first", "3", "--sample", "4", "--draws", "5"]
    table = said(capsys, *words)
    assert [r["group"] for r in table["rows"][:8]] == ["top"] * 3 + ["sample"] * 4 + ["rest"]
    assert table["meta"]["names"] == [2, 2]
    assert table["meta"]["metric"] == f"{SHE} (clean − corrupt)"


@pytest.mark.slow
def test_heads_and_granularity(capsys: pytest.CaptureFixture[str], texts: list[str]) -> None:
    words = ["--observe", SHE, *PROMPTS, "--sites", "L2H*.ov,L1.mlp.out"]
    table = said(capsys, "--by", "heads", *words, "--first", "3", "--draws", "2")
    assert [r["k"] for r in table["rows"]] == [1, 2, 3]
    table = said(capsys, "--by", "granularity", *words, "--first", "2", *texts)
    assert len(table["rows"]) + len(table["meta"]["left_out"]) == 5


def test_concepts_and_units(capsys: pytest.CaptureFixture[str], texts: list[str]) -> None:
    table = said(
        capsys, "--by", "concepts", "--concept", SEA, "--concept", FIRE, "--sites", "L3H*.ov,L3.mlp.out", "--draws",
        "2", *texts,
    )  # fmt: skip
    assert [(r["removed"], r["measured"]) for r in table["rows"]] == [
        ("sea", "sea"), ("sea", "fire"), ("fire", "sea"), ("fire", "fire")
    ]  # fmt: skip
    table = said(capsys, "--by", "units", "--concept", SEA, "--first", "1", "--draws", "3", "--topic", "sea", *texts)
    assert [r["removed"] for r in table["rows"]] == ["whole head", "topic dyads", "random dyads"]
    assert table["rows"][1]["size"] == table["rows"][2]["size"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected something to measure"),
        (["--by", "letters"], "--by: expected dyads, heads"),
        (["--observe", SHE], "--observe: expected prompts"),
        (["--concept", SEA], "expected --neutral FILE"),
        (["--by", "concepts", "--concept", SEA, "--neutral", "x.txt"], "two or more --concept"),
        (["--by", "units", "--observe", SHE, *PROMPTS, "--neutral", "x.txt"], "expected --concept"),
        (["--by", "granularity", "--observe", SHE, *PROMPTS], "expected --neutral FILE"),
        (["--concept", SEA, "--neutral", "no-such-file.txt"], "no-such-file.txt"),
    ],
)
def test_refusals_come_before_the_model(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep", "no-such-model", *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1


def test_names_of_concepts() -> None:
    assert named(["sea=' wave'", "' fire'"]) == (("' wave'", "' fire'"), ("sea", "' fire'"))
