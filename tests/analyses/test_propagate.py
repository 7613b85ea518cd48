"""Features pulled back without data and at runs, against dense algebra written here."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

import covector
from captured_runs import run_of, runs_of
from covector.analyses.propagate import CONVENTION, head_features, propagate
from covector.arch.toy import RMS_NORM, random_model
from covector.errors import BadRequest, BadSite
from covector.model.spec import Norm
from covector.model.weights import ArrayWeights
from covector.propagation.linearised import Policies
from covector.run.decoder import Decoder
from covector.study.observable import Observable

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
TASK = {"token 3": 1.0, "token 7": -1.0}
TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def task(model: covector.Model) -> Observable:
    return Observable(TASK, model)


@pytest.mark.identity("OP-1")
def test_without_norms_the_empty_path_is_the_unembedding() -> None:
    weights = random_model(norm=None)
    model = covector.open(weights)
    f = propagate(model, task(model))
    np.testing.assert_allclose(f.vector, weights["W_U"][:, 3] - weights["W_U"][:, 7], **CLOSE)
    assert f.constant == pytest.approx(weights["b_U"][3] - weights["b_U"][7])
    run = run_of(weights, TOKENS)
    np.testing.assert_allclose(f.of(run[f.hook]), run["out.token"][..., 3] - run["out.token"][..., 7], **CLOSE)


@pytest.mark.identity("OP-2")
@pytest.mark.parametrize("norm", [None, RMS_NORM, Norm("layer", 1e-5)], ids=["none", "rms", "layer"])
def test_the_features_of_all_heads_weighed_by_attention_are_what_attention_writes(norm: Norm | None) -> None:
    weights = random_model(norm=norm, n_kv_heads=2)
    model = covector.open(weights)
    run = run_of(weights, TOKENS)
    alone = propagate(model, task(model))
    wanted = run["L1.attn_out"] @ alone.vector
    got = np.zeros_like(wanted)
    for h in range(4):
        f = propagate(model, task(model), f"L1H{h}", normed=True)
        assert f.hook == "L1.attn_normed"
        # A row of a pattern sums to one, so the constant comes once per head and query.
        got += run["L1.pattern"][:, h] @ (run["L1.attn_normed"] @ f.vector)[..., None] @ np.ones(1)
        got += f.constant - alone.constant
    np.testing.assert_allclose(got, wanted, **CLOSE)


@pytest.mark.identity("OP-3")
def test_a_virtual_head_applies_the_later_head_to_the_observable_first() -> None:
    weights = random_model(norm=None)
    model = covector.open(weights)
    u = weights["W_U"][:, 3] - weights["W_U"][:, 7]
    ov = {(i, h): weights[f"L{i}.W_V"][h] @ weights[f"L{i}.W_O"][h] for i in (0, 1) for h in range(4)}
    f = propagate(model, task(model), "L0H1>L1H2")
    np.testing.assert_allclose(f.vector, ov[0, 1] @ (ov[1, 2] @ u), **CLOSE)
    assert np.abs(f.vector - ov[1, 2] @ (ov[0, 1] @ u)).max() > 0.01
    assert [place for place, _ in f.norms] == ["out", "L1H2", "L0H1"]
    lengths = [np.linalg.norm(v) for v in (u, ov[1, 2] @ u, f.vector)]
    np.testing.assert_allclose([length for _, length in f.norms], lengths, **CLOSE)


@pytest.mark.parametrize("norm", [RMS_NORM, Norm("layer", 1e-5)], ids=["rms", "layer"])
def test_norms_keep_their_gain_and_centring_and_lose_their_scale(norm: Norm) -> None:
    weights = random_model(norm=norm)
    model = covector.open(weights)
    P = np.eye(16) - (1 / 16 if norm.kind == "layer" else 0)
    u = P @ (weights["final_norm.gain"] * (weights["W_U"][:, 3] - weights["W_U"][:, 7]))
    after = weights["L1.W_V"][2] @ weights["L1.W_O"][2] @ u
    first = P @ (weights["L1.attn_norm.gain"] * after)
    f = propagate(model, task(model), "L1H2")
    np.testing.assert_allclose(f.vector, first, **CLOSE)
    np.testing.assert_allclose(propagate(model, task(model), "L1H2", normed=True).vector, after, **CLOSE)
    second = P @ (weights["L0.attn_norm.gain"] * (weights["L0.W_V"][0] @ weights["L0.W_O"][0] @ first))
    np.testing.assert_allclose(propagate(model, task(model), "L0H0>L1H2").vector, second, **CLOSE)
    embedded = propagate(model, task(model), "embed>L0H0>L1H2")
    np.testing.assert_allclose(embedded.vector, second, **CLOSE)
    assert (f.hook, embedded.hook, f.policy, f.convention) == ("L1.attn_in", "resid_in", "ignore", CONVENTION)
    # Where every scale is 1 (the norm's row has unit mean square) the feature reads the path's part of the output.
    names, every = head_features(model, task(model))
    assert names == [f"L{i}H{h}" for i in (0, 1) for h in range(4)]
    np.testing.assert_allclose(every[6], f.vector, **CLOSE)


def test_the_constant_is_the_path_of_what_biases_add() -> None:
    """At an input of zeros a path's reading is its constant: dense algebra, every norm without its scale."""
    weights = random_model()
    model = covector.open(weights)
    P, gain, bias = np.eye(16) - 1 / 16, weights["final_norm.gain"], weights["final_norm.bias"]
    n = weights["W_U"][:, 3] - weights["W_U"][:, 7]
    u = P @ (gain * n)
    wanted = weights["b_U"][3] - weights["b_U"][7] + bias @ n
    assert propagate(model, task(model)).constant == pytest.approx(wanted, rel=1e-12)
    for layer, head in ((1, 2), (0, 3)):
        at = f"L{layer}."
        written = (weights[at + "attn_norm.bias"] @ weights[at + "W_V"][head] + weights[at + "b_V"][head]) @ weights[
            at + "W_O"
        ][head]
        wanted += (written + weights[at + "b_O"] / 4) @ u
        u = P @ (weights[at + "attn_norm.gain"] * (weights[at + "W_V"][head] @ weights[at + "W_O"][head] @ u))
        path = "L1H2" if layer else "L0H3>L1H2"
        f = propagate(model, task(model), path)
        np.testing.assert_allclose(f.vector, u, **CLOSE)
        assert f.constant == pytest.approx(wanted, rel=1e-12)


@pytest.mark.identity("OP-25")
def test_features_are_linear_in_the_observable() -> None:
    model = covector.open(random_model())
    a, b = Observable({"token 1": 1.0}, model), Observable({"token 2": 1.0}, model)
    both = Observable({"token 1": 2.0, "token 2": -3.0}, model)
    for path in ("", "L0H1>L1H0", "L1H2:1"):
        f, g, h = (propagate(model, o, path) for o in (a, b, both))
        np.testing.assert_allclose(h.vector, 2 * f.vector - 3 * g.vector, **CLOSE)
        assert h.constant == pytest.approx(2 * f.constant - 3 * g.constant, rel=1e-10, abs=1e-12)


@pytest.mark.identity("OP-26")
@pytest.mark.parametrize("norm", [RMS_NORM, Norm("layer", 1e-5)], ids=["rms", "layer"])
def test_no_input_and_no_push_takes_an_observable_beyond_the_length_of_its_feature(norm: Norm) -> None:
    weights = random_model(norm=norm)
    model = covector.open(weights)
    f = propagate(model, task(model))
    bound = np.sqrt(16) * f.norm
    decoder = Decoder(weights)

    def value(push: float) -> np.ndarray:
        swap = {"L1.resid_post": lambda x: x + push * torch.from_numpy(f.vector)}
        logits = decoder.run(torch.from_numpy(TOKENS), intervene=swap).outputs["token"].numpy()
        return task(model).of(logits) - f.constant

    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 1e3):
        x = torch.from_numpy(scale * rng.standard_normal((200, 4, 16)))
        anything = task(model).of(decoder.run(resid_in=x).outputs["token"].numpy()) - f.constant
        assert np.abs(anything).max() < bound
    doses = [value(t) for t in (0.0, 1.0, 10.0, 1e6)]
    assert all(np.all(b > a) for a, b in itertools.pairwise(doses))
    # It saturates at the bound: along the feature cos = 1, up to (size of the rest / dose)².
    np.testing.assert_allclose(doses[-1], bound, rtol=1e-9)
    np.testing.assert_allclose(value(-1e6), -bound, rtol=1e-9)


@pytest.mark.parametrize("policy", ["exact", "frozen"])
def test_at_runs_a_path_is_the_mean_over_prompts_of_dense_algebra(policy: str) -> None:
    """Last block's head into the final norm, attention and both scales of each prompt written out."""
    weights = random_model(d_mlp=0)
    model = covector.open(weights)
    (run,) = runs_of(weights, (1,))
    at, slots = np.array([5, 3]), np.array([2, 1])
    names = [["NAME" if t == s else str(t) for t in range(6)] for s in slots]
    f = propagate(model, task(model), "L1H2@NAME", runs=(run,), policies=Policies.all(policy), at=at, names=names)
    n, P = weights["W_U"][:, 3] - weights["W_U"][:, 7], np.eye(16) - 1 / 16

    def jacobian(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """Rows: input; columns: output."""
        c = P @ x
        sigma = np.sqrt(np.mean(c**2) + 1e-5)
        return (P - (np.outer(c, c) / (16 * sigma**2) if policy == "exact" else 0)) / sigma * gain

    wanted = []
    for b, (t, s) in enumerate(zip(at, slots, strict=True)):
        u = jacobian(run["L1.resid_post"][b, t], weights["final_norm.gain"]) @ n
        behind = run["L1.pattern"][b, 2, t, s] * (weights["L1.W_V"][2] @ weights["L1.W_O"][2] @ u)
        moved = jacobian(run["L1.attn_in"][b, s], weights["L1.attn_norm.gain"]) @ behind
        wanted.append(moved)
    np.testing.assert_allclose(f.vector, np.mean(wanted, axis=0), **CLOSE)
    assert (f.policy, f.convention, f.hook) == (policy, "", "L1.attn_in")


def test_what_needs_prompts_is_refused_without_them() -> None:
    model = covector.open(random_model())
    for path, told in (("L0.mlp", "an MLP is linear at a working point only"), ("L1H0.q", "by what it meets"),
                       ("L0H0>L1H0.k", "by what it meets")):  # fmt: skip
        with pytest.raises(BadRequest, match=told):
            propagate(model, task(model), path)
    with pytest.raises(BadSite, match="layers run 0–1"):
        propagate(model, task(model), "L5H0")
    with pytest.raises(BadRequest, match=r"'secant' expects 2 run\(s\), got 0"):
        propagate(model, task(model), "L1H0", policies=Policies.all("secant"))
    (run,) = runs_of(model.weights, (1,))
    given = {"runs": (run,), "at": np.array([5, 3])}
    with pytest.raises(BadRequest, match="positions at which the output is read, and the names"):
        propagate(model, task(model), "L1H0", **given)
    with pytest.raises(BadRequest, match="expected a position of its first step"):
        propagate(model, task(model), "L1H0", **given, names=[[str(t) for t in range(6)]] * 2)


@pytest.mark.identity("OP-13")
def test_frozen_features_of_all_positions_carry_a_heads_part_with_their_constants() -> None:
    """One prompt: Σ over positions of f·x + c is what the running model's head writes into the frozen output."""
    weights = random_model(n_kv_heads=2)
    model = covector.open(weights)
    run = run_of(weights, TOKENS[:1])
    common = {"runs": (run,), "at": np.array([4]), "names": [[str(t) for t in range(5)]]}
    alone = propagate(model, task(model), "", **common)
    u = np.sum(run[alone.hook][0] @ alone.vector[:, None], axis=1)
    assert u[4] + alone.constant == pytest.approx(task(model).of(run["out.token"][:, 4])[0], rel=1e-11)
    f = {s: propagate(model, task(model), f"L1H2@{s}", **common) for s in range(5)}
    share = weights["L1.b_O"] @ alone.vector / 4
    got = sum(f[s].of(run["L1.attn_in"][0, [s]])[0] - alone.constant - share for s in range(5))
    written = run["L1.z"][0, 4, 2] @ weights["L1.W_O"][2]
    assert got == pytest.approx(written @ alone.vector, rel=1e-10)
    mlp = propagate(model, task(model), "L1.mlp@4", **common)
    added = mlp.of(run["L1.mlp_in"][0, [4]])[0] - alone.constant
    assert added == pytest.approx(run["L1.mlp_out"][0, 4] @ alone.vector, rel=1e-10)
    # The direct path does not pass other positions.
    nothing = propagate(model, task(model), "L1.mlp@2", **common)
    assert not nothing.vector.any()
    assert nothing.constant == pytest.approx(alone.constant, rel=1e-12)
    exact = propagate(model, task(model), "L1H2@3", **common, policies=Policies.all("exact"))
    assert np.isnan(exact.constant)


def test_a_position_that_is_not_there_is_refused() -> None:
    model = covector.open(random_model())
    with pytest.raises(BadRequest, match="L1H0@NAME: a position is one of prompts"):
        propagate(model, task(model), "L1H0@NAME")
    run = run_of(model.weights, TOKENS[:1])
    with pytest.raises(BadRequest, match="expected a position among a, b, c, d, end, got 'NAME'"):
        propagate(model, task(model), "L1H0@NAME", runs=(run,), at=np.array([4]), names=[["a", "b", "c", "d", "end"]])


def test_features_of_different_spaces_are_not_compared() -> None:
    model = covector.open(random_model())
    f, g = propagate(model, task(model), "L1H0"), propagate(model, task(model), "L0H0")
    f.same_space(propagate(model, task(model), "L1H3"))
    with pytest.raises(BadRequest, match=r"L1H0>out at L1\.attn_in and L0H0>out at L0\.attn_in"):
        f.same_space(g)
    meta = f.to_meta()
    assert meta["path"] == "L1H0>out"
    assert meta["norms"] == [[a, b] for a, b in f.norms]
    assert "vector" not in meta


def test_multipliers_and_norms_behind_a_component_are_on_the_path() -> None:
    """Sandwich norms with a scaled sublayer: frozen features reproduce the head's part of the running model."""
    base = random_model(placement="sandwich", norm=RMS_NORM, d_mlp=0)
    blocks = tuple(
        dataclasses.replace(b, sublayers=tuple(dataclasses.replace(s, scale=0.37) for s in b.sublayers))
        for b in base.spec.blocks
    )
    weights = ArrayWeights(dataclasses.replace(base.spec, blocks=blocks), base.arrays)
    model = covector.open(weights)
    u = weights["final_norm.gain"] * (weights["W_U"][:, 3] - weights["W_U"][:, 7])
    behind = weights["L1.W_V"][2] @ weights["L1.W_O"][2] @ (weights["L1.attn_post.gain"] * (0.37 * u))
    f = propagate(model, task(model), "L1H2")
    np.testing.assert_allclose(f.vector, weights["L1.attn_norm.gain"] * behind, **CLOSE)
