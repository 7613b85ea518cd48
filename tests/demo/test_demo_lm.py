"""The bundled model: it loads, it is small, and it knows its language as well as its card says."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from covector.demo import DEMO_LM
from covector.demo.corpus import documents, load_truth
from covector.demo.demo_lm_card import card

FRESH_SEED = 90_210  # not a seed of the trainer or of the card
FRESH_DOCUMENTS = 300  # the standard error of the ratio is then about 0.003

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers.*")

from covector.demo import evaluate_demo_lm as evaluation  # noqa: E402


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return json.loads((DEMO_LM / "figures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model() -> evaluation.LanguageModel:
    return evaluation.LanguageModel.open(DEMO_LM)


@pytest.fixture(scope="module")
def readings(model: evaluation.LanguageModel) -> list[evaluation.Reading]:
    return evaluation.read_all(model, documents(FRESH_SEED, FRESH_DOCUMENTS), load_truth())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO_LM / "tokenizer.json"))


def test_the_loss_on_fresh_documents_is_within_five_percent_of_the_entropy(readings: list) -> None:
    loss = evaluation.losses(readings, load_truth())
    assert loss["ratio_to_truth"] + 2 * loss["ratio_to_truth_se"] <= 1.05
    assert loss["ratio_to_truth"] > 1 - 4 * loss["ratio_to_truth_se"]  # nothing beats the truth but by luck


def test_the_loss_without_the_first_attention_layer_is_not_within_five_percent() -> None:
    damaged = evaluation.LanguageModel.open(DEMO_LM)
    with torch.no_grad():
        damaged.network.transformer.h[0].attn.c_proj.weight.zero_()
    few = evaluation.read_all(damaged, documents(FRESH_SEED, 60), load_truth())
    assert evaluation.losses(few, load_truth())["ratio_to_truth"] > 1.05


def test_the_accuracies_on_fresh_documents_are_those_of_the_card(readings: list, figures: dict) -> None:
    fresh = evaluation.accuracies(readings)
    assert set(fresh) == set(figures["accuracy"])
    for name, row in figures["accuracy"].items():
        if "accuracy" not in row:
            continue
        p, n = row["accuracy"], fresh[name]["n"]
        # Binomial errors of both samples, and half an instance where the card says 0 or 1.
        error = math.sqrt(p * (1 - p) * (1 / n + 1 / row["n"])) + 0.5 / n
        assert fresh[name]["accuracy"] >= p - 5 * error, name


def test_the_topic_mass_on_fresh_documents_is_that_of_the_card(readings: list, figures: dict) -> None:
    name = "mass on the topic's words, topic known"
    assert evaluation.accuracies(readings)[name]["mass"] == pytest.approx(figures["accuracy"][name]["mass"], abs=0.03)


def test_the_losses_per_kind_add_up_to_the_loss(readings: list) -> None:
    loss = evaluation.losses(readings, load_truth())
    total = sum(row["n"] * row["model"] for row in loss["nats_per_unit"].values())
    assert total == pytest.approx(loss["loss_per_token"] * loss["tokens"], rel=1e-9)


def test_the_occupations_are_those_of_the_card(model: evaluation.LanguageModel, figures: dict) -> None:
    again = evaluation.occupations(model, load_truth())
    for occupation, row in figures["occupations"]["biased"].items():
        # Same weights, same prompts: only the summation order of another machine differs.
        assert again["biased"][occupation]["model"] == pytest.approx(row["model"], abs=1e-3)


def test_the_card_is_written_from_the_figures(figures: dict) -> None:
    assert (DEMO_LM / "README.md").read_text(encoding="utf-8") == card(figures)
    assert figures["loss"]["ratio_to_entropy"] <= 1.05
    assert figures["training"]["minutes"] <= 40


def test_hugging_face_opens_the_folder() -> None:
    from transformers import AutoTokenizer, GPT2LMHeadModel

    tokenizer, network = AutoTokenizer.from_pretrained(DEMO_LM), GPT2LMHeadModel.from_pretrained(DEMO_LM)
    assert (network.config.n_layer, network.config.n_head, network.config.n_embd) == (4, 4, 128)
    text = "So, Mary really is a great friend, isn't she?"
    ids = tokenizer(text).input_ids
    assert ids == Tokenizer.from_file(str(DEMO_LM / "tokenizer.json")).encode(text).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == network.config.bos_token_id == 0


def test_the_weights_are_float16_and_the_folder_fits_four_megabytes() -> None:
    with safe_open(DEMO_LM / "model.safetensors", "np") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
        assert all(np.isfinite(weights.get_tensor(name)).all() for name in weights.keys())  # noqa: SIM118
    assert sum(f.stat().st_size for f in Path(DEMO_LM).rglob("*") if f.is_file()) <= 4_000_000


def test_the_vocabulary_is_small_and_pronouns_are_one_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() <= 2000
    for word in (
        " she",
        " he",
        " her",
        " him",
        " his",
        " actress",
        " actor",
        " nurse",
        " programmer",
        " Mary",
        " John",
    ):
        assert len(tokenizer.encode(word).ids) == 1, word


def test_some_words_are_two_tokens_and_the_card_lists_every_split_word(tokenizer: Tokenizer, figures: dict) -> None:
    pieces = {word: tokenizer.encode(" " + word).tokens for word in load_truth().pool}
    split = {word: tokens for word, tokens in pieces.items() if len(tokens) > 1}
    assert any(len(tokens) == 2 for tokens in split.values())
    assert split == figures["training"]["split_words"]
    assert len(split) < 0.1 * len(pieces)


@pytest.mark.slow
def test_every_document_fits_the_context(tokenizer: Tokenizer, figures: dict) -> None:
    texts = [document.text for document in documents(FRESH_SEED, 3000)]
    longest = max(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
    assert longest + 2 <= figures["training"]["context"]  # start and end tokens


def test_the_corpus_is_drawn_without_torch() -> None:
    code = "import sys, covector.demo.corpus, covector.demo.entropy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
