"""What the model is given: young and old episodes side by side, each as if it were alone and nothing stood in front."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from covector.arch.toy import random_weights
from covector.errors import BadAgent
from covector.model.spec import MLP, Assembly, Attention, Block, Input, ModelSpec, Norm, Output, Sublayer
from covector.run.acting import Context, action_values, chosen
from covector.run.decoder import Decoder
from covector.study.agent import Agent, Environment, Padding

NORM = Norm("layer", 1e-5)
AGENT = Agent(Environment("x"), 2.0, 4, scale=2.0)


def spec(mode: str, order: tuple[str, ...], positions: str = "learned", causal: bool = True) -> ModelSpec:
    sizes = {"return": Input("return", 1, "linear"), "state": Input("state", 3, "linear"),
             "action": Input("action", 2, "lookup")}  # fmt: skip
    inputs = tuple(sizes[name] for name in order)
    block = Block((Sublayer(Attention(2, 2, 4, 0.5, causal), NORM), Sublayer(MLP(10, "relu"), NORM)))
    return ModelSpec(
        "toy", 8, (block, block), Assembly(mode, inputs, Input("time", 6, "lookup"), positions),
        (Output("action", 2, at="state" if mode == "interleaved" else None),), n_ctx=12, final_norm=NORM,
    )  # fmt: skip


CASES = [
    ("interleaved", ("return", "state", "action"), "same step"),
    ("interleaved", ("action", "return", "state"), "previous"),
    ("interleaved", ("return", "state"), "same step"),
    ("summed", ("state", "action", "return"), "previous"),
]


@pytest.mark.parametrize("positions", ["learned", "none"])
@pytest.mark.parametrize(("mode", "order", "given"), CASES)
def test_each_row_is_what_the_episode_alone_would_be_given(mode, order, given, positions):
    """Three episodes that begin at different steps, against windows written down without padding, positions from 0."""
    anatomy, agent = spec(mode, order, positions), replace(AGENT, given=given)
    decoder = Decoder(random_weights(anatomy))
    rng = np.random.default_rng(0)
    states = rng.normal(size=(3, 9, 3)).astype(np.float32)
    actions, rewards = rng.integers(0, 2, (3, 9)), rng.normal(size=(3, 9)).astype(np.float32)
    begins, context = [0, 2, 5], Context(agent, anatomy, 3)
    for step in range(9):
        going = np.array([i for i in range(3) if begins[i] < step])
        if len(going):
            age = step - np.array(begins)[going]
            context.follow(going, actions[going, age - 1], states[going, age], rewards[going, age - 1])
        for i in [i for i in range(3) if begins[i] == step]:
            context.begin(i, states[i, 0], agent.target)
        rows = np.array([i for i in range(3) if begins[i] <= step])
        with torch.no_grad():
            found = action_values(decoder, context.sight(rows)).numpy()
            for row, values in zip(rows, found, strict=True):
                age = step - begins[row]
                first = max(0, age + 1 - agent.context)
                asked = (agent.target - np.concatenate([[0], np.cumsum(rewards[row, :age])])) / agent.scale
                before = np.concatenate([[0], actions[row]])
                own = {
                    "return": asked[None, first:], "state": states[row, None, first : age + 1].astype(float),
                    "action": (actions[row, None, first:age] if given == "same step"
                               else before[None, first : age + 1]),
                    "time": np.minimum(np.arange(first, age + 1), 5)[None],
                }  # fmt: skip
                named = {k: torch.from_numpy(v) for k, v in own.items() if k in (*order, "time") and v.shape[1]}
                run = decoder.run(named).outputs["action"][0]
                length, per = run.shape[0], len(order)
                at = length - 1 if mode == "summed" else (length - 1) // per * per + order.index("state")
                np.testing.assert_allclose(values, run[at].numpy(), atol=1e-6)


def test_a_row_that_begins_again_is_as_new():
    """Where the filling is visible nothing of the row's last episode may be left in front of the next."""
    filling = Padding(False, {"return": "target", "state": 0.5, "action": 1, "time": 3})
    agent, rng, row = replace(AGENT, padding=filling), np.random.default_rng(5), np.array([0])
    used, fresh = (Context(agent, spec("interleaved", ("return", "state", "action")), 1) for _ in range(2))
    used.begin(0, rng.normal(size=3), 9.0)
    for _ in range(7):
        used.follow(row, np.array([0]), rng.normal(size=(1, 3)), np.array([0.3], dtype=np.float32))
    state = rng.normal(size=3)
    for context in (used, fresh):
        context.begin(0, state, 2.0)
    for _ in range(3):
        for name, value in used.sight(row).inputs.items():
            assert torch.equal(value, fresh.sight(row).inputs[name]), name
        state = rng.normal(size=(1, 3))
        for context in (used, fresh):
            context.follow(row, np.array([1]), state, np.array([0.1], dtype=np.float32))


def test_the_largest_logit_is_taken_and_the_first_of_equals():
    values = np.array([[0.0, 2.0, 1.0], [3.0, 3.0, 1.0]])
    assert chosen(AGENT, values).tolist() == [1, 0]
    np.testing.assert_array_equal(chosen(replace(AGENT, discrete=False), values), values)


def test_times_stop_at_the_last_row_of_their_table():
    anatomy = spec("interleaved", ("return", "state", "action"))
    for most, last in ((None, 5), (3, 3)):
        context = Context(replace(AGENT, most_time=most), anatomy, 1)
        context.begin(0, np.zeros(3, np.float32), 1.0)
        for _ in range(8):
            context.follow(np.array([0]), np.array([1]), np.zeros((1, 3), np.float32), np.zeros(1, np.float32))
        assert context.sight(np.array([0])).inputs["time"].tolist() == [[last] * 4]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"context": 5}, "context: expected timesteps that fit the model's 12 positions, got 5 of 3 tokens"),
        ({"most_time": 6}, "timestep.most: expected a row of the time table, 0–5, got 6"),
        ({"padding": Padding(False, {"actions": 1.0})}, "padding: expected action, return, state, time, timestep, got"),
    ],
)
def test_an_agent_file_that_the_model_cannot_follow_is_refused(changes, said):
    anatomy = spec("interleaved", ("return", "state", "action"))
    Context(AGENT, anatomy, 1)
    with pytest.raises(BadAgent, match=said):
        Context(replace(AGENT, where="file", **changes), anatomy, 1)
