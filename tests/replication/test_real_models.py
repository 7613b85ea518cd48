"""Six trained models open, run in the reference decoder, and reproduce what their cards say without an environment."""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from covector.arch.adapter import AdaptedWeights, adapt
from covector.arch.config import Config
from covector.arch.declared import declared
from covector.arch.family import family_of
from covector.errors import CheckpointMismatch
from covector.io.tensors import open_folder
from covector.run.decoder import Decoder

sys.path.append(str(Path(__file__).parents[1] / "layouts"))
from stand_ins import PLANTED, layout, with_words

AGENTS = ("dt-cartpole", "dt-minigrid-memory", "dt-minigrid-obstacles")
LANGUAGE = ("induction-gpt2", "stories260k")
# Two float64 passes over up to five blocks; measured: 1.3e-13 at most.
SAME = 1e-9


def by_layout(shared: Path, model: str, text: str | None = None) -> AdaptedWeights:
    return declared(text or layout(model), open_folder(shared / "models" / model), f"{model}.toml")[0]


def by_family(shared: Path, model: str) -> AdaptedWeights:
    folder = shared / "models" / model
    config = Config(json.loads((folder / "config.json").read_text()))
    family = family_of(config.need("model_type"), str(folder))
    source = open_folder(folder)
    return adapt(family.spec(config), family.tensors(config), source, prefixes=family.prefixes, ignored=family.ignored)


def recorded(shared: Path, model: str) -> dict[str, np.ndarray]:
    return load_file(shared / "models" / model / "check.safetensors")


def inputs_of(pairs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The recorded inputs by the names of the layouts; an image [x, y, channel] is flattened as [channel, x, y]."""
    if "pairs" in pairs:
        return {"token": torch.tensor(pairs["pairs"])}
    if "image" in pairs:
        image = pairs["image"]
        named = {"state": image.transpose(0, 1, 4, 2, 3).reshape(*image.shape[:2], -1), "action": pairs["actions"]}
    else:
        named = {"state": pairs["states_normalised"], "action": pairs["previous_actions"]}
    named |= {"return": pairs["return_to_go"], "time": pairs["timesteps"]}
    return {name: torch.tensor(array) for name, array in named.items()}


def differences(weights: AdaptedWeights, pairs: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference between the decoder and each recorded tensor, in float64."""
    run = Decoder(weights).run(inputs_of(pairs), capture=["resid_in"])
    came = {"resid_in": run.cache["resid_in"], "final": run.resid_final}
    came |= {"logits": run.logits[:, -1]} if "logits" in pairs else {"action_logits": run.outputs["action"]}
    return {name: float(np.abs(came[name].numpy() - pairs[name]).max()) for name in came if name in pairs}


# The recorded pairs


@pytest.mark.parametrize("model", AGENTS)
def test_an_agent_reproduces_its_recorded_streams_and_logits(shared, model):
    worst = differences(by_layout(shared, model), recorded(shared, model))
    assert {"resid_in", "action_logits"} <= set(worst)
    assert max(worst.values()) < SAME


def test_modular_addition_reproduces_the_recorded_logits_of_all_pairs(shared):
    worst = differences(by_layout(shared, "modadd59-clock"), recorded(shared, "modadd59-clock"))
    assert worst == {"logits": pytest.approx(0, abs=SAME)}


@pytest.mark.parametrize(
    ("model", "mistake", "words", "caught"), PLANTED, ids=lambda v: v if isinstance(v, str) else ""
)
def test_the_recorded_pairs_catch_a_planted_mistake_in_the_words(shared, model, mistake, words, caught):
    wrong = with_words(layout(model), words)
    if caught == "refused":
        with pytest.raises(CheckpointMismatch):
            by_layout(shared, model, wrong)
    else:
        worst = differences(by_layout(shared, model, wrong), recorded(shared, model))
        assert max(worst.values()) > 1e-2, mistake


@pytest.mark.parametrize("model", LANGUAGE)
def test_a_hugging_face_model_has_the_logits_of_transformers(shared, model):
    judge, weights = transformers_model(shared, model), by_family(shared, model)
    tokens = torch.randint(weights.spec.n_vocab, (4, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = judge(tokens).logits
    assert (Decoder(weights).run(tokens).logits - expected).abs().max() < SAME


def transformers_model(shared: Path, model: str) -> torch.nn.Module:
    """The model as transformers runs it, in float64 throughout: its RMSNorm and rotary angles are float32 otherwise."""
    judge = AutoModelForCausalLM.from_pretrained(shared / "models" / model, dtype=torch.float64)
    for module in judge.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            settings = {"normalized_shape": (64,), "weight": module.weight, "eps": module.variance_epsilon}
            module.forward = partial(torch.nn.functional.rms_norm, **settings)
        if type(module).__name__ == "LlamaRotaryEmbedding":
            module.forward = exact_angles
    return judge


def exact_angles(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of position · 10000^(−2i/8) for both halves of a head of 8."""
    speed = 10_000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    angle = (position_ids[..., None] * speed).repeat(1, 1, 2)
    return angle.cos(), angle.sin()


# modadd59-clock


def test_the_clock_adds_all_pairs_modulo_59(shared):
    pairs = recorded(shared, "modadd59-clock")
    tokens = torch.tensor(pairs["pairs"])
    logits = Decoder(by_layout(shared, "modadd59-clock")).run(tokens).logits[:, -1]
    answers = tokens.sum(1) % 59
    assert len(tokens) == 59**2
    assert bool((logits.argmax(-1) == answers).all())
    assert float(torch.nn.functional.cross_entropy(logits, answers)) == pytest.approx(1.5609e-07, abs=0.00005e-07)


# stories260k


@pytest.fixture(scope="module")
def stories(shared) -> AdaptedWeights:
    return by_family(shared, "stories260k")


@pytest.fixture(scope="module")
def tokenizer(shared) -> Tokenizer:
    return Tokenizer.from_file(str(shared / "models" / "stories260k" / "tokenizer.json"))


def test_greedy_tokens_after_the_start_spell_the_published_sample(shared, stories, tokenizer):
    # If every token is the most likely one after those before it, the greedy continuation is this text, by induction.
    sample = (shared / "models" / "stories260k" / "sample.txt").read_text()
    tokens = torch.tensor([tokenizer.encode(sample).ids])
    assert tokens.shape == (1, 200)
    assert int(tokens[0, 0]) == 1
    logits = Decoder(stories).run(tokens).logits
    assert torch.equal(logits[0, :-1].argmax(-1), tokens[0, 1:])
    assert tokenizer.decode(tokens[0].tolist()) == sample


def test_the_loss_on_some_stories_is_that_of_transformers(shared, stories, tokenizer):
    judge = transformers_model(shared, "stories260k")
    for story in encoded_stories(shared, tokenizer)[:3]:
        tokens = torch.tensor([story])
        with torch.no_grad():
            expected = -judge(tokens, labels=tokens).loss
        # transformers takes the loss in float32
        assert float(log_probabilities(Decoder(stories), tokens).mean()) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.slow
def test_the_loss_on_all_stories_is_that_of_the_card(shared, stories, tokenizer):
    # Two minutes on one core: 200,000 tokens in float32, in batches of similar length.
    encoded = encoded_stories(shared, tokenizer)
    decoder, total, count = Decoder(stories, torch.float32), 0.0, 0
    for tokens, real in batches(sorted(encoded, key=len), 10):
        total -= float(log_probabilities(decoder, tokens)[real[:, 1:]].double().sum())
        count += int(real[:, 1:].sum())
    assert count == 199_745
    assert total / count == pytest.approx(1.51746, abs=0.000005)


def encoded_stories(shared: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """All 500 stories, stripped, with a leading start token, cut to 512 tokens (62 of them are longer)."""
    text = (shared / "data" / "tinystories" / "stories.txt").read_text()
    encoded = [tokenizer.encode(story.strip()).ids for story in text.split("<|endoftext|>") if story.strip()]
    assert (len(encoded), sum(len(ids) > 512 for ids in encoded)) == (500, 62)
    return [ids[:512] for ids in encoded]


def batches(encoded: list[list[int]], size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens [batch, position], padded at the end (causal attention never looks there), and which are real."""
    for start in range(0, len(encoded), size):
        part = encoded[start : start + size]
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in part], batch_first=True)
        lengths = torch.tensor([len(ids) for ids in part])
        yield tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


def log_probabilities(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of every token after the first [batch, position − 1]."""
    with torch.no_grad():
        predicted = decoder.run(tokens).logits[:, :-1].log_softmax(-1)
    return predicted.gather(-1, tokens[:, 1:, None])[..., 0]


@pytest.fixture(scope="module")
def pronouns(shared, stories, tokenizer) -> list[tuple[dict, float]]:
    """Every recorded prompt with the decoder's logit difference, female answer minus male answer."""
    lines = (shared / "data" / "pronouns-stories260k" / "prompts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    ((tokens, real),) = batches([tokenizer.encode(row["prompt"]).ids for row in rows], len(rows))
    logits = Decoder(stories).run(tokens).logits[torch.arange(len(rows)), real.sum(1) - 1]
    return [(row, float(at[row["female_id"]] - at[row["male_id"]])) for row, at in zip(rows, logits, strict=True)]


def test_pronoun_prompts_have_the_recorded_logit_differences(pronouns):
    # Recorded from a float32 run with four decimals.
    assert len(pronouns) == 108
    assert max(abs(came - row["logit_female_minus_male"]) for row, came in pronouns) < 1e-4


@pytest.mark.parametrize(
    ("kind", "right", "of", "female", "male"),
    [
        ("subject-sentence", 45, 48, 3.66, -4.74),
        ("subject-clause", 24, 24, 2.19, -3.74),
        ("possessive", 36, 36, 4.56, -2.67),
    ],
)
def test_pronouns_are_right_as_often_as_the_card_says(pronouns, kind, right, of, female, male):
    came = {label: [d for r, d in pronouns if (r["kind"], r["label"]) == (kind, label)] for label in ("female", "male")}
    assert len(came["female"]) + len(came["male"]) == of
    assert sum(d > 0 for d in came["female"]) + sum(d < 0 for d in came["male"]) == right
    assert np.mean(came["female"]) == pytest.approx(female, abs=0.005)
    assert np.mean(came["male"]) == pytest.approx(male, abs=0.005)


# induction-gpt2


def fresh_strings(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Strings of 31 letters 1–26 by the rule of the card, and which letters the rule determines.

    The first letter is random; a letter that has occurred before is followed by what followed it then, any other by a
    random letter.
    """
    strings, determined = np.zeros((count, 31), int), np.zeros((count, 31), bool)
    for string, sure in zip(strings, determined, strict=True):
        follows: dict[int, int] = {}
        string[0] = rng.integers(1, 27)
        for place in range(1, 31):
            last = int(string[place - 1])
            sure[place] = last in follows
            string[place] = follows.setdefault(last, int(rng.integers(1, 27)))
    return strings, determined


def test_induction_on_fresh_strings_is_as_good_as_the_card_says(shared):
    # Two samples of 1,000 strings, the card's and ours, differ by chance: 4 standard errors of the difference. A string
    # is periodic after its first repeated letter, and nearly all errors lie in the rare ones that repeat late, so one
    # sample does not show its own error: the spread of 60 samples was measured.
    strings, determined = fresh_strings(np.random.default_rng(0), 1000)
    tokens = torch.tensor(np.pad(strings, ((0, 0), (1, 0))))
    with torch.no_grad():
        logits = Decoder(by_family(shared, "induction-gpt2")).run(tokens).logits[:, :-1]
    log_p = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0].numpy()
    right = (logits.argmax(-1) == tokens[:, 1:]).numpy()
    difference = 4 * np.sqrt(2)
    assert right[determined].mean() == pytest.approx(0.9990, abs=difference * 0.00030)
    assert log_p[determined].mean() == pytest.approx(-0.0066, abs=difference * 0.0014)
    assert log_p[~determined].mean() == pytest.approx(-3.27, abs=difference * 0.0020 + 0.005)
    assert determined.sum() == pytest.approx(23_842, abs=difference * 89)
