"""The transformers runner: what it refuses, and that its view of a model owes nothing to the layouts in words."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from covector.arch.family import families
from covector.errors import BadRequest, UnsupportedFamily
from covector.model.weights import ArrayWeights
from covector.run.hf_load import tiny_judge
from covector.run.hf_modules import find_blocks
from covector.run.hf_runner import HFRunner
from covector.run.random_inputs import random_inputs


@pytest.fixture(scope="module")
def gpt2():
    model, weights = tiny_judge(families()["gpt2"])
    return HFRunner(model, weights)


@pytest.fixture(scope="module")
def agent():
    model, weights = tiny_judge(families()["decision_transformer"])
    return HFRunner(model, weights)


def conv1d(x: torch.Tensor, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return x @ state[f"{name}.weight"] + state[f"{name}.bias"]


def test_a_fused_projection_is_cut_as_gpt2_cuts_it(gpt2):
    # Written from GPT2Attention.forward: split in three, then view(…, heads, head_dim).
    inputs = random_inputs(gpt2.spec, length=6)
    cache = gpt2.run(inputs, capture=["L1.attn_normed", "L1.q", "L1.k", "L1.v"]).cache
    flat = conv1d(cache["L1.attn_normed"], gpt2.model.state_dict(), "transformer.h.1.attn.c_attn")
    for name, part in zip("qkv", flat.split(20, dim=2), strict=True):
        assert torch.allclose(cache[f"L1.{name}"], part.view(2, 6, 4, 5), rtol=0, atol=1e-14)


def test_a_projection_fused_per_head_is_cut_as_gpt_neox_cuts_it():
    # Written from GPTNeoXAttention.forward: view(…, heads, 3 * head_size), then three chunks.
    model, weights = tiny_judge(families()["gpt_neox"])
    cache = HFRunner(model, weights).run(random_inputs(weights.spec, length=6), capture="L0.*").cache
    state, at = model.state_dict(), "gpt_neox.layers.0.attention.query_key_value"
    flat = cache["L0.attn_normed"] @ state[f"{at}.weight"].T + state[f"{at}.bias"]
    for name, part in zip("qkv", flat.view(2, 6, 3, 24).chunk(3, dim=-1), strict=True):
        assert torch.allclose(cache[f"L0.{name}"], part, rtol=0, atol=1e-14)


def test_grouped_heads_fused_in_one_matrix_are_cut_as_phi3_cuts_them():
    # Written from Phi3Attention.forward: all queries, then keys, then values.
    model, weights = tiny_judge(families()["phi3"])
    cache = HFRunner(model, weights).run(random_inputs(weights.spec, length=6), capture="L0.*").cache
    attn = model.model.layers[0].self_attn
    heads, groups, d = model.config.num_attention_heads, model.config.num_key_value_heads, attn.head_dim
    flat = cache["L0.attn_normed"] @ attn.qkv_proj.weight.T
    assert torch.allclose(cache["L0.q"].flatten(-2), flat[..., : heads * d], rtol=0, atol=1e-14)
    assert torch.allclose(cache["L0.k"].flatten(-2), flat[..., heads * d : (heads + groups) * d], rtol=0, atol=1e-14)
    assert torch.allclose(cache["L0.v"].flatten(-2), flat[..., (heads + groups) * d :], rtol=0, atol=1e-14)


def test_its_streams_are_the_hidden_states_that_transformers_returns(gpt2):
    inputs = random_inputs(gpt2.spec, length=6)
    given = gpt2.model(inputs["token"], output_hidden_states=True, output_attentions=True)
    run = gpt2.run(inputs, capture=["L*.resid_pre", "L*.pattern", "final_normed"])
    for layer in range(3):
        assert torch.equal(run.cache[f"L{layer}.resid_pre"], given.hidden_states[layer])
        assert torch.equal(run.cache[f"L{layer}.pattern"], given.attentions[layer])
    assert torch.equal(run.cache["final_normed"], given.hidden_states[3])
    assert torch.equal(run.logits, given.logits)


def test_it_sees_the_same_whatever_the_weights_say_about_layouts(gpt2):
    # Weights with q and k swapped: a judge that looked at them would swap its own.
    w = gpt2.weights
    swapped = {n: w[n.replace("W_Q", "W_K") if "W_Q" in n else n.replace("W_K", "W_Q")] for n in w.names()}
    other = HFRunner(gpt2.model, ArrayWeights(w.spec, swapped))
    inputs = random_inputs(w.spec, length=6)
    ours, theirs = (r.run(inputs, capture="*").cache for r in (gpt2, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_norms_are_found_by_what_flows_through_them(gpt2):
    block = gpt2.model.transformer.h[1]
    assert gpt2.norms["L1.attn_norm"] is block.ln_1
    assert gpt2.norms["L1.mlp_norm"] is block.ln_2
    assert gpt2.norms["final_norm"] is gpt2.model.transformer.ln_f
    assert set(gpt2.norms) == set(gpt2.spec.norms())


def test_an_agent_returns_its_outputs_where_it_reads_them(agent):
    inputs = random_inputs(agent.spec, length=9)
    run, returned = agent.run(inputs), agent.returned(inputs)
    assert run.outputs["action"].shape == (2, 9, 3)
    assert torch.allclose(run.outputs["action"][:, 1::3], returned["action"], rtol=0, atol=1e-14)
    assert torch.allclose(run.outputs["return"][:, 2::3], returned["return"], rtol=0, atol=1e-14)


def test_an_agent_without_its_last_action_needs_the_reference_decoder(agent):
    inputs = random_inputs(agent.spec, length=9)
    with pytest.raises(BadRequest, match="got return 3, state 3, action 2; pad the last action"):
        agent.run(inputs | {"action": inputs["action"][:, :2]})


def test_a_place_that_is_only_seen_cannot_be_replaced(gpt2):
    ids = random_inputs(gpt2.spec, length=4)
    with pytest.raises(BadRequest, match=r"intervene at L0.pattern: expected a place that can be replaced"):
        gpt2.run(ids, intervene={"L0.pattern": lambda x: x})
    with pytest.raises(BadRequest, match=r"capture: expected a hook point of this model, got 'L0.scores'"):
        gpt2.run(ids, capture=["L0.scores"])


def test_a_pattern_needs_eager_attention():
    model, weights = tiny_judge(families()["llama"])
    model.config._attn_implementation = "sdpa"
    assert not any(hook.endswith("pattern") for hook in HFRunner(model, weights).hooks)


def test_a_model_in_training_mode_is_refused():
    model, weights = tiny_judge(families()["gpt2"])
    with pytest.raises(BadRequest, match=r"GPT2LMHeadModel: expected evaluation mode, it is training; call .eval"):
        HFRunner(model.train(), weights)


def test_weights_of_another_depth_are_refused(gpt2):
    short = ArrayWeights(replace(gpt2.spec, blocks=gpt2.spec.blocks[:2]), {})
    with pytest.raises(BadRequest, match="expected 2 blocks as in the anatomy, it has 3"):
        HFRunner(gpt2.model, short)


def test_a_model_without_known_projections_is_refused():
    with pytest.raises(UnsupportedFamily, match="Sequential: expected a list of blocks with c_attn"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))


def test_an_edit_needs_weights_that_know_where_they_are_stored(gpt2):
    loose = ArrayWeights(gpt2.spec, {n: gpt2.weights[n] for n in gpt2.weights.names()})
    with (
        pytest.raises(BadRequest, match="edit: expected weights read through a layout in words"),
        HFRunner(gpt2.model, loose).edited({"L0.b_O": np.zeros(20)}),
    ):
        pass


def test_an_intervention_is_asked_once_however_many_modules_take_the_tensor():
    model, weights = tiny_judge(families()["llama"])
    asked = []
    changes = {name: lambda x: (asked.append(x), 2 * x)[1] for name in ("L0.attn_normed", "L0.mlp_normed")}
    HFRunner(model, weights).run(random_inputs(weights.spec, length=4), intervene=changes)
    assert len(asked) == 2


def test_gradients_flow_through_an_intervention(gpt2):
    inputs = random_inputs(gpt2.spec, length=4)
    z = gpt2.run(inputs, capture=["L0.z"]).cache["L0.z"].requires_grad_()
    gpt2.run(inputs, intervene={"L0.z": lambda _: z}).logits.sum().backward()
    assert z.grad.abs().max() > 0
