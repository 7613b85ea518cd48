"""Patching measured through transformers: the same effects as through the reference decoder, place by place."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import covector
from covector.analyses.patch import patch
from covector.analyses.predict import predict_heads
from covector.arch.family import families
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.run.hf_load import tiny_judge
from covector.run.hf_runner import HFRunner
from covector.run.prompts import Pair
from covector.workbench import transformers_runner

# One kind of anatomy each: absolute, grouped and rotary, parallel with a shared norm, fused projections, norms behind,
# fused gate, position offset and a flattened MLP.
FAMILIES = ("gpt2", "llama", "gptj", "gpt_neox", "gemma2", "phi3", "opt")
WHATS = ("heads", "ov", "qk", "resid", "attn", "mlp", "q", "k", "v")
# transformers keeps some steps in float32 (norms, rotary tables, softmax); effects here are of the order 1.
TOLERANCE = 1e-5


@cache
def made(name: str) -> tuple[Model, HFRunner]:
    judge, weights = tiny_judge(families()[name], seed=5)
    return covector.open(weights), HFRunner(judge, weights)


def pairs_for(model: Model, n: int = 3, length: int = 6) -> list[Pair]:
    ids = np.random.default_rng(2).integers(5, model.spec.n_vocab, (n, 2, length))
    return [Pair(tuple(map(int, a)), tuple(map(int, b)), {"NAME": 1, "end": length - 1}, ("", "")) for a, b in ids]


TASK = "'token 3' - 'token 5'"


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("name", FAMILIES)
def test_effects_through_transformers_are_those_through_the_decoder(name: str, what: str) -> None:
    model, runner = made(name)
    ours = patch(model, TASK, pairs_for(model), what=what)
    theirs = patch(model, TASK, pairs_for(model), what=what, runner=runner)
    effect = dict(zip(theirs["place"], theirs["effect"], strict=True))
    assert max(map(abs, ours["effect"])) > 100 * TOLERANCE
    np.testing.assert_allclose([effect[place] for place in ours["place"]], ours["effect"], atol=TOLERANCE)
    assert theirs.meta["total"] == pytest.approx(ours.meta["total"], abs=TOLERANCE)


@pytest.mark.parametrize("options", [{"route": ()}, {"route": ("L1.mlp",)}, {"source": "mean"}, {"slots": ("NAME",)}])
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_routes_sources_and_slots_are_the_same_through_both(name: str, options: dict) -> None:
    model, runner = made(name)
    tables = [patch(model, TASK, pairs_for(model), runner=r, **options) for r in (None, runner)]
    ours, theirs = (dict(zip(t["place"], t["effect"], strict=True)) for t in tables)
    assert ours.keys() == theirs.keys()
    assert max(map(abs, ours.values())) > 100 * TOLERANCE
    np.testing.assert_allclose([theirs[place] for place in ours], list(ours.values()), atol=TOLERANCE)


def test_predictions_are_compared_with_what_transformers_measures() -> None:
    model, runner = made("gpt2")
    some = pairs_for(model, n=4)
    ours, theirs = (predict_heads(model, TASK, some[:2], some[2:], runner=r) for r in (None, runner))
    np.testing.assert_allclose(theirs["effect"], ours["effect"], atol=TOLERANCE)
    np.testing.assert_allclose(theirs["train"], ours["train"], atol=0)
    assert theirs.meta["runner"] == {"class": "HFRunner", "dtype": "float64"}
    assert "runner" not in ours.meta


def test_the_effects_are_measured_by_the_model_in_hand_and_not_by_the_decoder() -> None:
    """A transformers model with another unembedding gives other effects; the guess stays the decoder's."""
    (judge, _), (_, weights) = (tiny_judge(families()["gpt2"], seed=5) for _ in range(2))
    with torch.no_grad():
        judge.get_parameter("transformer.ln_f.weight").mul_(2)
        judge.get_parameter("transformer.ln_f.bias").mul_(2)
    model = covector.open(weights)
    ours, theirs = (patch(model, TASK, pairs_for(model), runner=r) for r in (None, HFRunner(judge, weights)))
    effect, guess = ({**dict(zip(theirs["place"], theirs[c], strict=True))} for c in ("effect", "first_order"))
    np.testing.assert_allclose(
        [effect[place] for place in ours["place"]], 2 * np.array(ours["effect"]), atol=2 * TOLERANCE
    )
    assert [guess[place] for place in ours["place"]] == list(ours["first_order"])


def test_the_bundled_model_runs_through_its_own_class() -> None:
    model, runner = covector.open("demo-lm"), transformers_runner("demo-lm")
    pairs = covector.fill_template(model, "Yesterday [NAME] was happy because", {"NAME": (["Mary"], ["John"])})
    ours, theirs = (patch(model, "' she' - ' he'", pairs, runner=r) for r in (None, runner))
    assert list(theirs["place"]) == list(ours["place"])
    # Logits of 20 through transformers' float32 pieces.
    np.testing.assert_allclose(theirs["effect"], ours["effect"], atol=1e-4)
    assert theirs.title.endswith("through transformers")


def test_a_pattern_is_only_shown_by_transformers() -> None:
    model, runner = made("gpt2")
    with pytest.raises(BadRequest, match=r"L0.pattern is only shown; use --runner decoder"):
        patch(model, TASK, pairs_for(model), what="pattern", runner=runner)


def test_models_without_a_transformers_class_are_sent_to_the_decoder(tmp_path: Path) -> None:
    model, _ = made("gpt2")
    for ref in ("toy", model.weights):
        with pytest.raises(BadRequest, match="transformers has no class that runs it; use --runner decoder"):
            transformers_runner(ref)
    judge, _ = tiny_judge(families()["gpt2"])
    judge.save_pretrained(tmp_path)
    (tmp_path / "layout.toml").write_text("", encoding="utf-8")
    with pytest.raises(BadRequest, match="--runner decoder"):
        transformers_runner(tmp_path)


def test_a_model_in_memory_runs_as_it_is() -> None:
    judge, _ = tiny_judge(families()["gpt2"])
    assert transformers_runner(judge).model is judge


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["patch", "demo-lm", "--runner", "jax"], "--runner: expected decoder or transformers, got 'jax'"),
        (["observe", "predict", "demo-lm", "L0H0@N", "--runner", "transformers"], "a path is read in the decoder"),
    ],
)
def test_commands_refuse_runners_that_do_not_fit(words: list[str], says: str, capsys) -> None:
    from covector.cli.main import run

    place = words.index("demo-lm") + 1
    told = [*words[:place], "' she' - ' he'", *words[place:], "--template", "[N] is", "--fill", "N=Mary:John"]
    assert run(told) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
