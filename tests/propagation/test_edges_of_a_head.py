"""A head's three edges: values, queries and keys, against pairs of runs, autograd and differences of transformers."""

import numpy as np
import pytest
import torch
from torch import Tensor

import covector
from captured_runs import length_of, question, run_of, runs_of, world_of
from covector.analyses.propagate import propagate
from covector.arch.family import families
from covector.arch.toy import RMS_NORM, random_model
from covector.model.spec import Rotary
from covector.model.weights import ArrayWeights
from covector.propagation.linearised import Linearised, Policies
from covector.run.decoder import Decoder
from covector.run.hf_load import tiny_judge
from covector.run.hf_runner import HFRunner
from covector.run.random_inputs import random_inputs
from covector.study.observable import Observable
from random_checkpoints import random_weights

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
JUDGED = sorted(name for name, family in families().items() if family.hf_class)
# Where differences are taken besides: plain, grouped and rotary, parallel, soft-capped, post-norm, an agent.
DIFFERENCES = ("gpt2", "llama", "gpt_neox", "gemma2", "bert", "decision_transformer")
GROUPED = {"n_kv_heads": 2, "rotary": Rotary(4, 1e2), "qk_norm": RMS_NORM}


@pytest.mark.identity("OP-18")
@pytest.mark.parametrize("make", [random_model, lambda: random_model(**GROUPED), lambda: random_weights("gemma2")])
def test_what_a_head_changes_is_its_ov_part_plus_its_qk_part(make) -> None:
    weights = make()
    plus, minus = runs_of(weights)
    model = Linearised(weights, (plus, minus), Policies.all("secant"))
    c = [c for c in model.components if c.attn][-1]
    attn, at = c.attn, f"L{c.layer}."
    group = [attn.kv_of(h) for h in range(attn.n_heads)]
    u = np.random.default_rng(0).standard_normal(plus[at + "z"].shape)
    pulled = model.of_z(u, c)
    change = {k: plus[at + k] - minus[at + k] for k in ("z", "q", "k", "v")}
    # By hand: mean pattern times change of values, change of pattern times mean values.
    A, dA = ((plus[at + "pattern"] + s * minus[at + "pattern"]) / m for s, m in ((1, 2), (-1, 1)))
    v = ((plus[at + "v"] + minus[at + "v"]) / 2)[:, :, group]
    ov = np.einsum("bhts,bshk,bthk->bh", A, change["v"][:, :, group], u)
    qk = np.einsum("bhts,bshk,bthk->bh", dA, v, u)
    np.testing.assert_allclose(np.einsum("bshk,bshk->bh", pulled.v, change["v"][:, :, group]), ov, **CLOSE)
    by_qk = np.einsum("bthk,bthk->bh", pulled.q, change["q"]) + np.einsum(
        "bshk,bshk->bh", pulled.k, change["k"][:, :, group]
    )
    np.testing.assert_allclose(by_qk, qk, **CLOSE)
    np.testing.assert_allclose(ov + by_qk, np.einsum("bthk,bthk->bh", u, change["z"]), **CLOSE)
    assert np.abs(qk).min() > 1e-4


@pytest.mark.identity("OP-16")
def test_values_queries_and_keys_are_the_gradient_of_each_alone() -> None:
    weights = random_model(**GROUPED)
    (run,) = runs_of(weights, (1,))
    world = world_of(weights, [run], "exact")
    F = world.model.adjoint(world.start)
    n, output = question(weights)
    for c in (c for c in world.model.components if c.attn):
        pulled = world.model.heads(world.model.out(F[c.writes], c), c)
        kept = {k: torch.tensor(run[c.hook(k)], requires_grad=True) for k in "vqk"}
        hooks = {c.hook(k): (lambda _, x=x: x) for k, x in kept.items()}
        y = Decoder(weights).run(resid_in=torch.from_numpy(run["resid_in"]), intervene=hooks).outputs[output]
        (y[[0, 1], [5, 3]] @ torch.from_numpy(n[0])).sum().backward()
        for kind, x in kept.items():
            assert x.grad is not None
            ours = pulled.of(kind)
            ours = ours if kind == "q" else np.stack([ours[:, :, :2].sum(2), ours[:, :, 2:].sum(2)], axis=2)
            np.testing.assert_allclose(ours, x.grad.numpy(), **CLOSE)


@pytest.mark.identity("OP-16")
def test_a_bias_of_the_keys_matters_to_nothing_but_itself() -> None:
    """q·b_K is the same for all keys of a query (without turns and windows it drops out of the softmax)."""
    weights = random_model()
    arrays = dict(weights.arrays)
    arrays["L1.b_K"] = arrays["L1.b_K"] + 3 * np.random.default_rng(0).standard_normal(arrays["L1.b_K"].shape)
    other = ArrayWeights(weights.spec, arrays)
    found = []
    for w in (weights, other):
        (run,) = runs_of(w, (1,))
        world = world_of(w, [run], "exact")
        c = next(c for c in world.model.components if c.layer == 1 and c.attn)
        pulled = world.model.heads(world.model.out(world.model.adjoint(world.start)[c.writes], c), c)
        np.testing.assert_allclose(pulled.k.sum(axis=1), 0, atol=1e-13)
        found.append((run["out.token"], world.model.adjoint(world.start)[0]))
    np.testing.assert_allclose(found[0][0], found[1][0], **CLOSE)
    np.testing.assert_allclose(found[0][1], found[1][1], **CLOSE)


def value(outputs: Tensor, n: np.ndarray, at: int) -> Tensor:
    return outputs[0, at] @ torch.from_numpy(n[0])


@pytest.mark.identity("OP-16")
@pytest.mark.parametrize("name", JUDGED)
def test_every_edge_agrees_with_autograd_and_differences_of_transformers(name: str) -> None:
    """Values, queries and keys of the first attention are moved inside transformers' model, all of the rest follows."""
    judge, weights = tiny_judge(families()[name], seed=3)
    runner, length = HFRunner(judge, weights), length_of(weights)
    inputs = random_inputs(weights.spec, length=length, batch=1, seed=1)
    run = run_of(weights, inputs)
    n, output = question(weights)
    model = Linearised(weights, (run,), Policies.all("exact"))
    F = model.adjoint(model.start(n, output, np.array([length - 1])))
    c = next(c for c in model.components if c.attn)
    pulled = model.heads(model.out(model.before(F[c.writes], c.writes), c), c)
    groups = c.attn.n_heads // c.attn.n_kv_heads
    draw = torch.Generator().manual_seed(5)
    ways = {k: 0.3 * torch.randn(run[c.hook(k)].shape, generator=draw, dtype=torch.float64) for k in "vqk"}

    def moved(steps: dict[str, Tensor]) -> Tensor:
        swaps = {c.hook(kind): (lambda x, kind=kind: x + steps[kind] * ways[kind]) for kind in "vqk"}
        return value(runner.run(inputs, intervene=swaps).outputs[output], n, length - 1)

    along = {k: ways[k].numpy() if k == "q" else np.repeat(ways[k].numpy(), groups, axis=2) for k in "vqk"}
    ours = [float(np.sum(pulled.of(kind) * along[kind])) for kind in "vqk"]
    steps = {kind: torch.zeros((), dtype=torch.float64, requires_grad=True) for kind in "vqk"}
    slopes = torch.autograd.grad(moved(steps), list(steps.values()))
    # transformers keeps norms and softmax in float32 whatever the dtype: 1e-7 of terms of order ten.
    assert ours == pytest.approx([float(s) for s in slopes], rel=1e-4, abs=1e-4)
    if name in DIFFERENCES:
        ends = [float(moved(dict.fromkeys("vqk", torch.tensor(h)))) for h in (2e-2, -2e-2, 1e-2, -1e-2)]
        wide, near = (ends[0] - ends[1]) / 4e-2, (ends[2] - ends[3]) / 2e-2
        # Richardson over float32 rounding: 1e-6/1e-2; the fifth derivative times 1e-8 is below it.
        assert (4 * near - wide) / 3 == pytest.approx(sum(ours), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_path_through_values_is_a_difference_of_transformers_own_model(name: str) -> None:
    """A push on what one value head reads at one position, in the last block: all paths from there to the output."""
    judge, weights = tiny_judge(families()[name], seed=3)
    runner, length = HFRunner(judge, weights), length_of(weights)
    model = covector.open(weights)
    inputs = random_inputs(weights.spec, length=length, batch=1, seed=1)
    run = run_of(weights, inputs)
    out = weights.spec.outputs[0]
    labels = model.labels.get(out.name) or tuple(f"{out.name} {i}" for i in range(out.n))
    observable = Observable({labels[1]: 1.0, labels[2]: -0.5}, model)
    layer = weights.spec.n_layers - 1
    block = weights.spec.blocks[layer]
    assert block.attn is not None
    kv = block.attn.n_kv_heads - 1
    heads = [h for h in range(block.attn.n_heads) if block.attn.kv_of(h) == kv]
    slot = int(np.argmax(run[f"L{layer}.pattern"][0, heads, -1].sum(0)))
    order = [sub.name for sub in block.sublayers]
    on = [""] if block.parallel or order.index("mlp") < order.index("attn") else ["", f">L{layer}.mlp"]
    common = {"runs": (run,), "policies": Policies.all("exact"), "at": np.array([length - 1]),
              "names": [[str(t) for t in range(length)]], "normed": True}  # fmt: skip
    features = [propagate(model, observable, f"L{layer}H{h}@{slot}{more}>out", **common) for h in heads for more in on]
    assert {f.hook for f in features} == {f"L{layer}.attn_normed"}
    push = sum(f.vector for f in features)  # along the feature itself
    push *= 0.03 / (push @ push)  # 0.03 for a unit step, however little is read
    through = torch.from_numpy(push @ weights[f"L{layer}.W_V"][kv])

    def moved(step: float) -> float:
        def swap(v: Tensor) -> Tensor:
            v = v.clone()
            v[:, slot, kv] += step * through
            return v

        outputs = runner.run(inputs, intervene={f"L{layer}.v": swap}).outputs[out.name]
        return float(observable.of(outputs[:, length - 1].numpy())[0])

    wide, near = ((moved(h) - moved(-h)) / 2 / h for h in (2e-2, 1e-2))
    ours = sum(float(f.vector @ push) for f in features)
    assert (4 * near - wide) / 3 == pytest.approx(ours, rel=2e-3, abs=3e-4)
