"""`covector rollout` as it is typed: an agent of known truth, a hopper-shaped one in MuJoCo, and requests that fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from covector.cli.main import run
from covector.io.alone import alone
from little_worlds import PLANTED_SITE, agent_values, planted_agent, random_agent

ROOT = Path(__file__).parents[2]
HOPPER = ROOT / "src/covector/io/agents/edbeeching--decision-transformer-gym-hopper-medium.json"
HERE = ("--engine", "threads", "--workers", "1", "--episodes", "4")


@pytest.fixture(scope="module")
def lamp(tmp_path_factory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("lamp")
    planted_agent(folder)
    return ("rollout", str(folder), "--env", "little_worlds:lamp", *HERE)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_edits_are_named_or_are_their_own_name(lamp, capsys):
    site = f"{PLANTED_SITE}:0*0"
    table = said(capsys, *lamp, "--arm", f"cut={site}", "--arm", site, "--arm", f"quoted='{site}'", "--controls", "0")
    rows = {row["arm"]: row for row in table["rows"]}
    assert list(rows) == ["clean", "sham", "cut", site, "quoted"]
    assert rows["cut"]["return"] == rows[site]["return"] == rows["quoted"]["return"] < rows["clean"]["return"] == 15
    assert table["meta"]["edits"]["cut"] == site
    assert table["meta"]["sham_is_clean"]


@pytest.mark.slow
def test_several_targets_are_rows_and_their_calibration_another_table(lamp, capsys):
    asked = ("--target", "1,0,-1", "--arm", f"{PLANTED_SITE}:1*0", "--controls", "2", "--control-episodes", "2")
    table = said(capsys, *lamp, *asked)
    assert [r["asked"] for r in table["rows"] if r["arm"] == "clean"] == [1, 0, -1]
    assert len(table["rows"]) == 1 + 3 + 3
    table = said(capsys, *lamp, *asked, "--by", "target")
    assert [r["asked"] for r in table["rows"]] == [1, 0, -1] * 2
    table = said(capsys, *lamp, *asked, "--by", "control")
    assert {r["kind"] for r in table["rows"]} == {"edit", "random", "other dyad"}


def test_nothing_but_the_table_goes_to_standard_output(lamp, capsys):
    assert run([*lamp, "--arm", f"{PLANTED_SITE}:0*0", "--controls", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        line for line in captured.err.splitlines() if line.startswith("1 edit, clean and sham: 12 episodes, some 180")
    ]
    assert "with 1 worker, more if edits lengthen episodes" in captured.err
    assert "without controls, not what a random edit does" in " ".join(captured.out.split())
    assert run([*lamp, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_an_edit_stops_when_it_is_decided_and_the_header_says_the_error_rate(lamp, capsys):
    asked = ("--arm", f"cut={PLANTED_SITE}:0*0", "--arm", f"idle={PLANTED_SITE}:1*0", "--controls", "0", "--stop")
    assert run([*lamp, *asked, "--episodes", "60", "--looks", "3"]) == 0
    captured = capsys.readouterr()
    assert "4 arms" not in captured.err
    assert "at most 240 episodes" in captured.err
    assert "looks after 20, 40, 60 episodes" in captured.err
    assert "error rate 5% over all looks and edits (2.5 % for each edit)" in captured.err
    said = " ".join(captured.out.split())
    assert "'cut' was decided after 20 episodes, 1 of 2 edits undecided after 60" in said
    assert "--stop --looks 3 --arm cut=" in said


def test_few_controls_are_said_to_be_few(lamp, capsys):
    assert run([*lamp, "--arm", f"cut={PLANTED_SITE}:0*0", "--controls", "2", "--control-episodes", "2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "too few to tell (rank p 0.33; --controls 19 or more)" in said
    assert said.endswith(f"--episodes 4 --controls 2 --control-episodes 2 --arm cut='{PLANTED_SITE}:0*0' --by control")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--by", "seed"), "--by: expected arm, control, episode, target"),
        (("--by", "control"), "--by control: expected an --arm and --controls above 0"),
        (("--by", "control", "--arm", "L1.mlp.out:0*0", "--controls", "0"), "--by control: expected"),
        (("--by", "target"), "--by target: expected several returns asked for, got 0; give --target 1,0.5,0"),
        (("--by", "episode", "--plot", "x.png"), "--plot"),
        (("--episodes", "0"), "--episodes: expected 2 or more, got 0"),
        (("--episodes", "1"), "--episodes: expected 2 or more, got 1"),
        (("--first-seed", "-1"), "--first-seed: expected 0 or more"),
        (("--stop",), "--stop: expected an --arm; it is the edits that stop"),
        (("--stop", "--each", "L1.mlp.out"), "--stop: expected an --arm; --each compares all dyads on equal terms"),
        (("--looks", "3"), "--looks goes with --stop"),
        (("--stop", "--looks", "1", "--arm", "L1.mlp.out:0*0", "--controls", "0"), "--looks: expected 2 to 4"),
        (("--target", "high"), "--target: expected numbers with commas, as 1,0.5,0, got 'high'"),
        (("--target", "nan"), "--target: expected finite numbers"),
        (("--target", "1,1"), "--target: expected every return once"),
        (("--arm", "cut=L9.mlp.out:0*0"), "L9.mlp.out is outside"),
        (("--arm", "clean=L1.mlp.out:0*0"), "--arm clean: expected a name of your own"),
        (("--arm", "a=L1.mlp.out:0*0", "--arm", "a=L1.mlp.out:1*0"), "'a' is given twice"),
        (("--arm", "L1.mlp.out:0*1"), "changes nothing"),
        (("--control-episodes", "1", "--arm", "L1.mlp.out:0*0"), "--control-episodes: expected 2 to 4"),
        (("--workers", "0"), "expected --workers >= 1"),
        (("--engine", "magic"), "expected --engine threads, processes or dask://"),
        (("--dtype", "float16"), "--dtype: expected float64 or float32"),
        (("--out", __file__), "expected a folder, it is a file"),
        (("--top", "-1"), "--top: expected 0 (all) or more rows"),
        (("--record", "/tmp/f.gif"), "expected a picture"),
        (("--record", "/tmp/f.gif", "--record-seed", "4"), "--record-seed: expected one of the seeds played, 0–3"),
        (("--agent", "/none.json"), "expected an agent file at '/none.json'"),
        (("--env", "CartPole-v1"), "expected states of 5 numbers, which the model reads, the environment gives 4"),
        (("--env", "CartPoll-v1"), "near ones: CartPole-v1"),
        (("--env", "no.module:make"), "expected a factory 'package.module:function'"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_played(lamp, capsys, words, message):
    err = refused(capsys, *lamp, *words)
    assert message in " ".join(err.split())
    assert "episodes, some" not in err
    assert len(err.splitlines()) == 1


def test_a_model_that_is_no_agent_is_refused_with_what_to_supply(capsys):
    err = refused(capsys, "rollout", "demo-lm")
    assert "expected an agent.json" in err
    assert "known by name: edbeeching/decision-transformer-gym-hopper-expert" in err


@pytest.mark.slow
def test_a_hopper_shaped_agent_runs_in_mujoco_with_the_shipped_statistics(tmp_path, capsys):
    """Whoever has the published weights changes the name alone."""
    pytest.importorskip("mujoco")
    torch.manual_seed(0)
    config = DecisionTransformerConfig(
        state_dim=11, act_dim=3, hidden_size=32, max_ep_len=1000, n_layer=3, n_head=1, vocab_size=1, n_positions=64
    )
    DecisionTransformerModel(config).save_pretrained(tmp_path)
    words = (
        "rollout", str(tmp_path), "--agent", str(HOPPER), *HERE, "--arm", "late=L2.mlp.out:0*0", "--controls", "3",
        "--control-episodes", "2", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    table = said(capsys, *words)
    clean, sham, late = table["rows"]
    assert table["meta"]["environment"] == "Hopper-v4"
    assert set(table["meta"]["packages"]) == {"gymnasium", "mujoco"}
    assert clean["return"] == sham["return"] > 0
    assert late["kl"] > 0
    assert clean["score"] == pytest.approx(100 * (clean["return"] + 20.272305) / (3234.3 + 20.272305), abs=0.01)
    lines = (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()
    action = json.loads(lines[1])["actions"][0]
    assert len(action) == 3
    assert all(-1 <= a <= 1 for a in action)
    before = len(lines)
    assert said(capsys, *words)["rows"] == table["rows"]
    assert len((tmp_path / "run" / "episodes.jsonl").read_text().splitlines()) == before


def test_a_folder_that_another_process_writes_to_is_refused(lamp, capsys, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with alone(out):
        err = refused(capsys, *lamp, "--out", str(out))
    assert "expected to be alone there, another covector is writing to it" in err
    assert not list(out.iterdir())
    assert run([*lamp, "--out", str(out), "--quiet"]) == 0


@pytest.mark.slow
def test_who_interrupts_keeps_what_is_finished(tmp_path):
    """Ctrl-C in the middle: no traceback, 130, and the same command goes on."""
    random_agent(tmp_path, tanh=False, values=agent_values(True))
    out = tmp_path / "out"
    words = [
        sys.executable, "-m", "covector", "rollout", str(tmp_path), "--env", "little_worlds:drift", "--episodes",
        "4000", "--engine", "threads", "--workers", "1", "--out", str(out),
    ]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True)
    journal = out / "episodes.jsonl"
    until = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 1) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "Traceback" not in err
    assert f"interrupted; finished parts are kept, the same command goes on from {journal}" in err
    kept = len(journal.read_text().splitlines())
    assert 1 < kept < 8001
