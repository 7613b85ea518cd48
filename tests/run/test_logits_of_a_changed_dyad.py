"""SV-20: what scaling one dyad does to the logits: exactly where nothing stands behind it, or is held, else to ε²."""

import numpy as np
import pytest
import torch

import covector
from covector.arch.toy import random_model
from covector.model.spec import Norm
from covector.run.decoder import Decoder

# Float64 sums of a few dozen terms of order one.
CLOSE = 1e-11


def tokens() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 23, (2, 7)))


@pytest.mark.identity("SV-20")
@pytest.mark.parametrize(("dyad", "epsilon"), [(0, -1.0), (3, -0.4), (5, 1.5)])
def test_scaling_a_dyad_of_the_last_mlp_moves_logits_by_its_own_term(dyad: int, epsilon: float) -> None:
    weights = random_model(seed=1, norm=None)
    model, decoder = covector.open(weights), Decoder(weights)
    found = covector.svd(model.map("L1.mlp.out"))
    before = decoder.run(tokens(), capture=["L1.mlp_post"])
    change = epsilon * found.S[dyad] * np.outer(found.U[:, dyad], found.Vh[dyad])
    with decoder.edited({"L1.W_out": weights["L1.W_out"] + change}) as edited:
        after = edited.run(tokens())
    driven = before.cache["L1.mlp_post"].numpy() @ found.U[:, dyad]
    expected = epsilon * found.S[dyad] * driven[..., None] * (found.Vh[dyad] @ weights["W_U"])
    np.testing.assert_allclose((after.logits - before.logits).numpy(), expected, atol=CLOSE)


@pytest.mark.identity("SV-20")
def test_scaling_a_dyad_of_a_last_head_moves_logits_along_what_attention_brings() -> None:
    weights = random_model(seed=2, norm=None, d_mlp=0)
    model, decoder = covector.open(weights), Decoder(weights)
    found, epsilon, head = covector.svd(model.map("L1H2.ov")), -1.0, 2
    before = decoder.run(tokens(), capture=["L1.attn_normed", "L1.pattern"])
    U, S, Vh = found.U[:, 1], found.S[1], found.Vh[1]
    # The write side: W_O' = W_O (I + ε v vᵀ), which takes the value bias along as well.
    W_O = weights["L1.W_O"].copy()
    W_O[head] = W_O[head] + epsilon * np.outer(W_O[head] @ Vh, Vh)
    with decoder.edited({"L1.W_O": W_O}) as edited:
        after = edited.run(tokens())
    read = before.cache["L1.attn_normed"].numpy() @ U * S + weights["L1.b_V"][head] @ weights["L1.W_O"][head] @ Vh
    brought = np.einsum("bij,bj->bi", before.cache["L1.pattern"].numpy()[:, head], read)
    expected = epsilon * brought[..., None] * (Vh @ weights["W_U"])
    np.testing.assert_allclose((after.logits - before.logits).numpy(), expected, atol=CLOSE)


@pytest.mark.identity("SV-20")
@pytest.mark.parametrize("layer", [0, 1])
def test_with_all_later_layers_held_a_head_moves_logits_by_its_direct_path_and_the_rest_comes_through_them(
    layer: int,
) -> None:
    weights = random_model(seed=4, norm=None)
    model, decoder = covector.open(weights), Decoder(weights)
    found, epsilon, head = covector.svd(model.map(f"L{layer}H1.ov")), 0.7, 1
    later = [f"L{i}.{name}" for i in (0, 1) for name in ("attn_out", "mlp_out") if (i, name) > (layer, "attn_out")]
    here = [f"L{layer}.attn_normed", f"L{layer}.pattern"]
    before = decoder.run(tokens(), capture=[*here, *later])
    U, S, Vh = found.U[:, 0], found.S[0], found.Vh[0]
    # The read side: W_V' = W_V + ε·u (uᵀW_V), which leaves the value bias alone.
    W_V = weights[f"L{layer}.W_V"].copy()
    W_V[head] = W_V[head] + epsilon * np.outer(U, U @ W_V[head])
    held = {name: (lambda value: lambda _: value)(before.cache[name]) for name in later}
    with decoder.edited({f"L{layer}.W_V": W_V}) as edited:
        frozen, live = edited.run(tokens(), intervene=held), edited.run(tokens(), capture=later)
    read = before.cache[here[0]].numpy() @ U * S
    direct = (
        epsilon
        * np.einsum("bij,bj->bi", before.cache[here[1]].numpy()[:, head], read)[..., None]
        * (Vh @ weights["W_U"])
    )
    np.testing.assert_allclose((frozen.logits - before.logits).numpy(), direct, atol=CLOSE)
    through = sum((live.cache[name] - before.cache[name]).numpy() @ weights["W_U"] for name in later)
    assert np.abs(through).max() > 0.01 * np.abs(direct).max()
    np.testing.assert_allclose((live.logits - before.logits).numpy(), direct + through, atol=CLOSE)


@pytest.mark.identity("SV-20")
@pytest.mark.parametrize("norm", [Norm("layer", 1e-5), Norm("rms", 1e-5)], ids=lambda norm: norm.kind)
def test_behind_the_final_norm_the_term_is_exact_at_the_scale_it_leaves_and_first_order_misses_by_epsilon_squared(
    norm: Norm,
) -> None:
    """Centring and gain are linear; with s the scale and x̂ = Cx/s, the derivative along δ is (Cδ − x̂·mean(x̂·Cδ))/s."""
    weights = random_model(seed=5, norm=norm)
    decoder, found = Decoder(weights), covector.svd(covector.open(weights).map("L1.mlp.out"))
    before = decoder.run(tokens(), capture=["L1.mlp_post", "L1.resid_post"])
    out = weights["final_norm.gain"][:, None] * weights["W_U"]

    def centred(x: np.ndarray) -> np.ndarray:
        return x - x.mean(axis=-1, keepdims=True) if norm.kind == "layer" else x

    def scale(x: np.ndarray) -> np.ndarray:
        return np.sqrt((centred(x) ** 2).mean(axis=-1, keepdims=True) + norm.eps)

    stream = before.cache["L1.resid_post"].numpy()
    driven = (before.cache["L1.mlp_post"].numpy() @ found.U[:, 0])[..., None]
    moved = centred(found.S[0] * driven * found.Vh[0])
    direction = centred(stream) / scale(stream)
    tangent = (moved - direction * (direction * moved).mean(axis=-1, keepdims=True)) / scale(stream) @ out

    def error(epsilon: float) -> np.ndarray:
        change = epsilon * found.S[0] * np.outer(found.U[:, 0], found.Vh[0])
        with decoder.edited({"L1.W_out": weights["L1.W_out"] + change}) as edited:
            after = edited.run(tokens(), capture=["L1.resid_post"])
        difference = (after.logits - before.logits).numpy()
        s, t = scale(stream), scale(after.cache["L1.resid_post"].numpy())
        exact = (centred(stream) * (1 / t - 1 / s) + epsilon * moved / t) @ out
        np.testing.assert_allclose(difference, exact, atol=CLOSE)
        return difference - epsilon * tangent

    sizes = [np.abs(error(step)).max() for step in (4e-3, 2e-3, 1e-3)]
    # Halving the step divides c·ε² + O(ε³) by four; a step of Richardson takes ε² away, and what is left by eight.
    orders = np.log2(np.divide(sizes[:-1], sizes[1:]))
    np.testing.assert_allclose(orders, 2, atol=0.05)
    left = [np.abs(4 * error(step / 2) - error(step)).max() for step in (4e-3, 2e-3)]
    assert left[0] / left[1] == pytest.approx(8, rel=0.1)
