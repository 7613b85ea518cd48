"""`covector attend` as it is typed: what it prints, what it writes, what its next command does."""

import json
import shlex
from pathlib import Path

import pytest

from covector.cli.main import run

TEXT = "Yesterday Mary was happy because"


@pytest.mark.parametrize("by", ["dyads", "tokens", "writers", "pairs", "keys"])
def test_every_split_fits_120_columns_and_names_a_next_command_that_runs(
    by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["attend", "demo-lm", "L2H1", "--prompt", TEXT, "--to", " Mary", "--by", by, "--top", "5"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert max(map(len, out)) <= 120
    assert "' because' (5) → ' Mary' (2)" in out[0]
    following = shlex.split(out[-1].removeprefix("next: "))
    assert run(following[1:]) == 0


def test_pairs_on_the_screen_end_with_the_row_of_all_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["attend", "demo-lm", "L2H1", "--prompt", TEXT, "--by", "pairs", "--top", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert len(found["rows"]) == 4
    assert found["rows"][-1]["key"].endswith("other pairs")
    assert sum(r["score"] for r in found["rows"]) == pytest.approx(found["meta"]["score"], rel=1e-9)


def test_the_start_token_is_left_out_in_the_next_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["attend", "demo-lm", "L2H1", "--prompt", TEXT, "--bos", "no"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "' because' (4)" in out[0]
    assert "--bos no" in out[-1]


def test_files_and_picture_are_written(tmp_path: Path) -> None:
    words = ["demo-lm", "L0H0", "--prompt", TEXT, "--by", "keys", "--out", str(tmp_path)]
    assert run(["attend", *words, "--plot", str(tmp_path / "weights.svg"), "-q"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {
        "attend.json",
        "attend.parquet",
        "attend.picture.json",
        "weights.svg",
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1, 2]", "expected an object with token, got list"),
        ('{"tokens": [1]}', "expected an object with token, got tokens"),
        ('{"token": [1, 99]}', "expected whole numbers 0 … 11"),
        ('{"token": [[1, 2], [3]]}', "in a list of equal rows"),
        ("{", "expected a JSON object of inputs"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    path = tmp_path / "inputs.json"
    path.write_text(text, encoding="utf-8")
    assert run(["attend", "toy", "L0H1", "--inputs", str(path)]) == 2
    assert told in capsys.readouterr().err


def test_a_model_without_a_tokenizer_is_asked_through_its_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "inputs.json"
    path.write_text('{"token": [0, 3, 5, 3]}', encoding="utf-8")
    assert run(["attend", "toy-induction", "L1H0", "--inputs", str(path), "--by", "pairs"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "(3) → " in out[0]
    assert "(2) · weight 1.000" in out[0]
    assert f"--inputs {path}" in out[-1] or "covector svd" in out[-1]


def test_neither_or_both_of_prompt_and_inputs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["attend", "demo-lm", "L0H0"]) == 2
    assert "either --prompt TEXT or --inputs FILE" in capsys.readouterr().err
