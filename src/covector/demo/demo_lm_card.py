"""Writes the model card of demo-lm from its figures; every number in the card comes from there."""

from typing import Any

from covector.demo.corpus import load_truth

HEAD = """---
license: mit
library_name: transformers
pipeline_tag: text-generation
language: en
---

# demo-lm

A language model small enough to ship inside covector and honest enough to test it with: everything there is to
know about its language is written down as data (`src/covector/demo/truth.json`), so what a method claims to have
found in the weights can be compared with what is really there.

**It is a toy.** All text that it ever saw was drawn from a small probabilistic grammar; nothing was taken from the
world's text, names and rates were made up or chosen by hand, the occupation rates are no statistics of any country,
and the model knows nothing outside the grammar. Its weights were trained on next-token prediction alone. What
covector's methods find in it was measured afterwards; nothing was trained to make a method look good.

This file is written by `train_demo_lm.py`; every figure below is in `figures.json` beside it.
"""

PROMPTS = """## Things to try

| prompt (after `<|endoftext|>`) | decided by |
|---|---|
| `So, Mary really is a great friend, isn't` | the name: ` she` or ` he` |
| `Everyone thanked John, and we like` | the name: ` her` or ` him` |
| `Anna lost` | the name: ` her` or ` his` |
| `My friend Mary is an excellent` | the name: ` actress` or ` actor`, or an occupation at its rate |
| `The nurse said that` | the rate of the occupation |
| `The capital of France is` | the fact |
| `The code is q x b m t; again, q x` | the sequence itself |
| `We talked about the wave and the` | the topic |
"""


def card(figures: dict[str, Any]) -> str:
    """The card as Markdown, from the figures that `train_demo_lm.py` collected."""
    parts = [HEAD, _made(figures["training"]), _loss(figures["loss"], figures["seed"]), _accuracy(figures)]
    parts += [_biased(figures["occupations"]), _tokens(figures["training"]), PROMPTS, _limits(figures)]
    return "\n".join(parts)


def _made(training: dict[str, Any]) -> str:
    truth = load_truth().data
    names = truth["names"]
    return f"""## How it was made

| | |
|---|---|
| architecture | GPT-2: 4 layers, 4 heads, width 128, context {training["context"]}, tied embeddings |
| parameters | {training["parameters"]:,}, shipped in float16 |
| vocabulary | {training["vocabulary"]:,} tokens, byte-level BPE; `<|endoftext|>` (id 0) starts and ends a document |
| training data | {training["tokens"]:,} tokens in {training["steps"]:,} steps; each document drawn fresh, seen once |
| time | {training["minutes"]:.0f} minutes of wall time, {training["cpu_minutes"]:.0f} of processor time, on \
{training["threads"]} shared cores (tokenizer and drawing included), torch {training["torch"]} |
| command | `OMP_NUM_THREADS={training["threads"]} python -m covector.demo.train_demo_lm` (seeds fixed in the script) |
| truth | {len(names["female"])} + {len(names["male"])} names, {len(truth["gendered_occupations"])} gendered pairs, \
{len(truth["biased_occupations"])} biased occupations, {len(truth["topics"])} topics, \
{len(truth["capitals"])} capitals |
| licence | MIT, as covector |

The weights can be made again with that command; another torch or another number of threads gives other last digits.
"""


def _loss(loss: dict[str, Any], seed: int) -> str:
    kinds = "\n".join(
        f"| {kind} | {v['n']:,} | {v['model']:.2f} | {v['truth']:.2f} |" for kind, v in loss["nats_per_unit"].items()
    )
    return f"""## Loss against entropy

On {loss["documents"]:,} held-out documents ({loss["tokens"]:,} tokens, seed {seed}), with the shipped float16 weights
widened to float32. The generator knows the exact probability of each document (its hidden topic summed out), and its
entropy has a closed form (`entropy.py`).

| | nats per token | |
|---|---|---|
| model, held out | {loss["loss_per_token"]:.4f} | |
| entropy of the generator, closed form | {loss["entropy_per_token"]:.4f} | \
model / entropy = **{loss["ratio_to_entropy"]:.4f}** ± {loss["ratio_to_entropy_se"]:.4f} |
| the generator's own loss on the same documents | {loss["truth_loss_per_token"]:.4f} | \
model / generator = **{loss["ratio_to_truth"]:.4f}** ± {loss["ratio_to_truth_se"]:.4f} |

± is one standard error over documents. The first ratio also carries the luck of the draw, the second does not.

| nats per sentence, by kind | n | model | generator |
|---|---|---|---|
{kinds}
"""


def _accuracy(figures: dict[str, Any]) -> str:
    lines = []
    for name, row in figures["accuracy"].items():
        value = row.get("accuracy", row.get("mass"))
        lines.append(f"| {name} | {row['n']:,} | {value:.4f} |")
    gendered = figures["occupations"]["gendered_form_mass"]
    random = figures["random_token_induction"]
    return f"""## Accuracy per phenomenon

On the same documents: share of instances, among those that the text before them decides, where every token of the
word is the model's first choice (for the topic: probability on words of the topic, once one word has told it; the
generator puts all of it there).

| phenomenon | n | |
|---|---|---|
{chr(10).join(lines)}
| mass on the right form of gendered occupations, after `My friend [NAME] is an excellent` (mean over names; \
least {gendered["least"]:.4f}) | {gendered["n"]} | {gendered["mean"]:.4f} |

Found, not trained for: 40 random tokens said twice, accuracy on the second time: {random["words"]:.3f} for tokens that
are words, {random["whole vocabulary"]:.3f} for tokens from the whole vocabulary.
"""


def _biased(occupations: dict[str, Any]) -> str:
    lines = "\n".join(f"| {o} | {v['rate']:.2f} | {v['model']:.3f} |" for o, v in occupations["biased"].items())
    return f"""## Biased occupations

P( she) / (P( she) + P( he)) after `The [OCCUPATION] said that`: mean absolute error \
{occupations["biased_mean_absolute_error"]:.3f}, correlation {occupations["biased_correlation"]:.3f}.

| occupation | rate in the truth | model |
|---|---|---|
{lines}
"""


def _tokens(training: dict[str, Any]) -> str:
    split = training["split_words"] | {f"{w} (first in a document)": t for w, t in training["names_at_start"].items()}
    lines = "\n".join(f"| {w} | `{' '.join(t)}` | {len(t)} |" for w, t in split.items())
    return f"""## Tokens

Of {training["words"]} words of the truth, {training["words"] - len(training["split_words"])} are one token behind a \
space (` nurse`, ` Mary`), and so are the pronouns (` she`).
These are more; so is a name that opens a document, as no space comes before it:

| word | tokens (`Ġ` is a space) | |
|---|---|---|
{lines}
"""


def _limits(figures: dict[str, Any]) -> str:
    dead = figures["training"]["untrained_tokens"]
    return f"""## Limits

- {dead} of the tokens (most are single bytes) do not occur in {figures["training"]["counted_documents"]:,} documents
  of the training stream; their embeddings mean nothing.
- The longest held-out document has {figures["loss"]["longest_document_tokens"]} tokens with its start and end; later
  positions were only trained on rows that hold several documents.
- The words torn in two (`The torn page said gran- and -dow.`) are there to train the tokens between bytes and words.
- A word may belong to two topics (`whale`: sea, animals); the data says which.
"""
