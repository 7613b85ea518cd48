"""agent.json: what it says is taken as it stands, and what is missing or unknown is refused with what to supply."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covector.errors import BadAgent
from covector.io.agent_file import find_agent, need_agent, parse_agent, read_agent

EXAMPLES = Path(__file__).parents[2] / "examples" / "agents"
FULL: dict[str, Any] = {
    "environment": {"id": "World-v1", "kwargs": {"max_steps": 5}, "start": {"agent_pos": [1, 3]}},
    "observation": {"key": "image", "encoding": "minigrid-one-hot", "axes": "x y channel -> channel x y"},
    "state": {"mean": [1, 2.5], "std": [2, 0.5]},
    "return": {"target": 0.9, "targets": [0.9, 0.0], "scale": 10},
    "context": 7,
    "padding": {"state": 0, "return": "target"},
    "action": {"kind": "discrete", "names": ["left", "right"], "given": "previous"},
    "timestep": {"most": 99},
    "success": {"return_at_least": 0.5},
    "score": {"random": -2, "expert": 8},
    "state_names": ["height", "speed"],
    "untrained": ["return"],
    "source": "a paper",
}


def without(*path: str) -> dict[str, Any]:
    return changed(..., *path)


def changed(value: Any, *path: str) -> dict[str, Any]:
    """The full file with another value at a path; `...` deletes it."""
    values = copy.deepcopy(FULL)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return values


def test_every_key_is_read():
    agent = parse_agent(FULL, "here")
    assert (agent.environment.id, agent.environment.kwargs, agent.environment.start) == (
        "World-v1", {"max_steps": 5}, {"agent_pos": [1, 3]},
    )  # fmt: skip
    assert (agent.observation.key, agent.observation.encoding) == ("image", "minigrid-one-hot")
    assert agent.observation.axes == "x y channel -> channel x y"
    np.testing.assert_array_equal([agent.mean, agent.std], [[1, 2.5], [2, 0.5]])
    assert (agent.target, agent.targets, agent.scale, agent.context) == (0.9, (0.9, 0.0), 10.0, 7)
    assert (agent.padding.masked, agent.padding.fill) == (False, {"state": 0, "return": "target"})
    assert (agent.discrete, agent.actions, agent.given, agent.most_time) == (True, ("left", "right"), "previous", 99)
    assert agent.success is not None
    assert [agent.success.of(total, -1.0, True) for total in (0.4, 0.5)] == [False, True]
    assert agent.normalised_score(3.0) == 50
    assert (agent.states, agent.untrained) == (("height", "speed"), ("return",))
    assert (agent.source, agent.where) == ("a paper", "here")


def test_what_may_be_absent_has_the_documented_default():
    agent = parse_agent({key: FULL[key] for key in ("environment", "state", "context")} | {"return": {"target": 3}}, "")
    assert (agent.targets, agent.scale, agent.padding.masked, agent.given) == ((3.0,), 1.0, True, "same step")
    assert (agent.discrete, agent.most_time, agent.success, agent.observation.encoding) == (True, None, None, "raw")
    assert np.isnan(agent.normalised_score(1.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (without("environment"), "expected 'environment', got none; write one with"),
        (without("state"), "expected 'state', got none"),
        (without("return"), "expected 'return', got none"),
        (without("context"), "expected 'context', got none"),
        (without("return", "target"), "return.target: expected a finite number, got none"),
        (without("environment", "id"), "environment.id: expected a text, got none"),
        (changed([1], "state", "std"), "equally many and std above 0, or \"as is\", got 2 and 1 numbers"),
        (changed([1, 0], "state", "std"), "std above 0"),
        (changed("as if", "state"), "state.: expected an object, got str"),
        (changed(0, "return", "scale"), "return.scale: expected a number above 0, got 0"),
        (changed(float("nan"), "return", "target"), "return.target: expected a finite number, got nan"),
        (changed(True, "context"), "context: expected a whole number above 0, got True"),
        (changed(2.5, "context"), "context: expected a whole number above 0"),
        (changed("two-hot", "observation", "encoding"), "expected raw or minigrid-one-hot, got 'two-hot'"),
        (changed("before", "action", "given"), "expected same step or previous"),
        (changed({"wins": 1}, "success"), "success: expected one of last_reward_above"),
        (changed({"return_at_least": "much"}, "success"), "success.return_at_least: expected a number, got 'much'"),
        (changed("front", "padding", "state"), "padding.state: expected a number, got 'front'"),
        (changed(3, "enviroment"), "expected .*got 'enviroment' .did you mean 'environment'"),
        (changed(3, "return", "scales"), "return.scales: .*did you mean 'scale'"),
        ([1, 2], "the file: expected an object, got list"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_well_formed_is_refused_with_its_key(values, message):
    with pytest.raises(BadAgent, match=message):
        parse_agent(values, "here")


def test_a_file_is_looked_for_where_it_is_named_then_beside_the_weights_then_by_name(tmp_path):
    beside, given = tmp_path / "agent.json", tmp_path / "other.json"
    assert find_agent("folder", tmp_path) is None
    beside.write_text(json.dumps(FULL))
    given.write_text(json.dumps(FULL | {"context": 3}))
    hopper = "edbeeching/decision-transformer-gym-hopper-medium"
    assert [a and a.context for a in (find_agent(hopper, tmp_path), find_agent("x", tmp_path, given))] == [7, 3]
    known = find_agent(f"{hopper}@main", None)
    assert known is not None
    assert known.mean is not None
    assert len(known.mean) == 11
    assert not known.discrete


def test_a_missing_or_broken_file_says_what_to_write(tmp_path):
    with pytest.raises(BadAgent, match=r"m: expected an agent.json .*found none; write one .*known by name: edbee"):
        need_agent("m", tmp_path)
    with pytest.raises(BadAgent, match="expected an agent file at"):
        need_agent("m", tmp_path, tmp_path / "none.json")
    (tmp_path / "agent.json").write_text("{")
    with pytest.raises(BadAgent, match="expected an agent file at"):
        need_agent("m", tmp_path)


def test_what_an_episode_depends_on_tells_two_agents_apart():
    """Every key that changes an episode changes `conduct`; a name, a source or a label does not."""
    usual = parse_agent(FULL, "here").conduct()
    json.dumps(usual)
    for value, *path in (
        ({"max_steps": 6}, "environment", "kwargs"), ({}, "environment", "start"), ("other", "observation", "key"),
        ("raw", "observation", "encoding"), ("x y channel -> y x channel", "observation", "axes"),
        ([1, 2.6], "state", "mean"), ([2, 0.6], "state", "std"), ("as is", "state"),
        (0.8, "return", "target"), (9, "return", "scale"), (8, "context"),
        ("masked", "padding"), ("continuous", "action", "kind"), ("same step", "action", "given"),
        (98, "timestep", "most"), ({"survives": True}, "success"), ({"return_at_least": 0.6}, "success"),
    ):  # fmt: skip
        assert parse_agent(changed(value, *path), "here").conduct() != usual, path
    for value, *path in (("elsewhere", "source"), ([], "untrained"), ({}, "score"), ([0.9], "return", "targets")):
        assert parse_agent(changed(value, *path), "there").conduct() == usual, path


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda p: p.stem)
def test_the_examples_are_well_formed(path):
    assert read_agent(path).source
