"""Edited checkpoints and adapters on disk: loaded by plain transformers they compute what the edited view computes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import covector
from covector.arch.family import families
from covector.changes import adapted
from covector.errors import BadRequest
from covector.io.safetensors_file import SafetensorsFile
from covector.io.safetensors_write import read_back, rounded_to, write_safetensors
from covector.run.decoder import Decoder
from covector.run.hf_load import tiny_judge
from covector.run.random_inputs import random_inputs
from covector.saving import save_adapter, save_edited
from covector.study.edit import Edit

# Logits of order 1 in float32, weights rounded once: 1e-5 of a few dozen sums.
FLOAT32 = 2e-4


def saved_tiny(family: str, folder: Path, **changes: object) -> Path:
    """A tiny random checkpoint as transformers writes it."""
    judge, _ = tiny_judge(families()[family], dtype=torch.float32, changes=changes)
    judge.save_pretrained(folder)
    return folder


def logits_of(folder: Path, family: str, tokens: torch.Tensor) -> torch.Tensor:
    cls = getattr(transformers, families()[family].hf_class)
    model, info = cls.from_pretrained(str(folder), local_files_only=True, output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        return model.eval()(tokens).logits.double()


TEXTS = ("L1H1.ov:0*.3; L1.mlp.in:2*0", "L1H1.qk:0*2", "embed:0*0.5", "unembed:1*0")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gptj", "opt", "phi3", "gemma2"])
def test_a_saved_edit_loads_in_transformers(family: str, text: str, tmp_path: Path) -> None:
    base = saved_tiny(family, tmp_path / "base")
    model = covector.open(str(base))
    tokens = random_inputs(model.spec, length=6, batch=2)["token"]
    table = save_edited(base, text, tmp_path / "edited")
    want = Decoder(model.edited(Edit.parse(text)).weights).run(tokens).logits
    assert (want - logits_of(base, family, tokens)).abs().max() > 10 * FLOAT32
    assert (want - logits_of(tmp_path / "edited", family, tokens)).abs().max() < FLOAT32 * max(1, want.abs().max())
    assert max(table["share"]) < 1e-5
    again = covector.open(str(tmp_path / "edited"), strict=True)
    assert again.spec.tied == model.edited(Edit.parse(text)).spec.tied
    untouched = set(SafetensorsFile(base / "model.safetensors").entries) - set(table["tensor"])
    files = [SafetensorsFile(f / "model.safetensors") for f in (base, tmp_path / "edited")]
    assert all(files[0].raw(name) == files[1].raw(name) for name in untouched)


def test_the_recipe_is_saved_and_belongs_to_its_base(tmp_path: Path) -> None:
    base = saved_tiny("gpt2", tmp_path / "base")
    save_edited(base, "L1H1.ov:0*0", tmp_path / "edited")
    edit = Edit.parse(f"@{tmp_path / 'edited' / 'edit.json'}")
    model = covector.open(str(base))
    assert edit == Edit.parse("L1H1.ov:0*0").bound(model)
    with pytest.raises(BadRequest, match="edit of another model"):
        covector.open(str(tmp_path / "edited")).edited(edit)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_a_half_precision_base(half: str, tmp_path: Path) -> None:
    """Edited tensors stay in float32, config.json asks for it; ``stored`` rounds, and says how much it blurs."""
    judge, _ = tiny_judge(families()["gpt2"], dtype=torch.float32)
    judge.to(getattr(torch, half)).save_pretrained(tmp_path / "base")
    text = "L1H1.ov:0*.3"
    model = covector.open(str(tmp_path / "base"))
    tokens = random_inputs(model.spec, length=6, batch=2)["token"]
    want = Decoder(model.edited(Edit.parse(text)).weights).run(tokens).logits
    fine = save_edited(tmp_path / "base", text, tmp_path / "fine")
    coarse = save_edited(tmp_path / "base", text, tmp_path / "coarse", dtype="stored")
    assert (want - logits_of(tmp_path / "fine", "gpt2", tokens)).abs().max() < FLOAT32 * want.abs().max()
    assert fine["share"][0] < 1e-5 < coarse["share"][0]
    assert list(coarse["is"]) == [half]
    stored = SafetensorsFile(tmp_path / "coarse" / "model.safetensors").read(coarse["tensor"][0]).astype(np.float64)
    exact = model.edited(Edit.parse(text)).weights["L1.W_O"].reshape(-1, model.spec.d_model)
    assert np.linalg.norm(stored - exact) == pytest.approx(coarse["rounded"][0], rel=1e-9)


def test_shards_keep_their_files(tmp_path: Path) -> None:
    judge, _ = tiny_judge(families()["gpt2"], dtype=torch.float32)
    judge.save_pretrained(tmp_path / "base", max_shard_size="8KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    text = "L0H1.ov:0*0; unembed:0*0"
    model = covector.open(str(tmp_path / "base"))
    tokens = random_inputs(model.spec, length=6, batch=2)["token"]
    save_edited(tmp_path / "base", text, tmp_path / "edited")
    want = Decoder(model.edited(Edit.parse(text)).weights).run(tokens).logits
    assert (want - logits_of(tmp_path / "edited", "gpt2", tokens)).abs().max() < FLOAT32 * want.abs().max()
    names = [{p.name for p in (tmp_path / f).glob("*.safetensors")} for f in ("base", "edited")]
    assert names[0] == names[1]


@pytest.mark.parametrize("text", ["L1H1.ov:0,2*.3; L1H2.ov:1*0", "L1K0.v:0*0; L1.mlp.out:1*2", "L1H1.qk:0*0"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "phi3"])
def test_an_adapter_adds_the_same_change(family: str, text: str, tmp_path: Path) -> None:
    """Read back by our reader of PEFT's layout, the base with the adapter has the edited weights (factors: float32)."""
    base = saved_tiny(family, tmp_path / "base")
    model = covector.open(str(base))
    save_adapter(base, text, tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == (family == "gpt2")
    want, found = model.edited(Edit.parse(text)), adapted(model, tmp_path / "lora")
    for name in model.weights.names():
        scale = float(np.abs(want.weights[name]).max())
        np.testing.assert_allclose(found.weights[name], want.weights[name], atol=1e-6 * max(scale, 1))


def test_what_an_adapter_cannot_hold(tmp_path: Path) -> None:
    base = saved_tiny("gpt2", tmp_path / "base")
    with pytest.raises(BadRequest, match="this edit changes W_E; save a checkpoint"):
        save_adapter(base, "embed:0*0", tmp_path / "lora")
    with pytest.raises(BadRequest, match=r"this edit changes L1\.b_Q; save a checkpoint"):
        save_adapter(base, "L1H1.qk:0*0", tmp_path / "lora", frame="folded")
    assert not (tmp_path / "lora").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    base = saved_tiny("gpt2", tmp_path / "base")
    before = {p.name: p.read_bytes() for p in base.iterdir()}
    with pytest.raises(BadRequest, match="expected no such folder or an empty one"):
        save_edited(base, "L1H1.ov:0*0", base)
    with pytest.raises(BadRequest, match="expected a checkpoint's own tensors"):
        save_edited("toy", "L0H0.ov:0*0", tmp_path / "edited")
    assert {p.name: p.read_bytes() for p in base.iterdir()} == before
    assert not (tmp_path / "edited").exists()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_file_of_ours_is_read_by_the_library(dtype: str, tmp_path: Path) -> None:
    """Rounded to nearest as torch rounds, in a file that safetensors reads; odd sizes keep later tensors in place."""
    from safetensors.torch import load_file

    draw = np.random.default_rng(0)
    arrays = {"odd": draw.standard_normal((3, 1)), "b": draw.standard_normal((5, 7))}
    write_safetensors(
        tmp_path / "x.safetensors", {n: rounded_to(a, dtype) for n, a in arrays.items()}, {"format": "pt"}
    )
    for name, found in load_file(tmp_path / "x.safetensors").items():
        want = torch.from_numpy(arrays[name]).float() if dtype == "bfloat16" else torch.from_numpy(arrays[name])
        assert torch.equal(found, want.to(getattr(torch, dtype)))
        np.testing.assert_array_equal(read_back(arrays[name], dtype), found.double().numpy())
