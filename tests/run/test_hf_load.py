"""The judge is built from a folder or from tensors, complete and eager, or not at all."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from covector.arch.family import families
from covector.errors import CheckpointMismatch
from covector.run.hf_load import build_judge, load_judge, tiny_judge
from covector.run.proof import prove, require_proven
from covector.run.random_inputs import random_inputs


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny GPT-2 in a folder, as transformers and the hub lay it out."""
    model, weights = tiny_judge(families()["gpt2"], dtype=torch.float32)
    folder = tmp_path_factory.mktemp("gpt2")
    state = {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    return folder, model, weights


def test_a_loaded_judge_computes_what_was_saved(saved):
    folder, model, weights = saved
    ids = random_inputs(weights.spec, length=8)["token"]
    loaded = load_judge(folder, "GPT2LMHeadModel")
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_judge_is_eager_in_evaluation_mode_and_without_gradients(saved, capsys):
    judge = load_judge(saved[0], "GPT2LMHeadModel", dtype=torch.float64)
    assert judge.config._attn_implementation == "eager"
    assert judge.dtype == torch.float64
    assert not judge.training
    assert not any(p.requires_grad for p in judge.parameters())
    assert capsys.readouterr() == ("", "")


def test_float32_weights_are_judged_in_float64(saved):
    folder, _, weights = saved
    require_proven(prove(weights, load_judge(folder, "GPT2LMHeadModel", dtype=torch.float64)), "saved")


def test_a_checkpoint_that_lacks_a_tensor_is_refused_instead_of_filled_with_random_numbers(saved, tmp_path):
    folder, _, _ = saved
    state = load_file(folder / "model.safetensors")
    del state["transformer.h.1.mlp.c_fc.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(CheckpointMismatch, match=r"these are missing or superfluous: transformer.h.1.mlp.c_fc.weight"):
        load_judge(tmp_path, "GPT2LMHeadModel")


def test_a_folder_without_a_checkpoint_is_refused_without_asking_the_network(tmp_path):
    with pytest.raises(CheckpointMismatch, match="expected a checkpoint that GPT2LMHeadModel loads, got"):
        load_judge(tmp_path, "GPT2LMHeadModel")


def test_a_judge_built_from_tensors_equals_the_one_from_the_folder(saved):
    folder, model, weights = saved
    config = families()["gpt2"].tiny()
    # The unembedding is tied: it may be left out, as in the file.
    built = build_judge(config, load_file(folder / "model.safetensors"), "GPT2LMHeadModel")
    ids = random_inputs(weights.spec, length=8)["token"]
    assert torch.equal(built(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("transformer.ln_f.bias"), r"superfluous: transformer.ln_f.bias; transformers would fill"),
        (lambda s: s.update(extra=np.zeros(3)), "superfluous: extra"),
        (lambda s: s.update({"transformer.ln_f.bias": np.zeros(3)}), "size mismatch for transformer.ln_f.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(saved, change, text):
    state = {name: value.numpy() for name, value in load_file(saved[0] / "model.safetensors").items()}
    change(state)
    with pytest.raises(CheckpointMismatch, match=text):
        build_judge(families()["gpt2"].tiny(), state, "GPT2LMHeadModel")


def test_a_tiny_judge_has_no_parameter_at_its_initial_value():
    model, _ = tiny_judge(families()["llama"])
    for name, value in model.named_parameters():
        assert not (value == 0).any(), name
        assert not (value == 1).any(), name
