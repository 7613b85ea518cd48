"""The frozen model, written down once more in torch: patterns, scales and gates held, everything else linear."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from captured_runs import asked, question, run_of, runs_of, world_of
from covector.arch.toy import RMS_NORM, random_model
from covector.model.spec import Norm, Rotary
from covector.model.weights import Weights
from covector.propagation.linearised import Linearised, Policies
from covector.propagation.search import find_paths, functional, normed_functional
from covector.run.decoder import Decoder
from covector.study.path import Path, Step

# Products of a few hundred numbers of order one through two or three layers, in float64.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}
ATTENTION_ONLY = {"d_mlp": 0, "n_layers": 3, "n_heads": 2, "d_head": 5}
ANATOMIES: dict[str, Callable[[], Weights]] = {
    "layer norm, gelu": random_model,
    "rms, gated, rotary, grouped": lambda: random_model(
        norm=RMS_NORM, gated=True, activation="silu", rotary=Rotary(4, 1e2), n_kv_heads=2, qk_norm=RMS_NORM
    ),
    "parallel, sigmoid": lambda: random_model(parallel=True, activation="sigmoid"),
    "no norm": lambda: random_model(norm=None),
    "attention only": lambda: random_model(**ATTENTION_ONLY),
    "MLP only": lambda: random_model(n_heads=0, activation="relu"),
}
PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu, "sigmoid": torch.sigmoid, "relu": torch.relu,
}  # fmt: skip


def frozen(weights: Weights, run: Mapping[str, np.ndarray]) -> Callable[[Tensor], Tensor]:
    """Assembled stream → outputs at every position, with what the run had in every nonlinear place. Pre-norm models."""
    spec = weights.spec
    hold = {name: torch.from_numpy(value) for name, value in run.items()}

    def part(name: str) -> Tensor | float:
        return torch.from_numpy(np.array(weights[name])) if name in weights else 0.0

    def norm(x: Tensor, kind: Norm | None, name: str, hook: str) -> Tensor:
        if kind is None:
            return x
        centre = (lambda t: t - t.mean(-1, keepdim=True)) if kind.kind == "layer" else (lambda t: t)
        sigma = (centre(hold[hook]) ** 2).mean(-1, keepdim=True).add(kind.eps).sqrt()
        return part(f"{name}.gain") * centre(x) / sigma + part(f"{name}.bias")

    def attention(x: Tensor, at: str, heads: int, group: int) -> Tensor:
        out = torch.zeros_like(x)
        for h in range(heads):
            b = part(at + "b_V")
            v = x @ part(at + "W_V")[h // group] + (b if isinstance(b, float) else b[h // group])
            out = out + hold[at + "pattern"][:, h] @ v @ part(at + "W_O")[h]
        return out + part(at + "b_O")

    def mlp(x: Tensor, at: str, name: str, gated: bool) -> Tensor:
        pre = x @ part(at + "W_in") + part(at + "b_in")
        phi, a = PHI[name], hold[at + "mlp_pre"]
        if gated:
            return phi(hold[at + "gate"]) * pre @ part(at + "W_out") + part(at + "b_out")
        zero = phi(torch.zeros_like(a))
        return ((phi(a) - zero) / a * pre + zero) @ part(at + "W_out") + part(at + "b_out")

    def forward(x: Tensor) -> Tensor:
        for i, block in enumerate(spec.blocks):
            entering, at = x, f"L{i}."
            for sub in block.sublayers:
                read = norm(entering if block.parallel else x, sub.reads, f"{at}{sub.name}_norm", f"{at}{sub.name}_in")
                if block.attn is sub.part:
                    x = x + attention(read, at, block.attn.n_heads, block.attn.n_heads // block.attn.n_kv_heads)
                else:
                    assert block.mlp is not None
                    x = x + mlp(read, at, block.mlp.activation, block.mlp.gated)
        last = f"L{spec.n_layers - 1}.resid_post"
        return norm(x, spec.final_norm, "final_norm", last) @ part("W_U") + part("b_U")

    return forward


def read(outputs: Tensor, n: np.ndarray) -> Tensor:
    return outputs[[0, 1], [5, 3]] @ torch.from_numpy(n[0])


@pytest.mark.identity("OP-13", "OP-15")
@pytest.mark.parametrize("name", ANATOMIES)
def test_the_frozen_adjoint_is_autograd_of_the_frozen_model_and_complete(name: str) -> None:
    weights = ANATOMIES[name]()
    (run,) = runs_of(weights, (1,))
    n, _ = question(weights)
    world = world_of(weights, [run], "frozen")
    F = world.model.adjoint(world.start)[0]
    forward = frozen(weights, run)
    x = torch.tensor(run["resid_in"], requires_grad=True)
    value = read(forward(x), n)
    # The frozen model is the model at its own working point.
    np.testing.assert_allclose(value.detach().numpy(), asked(weights, run), **CLOSE)
    value.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(F, x.grad.numpy(), **CLOSE)
    constant = read(forward(torch.zeros_like(x)), n).detach().numpy()
    np.testing.assert_allclose(np.sum(F * run["resid_in"], axis=(1, 2)) + constant, asked(weights, run), **CLOSE)


@pytest.mark.identity("OP-13")
def test_the_frozen_adjoint_is_complete_on_every_state() -> None:
    """On a later state less is left to the constant: at the last one the outputs' biases alone."""
    weights = random_model()
    (run,) = runs_of(weights, (1,))
    n, _ = question(weights)
    world = world_of(weights, [run], "frozen")
    last = np.sum(world.start * run["L1.resid_post"], axis=(1, 2))
    constant = n[0] @ (weights["b_U"] + weights["final_norm.bias"] @ weights["W_U"])
    np.testing.assert_allclose(last + constant, asked(weights, run), **CLOSE)


def every_path(layers: int, heads: int) -> list[tuple[tuple[int, int], ...]]:
    """Every choice of layers with a head in each, the shortest (no layer) included."""
    chosen = [c for r in range(layers + 1) for c in itertools.combinations(range(layers), r)]
    return [
        tuple(zip(c, hs, strict=True)) for c in chosen for hs in itertools.product(range(heads), repeat=len(c))
    ]  # fmt: skip


def steps(path: tuple[tuple[int, int], ...], slot: str | None = None) -> Path:
    return Path((Step("embed", slot=slot), *(Step("v", layer, head) for layer, head in path)))


@pytest.mark.identity("OP-14")
@pytest.mark.parametrize("norm", [None, Norm("layer", 1e-5), RMS_NORM], ids=["none", "layer", "rms"])
def test_all_paths_of_a_frozen_attention_only_model_sum_to_its_output(norm: Norm | None) -> None:
    weights = random_model(norm=norm, **ATTENTION_ONLY)
    (run,) = runs_of(weights, (1,))
    n, _ = question(weights)
    world = world_of(weights, [run], "frozen")
    found = every_path(3, 2)
    assert len(found) == (1 + 2) ** 3
    functionals = [functional(world, steps(path)) for path in found]
    np.testing.assert_allclose(sum(functionals), world.model.adjoint(world.start)[0], **CLOSE)
    values = sum(np.sum(F * run["resid_in"], axis=(1, 2)) for F in functionals)
    constant = read(frozen(weights, run)(torch.zeros(run["resid_in"].shape, dtype=torch.float64)), n).numpy()
    np.testing.assert_allclose(values + constant, asked(weights, run), **CLOSE)


@pytest.mark.identity("OP-3", "OP-14")
def test_each_path_is_the_product_of_its_maps_the_last_head_applied_first() -> None:
    """Dense matrices on all positions at once: (T·d) × (T·d), the scale of each row's norm and the pattern inside."""
    weights = random_model(**ATTENTION_ONLY)
    (run,) = runs_of(weights, (1,), batch=1)
    world = world_of(weights, [run], "frozen", at=[5])
    T, d = run["resid_in"].shape[1:]
    centring = np.eye(d) - 1 / d

    def dense(layer: int, head: int) -> np.ndarray:
        c = run[f"L{layer}.attn_in"][0] @ centring
        sigma = np.sqrt((c**2).mean(-1) + 1e-5)
        ov = weights[f"L{layer}.W_V"][head] @ weights[f"L{layer}.W_O"][head]
        ov = centring @ np.diag(weights[f"L{layer}.attn_norm.gain"]) @ ov
        return np.einsum("ts,de,s->sdte", run[f"L{layer}.pattern"][0, head], ov, 1 / sigma).reshape(T * d, T * d)

    start = world.start[0].ravel()
    for path in every_path(3, 2):
        product = np.eye(T * d)
        for layer, head in path:
            product = product @ dense(layer, head)
        np.testing.assert_allclose(functional(world, steps(path))[0].ravel(), product @ start, **CLOSE)
    swapped = dense(2, 1) @ dense(0, 1) @ start
    assert np.abs(functional(world, steps(((0, 1), (2, 1))))[0].ravel() - swapped).max() > 0.01


@pytest.mark.identity("OP-14")
def test_a_path_is_the_sum_of_itself_over_the_positions_that_it_reads() -> None:
    weights = random_model(**ATTENTION_ONLY)
    (run,) = runs_of(weights, (1,))
    world = world_of(weights, [run], "frozen")
    whole = functional(world, Path((Step("v", 0, 1), Step("v", 2, 0))))
    parts = [
        functional(world, Path((Step("v", 0, 1, slot=str(s)), Step("v", 2, 0, slot=str(t)))))
        for s in range(6)
        for t in range(6)
    ]
    np.testing.assert_allclose(sum(parts), whole, **CLOSE)


@pytest.mark.identity("OP-2")
def test_heads_read_through_their_values_add_up_to_what_attention_writes() -> None:
    weights = random_model(n_kv_heads=2)
    (run,) = runs_of(weights, (1,))
    model = Linearised(weights, (run,), Policies.all("frozen"))
    u = np.random.default_rng(0).standard_normal(run["resid_in"].shape)
    f = np.einsum("btd,hkd->bthk", u, weights["L1.W_O"])
    values = [0, 0, 1, 1]
    f = np.einsum("bthk,hek->bhte", f, weights["L1.W_V"][values])
    weighed = np.einsum("bhts,bhte,bse->bt", run["L1.pattern"], f, run["L1.attn_normed"])
    b_V = np.einsum("hk,hkd->d", weights["L1.b_V"][values], weights["L1.W_O"])
    wanted = np.sum(u * run["L1.attn_out"], axis=-1)
    np.testing.assert_allclose(weighed + u @ (weights["L1.b_O"] + b_V), wanted, **CLOSE)
    # Ours carries the pattern: the same sum, ordered by the position that is read, not by the one that reads.
    ours = sum(
        np.sum(normed_functional(model, u, Step("v", 1, h)) * run["L1.attn_normed"], axis=(1, 2)) for h in range(4)
    )
    np.testing.assert_allclose(ours, weighed.sum(axis=1), **CLOSE)


@pytest.mark.identity("OP-27")
def test_patching_the_values_of_one_head_moves_the_frozen_output_by_its_feature() -> None:
    weights = random_model(n_kv_heads=2)
    clean, corrupt = runs_of(weights)
    n, _ = question(weights)
    world = world_of(weights, [clean], "frozen")
    for layer, head in itertools.product(range(2), range(4)):
        at = f"L{layer}."
        moved = corrupt[at + "attn_normed"] - clean[at + "attn_normed"]
        # By hand: the change of this head's output, straight into the frozen final norm and the unembedding.
        change = clean[at + "pattern"][:, head] @ (moved @ weights[at + "W_V"][head // 2]) @ weights[at + "W_O"][head]
        c = clean["L1.resid_post"] - clean["L1.resid_post"].mean(-1, keepdims=True)
        sigma = np.sqrt((c**2).mean(-1, keepdims=True) + 1e-5)
        final = (change - change.mean(-1, keepdims=True)) / sigma * weights["final_norm.gain"]
        wanted = (final @ weights["W_U"])[[0, 1], [5, 3]] @ n[0]
        c = next(c for c in world.model.components if c.layer == layer and c.attn)
        F = normed_functional(world.model, world.model.out(world.start, c), Step("v", layer, head))
        np.testing.assert_allclose(np.sum(F * moved, axis=(1, 2)), wanted, **CLOSE)


@pytest.mark.identity("OP-27")
def test_with_the_live_final_norm_the_share_of_a_patched_head_is_the_measured_change() -> None:
    """Values of one head of the last layer replaced in the running model: its V edge has the whole difference."""
    weights = random_model(d_mlp=0)
    _, corrupt = runs_of(weights)
    tokens = torch.randint(23, (2, 6), generator=torch.Generator().manual_seed(1))

    def replaced(v: Tensor) -> Tensor:
        v = v.clone()
        v[:, :, 2] = torch.from_numpy(corrupt["L1.v"][:, :, 2])
        return v

    clean = run_of(weights, {"token": tokens})
    patched = run_of(weights, {"token": tokens}, intervene={"L1.v": replaced})
    world = world_of(weights, [patched, clean])
    found = find_paths([world], expansions=1)
    wanted = asked(weights, patched) - asked(weights, clean)
    shares: dict[tuple[str, int, int | None], np.ndarray] = {}
    for part in found.parts:
        step = part.path.steps[0]
        key = (step.kind, step.layer, step.head)
        shares[key] = shares.get(key, 0) + part.shares
    assert set(shares) == {("v", 1, 2)}
    np.testing.assert_allclose(shares["v", 1, 2], wanted, **CLOSE)
    assert np.abs(wanted).min() > 0.01


@pytest.mark.identity("OP-28")
@pytest.mark.parametrize("name", ["layer norm, gelu", "parallel, sigmoid", "rms, gated, rotary, grouped"])
def test_patching_everything_is_the_other_run_and_patching_nothing_is_no_change(name: str) -> None:
    weights = ANATOMIES[name]()
    clean, corrupt = runs_of(weights)
    decoder, given = Decoder(weights), torch.from_numpy(clean["resid_in"])
    written = [h for h in decoder.hooks if h.endswith("_added")]

    def patched(other: Mapping[str, np.ndarray]) -> np.ndarray:
        swaps = {h: (lambda _, h=h: torch.from_numpy(other[h])) for h in ("resid_in", *written)}
        return decoder.run(resid_in=given, intervene=swaps).outputs["token"].numpy()

    np.testing.assert_array_equal(patched(clean), clean["out.token"])
    np.testing.assert_allclose(patched(corrupt), corrupt["out.token"], **CLOSE)
    # As shares: beside itself a run leaves nothing to account for.
    found = find_paths([world_of(weights, [clean, clean])], expansions=3)
    assert found.parts == ()
    assert found.total.share == 0


@pytest.mark.identity("OP-25")
@pytest.mark.parametrize("policy", ["frozen", "secant", "exact"])
def test_the_whole_adjoint_is_linear_in_the_question(policy: str) -> None:
    weights = random_model(gated=True, activation="silu")
    runs = runs_of(weights)[: 2 if policy == "secant" else 1]
    model = Linearised(weights, tuple(runs), Policies.all(policy))  # type: ignore[arg-type]
    (a, output), (b, _) = question(weights), question(weights, 1)
    F, G, H = (model.adjoint(model.start(n, output, np.array([5, 3])))[0] for n in (a, b, 2 * a - 3 * b))
    np.testing.assert_allclose(H, 2 * F - 3 * G, **CLOSE)
