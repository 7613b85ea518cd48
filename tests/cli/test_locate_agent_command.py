"""`covector locate` of agents as it is typed: the next command is typeable, with the agent file and the layout."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from covector.cli.main import run
from little_worlds import planted_agent


@pytest.fixture(scope="module")
def lamp(tmp_path_factory) -> tuple[str, str]:
    """An agent whose agent.json lies elsewhere."""
    folder = tmp_path_factory.mktemp("lamp")
    planted_agent(folder)
    away = tmp_path_factory.mktemp("away") / "an agent.json"
    shutil.move(folder / "agent.json", away)
    return str(folder), str(away)


def next_of(said: str) -> list[str]:
    return shlex.split(said.partition("next: covector ")[2])


@pytest.mark.parametrize("more", [(), ("--by", "contrasts"), ("--by", "dyads", "--frame", "folded")])
def test_the_next_command_has_the_agent_file_and_runs(lamp, capsys, more):
    folder, away = lamp
    assert run(["locate", folder, "action_out", "--agent", away, "--draws", "50", *more]) == 0
    words = next_of(capsys.readouterr().out)
    assert words[0] in ("locate", "svd")
    assert words[words.index("--agent") + 1] == away
    assert run([*words, "--json"]) == 0
    assert '"right"' in capsys.readouterr().out, "the labels are those of the agent file"


def test_what_is_played_next_has_the_agent_file_too(lamp, capsys):
    folder, away = lamp
    assert run(["locate", folder, "action_out", "--agent", away, "--by", "dyads"]) == 0
    words = next_of(capsys.readouterr().out)
    assert words[:4] == ["rollout", folder, "--agent", away]
    few = ("--env", "little_worlds:lamp", "--controls", "0", "--engine", "threads", "--quiet", "--json")
    assert run([*words[:-1], "4", *few]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [r["arm"] for r in rows] == ["clean", "sham", "edit"]
    assert rows[2]["return"] < rows[0]["return"] == 15, "and the dyad that it names is the planted one"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--total",), "--total: expected action_out --by dyads"),
        (("--by", "groups"), "--by: expected places, dyads, contrasts, clusters"),
        (("--by", "dyads", "--total", "--frame", "folded"), "--total: expected frame raw"),
    ],
)
def test_requests_that_do_not_go_together_are_refused(lamp, capsys, more, said):
    folder, away = lamp
    assert run(["locate", folder, "action_out", "--agent", away, *more]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_feature_through_an_mlp_of_an_agent_becomes_a_map(capsys, tmp_path: Path):
    state = [[float(i % 49 == t) for i in range(980)] for t in range(2)]
    given = {"return": [0.9, 0.9], "state": state, "action": [[1.0] + [0.0] * 6], "timestep": [0, 1]}
    (tmp_path / "clean.json").write_text(json.dumps(given))
    file = tmp_path / "f.safetensors"
    words = ("demo-dt", "forward - left", "L0H0@state>L0.mlp>out", "--inputs", str(tmp_path / "clean.json"))
    assert run(["observe", "feature", *words, "--out", str(file)]) == 0
    capsys.readouterr()
    assert run(["locate", "demo-dt", "state_in", "--map", str(file), "--draws", "20", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 13
