"""Recorded episodes shown to a model again: the moments are those that were, and edits are measured on them."""

import numpy as np
import pytest
import torch

import covector
from covector.analyses.edit_controls import output_size
from covector.analyses.rollout_arms import Matching, arms_of, controls_of, divergences, matrices, sizes_of
from covector.io.agent_file import parse_agent
from covector.run.decoder import Decoder
from covector.run.edited import laid_over
from covector.run.episodes import Stage, play
from covector.run.replay import matrix_inputs, moments, values, walked
from little_worlds import ACTIONS, agent_values, drift, random_agent, smooth_drift


@pytest.fixture(params=[(True, 3), (True, 20), (False, 3)], ids=["discrete, short", "discrete, long", "continuous"])
def recorded(request, tmp_path):
    """(model, agent, decoder, trajectories, the inputs of every recorded step one at a time without padding)."""
    discrete, context = request.param
    written = agent_values(discrete, context)
    random_agent(tmp_path, tanh=not discrete, values=written)
    model, agent = covector.open(tmp_path), parse_agent(written, "")
    decoder = Decoder(model.weights)
    stage = Stage(agent, drift if discrete else smooth_drift, 4)
    trajectories = play(decoder, stage, list(range(9)), agent.target, keep=True)
    return model, agent, decoder, trajectories


def alone(agent, trajectory, step):
    """The inputs at one step of an episode, with nothing in front: from the recorded history alone."""
    first = max(0, step + 1 - agent.context)
    asked = (agent.target - np.concatenate([[0], np.cumsum(trajectory.rewards)])) / agent.scale
    done = np.array(trajectory.episode.actions[first:step])
    if agent.discrete:
        done = np.eye(ACTIONS)[done.astype(int)]
    inputs = {
        "return": asked[None, first : step + 1],
        "state": trajectory.states[None, first : step + 1].astype(np.float64),
        "action": done.reshape(1, step - first, ACTIONS),
        "timestep": np.arange(first, step + 1)[None],
    }
    return {name: torch.from_numpy(value) for name, value in inputs.items() if value.shape[1]}


def test_replayed_moments_give_the_actions_that_were_taken(recorded):
    model, agent, decoder, trajectories = recorded
    seen = moments(agent, model.spec, trajectories, 10_000)
    assert seen.count == sum(t.episode.length for t in trajectories)
    found = values(decoder, seen)
    taken = [t.episode.actions[step] for step, rows, _ in walked(agent, model.spec, trajectories)
             for t in (trajectories[i] for i in rows)]  # fmt: skip
    # The actions were computed in the same float64 by another batch, then kept as they were.
    if agent.discrete:
        assert found.argmax(axis=1).tolist() == taken
    else:
        np.testing.assert_allclose(found, taken, atol=1e-6)


def test_some_moments_are_every_kth_step_of_every_episode(recorded):
    model, agent, _, trajectories = recorded
    steps = sum(t.episode.length for t in trajectories)
    seen = moments(agent, model.spec, trajectories, steps // 2)
    every = -(-steps // (steps // 2))
    wanted = sorted(i for i, t in enumerate(trajectories) for _ in range(0, t.episode.length, every))
    assert sorted(seen.of.tolist()) == wanted


def test_what_a_matrix_multiplies_is_gathered_without_the_padding(recorded):
    """Against a loop over single steps that never pads: as a set of rows, since their order is nobody's business."""
    model, agent, decoder, trajectories = recorded
    seen = moments(agent, model.spec, trajectories, 10_000)
    names = ("L0.W_out", "L1.W_O", "L1.W_in", "out.action.W", "in.state.W")
    found = matrix_inputs(decoder, seen, names)
    hooks = ("L0.mlp_post", "L1.z", "L1.mlp_normed", "final_normed")
    wanted: dict[str, list] = {name: [] for name in names}
    for t in trajectories:
        for step in range(t.episode.length):
            inputs = alone(agent, t, step)
            run = decoder.run(inputs, capture=hooks)
            for name, hook in zip(names, hooks, strict=False):
                wanted[name].append(run.cache[hook][0].numpy())
            wanted["in.state.W"].append(inputs["state"][0].numpy())
    for name in names:
        rows = np.concatenate(wanted[name])
        assert found[name].shape == rows.shape
        for power in (1, 2):  # the same first and second moments, and the same sorted norms
            np.testing.assert_allclose((found[name] ** power).mean(0), (rows**power).mean(0), atol=1e-5)
        norms = [np.sort(np.linalg.norm(x.reshape(len(x), -1), axis=1)) for x in (found[name], rows)]
        np.testing.assert_allclose(norms[0], norms[1], atol=1e-5)


def test_controls_move_the_output_as_far_as_the_edit_over_clean_moments(recorded):
    """E‖Δoutput‖² = mean over rows of ‖x ΔW (+ what biases take)‖², here by dense algebra on the changed matrices."""
    model, agent, decoder, trajectories = recorded
    arms = arms_of(model, {"mlp": "L0.mlp.out:0,2*0", "head": "L1H1.ov:0*0", "state": "L1.mlp.in:1*0.5"})
    seen = moments(agent, model.spec, trajectories, 10_000)
    inputs = matrix_inputs(decoder, seen, matrices(arms))
    matching = Matching(model, 5, 3)
    controls, sizes = controls_of(matching, arms, inputs), {arm.name: sizes_of(matching, arm, inputs) for arm in arms}
    for arm in arms:
        own = moved(model, arm.part.change, inputs)
        (size,) = sizes[arm.name].values()
        np.testing.assert_allclose(own, size**2, rtol=1e-9)
        drawn = [controls[f"{arm.name}/random/{i}"] for i in range(5)]
        np.testing.assert_allclose([moved(model, c, inputs) for c in drawn], own, rtol=1e-9)
        assert len({c.updates[0].left.tobytes() for c in drawn}) == 5
        ranks = [np.linalg.matrix_rank(c.updates[0].left @ c.updates[0].right) for c in drawn]
        assert set(ranks) == {2 if arm.name == "mlp" else 1}
    assert output_size(model, arms[0].part.change.updates[0], inputs) > 0


def moved(model, change, inputs) -> float:
    """Mean ‖Δoutput‖² by the difference of whole matrices and biases."""
    total = 0.0
    for update in change.updates:
        x, layer = inputs[update.tensor], update.tensor.partition(".")[0]
        x = x[:, update.head] if update.tensor.endswith("W_O") else x
        bias = sum((s.values for s in change.shifts if s.tensor.startswith(layer)), 0.0)
        total += float(np.square(x @ (update.left @ update.right) + bias).sum(axis=-1).mean())
    return total


def test_divergence_is_the_share_of_other_actions_and_the_mean_kl_or_square(recorded):
    model, agent, decoder, trajectories = recorded
    (arm,) = arms_of(model, {"cut": "L1.mlp.out:0,1,2*0"})
    seen = moments(agent, model.spec, trajectories, 10_000)
    (share, second) = divergences(decoder, seen, {"cut": arm.part.change})["cut"]
    changed = laid_over(decoder, arm.part.change)
    pairs = []
    for t in trajectories:
        for step in range(t.episode.length):
            inputs = alone(agent, t, step)
            at = 3 * (inputs["state"].shape[1] - 1) + 1
            pairs.append([d.run(inputs).outputs["action"][0, at].detach().numpy() for d in (decoder, changed)])
    plain, other = np.array(pairs).transpose(1, 0, 2)
    if agent.discrete:
        p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (plain, other))
        wanted = np.mean(plain.argmax(1) != other.argmax(1)), (p * np.log(p / q)).sum(axis=1).mean()
    else:
        far = np.abs(other - plain) > 0.1 * plain.std(axis=0)
        wanted = far.any(axis=1).mean(), np.square(other - plain).mean()
    assert share == pytest.approx(wanted[0], abs=1e-12)
    assert second == pytest.approx(wanted[1], rel=1e-4)
    assert share > 0
