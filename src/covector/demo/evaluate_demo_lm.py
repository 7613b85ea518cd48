"""Measures a checkpoint against the truth: loss over entropy, and accuracy per phenomenon.

    python -m covector.demo.evaluate_demo_lm [FOLDER] [--seed 2] [--documents 4000] [--write]

Loss and truth are compared document by document in nats of the whole text (its end included), each document read
from its own start token, so the generator's log-probability is exact for every one of them. Weights are widened to
float32 before they run.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from covector.demo import DEMO_LM
from covector.demo.corpus import PRONOUNS, Document, Piece, Truth, Unit, documents, load_truth
from covector.demo.demo_lm_card import card
from covector.demo.entropy import document_entropy

HELD_OUT_SEED = 2  # the trainer draws from other seeds; see train_demo_lm.py
HELD_OUT_DOCUMENTS = 4000  # puts the standard error of the ratio well under the 5 % that it is held to
START = "<|endoftext|>"


@dataclass(frozen=True)
class Reading:
    """A document, and what the model made of each of its tokens (the end token last)."""

    document: Document
    ends: list[int]  # character offset at which each token ends
    log_probabilities: np.ndarray  # [token], nats, of the token that came
    is_top: np.ndarray  # [token], whether it was the model's first choice
    topic_mass: np.ndarray  # [token], probability of starting any word of the document's topic

    def tokens_of(self, start: int, end: int) -> slice:
        """The tokens that end inside (start, end] of the text; for the stop piece, the end token."""
        if start == end:
            return slice(len(self.ends), len(self.ends) + 1)
        first = sum(e <= start for e in self.ends)
        return slice(first, sum(e <= end for e in self.ends))


@dataclass(frozen=True)
class LanguageModel:
    """A checkpoint folder, opened: the model in float32 and its tokenizer."""

    network: GPT2LMHeadModel
    tokenizer: Tokenizer

    @classmethod
    def open(cls, folder: Path) -> "LanguageModel":
        """Read a folder in Hugging Face layout; float16 weights are widened."""
        network = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(network, Tokenizer.from_file(str(folder / "tokenizer.json")))

    def id(self, token: str) -> int:
        """The id of a text that is one token; raises ValueError if it is not."""
        ids = self.tokenizer.encode(token).ids
        if len(ids) != 1:
            raise ValueError(f"{token!r} is {len(ids)} tokens, expected one")
        return ids[0]

    @torch.no_grad()
    def next_token(self, prompts: Sequence[str]) -> np.ndarray:
        """Probabilities [prompt, token] of what follows each prompt, read from the start token."""
        rows = [self.id(START)] * len(prompts), [e.ids for e in self.tokenizer.encode_batch(list(prompts))]
        out = []
        for start, ids in zip(*rows, strict=True):
            out.append(self.network(torch.tensor([[start, *ids]])).logits[0, -1].softmax(-1))
        return torch.stack(out).numpy()

    @torch.no_grad()
    def read(self, batch: Sequence[Document], truth: Truth) -> list[Reading]:
        """Run documents side by side, each from its own start token."""
        start = self.id(START)
        encodings = self.tokenizer.encode_batch([d.text for d in batch])
        rows = [[start, *e.ids, start] for e in encodings]
        width = max(map(len, rows))
        if width > self.network.config.n_positions + 1:
            raise ValueError(f"a document has {width} tokens, the model reads {self.network.config.n_positions}")
        ids = torch.tensor([row + [start] * (width - len(row)) for row in rows])
        logs = self.network(ids[:, :-1]).logits.log_softmax(-1)
        came = logs.gather(-1, ids[:, 1:, None])[..., 0].numpy()
        top = (logs.argmax(-1) == ids[:, 1:]).numpy()
        readings = []
        for i, (document, encoding) in enumerate(zip(batch, encodings, strict=True)):
            n = len(encoding.ids) + 1
            words = truth.data["topics"].get(document.topic, [])
            starts = sorted({self.tokenizer.encode(" " + w).ids[0] for w in words})
            mass = logs[i, :n, starts].exp().sum(-1).numpy()
            ends = [e for _, e in encoding.offsets]
            readings.append(Reading(document, ends, came[i, :n].astype(np.float64), top[i, :n], mass))
        return readings


def read_all(model: LanguageModel, drawn: Iterable[Document], truth: Truth) -> list[Reading]:
    """Readings of all documents, in batches of like length."""
    ordered = sorted(drawn, key=lambda d: len(d.text))
    batch = 64  # 64 x 128 x 2k logits in float32 are 64 MB
    return [r for i in range(0, len(ordered), batch) for r in model.read(ordered[i : i + batch], truth)]


def losses(readings: Sequence[Reading], truth: Truth) -> dict[str, Any]:
    """Held-out loss beside the generator's entropy, whole and per kind of unit, in nats."""
    model = np.array([-r.log_probabilities.sum() for r in readings])
    exact = np.array([-r.document.log_probability for r in readings])
    tokens = sum(len(r.log_probabilities) for r in readings)
    entropy = document_entropy(truth)
    ratio = model.mean() / exact.mean()
    kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for reading in readings:
        at = 0
        for unit in reading.document.units:
            span = reading.tokens_of(at, at + len(unit.text))
            if unit.kind == "sequence":  # its stop is the end token, which carries no text
                span = slice(span.start, span.stop + 1)
            kinds[unit.kind].append((-reading.log_probabilities[span].sum(), -unit.log_probability))
            at += len(unit.text)
    return {
        "documents": len(readings),
        "tokens": tokens,
        "longest_document_tokens": max(len(r.log_probabilities) for r in readings) + 1,
        "loss_per_token": model.sum() / tokens,
        "entropy_per_document": entropy,
        "entropy_per_token": entropy * len(readings) / tokens,
        "truth_loss_per_token": exact.sum() / tokens,
        "ratio_to_entropy": model.mean() / entropy,
        "ratio_to_entropy_se": model.std() / math.sqrt(len(model)) / entropy,
        "ratio_to_truth": ratio,
        "ratio_to_truth_se": (model - ratio * exact).std() / math.sqrt(len(model)) / exact.mean(),
        "nats_per_unit": {
            kind: {"n": len(v), "model": float(np.mean(v, 0)[0]), "truth": float(np.mean(v, 0)[1])}
            for kind, v in sorted(kinds.items())
        },
    }


def phenomenon(unit: Unit, piece: Piece) -> str | None:
    """The phenomenon that a piece is an instance of, or None; only pieces that the text before them fixes."""
    if piece.role in PRONOUNS and piece.log_probability == 0.0:
        role = piece.role.lower()
        if piece.why == "name" and sum(p.role == "name" for p in unit.pieces) == 2:
            return f"{role} pronoun, two people"
        gender = "female" if piece.text.strip().lower() in ("she", "her") else "male"
        return f"{role} pronoun by name, {gender}" if piece.why == "name" else f"pronoun by {piece.why}"
    if piece.why == "fact":
        return f"{piece.role} fact"
    if piece.role == "repeat" and piece.why != "first":
        return "induction, sequence"
    return "induction, code" if piece.why == "repeat" else None


def accuracies(readings: Sequence[Reading]) -> dict[str, dict[str, Any]]:
    """Per phenomenon: instances and the share whose tokens are all the model's first choice."""
    hits: dict[str, list[bool]] = defaultdict(list)
    mass: dict[str, list[float]] = defaultdict(list)
    for reading in readings:
        at = 0
        for unit in reading.document.units:
            for piece in unit.pieces:
                span = reading.tokens_of(at, at + len(piece.text))
                at += len(piece.text)
                name = phenomenon(unit, piece)
                if name:
                    hits[name].append(bool(reading.is_top[span].all()))
                if piece.role == "topic" and piece.why == "known":
                    mass["topic"].append(float(reading.topic_mass[span.start]))
    table = {k: {"n": len(v), "accuracy": float(np.mean(v))} for k, v in sorted(hits.items())}
    topic = {"n": len(mass["topic"]), "mass": float(np.mean(mass["topic"]))}
    return table | {"mass on the topic's words, topic known": topic}


def occupations(model: LanguageModel, truth: Truth) -> dict[str, Any]:
    """P(she) after each biased occupation beside its rate; mass on the right gendered form after each name."""
    she, he = model.id(" she"), model.id(" he")
    biased = truth.data["biased_occupations"]
    p = model.next_token([f"The {occupation} said that" for occupation in biased])
    she_share = p[:, she] / (p[:, she] + p[:, he])
    rates = np.array([*biased.values()])
    pairs = truth.data["gendered_occupations"]
    ids = {g: [model.tokenizer.encode(" " + pair[g]).ids[0] for pair in pairs] for g in truth.data["names"]}
    p = model.next_token([f"My friend {name} is an excellent" for name in truth.gender_of_name])
    right = []
    for row, gender in zip(p, truth.gender_of_name.values(), strict=True):
        of = {g: row[i].sum() for g, i in ids.items()}
        right.append(of[gender] / sum(of.values()))
    return {
        "biased": {o: {"rate": r, "model": float(m)} for (o, r), m in zip(biased.items(), she_share, strict=True)},
        "biased_mean_absolute_error": float(np.abs(she_share - rates).mean()),
        "biased_correlation": float(np.corrcoef(she_share, rates)[0, 1]),
        "gendered_form_mass": {"n": len(right), "mean": float(np.mean(right)), "least": float(np.min(right))},
    }


@torch.no_grad()
def random_token_induction(model: LanguageModel, seed: int, rows: int = 64, length: int = 40) -> dict[str, float]:
    """Accuracy on the second half of uniformly random word tokens said twice; never part of the training data."""
    words = load_truth().pool
    single = [ids[0] for w in words if len(ids := model.tokenizer.encode(" " + w).ids) == 1]
    vocabulary = np.arange(1, model.tokenizer.get_vocab_size())
    out = {}
    for name, choice in (("words", np.array(single)), ("whole vocabulary", vocabulary)):
        half = torch.from_numpy(np.random.default_rng(seed).choice(choice, (rows, length)))
        ids = torch.cat([torch.full((rows, 1), model.id(START)), half, half], 1)
        top = model.network(ids).logits.argmax(-1)[:, length + 1 : -1]
        out[name] = float((top == ids[:, length + 2 :]).float().mean())
    return out


def evaluate(folder: Path, *, seed: int, count: int) -> dict[str, Any]:
    """All figures of a checkpoint on `count` documents of stream `seed`; about a minute for the defaults."""
    truth = load_truth()
    model = LanguageModel.open(folder)
    readings = read_all(model, documents(seed, count), truth)
    return {
        "seed": seed,
        "loss": losses(readings, truth),
        "accuracy": accuracies(readings),
        "occupations": occupations(model, truth),
        "random_token_induction": random_token_induction(model, seed),
    }


def write(folder: Path, figures: dict[str, Any]) -> None:
    """Put the figures and the card that they make beside the weights."""
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(figures), encoding="utf-8")


def main() -> None:
    """Print the figures as JSON; with --write renew them in the folder, what is said of its training kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DEMO_LM)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--documents", type=int, default=HELD_OUT_DOCUMENTS)
    parser.add_argument("--write", action="store_true", help="renew figures.json and README.md in the folder")
    arguments = parser.parse_args()
    figures = evaluate(arguments.folder, seed=arguments.seed, count=arguments.documents)
    print(json.dumps(figures, indent=2))
    if arguments.write:
        before = json.loads((arguments.folder / "figures.json").read_text(encoding="utf-8"))
        write(arguments.folder, {"training": before["training"]} | figures)


if __name__ == "__main__":
    main()
