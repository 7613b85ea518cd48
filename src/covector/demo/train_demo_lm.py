"""Makes demo-lm from nothing but the truth: corpus, tokenizer, training, float16 checkpoint, figures, card.

    OMP_NUM_THREADS=2 python -m covector.demo.train_demo_lm [--out FOLDER]

Every document is drawn fresh, none is seen twice. Most rows hold one document between two start tokens; some are cut
from a stream of documents, with attention running across them as in GPT-2's own training, so that late positions and
a change of topic are known too. Same seed, same libraries and same number of threads give the same weights.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from covector.demo import DEMO_LM
from covector.demo.corpus import documents, load_truth
from covector.demo.evaluate_demo_lm import (
    HELD_OUT_DOCUMENTS,
    HELD_OUT_SEED,
    START,
    LanguageModel,
    evaluate,
    losses,
    read_all,
    write,
)

TRAINING_SEED, TOKENIZER_SEED, WATCH_SEED, WEIGHTS_SEED = 1, 3, 4, 0  # none is HELD_OUT_SEED
VOCABULARY = 1910  # from 1,950 on every word is one token; 40 fewer leave about twenty words in two or more
TOKENIZER_DOCUMENTS = 40_000
COUNTED_DOCUMENTS = 20_000  # of the training stream, to count tokens that never occur
CONTEXT = 128
STEPS = 9000
BATCH_TOKENS = 2048  # the processor is as busy with this as with more, and takes more steps in the same time
PACKED = 0.15  # share of documents that come several to a row, for late positions and changes of topic
PEAK_RATE = 3e-3  # small width stands a large rate
WARM_UP = 200
NO_START = 0.1  # share of rows whose start token is left out, so that prompts without one are read too
CHUNK = 2000  # documents tokenised at a time
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": START,
    "eos_token": START,
    "unk_token": START,
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "model_max_length": CONTEXT,
}


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE as in GPT-2, start token 0, learned on documents of its own seed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (document.text for document in documents(TOKENIZER_SEED, TOKENIZER_DOCUMENTS))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[torch.Tensor]:
    """Token ids [row, token] without end, -1 behind the end of a row; a batch holds about BATCH_TOKENS.

    Most rows are one document; PACKED of the documents come several to a row instead.
    """
    random = np.random.default_rng([seed, 1])
    drawn = documents(seed, 10**9)  # the stream is lazy
    while True:
        texts = [next(drawn).text for _ in range(CHUNK)]
        found = [[0, *encoding.ids] for encoding in tokenizer.encode_batch(texts)]
        cut = int(PACKED * CHUNK)
        stream = [i for ids in found[:cut] for i in ids]
        rows = [stream[i : i + CONTEXT + 1] for i in range(0, len(stream) - CONTEXT, CONTEXT)]
        rows += sorted(([*ids, 0] for ids in found[cut:]), key=len)
        rows = [row[int(random.random() < NO_START) :] for row in rows]
        groups, group = [], []
        for row in rows:
            group.append(row)
            if len(group) * len(row) >= BATCH_TOKENS:
                groups.append(group)
                group = []
        for i in random.permutation(len(groups)):
            width = max(map(len, groups[i]))
            yield torch.tensor([row + [-1] * (width - len(row)) for row in groups[i]])


def new_model() -> GPT2LMHeadModel:
    """An untrained GPT-2 of 4 layers, 4 heads and width 128, seeded."""
    torch.manual_seed(WEIGHTS_SEED)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,  # fresh documents throughout: nothing to overfit
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # At width 128 GPT-2's 0.02 leaves heads and readout near zero for long: on sequences alone, 400 steps took
        # the loss on repeated words from 6.6 nats to 6.1 with 0.02, to 4.7 with 0.05; 0.2 was as bad as 0.02.
        initializer_range=0.08,
        bos_token_id=0,
        eos_token_id=0,
        # The same function as GPT-2's "gelu_new" in one kernel instead of eight; the checkpoint says gelu_new.
        activation_function="gelu_pytorch_tanh",
    )
    model = GPT2LMHeadModel(config)
    model.set_attn_implementation("eager")  # on a CPU, backward through the fused kernel costs half as much again
    return model


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero, as a share of the peak."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP)))


def train(tokenizer: Tokenizer, steps: int) -> tuple[GPT2LMHeadModel, int]:
    """The trained model, float32, and the tokens it learned to predict; prints the held-out ratio as it goes."""
    model = new_model()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    watched = list(documents(WATCH_SEED, 300))
    source = batches(tokenizer, TRAINING_SEED)
    tokens = 0
    began = time.monotonic()
    for step in range(steps):
        ids = next(source)
        tokens += int((ids[:, 1:] >= 0).sum())
        with torch.autocast("cpu", dtype=torch.bfloat16):  # float32 is 0.7 times as fast where AVX-512 has bf16
            logits = model(ids[:, :-1].clamp(min=0), use_cache=False).logits
        loss = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), ignore_index=-1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 500 == 0 or step + 1 == steps:
            report(model, tokenizer, watched, step + 1, loss.item(), time.monotonic() - began)
    return model, tokens


def report(model: GPT2LMHeadModel, tokenizer: Tokenizer, watched: list, step: int, loss: float, seconds: float) -> None:
    """Print one line on the state of training."""
    truth = load_truth()
    figures = losses(read_all(LanguageModel(model, tokenizer), watched, truth), truth)
    kinds = {k: round(v["model"] / max(v["truth"], 1e-9), 3) for k, v in figures["nats_per_unit"].items()}
    print(f"step {step}  {seconds:.0f} s  loss {loss:.3f}  ratio {figures['ratio_to_truth']:.4f}  {kinds}", flush=True)


def save(model: GPT2LMHeadModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the checkpoint in Hugging Face layout, weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.activation_function = "gelu_new"
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written as 0600, which a wheel would keep
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")


def facts_of_training(model: GPT2LMHeadModel, tokenizer: Tokenizer, steps: int, tokens: int) -> dict[str, Any]:
    """What the card says about how the model was made."""
    pieces = {w: tokenizer.encode(" " + w).tokens for w in load_truth().pool}
    texts = [document.text for document in documents(TRAINING_SEED, COUNTED_DOCUMENTS)]
    seen = {i for encoding in tokenizer.encode_batch(texts) for i in encoding.ids}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": tokenizer.get_vocab_size(),
        "context": CONTEXT,
        "steps": steps,
        "tokens": tokens,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "counted_documents": COUNTED_DOCUMENTS,
        "untrained_tokens": tokenizer.get_vocab_size() - len(seen | {0}),
        "words": len(pieces),
        "split_words": {w: t for w, t in pieces.items() if len(t) > 1},
        "names_at_start": {w: tokenizer.encode(w).tokens for w in ("Mary", "John", "Anna", "Paris")},
    }


def main() -> None:
    """Make the model; `--steps` below the default gives a rehearsal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEMO_LM)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    began, worked = time.monotonic(), time.process_time()
    tokenizer = train_tokenizer()
    model, tokens = train(tokenizer, arguments.steps)
    minutes = (time.monotonic() - began) / 60, (time.process_time() - worked) / 60
    training = facts_of_training(model, tokenizer, arguments.steps, tokens)
    training["minutes"], training["cpu_minutes"] = minutes
    save(model, tokenizer, arguments.out)
    figures = {"training": training} | evaluate(arguments.out, seed=HELD_OUT_SEED, count=HELD_OUT_DOCUMENTS)
    write(arguments.out, figures)


if __name__ == "__main__":
    main()
