"""SV-20: what scaling one dyad of the last layer does to the logits, where no norm stands behind it, exactly."""

import numpy as np
import pytest
import torch

import covector
from covector.arch.toy import random_model
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
