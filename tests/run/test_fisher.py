"""The Gauss–Newton Gram against the KL that it predicts."""

import numpy as np
import pytest
import torch

from covector.run.decoder import Decoder
from covector.run.edited import laid_over
from covector.run.fisher import gauss_newton
from covector.run.neutral import Neutral
from covector.study.edit import Edit
from random_checkpoints import random_model

MLP = "L1.mlp.out"


def text(n_vocab: int, batch: int = 3, length: int = 7) -> Neutral:
    tokens = np.random.default_rng(0).integers(0, n_vocab, (batch, length))
    kept = np.ones(tokens.shape, dtype=bool)
    kept[0, -2:] = False
    n = int(kept.sum())
    return Neutral((tokens,), (kept,), ("neutral",), np.zeros(n, dtype=int), np.zeros(n, dtype=int))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_it_predicts_small_kl(family: str) -> None:
    """KL(base ‖ t) = ½ tᵀFt + O(t³): halving the dose leaves an eighth of what is missing."""
    model = random_model(family)
    decoder, given = Decoder(model.weights), text(model.spec.n_vocab)
    edits = [Edit.dyads(site, {i: 1.0}) for site, i in (("L1H1.ov", 0), ("L1H2.ov", 1), (MLP, 0))]
    pieces = [e.change(model) for e in edits]
    F = gauss_newton(decoder, pieces, given)
    np.testing.assert_allclose(F, F.T, atol=1e-12)
    tokens, kept = torch.from_numpy(given.batches[0]), torch.from_numpy(given.kept[0])
    plain = decoder.run(tokens).logits[kept].log_softmax(-1)

    def kl(t: np.ndarray) -> float:
        whole = edits[0]
        whole = (
            Edit.dyads("L1H1.ov", {0: t[0]}) + Edit.dyads("L1H2.ov", {1: t[1]}) + Edit.dyads("L1.mlp.out", {0: t[2]})
        )
        other = laid_over(decoder, whole.change(model)).run(tokens).logits[kept].log_softmax(-1)
        return float((plain.exp() * (plain - other)).sum(-1).mean())

    way = np.array([0.02, -0.03, 0.025])
    missing = [abs(kl(s * way) - 0.5 * s**2 * way @ F @ way) for s in (1.0, 0.5)]
    assert missing[0] < 0.1 * 0.5 * way @ F @ way
    assert missing[1] < missing[0] / 5
