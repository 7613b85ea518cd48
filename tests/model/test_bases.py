"""Bases and their variants, derived from dense algebra; the effective embedding against the reference decoder."""

import numpy as np
import pytest
import torch

from covector.errors import UnknownBasis
from covector.model.bases import dual, inverse_root, undertrained
from covector.run.decoder import Decoder
from random_checkpoints import random_model


def vectors(n: int = 80, d: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) @ np.diag(np.geomspace(1, 30, d))


def test_a_ridge_of_zero_is_the_pseudo_inverse_and_a_large_one_the_transpose() -> None:
    E = vectors()
    np.testing.assert_allclose(dual(E, 0.0), np.linalg.pinv(E).T, atol=1e-12)
    huge = dual(E, 1e9)
    np.testing.assert_allclose(huge / np.linalg.norm(huge), E / np.linalg.norm(E), atol=1e-6)


def test_dual_vectors_pick_out_one_coefficient() -> None:
    E = vectors(8, 12)
    np.testing.assert_allclose(dual(E, 0.0) @ E.T, np.eye(8), atol=1e-9)


def test_whitening_makes_the_covariance_the_identity() -> None:
    E = vectors()
    white = (E - E.mean(axis=0)) @ inverse_root(E)
    np.testing.assert_allclose(white.T @ white / len(E), np.eye(12), atol=1e-10)


def test_whitened_scores_are_the_inner_product_of_the_inverse_covariance() -> None:
    model = random_model("gpt2")
    basis, E = model.bases["token_out:whitened"], model.weights["W_U"].T
    v = np.random.default_rng(1).standard_normal(20)
    centred = E - E.mean(axis=0)
    want = v @ np.linalg.inv(centred.T @ centred / len(E)) @ centred.T
    np.testing.assert_allclose((v @ basis.metric) @ basis.vectors.T, want, rtol=1e-8)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_effective_embedding_is_the_first_blocks_output_when_attention_is_silent(family: str) -> None:
    model, ids = random_model(family), torch.arange(61)[:, None]
    zero = {f"L0.{r}": lambda t: torch.zeros_like(t) for r in ("attn_out",)}
    stream = torch.from_numpy(np.array(model.weights["W_E"]))[:, None]
    run = Decoder(model.weights).run(resid_in=stream, capture=("L0.resid_post",), intervene=zero)
    got = model.bases["token_in_mlp0"].vectors
    assert got.shape == (len(ids), model.spec.d_model)
    np.testing.assert_allclose(got, run.cache["L0.resid_post"][:, 0].numpy(), atol=1e-10)


def test_tokens_near_zero_or_near_the_common_mean_look_hardly_trained() -> None:
    E = vectors(400, 24, 2) + 5.0
    E[17] = 1e-3 * E[17]
    E[33] = E.mean(axis=0) + 1e-3
    flagged = np.flatnonzero(undertrained(E))
    assert {17, 33} <= set(flagged)
    assert len(flagged) <= 4


def test_default_bases_read_against_inputs_and_write_against_outputs() -> None:
    bases = random_model("gpt2").bases
    assert (bases.default("read"), bases.default("write")) == ("token_in", "token_out")
    np.testing.assert_array_equal(bases["token_out"].vectors, random_model("gpt2").weights["W_U"].T)


@pytest.mark.parametrize("name", ["token", "token_in:ridge", "token_in:pinv=2", "token_in:foo", "token_in:ridge=x"])
def test_unknown_bases_are_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(UnknownBasis, match=r"expected .*token_in"):
        random_model("gpt2").bases[name]
