"""One contract, two runners: the reference decoder and the transformers runner agree at every hook point they share."""

from functools import cache

import numpy as np
import pytest
import torch

from covector.arch.family import families
from covector.model.weights import split_name
from covector.run.decoder import Decoder
from covector.run.hf_load import tiny_judge
from covector.run.hf_runner import HFRunner
from covector.run.random_inputs import proof_length, random_inputs
from covector.run.runner import Runner

JUDGED = sorted(name for name, family in families().items() if family.hf_class)
# transformers keeps some steps in float32 (norms, rotary tables, softmax); two or three blocks add them up.
TOLERANCE = 1e-5
# What only the decoder shows, and what transformers' modules show but do not let anyone replace.
HIDDEN = {"q_turned", "k_turned", "scores"}
FIXED = {"pattern", "resid_mid"}


@cache
def pair(name: str) -> tuple[HFRunner, Decoder, dict[str, torch.Tensor]]:
    model, weights = tiny_judge(families()[name], seed=3)
    return HFRunner(model, weights), Decoder(weights), random_inputs(weights.spec, length=proof_length(weights.spec))


def roles(names) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in names}


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("name", JUDGED)
def test_both_runners_fulfil_the_contract_and_show_the_same_hook_points(name):
    runner, decoder, _ = pair(name)
    assert isinstance(runner, Runner)
    assert isinstance(decoder, Runner)
    assert roles(decoder.hooks) - roles(runner.hooks) == HIDDEN
    assert [n for n in decoder.hooks if n in runner.hooks] == list(runner.hooks)
    shared_norm = {"attn_in", "mlp_in"} if name in ("gptj", "phi") else set()
    assert roles(runner.hooks) - roles(runner.changeable) == (FIXED & roles(runner.hooks)) | shared_norm


@pytest.mark.parametrize("name", JUDGED)
def test_both_runners_capture_the_same_values(name):
    runner, decoder, inputs = pair(name)
    theirs = runner.run(inputs, capture=runner.hooks)
    ours = decoder.run(inputs, capture=runner.hooks)
    assert set(theirs.cache) == set(runner.hooks)
    for hook in runner.hooks:
        assert apart(ours.cache[hook], theirs.cache[hook]) < TOLERANCE, hook
    for out in ours.outputs:
        assert apart(ours.outputs[out], theirs.outputs[out]) < TOLERANCE, out
    assert apart(ours.resid_final, theirs.resid_final) < TOLERANCE


def shift(x: torch.Tensor) -> torch.Tensor:
    """Something to add that differs in every coordinate."""
    return x + 0.3 * torch.sin(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)


@pytest.mark.parametrize("name", JUDGED)
def test_both_runners_give_the_same_after_interventions_at_every_hook_point_at_once(name):
    runner, decoder, inputs = pair(name)
    changes = dict.fromkeys(runner.changeable, shift)
    theirs, ours = (r.run(inputs, capture=runner.hooks, intervene=changes) for r in (runner, decoder))
    for hook in runner.hooks:
        assert apart(ours.cache[hook], theirs.cache[hook]) < TOLERANCE, hook


# Separate and fused projections, a fused gate, a norm that serves two, post-norms, an agent.
@pytest.mark.parametrize("name", ["bert", "decision_transformer", "gpt_neox", "gptj", "phi3"])
def test_both_runners_give_the_same_after_an_intervention_at_each_hook_point(name):
    runner, decoder, inputs = pair(name)
    plain = runner.run(inputs)
    for hook in (n for n in runner.changeable if n[0] != "L" or n.startswith("L1.")):
        theirs, ours = (r.run(inputs, intervene={hook: shift}) for r in (runner, decoder))
        for out in ours.outputs:
            assert apart(ours.outputs[out], theirs.outputs[out]) < TOLERANCE, (hook, out)
        assert max(apart(plain.outputs[out], theirs.outputs[out]) for out in plain.outputs) > 100 * TOLERANCE, hook


@pytest.mark.parametrize("name", JUDGED)
def test_interventions_and_captures_leave_no_trace(name):
    runner, _, inputs = pair(name)
    before = runner.run(inputs)
    state = {key: value.clone() for key, value in runner.model.state_dict().items()}
    hooks = _hook_count(runner.model)
    runner.run(inputs, capture=runner.hooks, intervene={"L0.attn_out": lambda x: 0 * x})
    with pytest.raises(RuntimeError, match="thrown"):
        runner.run(inputs, intervene={"L0.z": _thrown})
    assert _hook_count(runner.model) == hooks
    assert all(torch.equal(value, state[key]) for key, value in runner.model.state_dict().items())
    assert torch.equal(before.resid_final, runner.run(inputs).resid_final)


def _thrown(_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("thrown")


def _hook_count(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", JUDGED)
def test_both_runners_give_the_same_with_padding_at_the_end(name):
    runner, decoder, inputs = pair(name)
    assembly = decoder.spec.assembly
    steps = next(iter(inputs.values())).shape[1]
    mask = torch.ones(2, steps, dtype=torch.long)
    # Two steps only: in float64 transformers gives NaN from any row whose window holds nothing but padding.
    mask[0, -2:] = 0
    real = mask.bool().repeat_interleave(len(assembly.inputs) if assembly.mode == "interleaved" else 1, dim=1)
    theirs, ours = (r.run(inputs, mask=mask) for r in (runner, decoder))
    assert apart(ours.resid_final[real], theirs.resid_final[real]) < TOLERANCE


@pytest.mark.parametrize("name", JUDGED)
def test_an_edit_of_any_canonical_tensor_is_the_same_in_both_and_is_undone_to_the_bit(name):
    runner, decoder, inputs = pair(name)
    state = {key: value.clone() for key, value in runner.model.state_dict().items()}
    rng = np.random.default_rng(0)
    names = [n for n in decoder.weights.names() if split_name(n)[0] in (None, 1) and not _shared(name, n)]
    changes = {n: decoder.weights[n] + 0.1 * rng.standard_normal(decoder.weights[n].shape) for n in names}
    with runner.edited(changes) as edited, decoder.edited(changes) as ours:
        theirs = edited.run(inputs)
        again = ours.run(inputs)
        for out in again.outputs:
            assert apart(again.outputs[out], theirs.outputs[out]) < TOLERANCE, out
    assert apart(theirs.resid_final, runner.run(inputs).resid_final) > 100 * TOLERANCE
    assert all(torch.equal(value, state[key]) for key, value in runner.model.state_dict().items())


def _shared(family: str, name: str) -> bool:
    """Stored once and read in two roles: a tied unembedding, and one norm that serves two sublayers."""
    weights = pair(family)[1].weights
    same = [n for n in weights.names() if weights.place(n) != weights.place(name)]
    tensor, role = weights.place(name).tensor, weights.place(name).role
    double = any(weights.place(n).tensor == tensor and "norm." in weights.place(n).role for n in same)
    return (name == "W_U" and weights.spec.tied) or ("norm." in role and double)


def test_an_edit_is_undone_when_the_body_fails():
    runner, decoder, _ = pair("gpt2")
    state = {key: value.clone() for key, value in runner.model.state_dict().items()}
    zeros = np.zeros_like(decoder.weights["L0.W_Q"])
    with pytest.raises(RuntimeError, match="thrown"):
        _edit_and_throw(runner, {"L0.W_Q": zeros})
    assert all(torch.equal(value, state[key]) for key, value in runner.model.state_dict().items())


def _edit_and_throw(runner: HFRunner, changes: dict[str, np.ndarray]) -> None:
    stored = runner.model.get_parameter("transformer.h.0.attn.c_attn.weight")
    with runner.edited(changes):
        d = len(stored)
        assert not stored[:, :d].any()
        assert stored[:, d:].any()
        raise RuntimeError("thrown")


def test_a_tied_unembedding_that_is_edited_leaves_the_embedding_alone():
    """Within the context the output matrix is the model's own; afterwards the two share one parameter again."""
    runner, decoder, _ = pair("gpt2")
    shared = runner.model.lm_head.weight
    with runner.edited({"W_U": 2 * decoder.weights["W_U"]}):
        assert torch.equal(runner.model.lm_head.weight, 2 * shared)
        assert runner.model.get_input_embeddings().weight is shared
    assert runner.model.lm_head.weight is shared
