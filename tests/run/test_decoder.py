"""The reference decoder: against a model written out by hand, against differences of itself, and its promises."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm as gaussian

from covector.errors import BadRequest, CheckpointMismatch, UnsupportedConfig
from covector.model.spec import MLP, Block, Norm, Sublayer
from covector.model.weights import ArrayWeights
from covector.run.decoder import Decoder
from covector.run.random_inputs import random_inputs


def inputs_of(weights, length=6, seed=0):
    return random_inputs(weights.spec, length=length, seed=seed)


def _layer_norm(x, w, name, eps=1e-5):
    y = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps)
    return y * w[f"{name}.gain"] + w[f"{name}.bias"]


def _softmax(s):
    e = np.exp(s - s.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_a_pre_norm_model_equals_its_equations_in_numpy(toys):
    w = toys("pre-norm")
    ids = inputs_of(w)["token"]
    x = w["W_E"][ids[0]] + w["W_pos"][2:8]
    for i in range(2):
        y = _layer_norm(x, w, f"L{i}.attn_norm")
        for h in range(4):
            q, k, v = (y @ w[f"L{i}.W_{m}"][h] + w[f"L{i}.b_{m}"][h] for m in "QKV")
            s = np.where(np.tri(6, dtype=bool), q @ k.T / math.sqrt(3), -np.inf)
            x = x + _softmax(s) @ v @ w[f"L{i}.W_O"][h]
        x = x + w[f"L{i}.b_O"]
        h = _layer_norm(x, w, f"L{i}.mlp_norm") @ w[f"L{i}.W_in"] + w[f"L{i}.b_in"]
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + h @ w[f"L{i}.W_out"] + w[f"L{i}.b_out"]
    logits = _layer_norm(x, w, "final_norm") @ w["W_U"] + w["b_U"]
    assert np.allclose(Decoder(w).run(ids).logits[0].numpy(), logits, rtol=0, atol=1e-11)


def test_a_post_norm_encoder_equals_its_equations_in_numpy(toys):
    w = toys("post-norm")
    ids = inputs_of(w)["token"]
    x = _layer_norm(2 * w["W_E"][ids[0]] + w["in.type.W"][0] + w["W_pos"][:6], w, "embed_norm")
    out = w["L0.b_O"]
    for h in range(2):
        q, k, v = (x @ w[f"L0.W_{m}"][h] + w[f"L0.b_{m}"][h] for m in "QKV")
        out = out + _softmax(0.5 * q @ k.T) @ v @ w["L0.W_O"][h]
    x = _layer_norm(x + out, w, "L0.attn_after")
    h = x @ w["L0.W_in"] + w["L0.b_in"]
    x = _layer_norm(x + (h * gaussian.cdf(h)) @ w["L0.W_out"] + w["L0.b_out"], w, "L0.mlp_after")
    h = x @ w["out.token.transform.W"] + w["out.token.transform.b"]
    logits = _layer_norm(h * gaussian.cdf(h), w, "out.token.norm") @ w["W_U"] + w["b_U"]
    assert np.allclose(Decoder(w).run({"token": ids}).logits[0].numpy(), logits, rtol=0, atol=1e-11)


def test_a_sandwich_block_normalises_what_it_adds_and_scales_it(toys):
    decoder = Decoder(toys("sandwich"))
    cache = decoder.run(inputs_of(decoder.weights), capture="*").cache
    for name, scale in (("attn", 1.0), ("mlp", 0.7)):
        out, gain, bias = cache[f"L0.{name}_out"], *(decoder.part(f"L0.{name}_post.{k}") for k in ("gain", "bias"))
        want = (out / (out.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gain + bias) * scale
        assert torch.allclose(cache[f"L0.{name}_added"], want, rtol=0, atol=1e-14)
    assert torch.equal(cache["L0.resid_mid"], cache["L0.resid_pre"] + cache["L0.attn_added"])
    assert torch.equal(cache["L0.resid_post"], cache["L0.resid_mid"] + cache["L0.mlp_added"])


def test_an_output_is_scaled_and_then_capped(toys):
    decoder = Decoder(toys("sandwich"))
    run = decoder.run(inputs_of(decoder.weights))
    plain = run.resid_final @ decoder.part("W_U") + decoder.part("b_U")
    assert torch.allclose(run.logits, 3 * torch.tanh(0.5 * plain / 3), rtol=0, atol=1e-14)


def test_parallel_sublayers_both_read_the_stream_as_it_enters(toys):
    decoder = Decoder(toys("parallel"))
    cache = decoder.run(inputs_of(decoder.weights), capture="*").cache
    assert torch.equal(cache["L0.mlp_in"], cache["L0.resid_pre"])
    total = cache["L0.resid_pre"] + cache["L0.attn_added"] + cache["L0.mlp_added"]
    assert torch.allclose(cache["L0.resid_post"], total, rtol=0, atol=1e-14)
    assert "L0.resid_mid" not in decoder.hooks


@pytest.mark.parametrize("after", [False, True])
def test_the_bias_of_a_gated_mlp_stands_before_or_after_the_gate(toys, after):
    w = toys("interleaved")
    mlp = replace(w.spec.blocks[0].mlp, bias_after_gate=after)
    attn, feed = w.spec.blocks[0].sublayers
    spec = replace(w.spec, blocks=(Block((attn, replace(feed, part=mlp))),))
    cache = Decoder(ArrayWeights(spec, w.arrays)).run(inputs_of(w), capture="*").cache
    x = cache["L0.mlp_normed"].numpy()
    gate = np.tanh(x @ w["L0.W_gate"] + w["L0.b_gate"])
    plain = x @ w["L0.W_in"]
    want = gate * plain + w["L0.b_in"] if after else gate * (plain + w["L0.b_in"])
    assert np.allclose(cache["L0.mlp_post"].numpy(), want, rtol=0, atol=1e-13)


def test_a_tied_unembedding_is_the_transposed_embedding(toys):
    w = toys("no norms")
    run = Decoder(w).run(inputs_of(w))
    assert torch.allclose(run.logits, run.resid_final @ torch.tensor(w["W_E"]).T + torch.tensor(w["b_U"]), atol=1e-14)


def test_the_derivative_of_the_whole_model_equals_finite_differences(toy, slopes):
    decoder = Decoder(toy)
    stream = decoder.run(inputs_of(toy), capture=["resid_in"]).cache["resid_in"]
    final = toy.spec.outputs[0].name
    exact, measured = slopes(lambda x: decoder.run(resid_in=x).outputs[final], stream)
    assert exact == pytest.approx(measured, rel=1e-10, abs=1e-10)


def test_the_derivative_by_a_state_that_an_agent_sees_equals_finite_differences(toys, slopes):
    decoder = Decoder(toys("interleaved"))
    given = inputs_of(decoder.weights)

    def act(state):
        return decoder.run(given | {"state": state}).outputs["action"]

    exact, measured = slopes(act, given["state"])
    assert exact == pytest.approx(measured, rel=1e-10, abs=1e-10)


def test_the_derivative_at_a_hook_point_equals_finite_differences(toys, slopes):
    decoder = Decoder(toys("grouped"))
    given = inputs_of(decoder.weights)
    z = decoder.run(given, capture=["L0.z"]).cache["L0.z"]
    exact, measured = slopes(lambda x: decoder.run(given, intervene={"L0.z": lambda _: x}).logits, z)
    assert exact == pytest.approx(measured, rel=1e-10, abs=1e-10)


def test_every_hook_point_is_passed_once_and_in_order(toy):
    decoder, order = Decoder(toy), []
    noted = {name: lambda x, name=name: (order.append(name), x)[1] for name in decoder.hooks}
    decoder.run(inputs_of(toy), intervene=noted)
    assert tuple(order) == decoder.hooks


def test_replacing_a_tensor_by_itself_changes_no_bit(toy):
    decoder, given = Decoder(toy), inputs_of(toy)
    plain = decoder.run(given)
    same = decoder.run(given, capture="*", intervene=dict.fromkeys(decoder.hooks, torch.clone))
    assert torch.equal(plain.resid_final, same.resid_final)
    assert all(torch.equal(plain.outputs[n], same.outputs[n]) for n in plain.outputs)


def test_an_intervention_moves_what_follows_and_nothing_before(toy):
    decoder, given = Decoder(toy), inputs_of(toy)
    before = decoder.run(given, capture="*").cache
    name = "L0.attn_out"
    after = decoder.run(given, capture="*", intervene={name: lambda x: x + 1}).cache
    earlier = decoder.hooks[: decoder.hooks.index(name)]
    assert all(torch.equal(before[n], after[n]) for n in earlier)
    assert not torch.equal(before["L0.resid_post"], after["L0.resid_post"])


def test_a_run_from_the_assembled_stream_equals_the_run_from_the_inputs(toy):
    decoder, given = Decoder(toy), inputs_of(toy)
    whole = decoder.run(given, capture=["resid_in"])
    again = decoder.run(resid_in=whole.cache["resid_in"])
    assert torch.equal(whole.resid_final, again.resid_final)


def test_a_batch_is_its_sequences_one_by_one(toy):
    decoder, given = Decoder(toy), inputs_of(toy)
    together = decoder.run(given).resid_final
    for row in range(2):
        alone = decoder.run({name: value[row : row + 1] for name, value in given.items()}).resid_final
        assert torch.allclose(together[row : row + 1], alone, rtol=0, atol=1e-13)


def test_left_padding_with_shifted_positions_changes_nothing(toys):
    decoder = Decoder(toys("pre-norm"))
    ids = inputs_of(decoder.weights)["token"]
    padded = torch.cat([torch.full((2, 2), 7), ids], dim=1)
    mask = (torch.arange(8) >= 2)[None].expand(2, 8)
    positions = (torch.arange(8) - 2).clamp(min=0)[None].expand(2, 8)
    run = decoder.run(padded, mask=mask, positions=positions)
    assert torch.allclose(run.logits[:, 2:], decoder.run(ids).logits, rtol=0, atol=1e-12)


def test_padding_of_an_agent_is_masked_by_timestep(toys):
    decoder = Decoder(toys("interleaved"))
    given = inputs_of(decoder.weights)
    mask = torch.tensor([[0, 1], [0, 1]])
    plain = decoder.run(given, mask=mask).resid_final
    other = decoder.run(given | {"state": given["state"] * torch.tensor([[[-3.0]], [[5.0]]])}, mask=mask).resid_final
    moved = given["state"].clone()
    moved[:, 0] += 1
    padded = decoder.run(given | {"state": moved}, mask=mask).resid_final
    assert torch.equal(plain[:, 3:], padded[:, 3:])
    assert not torch.equal(plain[:, 3:], other[:, 3:])


def test_a_causal_model_does_not_look_ahead_and_an_encoder_does(toys):
    for words, ahead in (("pre-norm", False), ("post-norm", True)):
        decoder = Decoder(toys(words))
        ids = inputs_of(decoder.weights)["token"]
        changed = ids.clone()
        changed[:, -1] = (ids[:, -1] + 1) % 11
        same = torch.equal(decoder.run(ids).logits[:, :-1], decoder.run(changed).logits[:, :-1])
        assert same is not ahead


def test_an_episode_that_stops_at_the_state_equals_the_head_of_the_whole_one(toys):
    decoder = Decoder(toys("interleaved"))
    given = inputs_of(decoder.weights, length=9)
    stopped = given | {"action": given["action"][:, :-1]}
    whole, head = decoder.run(given).outputs["action"], decoder.run(stopped).outputs["action"]
    assert head.shape[1] == 8
    assert torch.allclose(whole[:, :8], head, rtol=0, atol=1e-13)


def test_float32_follows_float64_to_its_own_rounding(toy):
    given = inputs_of(toy)
    fine = Decoder(toy).run(given).resid_final
    coarse = Decoder(toy, torch.float32).run(given).resid_final
    assert coarse.dtype == torch.float32
    # 2e-5: a few hundred roundings of 6e-8 over two blocks, on values around 3.
    assert torch.allclose(fine.float(), coarse, rtol=0, atol=2e-5)


def test_half_precision_weights_are_widened_exactly(toys):
    w = toys("pre-norm")
    halves = ArrayWeights(w.spec, {n: a.astype(np.float16) for n, a in w.arrays.items()})
    wide = ArrayWeights(w.spec, {n: a.astype(np.float16).astype(np.float64) for n, a in w.arrays.items()})
    ids = inputs_of(w)
    assert torch.equal(Decoder(halves).run(ids).logits, Decoder(wide).run(ids).logits)


def test_an_edit_lives_in_its_context_only(toys):
    w = toys("grouped")
    decoder, ids = Decoder(w), inputs_of(w)
    before = decoder.run(ids).logits
    with decoder.edited({"L0.W_O": np.zeros_like(w["L0.W_O"])}) as other:
        cache = other.run(ids, capture=["L0.attn_out"]).cache
        assert torch.equal(cache["L0.attn_out"], decoder.part("L0.b_O").expand_as(cache["L0.attn_out"]))
        assert torch.equal(decoder.run(ids).logits, before)
    assert torch.equal(decoder.run(ids).logits, before)


def test_an_edit_of_a_tied_embedding_moves_both_ends_and_an_edit_of_the_output_unties(toys):
    w = toys("no norms")
    decoder, ids, zeros = Decoder(w), inputs_of(w), np.zeros_like(w["W_E"])
    decoder.run(ids)
    with decoder.edited({"W_E": zeros}) as other:
        assert torch.equal(other.run(ids).logits, decoder.part("b_U").expand(2, 6, 11))
    with decoder.edited({"W_U": zeros.T}) as other:
        run = other.run(ids)
        assert torch.equal(run.resid_final, decoder.run(ids).resid_final)
        assert torch.equal(run.logits, decoder.part("b_U").expand(2, 6, 11))


def test_an_edit_of_a_wrong_name_or_shape_is_refused(toys):
    decoder = Decoder(toys("grouped"))
    with (
        pytest.raises(BadRequest, match=r"expected a canonical tensor of this model, got 'L9.W_O'"),
        decoder.edited({"L9.W_O": np.zeros(3)}),
    ):
        pass
    with (
        pytest.raises(BadRequest, match=r"edit of L0.W_O: expected shape \(4, 4, 8\), got \(3,\)"),
        decoder.edited({"L0.W_O": np.zeros(3)}),
    ):
        pass


def test_a_run_never_changes_the_weights(toy):
    before = {name: toy[name].copy() for name in toy.names()}
    Decoder(toy).run(inputs_of(toy), intervene={"L0.attn_out": lambda x: x.mul_(0)})
    assert all(np.array_equal(before[name], toy[name]) for name in toy.names())


@pytest.mark.parametrize(
    "given", [{}, {"inputs": torch.zeros(1, 1, dtype=torch.long), "resid_in": torch.zeros(1, 1, 8)}]
)
def test_a_run_starts_from_inputs_or_from_a_stream(toys, given):
    with pytest.raises(BadRequest, match=r"run: expected either inputs or resid_in, got (neither|both)"):
        Decoder(toys("grouped")).run(**given)


def test_a_reference_in_half_precision_is_refused(toys):
    with pytest.raises(BadRequest, match=r"expected torch.float32 or torch.float64, got torch.bfloat16"):
        Decoder(toys("grouped"), torch.bfloat16)


@pytest.mark.parametrize(
    ("words", "name"), [("grouped", "L0.W_gate"), ("post-norm", "out.token.transform.W"), ("interleaved", "in.state.W")]
)
def test_weights_that_lack_what_the_anatomy_needs_are_refused_by_name(toys, words, name):
    w = toys(words)
    without = ArrayWeights(w.spec, {n: a for n, a in w.arrays.items() if n != name})
    with pytest.raises(CheckpointMismatch, match=f"expected a tensor for {name}, the anatomy needs it"):
        Decoder(without)


def test_an_anatomy_whose_meaning_is_not_settled_is_refused(toys):
    w = toys("parallel")
    attn, mlp = w.spec.blocks[0].sublayers
    norm = Norm("layer", 1e-5)
    refused = {
        "no norm after the addition in a parallel block": Block((attn, replace(mlp, after=norm)), parallel=True),
        "a window in causal attention only": Block((replace(attn, part=replace(attn.part, causal=False, window=2)),)),
        "activation 'mystery'": Block((Sublayer(MLP(10, "mystery")),)),
    }
    for text, block in refused.items():
        with pytest.raises(UnsupportedConfig, match=text):
            Decoder(ArrayWeights(replace(w.spec, blocks=(block,)), w.arrays))
