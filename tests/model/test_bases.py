"""Bases and their variants, derived from dense algebra; the effective embedding against the reference decoder."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import covector
from covector.errors import UnknownBasis
from covector.model.bases import Basis, dual, inverse_root, undertrained
from covector.model.change import change
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


def test_labels_as_near_to_impossible_bytes_as_those_are_to_each_other_look_hardly_trained() -> None:
    rng = np.random.default_rng(2)
    E = rng.standard_normal((400, 24))
    untrained = rng.standard_normal(24)
    E[:150] = untrained + 0.01 * rng.standard_normal((150, 24))  # a third of the vocabulary, longer than the rest
    labels = ("<0xC0>", "<0xC1>", "<0xF5>", "<0xFF>", *(f"t{i}" for i in range(396)))
    flagged = undertrained(Basis("token_in", "in", labels, lambda: E))
    assert flagged[:150].all()
    assert not flagged[150:].any()


def test_without_such_bytes_only_vectors_that_decay_has_shortened_are_flagged() -> None:
    E = vectors(400, 24, 2)
    E[17] *= 1e-3
    flagged = undertrained(Basis("token_in", "in", tuple(map(str, range(400))), lambda: E))
    assert np.flatnonzero(flagged).tolist() == [17]


def test_on_a_real_vocabulary_no_token_that_stories_hold_is_flagged(shared: Path) -> None:
    """A reader finds: of stories260k's 512 tokens over 150 are flagged, and none of them occurs in 500 stories."""
    model = covector.open(shared / "models" / "stories260k")
    tokenizer = Tokenizer.from_file(str(shared / "models" / "stories260k" / "tokenizer.json"))
    stories = (shared / "data" / "tinystories" / "stories.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    seen = {i for encoding in tokenizer.encode_batch(stories) for i in encoding.ids}
    flagged = set(np.flatnonzero(undertrained(model.bases["token_in"])).tolist())
    assert len(flagged) > 150
    assert not flagged & seen


def test_default_bases_read_against_inputs_and_write_against_outputs() -> None:
    bases = random_model("gpt2").bases
    assert (bases.default("read"), bases.default("write")) == ("token_in", "token_out")
    np.testing.assert_array_equal(bases["token_out"].vectors, random_model("gpt2").weights["W_U"].T)


@pytest.mark.parametrize("name", ["token", "token_in:ridge", "token_in:pinv=2", "token_in:foo", "token_in:ridge=x"])
def test_unknown_bases_are_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(UnknownBasis, match=r"expected .*token_in"):
        random_model("gpt2").bases[name]


ASKED = {
    "plain": lambda bases, name: bases[name],
    "centred": lambda bases, name: bases.centred(name),
    "dictionary": lambda bases, name: bases.dictionary(name),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("of", ["model", "change"])
def test_a_walk_along_lambda_does_not_keep_a_vocabulary_for_every_step(asked: str, of: str) -> None:
    model, ask = random_model("gpt2"), ASKED[asked]
    bases = model.bases if of == "model" else change(model, random_model("gpt2")).bases
    plain, first = ask(bases, "token_in"), ask(bases, "token_in:ridge=0.5")
    held = []
    for weight in range(1, 20):
        held.append(weakref.ref(ask(bases, f"token_in:ridge={weight}")))
        assert ask(bases, "token_in:ridge=0.5") is first  # in use all the time
    gc.collect()
    assert sum(ref() is not None for ref in held) <= 4
    assert ask(bases, "token_in:ridge=19") is held[-1]()
    assert ask(bases, "token_in") is plain
