"""The bundled agent: it loads, it is small, it plays as its card says; and the script makes other agents."""

import json
import math
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import covector
from covector.demo import DEMO_DT
from covector.demo.demo_dt_card import card
from covector.io.agent_file import read_agent

FRESH_SEED = 9_021_000  # not seeds of the trainer or of the card
FRESH_EPISODES = 40

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gymnasium")
pytest.importorskip("minigrid")

from covector.demo import evaluate_demo_dt as evaluation  # noqa: E402
from covector.demo import train_demo_dt as training  # noqa: E402
from covector.demo.experts import to_goal  # noqa: E402
from covector.demo.trajectories import open_world  # noqa: E402
from covector.run.decoder import Decoder  # noqa: E402
from covector.run.episodes import Stage, play  # noqa: E402


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return json.loads((DEMO_DT / "figures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def agent() -> tuple[Any, dict[str, Any]]:
    return evaluation.open_agent(DEMO_DT)


@pytest.fixture(scope="module")
def outcomes(agent: tuple[Any, dict[str, Any]]) -> dict[float, list[evaluation.Outcome]]:
    model, told = agent
    targets = [told["return"]["target"], 0.5]
    found = evaluation.evaluate(model, told, targets, FRESH_EPISODES, FRESH_SEED)
    return dict(zip(targets, found, strict=True))


def test_the_agent_reaches_the_goal_at_its_target_on_fresh_seeds(outcomes: dict) -> None:
    high = outcomes[0.9]
    assert np.mean([o.success for o in high]) >= 0.9
    assert all(o.total == pytest.approx(1 - 0.9 * o.length / 100) for o in high if o.success)  # MiniGrid's reward


def test_returns_on_fresh_seeds_are_those_of_the_card(outcomes: dict, figures: dict) -> None:
    for row in figures["play"]["targets"]:
        if row["target"] in outcomes:
            fresh = np.array([o.total for o in outcomes[row["target"]]])
            told = row["return"]
            error = math.hypot(fresh.std(ddof=1) / math.sqrt(len(fresh)), (told["interval"][1] - told["mean"]) / 1.96)
            assert fresh.mean() == pytest.approx(told["mean"], abs=5 * error + 1e-9)


def test_the_script_and_the_runner_of_roll_outs_play_the_same_episodes(outcomes: dict) -> None:
    """Two programs: this one through transformers, side by side; the other through covector's decoder, from slots."""
    told, n = read_agent(DEMO_DT / "agent.json"), 12
    decoder, stage = Decoder(covector.open("demo-dt").stored, dtype=torch.float32), Stage(told)
    for target, mine in outcomes.items():
        played = [t.episode for t in play(decoder, stage, range(FRESH_SEED, FRESH_SEED + n), target)]
        assert [(e.total, e.length, e.success) for e in played] == [(o.total, o.length, o.success) for o in mine[:n]]


@pytest.mark.slow
def test_a_damaged_agent_does_not_reach_the_goal(agent: tuple[Any, dict[str, Any]]) -> None:
    model, told = evaluation.open_agent(DEMO_DT)
    with torch.no_grad():
        model.embed_state.weight.zero_()
    found = evaluation.evaluate(model, told, [0.9], FRESH_EPISODES, FRESH_SEED)[0]
    assert np.mean([o.success for o in found]) < 0.5


def test_the_card_is_written_from_the_figures(figures: dict) -> None:
    text = (DEMO_DT / "README.md").read_text(encoding="utf-8")
    assert text == card(figures)
    for row in figures["play"]["targets"]:
        assert f"| target {row['target']:g} | {row['return']['mean']:.3f} [" in text
    assert figures["training"]["cpu_minutes"] <= 35
    assert figures["play"]["episodes"] >= 200


def test_the_card_says_what_the_agent_file_asks_for(figures: dict, agent: tuple[Any, dict[str, Any]]) -> None:
    asked = agent[1]["return"]
    assert [row["target"] for row in figures["play"]["targets"]] == asked["targets"]
    high, *_, low = figures["play"]["targets"]
    assert asked["target"] == high["target"]
    assert high["success"]["interval"][0] >= 0.9
    assert high["return"]["mean"] > low["return"]["mean"]
    assert high["return"]["mean"] > figures["play"]["random"]["return"]["mean"]


def test_transformers_opens_the_folder_and_finds_every_tensor_in_it() -> None:
    from transformers import DecisionTransformerModel

    model, info = DecisionTransformerModel.from_pretrained(DEMO_DT, output_loading_info=True)
    assert not any(info.values())
    config = model.config
    assert (config.n_layer, config.n_head, config.hidden_size, config.action_tanh) == (3, 1, 128, False)
    assert config.vocab_size == 1


def test_the_weights_are_float16_and_the_folder_fits_two_megabytes() -> None:
    with safe_open(DEMO_DT / "model.safetensors", "np") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
        assert all(np.isfinite(weights.get_tensor(name)).all() for name in weights.keys())  # noqa: SIM118
    assert sum(f.stat().st_size for f in DEMO_DT.rglob("*") if f.is_file()) <= 2_000_000


def test_heads_that_are_said_to_be_untrained_hold_what_they_began_with(agent: tuple[Any, dict[str, Any]]) -> None:
    model, told = agent
    world = evaluation.world_of(told)
    seen = np.stack([world.see(world.make().reset(seed=0)[0])])
    fresh = training.new_model(world, seen)
    for name in told["untrained"]:
        now, then = getattr(model, f"predict_{name}").weight, getattr(fresh, f"predict_{name}").weight
        assert torch.equal(now, then.half().float()), name
    assert not torch.equal(model.predict_action[0].weight, fresh.predict_action[0].weight.half().float())


def test_covector_opens_it_by_name_and_reads_its_agent_file(agent: tuple[Any, dict[str, Any]]) -> None:
    model = covector.open("demo-dt")
    assert {"state_in", "action_in", "return_in", "timestep_in", "action_out"} <= set(model.bases)
    read = read_agent(DEMO_DT / "agent.json")
    assert len(read.actions) == len(model.bases["action_out"]) == 7
    assert (read.target, read.context, read.untrained) == (0.9, 10, ("state", "return"))
    assert read.most_time == agent[0].config.max_ep_len - 1


def test_state_numbers_that_are_never_lit_have_no_embedding(figures: dict) -> None:
    lengths = np.linalg.norm(covector.open("demo-dt").bases["state_in"].vectors, axis=1)
    assert (lengths > 0).sum() == figures["training"]["states_met"]
    assert lengths[49 * 9 : 49 * 10].max() == 0.0  # lava: this environment has none
    assert lengths[49 * 5 : 49 * 6].max() > 0.0  # keys it has


@pytest.mark.slow
def test_half_a_minute_of_training_makes_a_better_player_than_chance(tmp_path: Path) -> None:
    arguments = Namespace(env="MiniGrid-Empty-Random-5x5-v0", expert="covector.demo.experts:to_goal", out=tmp_path,
                          trajectories=150, steps=60, episodes=30)  # fmt: skip
    training.make(arguments, open_world(arguments.env, 50), to_goal, [0.95, 0.0])
    made = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    history, play = made["training"]["history"], made["play"]
    assert history[-1]["held_out"] < history[0]["held_out"] - 0.03
    assert play["targets"][0]["return"]["interval"][0] > play["random"]["return"]["interval"][1]
    assert read_agent(tmp_path / "agent.json").environment.id == arguments.env
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == card(made)
    assert covector.open(tmp_path).spec.family == covector.open("demo-dt").spec.family


def test_vectors_of_numbers_are_normalised_by_the_statistics_in_the_agent_file(tmp_path: Path) -> None:
    world = open_world("CartPole-v1", 60)
    found = training.gather(world, lambda env: int(env.unwrapped.state[2] > 0), 40)
    told = training.agent_file(world, found, None)
    states = np.concatenate([t.seen for t in found])
    normal = evaluation.normalised(told, states)
    assert normal.mean(0) == pytest.approx(np.zeros(4), abs=1e-5)
    assert normal.std(0) == pytest.approx(np.ones(4), abs=1e-3)
    (tmp_path / "agent.json").write_text(json.dumps(told), encoding="utf-8")
    assert read_agent(tmp_path / "agent.json").scale == max(t.rewards.sum() for t in found)


class Listener(torch.nn.Module):
    """Plays action 1 always, and remembers what it was given last."""

    def forward(self, **given: Any) -> Namespace:
        self.given = given
        preds = torch.zeros(*given["states"].shape[:2], 2)
        preds[..., 1] = 1.0
        return Namespace(action_preds=preds)


def test_what_the_model_is_given_is_the_episode_so_far(agent: tuple[Any, dict[str, Any]]) -> None:
    told = agent[1] | {"environment": {"id": "CartPole-v1", "kwargs": {"max_episode_steps": 60}}, "context": 4}
    told |= {"return": {"target": 30, "scale": 20.0}, "success": {"return_at_least": 50}}
    told |= {"state": {"mean": [0.0, 0.0, 1.0, 0.0], "std": [1.0, 1.0, 1.0, 2.0]}}
    listener = Listener()
    length = evaluation.evaluate(listener, told, [30.0], 1, 5)[0][0].length
    world = evaluation.world_of(told)
    env = world.make()
    states = [env.reset(seed=5)[0], *(env.step(1)[0] for _ in range(length - 1))][-4:]
    steps = list(range(length - 4, length))  # one reward per step
    assert listener.given["timesteps"].tolist() == [steps]
    assert listener.given["returns_to_go"].flatten().tolist() == pytest.approx([(30 - t) / 20 for t in steps])
    assert listener.given["actions"][0, :3].tolist() == [[0.0, 1.0]] * 3
    expected = (np.stack(states) - [0, 0, 1, 0]) / [1, 1, 1, 2]
    assert listener.given["states"][0].numpy() == pytest.approx(expected, abs=1e-6)  # float32


def test_windows_end_inside_their_trajectory_and_hold_its_steps_in_order(agent: tuple[Any, dict[str, Any]]) -> None:
    world = open_world("CartPole-v1", 30)
    told = agent[1] | {"state": "as is", "context": 4}
    found = training.collect(world, lambda env: int(env.unwrapped.state[2] > 0), range(20))
    data = training.Data.of(found, 10.0)
    given, taken = data.windows(world, told, np.random.default_rng(0), 300)
    places = {t.seen[i].tobytes(): (n, i) for n, t in enumerate(found) for i in range(len(t.seen))}
    ends = 0
    for row in range(300):
        count = int((taken[row] >= 0).sum())
        assert (taken[row, :count] >= 0).all()  # what is missing is missing at the end
        which = [places[given["states"][row, k].numpy().tobytes()] for k in range(count)]
        n, first = which[0]
        assert which == [(n, first + k) for k in range(count)]
        assert count == 4 or first == 0  # short only where the episode is young
        t = found[n]
        ends += first + count == len(t.actions)
        assert taken[row, :count].tolist() == t.actions[first : first + count].tolist()
        assert given["actions"][row, :count].argmax(-1).tolist() == taken[row, :count].tolist()
        assert given["timesteps"][row, :count].tolist() == list(range(first, first + count))
        left = [(len(t.actions) - i) / 10 for i in range(first, first + count)]
        assert given["returns_to_go"][row, :count, 0].tolist() == pytest.approx(left)
    assert ends  # and reach the last step of a trajectory


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--env", "MiniGrid-Nowhere-v0", "--out", "x"], "Nowhere"),
        (["--env", "MiniGrid-Empty-5x5-v0"], "expected --out FOLDER"),
        (["--expert", "to_goal"], "expected an expert as module:function, got 'to_goal'"),
        (["--env", "Pendulum-v1", "--out", "x"], "expected discrete actions"),
    ],
)
def test_what_the_script_cannot_do_is_refused_in_one_line(
    words: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_demo_dt", *words])
    with pytest.raises(SystemExit) as stopped:
        training.main()
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err.splitlines()[-1]
