"""The first stream: which row stands where, and what is added to it, for tokens and for agents."""

import numpy as np
import pytest
import torch

from covector.errors import BadRequest
from covector.model.spec import Assembly, Input, Norm, Output
from covector.run.assembly import assemble, embed, read_out, spread_mask

D = 4
RNG = np.random.default_rng(0)
TABLES = {
    "W_E": RNG.standard_normal((11, D)),
    "W_pos": RNG.standard_normal((8, D)),
    "in.type.W": RNG.standard_normal((2, D)),
    "in.return.W": RNG.standard_normal((1, D)),
    "in.return.b": RNG.standard_normal(D),
    "in.state.W": RNG.standard_normal((5, D)),
    "in.action.W": RNG.standard_normal((3, D)),
    "in.time.W": RNG.standard_normal((9, D)),
    "embed_norm.gain": 1 + RNG.standard_normal(D),
}
TOKEN = Input("token", 11, "lookup")
AGENT = (Input("return", 1, "linear"), Input("state", 5, "linear"), Input("action", 3, "lookup"))
TIME = Input("time", 9, "lookup")
IDS = torch.tensor([[3, 1, 4]])


def part(name: str) -> torch.Tensor | None:
    return torch.tensor(TABLES[name]) if name in TABLES else None


def stream(assembly: Assembly, positions: torch.Tensor | None = None, **inputs: torch.Tensor) -> np.ndarray:
    return assemble(assembly, inputs, part, positions).numpy()


def agent_inputs(steps: int, actions: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "return": torch.randn(1, steps, 1, generator=draw, dtype=torch.float64),
        "state": torch.randn(1, steps, 5, generator=draw, dtype=torch.float64),
        "action": torch.randint(3, (1, actions), generator=draw),
        "time": torch.randint(9, (1, steps), generator=draw),
    }


def test_a_token_is_its_row_of_the_table_times_the_scale():
    scaled = Assembly("tokens", (Input("token", 11, "lookup", scale=3.0),))
    assert np.array_equal(stream(scaled, token=IDS)[0], 3.0 * TABLES["W_E"][[3, 1, 4]])


def test_one_hot_weights_pick_the_same_row_as_the_index():
    hot = torch.nn.functional.one_hot(IDS, 11).double()
    assert torch.equal(embed(TOKEN, hot, part), embed(TOKEN, IDS, part))


def test_a_token_type_is_added_and_is_zero_unless_given():
    typed = Assembly("tokens", (TOKEN, Input("type", 2, "lookup")))
    rows = TABLES["W_E"][[3, 1, 4]]
    assert np.array_equal(stream(typed, token=IDS)[0], rows + TABLES["in.type.W"][0])
    given = stream(typed, token=IDS, type=torch.tensor([[0, 1, 1]]))[0]
    assert np.array_equal(given, rows + TABLES["in.type.W"][[0, 1, 1]])


def test_learned_positions_count_from_the_offset():
    learned = Assembly("tokens", (TOKEN,), positions="learned", position_offset=2)
    assert np.array_equal(stream(learned, token=IDS)[0], TABLES["W_E"][[3, 1, 4]] + TABLES["W_pos"][2:5])
    shifted = stream(learned, torch.tensor([[1, 2, 3]]), token=IDS)[0]
    assert np.array_equal(shifted, TABLES["W_E"][[3, 1, 4]] + TABLES["W_pos"][3:6])


def test_zero_positions_add_the_first_row_everywhere():
    zero = Assembly("tokens", (TOKEN,), positions="zero")
    assert np.array_equal(stream(zero, token=IDS)[0], TABLES["W_E"][[3, 1, 4]] + TABLES["W_pos"][0])


def test_more_positions_than_the_model_learned_are_refused():
    learned = Assembly("tokens", (TOKEN,), positions="learned", position_offset=2)
    with pytest.raises(BadRequest, match="expected at most 6 positions, got position 6; shorten"):
        stream(learned, token=torch.zeros(1, 7, dtype=torch.long))


def test_the_embedding_norm_acts_before_or_after_positions_as_declared():
    norm = Norm("rms", 1e-5)
    rows, position, gain = TABLES["W_E"][[3, 1, 4]], TABLES["W_pos"][0], TABLES["embed_norm.gain"]

    def normed(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * gain

    after = Assembly("tokens", (TOKEN,), positions="zero", norm=norm)
    before = Assembly("tokens", (TOKEN,), positions="zero", norm=norm, norm_before_positions=True)
    assert np.allclose(stream(after, token=IDS)[0], normed(rows + position), rtol=0, atol=1e-14)
    assert np.allclose(stream(before, token=IDS)[0], normed(rows) + position, rtol=0, atol=1e-14)


def test_the_inputs_of_a_timestep_follow_each_other_and_each_gets_its_time():
    given = agent_inputs(2, 2)
    rows = stream(Assembly("interleaved", AGENT, TIME), **given)[0]
    times = TABLES["in.time.W"][given["time"][0].numpy()]
    for t in range(2):
        back = given["return"][0, t].numpy() @ TABLES["in.return.W"] + TABLES["in.return.b"]
        state = given["state"][0, t].numpy() @ TABLES["in.state.W"]
        action = TABLES["in.action.W"][given["action"][0, t]]
        want = np.stack([back, state, action]) + times[t]
        assert np.allclose(rows[3 * t : 3 * t + 3], want, rtol=0, atol=1e-14)


def test_a_sequence_may_stop_inside_its_last_timestep():
    assembly = Assembly("interleaved", AGENT, TIME)
    given = agent_inputs(3, 3)
    whole = stream(assembly, **given)
    stopped = stream(assembly, **(given | {"action": given["action"][:, :2]}))
    assert stopped.shape == (1, 8, D)
    assert np.array_equal(stopped, whole[:, :8])


def test_a_single_timestep_may_come_without_any_action():
    assembly = Assembly("interleaved", AGENT, TIME)
    given = agent_inputs(1, 1)
    whole = stream(assembly, **given)
    empty = stream(assembly, **(given | {"action": given["action"][:, :0]}))
    without = stream(assembly, **{name: value for name, value in given.items() if name != "action"})
    assert np.array_equal(empty, whole[:, :2])
    assert np.array_equal(without, whole[:, :2])


def test_a_sequence_with_a_hole_is_refused():
    given = agent_inputs(3, 3)
    with pytest.raises(BadRequest, match="got return 3, state 2, action 3; the sequence may stop"):
        stream(Assembly("interleaved", AGENT, TIME), **(given | {"state": given["state"][:, :2]}))


def test_an_agent_needs_a_time_for_each_timestep():
    given = agent_inputs(3, 3)
    with pytest.raises(BadRequest, match="expected 3 timesteps, one time for each, got 2"):
        stream(Assembly("interleaved", AGENT, TIME), **(given | {"time": given["time"][:, :2]}))


def test_a_summed_agent_has_one_position_per_timestep():
    given = agent_inputs(2, 2)
    rows = stream(Assembly("summed", AGENT, TIME), **given)
    apart = stream(Assembly("interleaved", AGENT), **{n: v for n, v in given.items() if n != "time"})
    times = TABLES["in.time.W"][given["time"][0].numpy()]
    assert np.allclose(rows[0], apart.reshape(2, 3, D).sum(1) + times, rtol=0, atol=1e-14)


def test_summed_inputs_of_different_lengths_are_refused():
    with pytest.raises(BadRequest, match=r"expected as many timesteps in each, got \[1, 2\]"):
        stream(Assembly("summed", AGENT, TIME), **agent_inputs(2, 1))


def test_a_linear_input_may_be_activated_and_takes_single_numbers_without_an_axis():
    curved = Input("return", 1, "linear", activation="tanh")
    value = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    want = np.tanh(value.numpy()[0][:, None] @ TABLES["in.return.W"] + TABLES["in.return.b"])
    assert np.allclose(embed(curved, value, part)[0].numpy(), want, rtol=0, atol=1e-15)
    assert torch.equal(embed(curved, value[..., None], part), embed(curved, value, part))


def test_indices_into_a_linear_input_stand_for_one_hot_vectors():
    state = AGENT[1]
    hot = torch.eye(5, dtype=torch.float64)[torch.tensor([[2, 4]])]
    assert torch.equal(embed(state, torch.tensor([[2, 4]]), part), embed(state, hot, part))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.tensor([[0, 11]]), "input 'token': expected indices 0–10, got 0–11"),
        (torch.tensor([[-1, 3]]), "input 'token': expected indices 0–10, got -1–3"),
        (torch.tensor([3]), r"input 'token': expected indices \[batch, time\], got int64 of shape \(1,\)"),
        (torch.ones(1, 2, 5), r"expected indices \[batch, time\], got float32 of shape \(1, 2, 5\)"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_shape(value, text):
    with pytest.raises(BadRequest, match=text):
        embed(TOKEN, value, part)


def test_a_missing_and_an_unknown_input_are_named():
    with pytest.raises(BadRequest, match="expected 'token', got none"):
        stream(Assembly("tokens", (TOKEN,)))
    with pytest.raises(BadRequest, match="expected token, got 'tokens'"):
        stream(Assembly("tokens", (TOKEN,)), tokens=IDS)


def test_a_mask_over_timesteps_covers_every_input_of_the_step():
    assembly = Assembly("interleaved", AGENT, TIME)
    mask = torch.tensor([[0, 1]])
    assert spread_mask(assembly, mask, 5).int().tolist() == [[0, 0, 0, 1, 1]]
    with pytest.raises(BadRequest, match="one value per position"):
        spread_mask(Assembly("tokens", (TOKEN,)), mask, 3)


def test_an_output_is_read_where_the_input_that_it_names_stands():
    assembly = Assembly("interleaved", AGENT, TIME)
    value = torch.arange(7.0)[None, :, None]
    assert read_out(assembly, Output("action", 3, at="state"), value)[0, :, 0].tolist() == [1, 4]
    assert read_out(assembly, Output("action", 3), value) is value
