"""The proof itself: what a check compares, what it names, and that nothing passes by being absent."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from covector.arch.family import families
from covector.errors import BadRequest, NotProven
from covector.model.spec import MLP, Attention, Block, Sublayer
from covector.model.weights import ArrayWeights
from covector.run.decoder import Decoder
from covector.run.hf_load import tiny_judge
from covector.run.proof import Check, Recorded, compare, first_failure, prove, prove_recorded, require_proven
from covector.run.random_inputs import proof_length, random_inputs, unexercised


@pytest.fixture(scope="module")
def llama():
    model, weights = tiny_judge(families()["llama"])
    return model, weights


def test_a_difference_is_relative_to_the_largest_value_and_to_one():
    big = torch.tensor([0.0, 100.0], dtype=torch.float64)
    assert compare("q", "", big + 1, big, 0.1).difference == pytest.approx(0.01)
    small = torch.tensor([0.0, 0.01], dtype=torch.float64)
    assert compare("q", "", small + 1, small, 0.1).difference == pytest.approx(1.0)


def test_a_check_says_where_the_difference_is_largest():
    theirs = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    ours = theirs.clone()
    ours[1, 2, 3, 0] = 1
    assert compare("L2.q", "", ours, theirs, 0.1).worst == "batch 1, position 2, head 3, d_head 0"
    assert compare("L2.pattern", "", ours, theirs, 0.1).worst == "batch 1, head 2, query 3, key 0"
    assert compare("out.action", "", ours, theirs, 0.1).worst == "index 1, 2, 3, 0"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (torch.tensor([math.nan]), torch.zeros(1)),
        (torch.zeros(1), torch.tensor([math.nan])),
        (torch.tensor([math.inf]), torch.tensor([math.inf])),
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(0), torch.zeros(0)),
    ],
)
def test_what_cannot_be_compared_does_not_pass(ours, theirs):
    check = compare("q", "", ours, theirs, 1e9)
    assert check.difference == math.inf
    assert not check.passed


def test_a_difference_that_is_no_number_does_not_pass():
    assert not Check("q", "", math.nan, 1.0).passed


def test_the_first_failure_is_the_first_in_the_order_of_the_computation():
    checks = [Check("a", "", 0.0, 1.0), Check("b", "", 2.0, 1.0), Check("c", "", 3.0, 1.0)]
    assert first_failure(checks) is checks[1]
    assert first_failure(checks[:1]) is None


def test_no_check_is_no_proof():
    with pytest.raises(NotProven, match="somewhere: expected at least one check, none was made"):
        require_proven([], "somewhere")


def test_the_text_of_a_failed_proof_names_the_piece_and_the_place():
    failed = Check("L3.q", "ours against the judge's", 0.5, 1e-10, "batch 0, position 1, head 2, d_head 3")
    text = r"gpt2: L3.q: expected ours against the judge's within 1e-10, they differ by 5.0e-01 at batch 0.*head 2"
    with pytest.raises(NotProven, match=text):
        require_proven([failed], "gpt2")


def test_norms_come_first_then_the_pieces_in_reading_order_then_the_free_run(llama):
    model, weights = llama
    names = [check.name for check in prove(weights, model)]
    hooks = Decoder(weights).hooks
    pieces = [n for n in names if n in hooks]
    assert pieces == [n for n in hooks if n in pieces]
    assert names.index("L0.attn_norm") < names.index("resid_in") < names.index("run.L0.resid_post")
    assert names[-1] == "run.logits"


def test_the_same_seed_gives_the_same_checks_and_another_seed_others(llama):
    model, weights = llama
    assert prove(weights, model, seed=5) == prove(weights, model, seed=5)
    assert prove(weights, model, seed=5) != prove(weights, model, seed=6)


def test_own_inputs_are_used(llama):
    model, weights = llama
    require_proven(prove(weights, model, inputs={"token": torch.tensor([[1, 2, 3]])}), "three tokens")


def test_a_proof_changes_nothing_in_the_judge(llama):
    model, weights = llama
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prove(weights, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_judge_of_another_precision_is_refused(llama):
    model, weights = llama
    with pytest.raises(BadRequest, match=r"got torch.float64 and torch.float32; load it with load_judge"):
        prove(weights, model, dtype=torch.float32)


def test_a_judge_that_does_not_show_its_patterns_is_refused():
    model, weights = tiny_judge(families()["llama"])
    model.config._attn_implementation = "sdpa"
    with pytest.raises(BadRequest, match="expected eager attention, which returns its patterns, got 'sdpa'"):
        prove(weights, model)


def test_a_small_eps_is_seen_although_transformers_normalises_in_float32(llama):
    model, weights = llama
    spec = weights.spec
    last = spec.blocks[-1]
    attn, mlp = last.sublayers
    wrong = Block((attn, replace(mlp, reads=replace(mlp.reads, eps=2 * mlp.reads.eps))))
    arrays = {n: weights[n] for n in weights.names()}
    failed = first_failure(prove(ArrayWeights(replace(spec, blocks=(*spec.blocks[:-1], wrong)), arrays), model))
    assert failed.name == "L2.mlp_norm"


def test_weights_of_other_sizes_fail_instead_of_crashing_in_the_comparison(llama):
    model, weights = llama
    arrays = {n: weights[n] for n in weights.names()}
    narrow = ArrayWeights(weights.spec, arrays | {"W_U": weights["W_U"][:, :-1], "lm": np.zeros(1)})
    failed = first_failure(prove(narrow, model))
    assert failed.name == "logits"
    assert failed.worst == "shape (2, 12, 60) beside (2, 12, 61)"


def test_a_proof_is_longer_than_a_local_window(toys):
    spec = toys("grouped").spec
    assert spec.blocks[0].attn.window == 3
    assert proof_length(spec) == 12
    wide = _windowed(spec, 100, n_ctx=512)
    assert proof_length(wide) == 103
    assert unexercised(wide, 103) == ()


def test_a_window_too_wide_to_pass_is_said_to_be_unexercised(toys):
    vast = _windowed(toys("grouped").spec, 4096, n_ctx=8192)
    assert proof_length(vast) == 12
    assert unexercised(vast, 12) == ("a window of 4096 is not reached by 12 positions",)


def _windowed(spec, window, n_ctx):
    attn = Sublayer(Attention(4, 2, 4, 0.4, window=window))
    return replace(spec, n_ctx=n_ctx, blocks=(Block((attn, Sublayer(MLP(10, "silu", gated=True)))),))


def recorded(weights, *names):
    """Pairs as another program would have written them: from the equations, for an agent without blocks' help."""
    inputs = random_inputs(weights.spec, length=6)
    cache = Decoder(weights).run(inputs, capture=names).cache
    return {n: v.numpy() for n, v in inputs.items()}, {n: v.numpy() for n, v in cache.items()}


def test_recorded_pairs_prove_a_model_that_has_no_judge(toys):
    w = toys("interleaved")
    inputs, expected = recorded(w, "resid_in", "final_normed", "out.action")
    checks = prove_recorded(w, Recorded(inputs, expected))
    require_proven(checks, "recorded")
    assert [check.name for check in checks] == ["resid_in", "final_normed", "out.action"]


def test_one_recorded_position_is_enough(toys):
    w = toys("pre-norm")
    inputs, expected = recorded(w, "logits")
    last = Recorded(inputs, {"logits@-1": expected["logits"][:, -1]})
    require_proven(prove_recorded(w, last), "recorded")
    other = Recorded(inputs, {"logits@0": expected["logits"][:, -1]})
    assert first_failure(prove_recorded(w, other)).name == "logits@0"


def test_recorded_pairs_of_other_weights_fail_and_name_the_first_value(toys):
    w = toys("interleaved")
    inputs, expected = recorded(w, "resid_in", "out.action")
    moved = ArrayWeights(w.spec, w.arrays | {"L0.W_V": w["L0.W_V"][::-1]})
    assert first_failure(prove_recorded(moved, Recorded(inputs, expected))).name == "out.action"
    nudged = ArrayWeights(w.spec, w.arrays | {"in.state.b": w["in.state.b"] + 1e-7})
    assert first_failure(prove_recorded(nudged, Recorded(inputs, expected))).name == "resid_in"


def test_recorded_names_are_hook_points(toys):
    w = toys("interleaved")
    inputs, expected = recorded(w, "out.action")
    with pytest.raises(BadRequest, match="capture: expected a hook point of this model, got 'action'"):
        prove_recorded(w, Recorded(inputs, {"action": expected["out.action"]}))
    with pytest.raises(BadRequest, match=r"recorded 'out.action@last': expected HOOK or HOOK@POSITION"):
        prove_recorded(w, Recorded(inputs, {"out.action@last": expected["out.action"]}))
