"""Exact accounting between two inputs: sums close, heads split into content and attention."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import covector
from covector.analyses.attribute import attribute
from covector.analyses.paths import paths
from covector.analyses.shares import shares
from covector.arch.toy import random_model
from covector.cli.main import run
from covector.model.opened import Model
from covector.model.weights import Weights
from covector.run.decoder import Decoder
from covector.run.prompts import Pair, read_pairs
from covector.study.observable import Observable
from random_checkpoints import random_weights

MODELS: dict[str, Callable[[], Weights]] = {
    "plain": random_model,
    "parallel": lambda: random_model(parallel=True),
    "post-norm": lambda: random_model(placement="post"),
    **{name: (lambda name=name: random_weights(name)) for name in ("gpt2", "llama", "gemma2", "qwen3", "bert")},
}
BY = ("component", "head", "token")


def pairs_for(model: Model, n: int = 3, length: int = 6, seed: int = 0) -> list[Pair]:
    ids = np.random.default_rng(seed).integers(0, model.spec.n_vocab, (n, 2, length))
    return [Pair(tuple(map(int, a)), tuple(map(int, b)), {"NAME": 1, "end": length - 1}, ("", "")) for a, b in ids]


def asked(model: Model) -> Observable:
    return Observable({"token 3": 1, "token 5": -1}, model)


def value(model: Model, ids: tuple[int, ...]) -> float:
    logits = Decoder(model.weights).run(torch.tensor([ids])).outputs["token"][0, -1]
    return float(logits[3] - logits[5])


@pytest.mark.identity("OP-17")
@pytest.mark.parametrize("name", MODELS)
def test_direct_shares_sum_to_the_measured_difference(name: str) -> None:
    model = covector.open(MODELS[name]())
    pairs = pairs_for(model)
    table = shares(model, asked(model), pairs)
    wanted = np.mean([value(model, p.clean) - value(model, p.corrupt) for p in pairs])
    assert np.sum(np.asarray(table["direct"])) == pytest.approx(wanted, rel=1e-10, abs=1e-11)


@pytest.mark.identity("OP-18")
@pytest.mark.parametrize("name", MODELS)
def test_a_heads_content_and_attention_sum_to_what_it_wrote(name: str) -> None:
    table = shares(covector.open(MODELS[name]()), asked(model := covector.open(MODELS[name]())), pairs_for(model))
    heads = np.isfinite(np.asarray(table["ov"]))
    ov, qk, direct, q, k = (np.asarray(table[c])[heads] for c in ("ov", "qk", "direct", "q", "k"))
    np.testing.assert_allclose(ov + qk, direct, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(q + k, qk, rtol=1e-12, atol=1e-12)
    assert np.abs(qk).max() > 1e-3  # random inputs move attention too


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("name", MODELS)
def test_parts_of_an_answer_sum_to_it(name: str, by: str) -> None:
    model = covector.open(MODELS[name]())
    (pair,) = pairs_for(model, 1)
    table = attribute(model, asked(model), pair, by=by)
    assert np.sum(np.asarray(table["logits"])) == pytest.approx(value(model, pair.clean), rel=1e-10, abs=1e-11)


@pytest.mark.identity("OP-2")
def test_what_is_left_to_biases_is_what_biases_bring() -> None:
    """Without any bias nothing is left; the final norm's bias alone leaves exactly its reading."""
    weights = random_model(biases=False)
    model = covector.open(weights)
    (pair,) = pairs_for(model, 1)
    parts = attribute(model, asked(model), pair)
    left = dict(zip(parts["part"], np.asarray(parts["logits"]), strict=True))["biases"]
    beta = weights["final_norm.bias"] if "final_norm.bias" in weights else np.zeros(16)
    wanted = float(beta @ (weights["W_U"][:, 3] - weights["W_U"][:, 5]))
    assert left == pytest.approx(wanted, abs=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_the_lens_ends_at_the_answer(name: str) -> None:
    model = covector.open(MODELS[name]())
    (pair,) = pairs_for(model, 1)
    table = attribute(model, asked(model), pair, by="lens")
    assert float(np.asarray(table["logits"])[-1]) == pytest.approx(value(model, pair.clean), rel=1e-10)


def induction_prompts(folder: Path, n: int = 8) -> Path:
    """Strings of distinct letters in which p is followed by q and x by y, ending in p (clean) or x (corrupt)."""
    rng, path, rest = np.random.default_rng(0), folder / "pairs.jsonl", "abcdefghijklmnorstuvwz"
    lines = []
    for _ in range(n):
        o = list(rng.permutation(list(rest))[:8])
        text = "".join([*o[:3], "p", "q", *o[3:5], "x", "y", *o[5:]])
        lines.append(json.dumps({"clean": text + "p", "corrupt": text + "x", "slots": {"q": 5, "y": 9}}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_on_a_trained_induction_model_attention_brings_what_heads_bring(shared: Path, tmp_path: Path) -> None:
    """Only the last letter differs, so every head's content from before is the same: the QK share must carry it."""
    model = covector.open(str(shared / "models" / "induction-gpt2"))
    pairs = read_pairs(model, induction_prompts(tmp_path))
    table = shares(model, "'q' - 'y'", pairs)
    rows = {row["component"]: row for row in table.rows}
    assert table.meta["total"] > 10  # the model is right about both
    assert rows["L1H0"]["qk"] > 0.95 * rows["L1H0"]["direct"] > 0
    assert abs(table.meta["ov"]) < 0.05 * table.meta["qk"]
    found = paths(model, "'q' - 'y'", pairs, expansions=10)
    assert found["path"][0] == "L1H0.q@end>out"


def test_the_command_prints_sums_that_close(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = induction_prompts(tmp_path, 2)
    words = ["observe", "shares", str(shared / "models" / "induction-gpt2"), "'q' - 'y'", "--prompts", str(prompts)]
    assert run([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    total = sum(row["direct"] for row in result["rows"])
    assert total == pytest.approx(result["meta"]["total"], rel=1e-9)
    assert result["meta"]["kind"] == "accounting"
