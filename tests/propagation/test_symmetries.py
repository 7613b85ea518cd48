"""What must not matter: bases of the stream and inside heads, frames, batches, grouped or repeated heads."""

import dataclasses

import numpy as np
import pytest

import covector
from captured_runs import question, run_of, runs_of, world_of
from covector.analyses.couple import coupling
from covector.analyses.propagate import head_features, propagate
from covector.arch.toy import LAYER_NORM, RMS_NORM, random_model
from covector.model.rotary import turn
from covector.model.spec import Block, Norm, Rotary
from covector.model.weights import ArrayWeights
from covector.propagation.linearised import Linearised, Policies
from covector.propagation.search import find_paths
from covector.study.observable import Observable

# Two or three layers in float64, after another rounding of every weight.
CLOSE = {"rtol": 1e-10, "atol": 1e-11}
TASK = {"token 3": 1.0, "token 7": -1.0}


def rotation(d: int, fixing_ones: bool) -> np.ndarray:
    """A random orthogonal matrix; one that keeps the row of ones where a LayerNorm must not notice."""
    rng = np.random.default_rng(2)
    if not fixing_ones:
        return np.linalg.qr(rng.standard_normal((d, d)))[0]
    basis = np.linalg.qr(np.column_stack([np.ones(d), rng.standard_normal((d, d - 1))]))[0]
    inner = np.eye(d)
    inner[1:, 1:] = np.linalg.qr(rng.standard_normal((d - 1, d - 1)))[0]
    return basis @ inner @ basis.T


def turned(weights: ArrayWeights, Q: np.ndarray) -> ArrayWeights:
    """The same model with stream rows x Q in the place of x; gains must have been folded."""
    arrays = {}
    for name, value in weights.arrays.items():
        role = name.rsplit(".", 1)[-1]
        if role in ("W_Q", "W_K", "W_V", "W_in", "W_gate", "W_U"):
            value = Q.T @ value
        elif role in ("W_O", "W_out", "W_E", "W_pos", "b_O", "b_out"):
            value = value @ Q
        arrays[name] = value
    return ArrayWeights(weights.spec, arrays)


def ungained(**anatomy: object) -> ArrayWeights:
    weights = random_model(**anatomy)  # type: ignore[arg-type]
    return ArrayWeights(weights.spec, {n: a for n, a in weights.arrays.items() if "_norm." not in n})


@pytest.mark.identity("OP-21")
@pytest.mark.parametrize("norm", [RMS_NORM, LAYER_NORM], ids=["rms", "layer"])
def test_turning_the_stream_turns_features_and_leaves_every_number(norm: Norm) -> None:
    weights = ungained(norm=norm)
    Q = rotation(weights.spec.d_model, fixing_ones=norm.kind == "layer")
    np.testing.assert_allclose(Q @ Q.T, np.eye(len(Q)), atol=1e-14)
    other = turned(weights, Q)
    models = [covector.open(w) for w in (weights, other)]
    first = [head_features(m, Observable(TASK, m))[1] for m in models]
    second = [head_features(m, Observable({"token 1": 1.0, "token 2": -1.0}, m))[1] for m in models]
    np.testing.assert_allclose(first[1], first[0] @ Q, **CLOSE)
    for a, b in ((first, second), (second, first)):
        plain, moved = ([coupling(x, y) for x, y in zip(a[i], b[i], strict=True)] for i in (0, 1))
        np.testing.assert_allclose([c.coefficient for c in moved], [c.coefficient for c in plain], **CLOSE)
        np.testing.assert_allclose([c.cosine for c in moved], [c.cosine for c in plain], **CLOSE)
    # With runs: the functionals turn too, so that their values f·x are the same.
    worlds = [world_of(w, runs_of(w)) for w in (weights, other)]
    F, G = (w.model.adjoint(w.start)[0] for w in worlds)
    np.testing.assert_allclose(G, F @ Q, **CLOSE)
    tables = [{str(p.path): p.share for p in find_paths([w], 3).parts} for w in worlds]
    assert tables[1] == pytest.approx(tables[0], rel=1e-9, abs=1e-11)


@pytest.mark.identity("OP-21")
def test_a_layernorm_notices_a_turn_that_moves_the_ones() -> None:
    weights = ungained(norm=LAYER_NORM)
    Q = rotation(weights.spec.d_model, fixing_ones=False)
    models = [covector.open(w) for w in (weights, turned(weights, Q))]
    plain, moved = (head_features(m, Observable(TASK, m))[1] for m in models)
    assert np.abs(np.linalg.norm(moved, axis=1) - np.linalg.norm(plain, axis=1)).max() > 0.01


@pytest.mark.identity("OP-22")
def test_a_basis_inside_a_head_changes_no_feature() -> None:
    weights = random_model(n_kv_heads=2)
    rng = np.random.default_rng(0)
    arrays = dict(weights.arrays)
    for i in range(2):
        at = f"L{i}."
        G, H = (np.eye(4) + 0.4 * rng.standard_normal((2, 4, 4)) for _ in range(2))
        # Values: x W_V G⁻¹ · G W_O; queries and keys: q G · (k G⁻ᵀ), one G per key/value head.
        arrays[at + "W_V"], arrays[at + "b_V"] = arrays[at + "W_V"] @ G, np.einsum("gk,gkj->gj", arrays[at + "b_V"], G)
        arrays[at + "W_O"] = np.linalg.inv(G)[[0, 0, 1, 1]] @ arrays[at + "W_O"]
        arrays[at + "W_K"], arrays[at + "b_K"] = arrays[at + "W_K"] @ H, np.einsum("gk,gkj->gj", arrays[at + "b_K"], H)
        back = np.linalg.inv(H).swapaxes(1, 2)[[0, 0, 1, 1]]
        arrays[at + "W_Q"] = arrays[at + "W_Q"] @ back
        arrays[at + "b_Q"] = np.einsum("hk,hkj->hj", arrays[at + "b_Q"], back)
    other = ArrayWeights(weights.spec, arrays)
    models = [covector.open(w) for w in (weights, other)]
    for path in ("L0H1", "L0H3>L1H0", "L1H2:1"):
        f, g = (propagate(m, Observable(TASK, m), path) for m in models)
        np.testing.assert_allclose(g.vector, f.vector, **CLOSE)
        if ":" not in path:
            assert g.constant == pytest.approx(f.constant, rel=1e-10)
    for policy in ("exact", "secant"):
        runs = [runs_of(w)[: 1 + (policy == "secant")] for w in (weights, other)]
        worlds = [world_of(w, r, policy) for w, r in zip((weights, other), runs, strict=True)]
        for F, G in zip(*(w.model.adjoint(w.start) for w in worlds), strict=True):
            np.testing.assert_allclose(G, F, **CLOSE)
    found = [{str(p.path): p.share for p in find_paths([w], 4).parts} for w in worlds]
    assert found[1] == pytest.approx(found[0], rel=1e-9, abs=1e-11)


FRAMES = ("folded", "gauge_fixed", "tl_default")


@pytest.mark.identity("OP-23")
@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("path", ["", "L1H2", "L0H1>L1H3"])
def test_frames_give_the_same_reading_of_the_same_input(frame: str, path: str) -> None:
    """f·x + c on what the model has there: the raw stream for the raw feature, the frame's own stream for the other."""
    weights = random_model()
    raw = covector.open(weights)
    other = raw.framed(frame)
    f, g = (propagate(m, Observable(TASK, m), path) for m in (raw, other))
    assert f.hook == g.hook
    runs = [run_of(m.weights, np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])) for m in (raw, other)]
    x, y = (run[f.hook] for run in runs)
    np.testing.assert_allclose(y @ g.vector, x @ f.vector, **CLOSE)
    if frame != "tl_default":  # there b_V stands in b_O, which heads share
        assert g.constant == pytest.approx(f.constant, rel=1e-10, abs=1e-12)


@pytest.mark.identity("OP-23")
def test_the_constants_of_all_heads_together_are_the_same_in_every_frame() -> None:
    raw = covector.open(random_model())
    sums = []
    for model in (raw, *(raw.framed(f) for f in FRAMES)):
        alone = propagate(model, Observable(TASK, model), "").constant
        heads = [propagate(model, Observable(TASK, model), f"L1H{h}").constant - alone for h in range(4)]
        sums.append((alone, sum(heads)))
    np.testing.assert_allclose(sums, np.broadcast_to(sums[0], (4, 2)), rtol=1e-10)


@pytest.mark.identity("OP-23")
@pytest.mark.parametrize("frame", ["gauge_fixed", "tl_default"])
def test_centring_the_unembedding_moves_unbalanced_observables_alone_and_they_warn(frame: str) -> None:
    raw = covector.open(random_model())
    models = (raw, raw.framed(frame))
    tokens = np.array([[3, 1, 4, 1, 5]])
    for task, same in ((TASK, True), ({"token 3": 1.0}, False)):
        observables = [Observable(task, m) for m in models]
        logits = [run_of(m.weights, tokens)["out.token"] for m in models]
        values = [o.of(y) for o, y in zip(observables, logits, strict=True)]
        assert bool(np.allclose(values[0], values[1], rtol=0, atol=1e-10)) is same
        assert all(bool(o.warning) is not same for o in observables)
        centred = [
            o.centred().of(run_of(m.weights, tokens)["out.token"]) for o, m in zip(observables, models, strict=True)
        ]
        np.testing.assert_allclose(centred[1], centred[0], **CLOSE)


def expanded(weights: ArrayWeights) -> ArrayWeights:
    """One key/value head for each query head, copies of those that the group shares."""
    spec = weights.spec
    blocks = []
    for block in spec.blocks:
        attn = block.attn
        assert attn is not None
        wide = dataclasses.replace(attn, n_kv_heads=attn.n_heads)
        blocks.append(Block(tuple(dataclasses.replace(s, part=wide) if s.part is attn else s for s in block.sublayers)))
    arrays = dict(weights.arrays)
    for name, value in weights.arrays.items():
        if name.rsplit(".", 1)[-1] in ("W_K", "W_V", "b_K", "b_V"):
            arrays[name] = np.repeat(value, 2, axis=0)
    return ArrayWeights(dataclasses.replace(spec, blocks=tuple(blocks)), arrays)


@pytest.mark.identity("OP-24")
def test_grouped_heads_are_heads_with_copies_of_their_keys_and_values() -> None:
    weights = random_model(n_kv_heads=2, rotary=Rotary(4, 1e2), qk_norm=RMS_NORM)
    other = expanded(weights)
    models = [covector.open(w) for w in (weights, other)]
    for path in ("L1H1", "L0H2>L1H1", "L0H3:1>L1H2"):
        f, g = (propagate(m, Observable(TASK, m), path) for m in models)
        np.testing.assert_allclose(g.vector, f.vector, **CLOSE)
    worlds = [world_of(w, runs_of(w)) for w in (weights, other)]
    tables = [{str(p.path): p.shares for p in find_paths([w], 6).parts} for w in worlds]
    assert tables[0].keys() == tables[1].keys()
    for path, shares in tables[0].items():
        np.testing.assert_allclose(tables[1][path], shares, **CLOSE)


@pytest.mark.identity("OP-24")
@pytest.mark.parametrize("interleaved", [False, True])
def test_turns_compose_and_values_do_not_turn(interleaved: bool) -> None:
    rotary = Rotary(4, 1e2, interleaved=interleaved)
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 6))
    for t, s in ((5, 2), (3, 3), (0, 4)):

        def at(x: np.ndarray, position: int, back: bool = False) -> np.ndarray:
            return turn(x, rotary, np.array([position]), back=back)

        wanted = np.sum(q * at(k, s - t)) if s >= t else np.sum(q * at(k, t - s, back=True))
        assert np.sum(at(q, t) * at(k, s)) == pytest.approx(wanted, rel=1e-12)
        np.testing.assert_allclose(at(at(q, t), t, back=True), q, rtol=1e-14)
    plain, turning = random_model(positions="none"), random_model(positions="none", rotary=rotary)
    np.testing.assert_array_equal(plain["L0.W_V"], turning["L0.W_V"])
    models = [covector.open(w) for w in (plain, turning)]
    f, g = (head_features(m, Observable(TASK, m))[1] for m in models)
    np.testing.assert_array_equal(f, g)


@pytest.mark.identity("OP-30")
@pytest.mark.parametrize("policy", ["exact", "frozen", "secant"])
def test_a_batch_is_its_prompts_one_by_one_in_any_order(policy: str) -> None:
    weights = random_model(n_kv_heads=2, rotary=Rotary(4, 1e2))
    n, output = question(weights)
    runs = runs_of(weights, batch=4)[: 1 + (policy == "secant")]
    at = np.array([5, 3, 4, 1])

    def adjoint(rows: list[int]) -> np.ndarray:
        picked = tuple({k: v[rows] for k, v in run.items()} for run in runs)
        model = Linearised(weights, picked, Policies.all(policy))  # type: ignore[arg-type]
        return model.adjoint(model.start(n, output, at[rows]))[0]

    whole = adjoint([0, 1, 2, 3])
    for i in range(4):
        np.testing.assert_allclose(adjoint([i])[0], whole[i], **CLOSE)
    np.testing.assert_allclose(adjoint([2, 0, 3, 1]), whole[[2, 0, 3, 1]], **CLOSE)


@pytest.mark.identity("OP-30")
def test_what_comes_after_the_position_that_is_read_does_not_matter() -> None:
    """A longer prompt with the same beginning, its output read at the same place: nothing more to account for."""
    weights = random_model()
    plus, minus = np.array([[3, 1, 4, 1, 5]]), np.array([[3, 9, 2, 1, 5]])
    more = [np.concatenate([p, [[8, 8, t]]], axis=1) for p, t in ((plus, 1), (minus, 2))]
    short, long = (
        find_paths([world_of(weights, [run_of(weights, p) for p in pair], at=[4])], 5) for pair in ((plus, minus), more)
    )
    assert {str(p.path) for p in long.parts} == {str(p.path) for p in short.parts}
    shares = {str(p.path): p.share for p in short.parts}
    assert {str(p.path): p.share for p in long.parts} == pytest.approx(shares, rel=1e-10, abs=1e-12)
