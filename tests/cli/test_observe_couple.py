"""`covector observe couple`: several tasks, prompts, pictures and refusals as they are typed."""

import json
from pathlib import Path

import numpy as np
import pytest

import covector
from covector.cli.main import run

TASKS = ["' she' - ' he'", "' her' - ' him'", "' Mary' - ' John'"]
PROMPTS = ["--template", "Yesterday [NAME] was happy because", "--fill", "NAME=Mary,Lisa,Emma:John,Mark,Paul"]
COUPLE = ["observe", "couple", "demo-lm"]


def test_three_tasks_without_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*COUPLE, *TASKS, "--draws", "50", "--seed", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    table = covector.couple(covector.open("demo-lm"), *TASKS, draws=50, seed=3)
    assert len(told["rows"]) == 3 * 16
    assert told["rows"] == json.loads(table.to_json())["rows"]
    assert (told["meta"]["kind"], told["meta"]["seed"]) == ("prediction", 3)


def test_prompts_put_measurements_beside_the_coupling(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [*COUPLE, *TASKS[:2], *PROMPTS, "--draws", "50"]
    assert run([*words, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for word in ("slope", "ratio", "within", "(prediction)", "(fit)", "(accounting)", "3 pairs, 13 clean and 12 other"):
        assert word in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 120
    rows = json.loads((tmp_path / "couple.json").read_text(encoding="utf-8"))["rows"]
    (head,) = (row for row in rows if row["head"] == "L2H3")
    # The head that reads both pronouns along one direction: three roads to one number.
    np.testing.assert_allclose([head["data"], head["slope"], head["ratio"]], head["coupling"], rtol=0.1)
    assert run([*words, "--token", "NAME"]) == 0
    assert "3 pairs, 3 clean and 3 other inputs at NAME" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_pictures_and_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [*COUPLE, *TASKS[:2], "--draws", "50", "-q"]
    for extra, name in (([], "heads"), ([*PROMPTS, "--picture", "attributions"], "ratios")):
        assert run([*words, *extra, "--plot", str(tmp_path / f"{name}.svg")]) == 0
        assert (tmp_path / f"{name}.svg").stat().st_size > 1000
    capsys.readouterr()
    for extra, told in (
        (["--picture", "readings"], "shows prompts, none came"),
        (["--fill", "NAME=Mary:John"], "expected either --template with --fill"),
        (["--draws", "5"], "draws of at least 19, got 5"),
        ([*PROMPTS, "--frame", "folded"], "expected frame raw, got folded"),
    ):
        assert run([*words, *extra]) == 2
        assert told in capsys.readouterr().err
