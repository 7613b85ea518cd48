"""What a reference opens: folders, models in memory, bundled names; and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoConfig, GPT2LMHeadModel

import covector
from covector.arch.family import families
from covector.errors import CorruptCheckpoint, UnknownModel, UnsupportedFamily
from random_checkpoints import random_tensors


def saved(folder: Path, prefix: str = "", shards: int = 1) -> Path:
    """A tiny random GPT-2 on disk, float32, in one file or several."""
    folder.mkdir(parents=True)
    tensors = {prefix + k: v.astype(np.float32) for k, v in random_tensors(families()["gpt2"]).items()}
    names = sorted(tensors)
    parts = [names[i::shards] for i in range(shards)]
    files = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    )
    for file, part in zip(files, parts, strict=True):
        save_file({n: tensors[n] for n in part}, folder / file)
    if shards > 1:
        index = {"weight_map": {n: f for f, part in zip(files, parts, strict=True) for n in part}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(dict(families()["gpt2"].tiny())))
    return folder


def sigma(model: covector.Model) -> np.ndarray:
    return covector.svd(model.map("L1H2.ov")).S


def test_one_file_shards_and_either_prefix_hold_the_same_model(tmp_path: Path) -> None:
    plain = sigma(covector.open(saved(tmp_path / "a")))
    for folder in (saved(tmp_path / "b", shards=3), saved(tmp_path / "c", prefix="transformer.")):
        np.testing.assert_array_equal(sigma(covector.open(folder)), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_transformers_model_in_memory_reads_as_its_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(AutoConfig.for_model(**families()["gpt2"].tiny())).to(dtype)
    hf.save_pretrained(tmp_path / "hf")
    on_disk, in_memory = covector.open(tmp_path / "hf"), covector.open(hf)
    np.testing.assert_array_equal(sigma(in_memory), sigma(on_disk))
    assert in_memory.meta["dtype"] == on_disk.meta["dtype"] == str(dtype).removeprefix("torch.")


def test_a_model_in_memory_does_not_change_with_later_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(AutoConfig.for_model(**families()["gpt2"].tiny()))
    m = covector.open(hf).map("L1H2.ov")
    before = m.dense().copy()
    with torch.no_grad():
        for p in hf.parameters():
            p.add_(1.0)
    np.testing.assert_array_equal(m.dense(), before)


def test_opening_reads_headers_and_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from covector.io.safetensors_file import SafetensorsFile

    folder = saved(tmp_path / "m")
    read: list[str] = []
    plain = SafetensorsFile.read
    monkeypatch.setattr(SafetensorsFile, "read", lambda self, name, **k: read.append(name) or plain(self, name, **k))
    model = covector.open(folder)
    assert read == []
    model.map("L1H2.ov")
    assert {n.split("h.1.")[-1] for n in read} == {"attn.c_attn.weight", "attn.c_proj.weight"}


def test_a_file_that_was_opened_is_not_changed(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    covector.readout(covector.open(folder), "L1H2")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("break_it", "error", "told"),
    [
        (lambda f: (f / "config.json").unlink(), UnsupportedFamily, "expected a config.json with a model_type"),
        (lambda f: (f / "config.json").write_text("{"), CorruptCheckpoint, "expected a JSON object, it does not parse"),
        (lambda f: (f / "config.json").write_text("[]"), CorruptCheckpoint, "got list"),
        (lambda f: (f / "model.safetensors").unlink(), UnknownModel, "weights"),
    ],
)
def test_a_folder_that_is_no_checkpoint_says_what_it_lacks(tmp_path: Path, break_it, error: type, told: str) -> None:
    folder = saved(tmp_path / "m")
    break_it(folder)
    with pytest.raises(error, match=told):
        covector.open(folder)


def test_something_else_in_memory_is_refused_by_its_type() -> None:
    with pytest.raises(UnknownModel, match=r"expected a name, a folder, or a transformers .* got dict"):
        covector.open({"W": 1})
