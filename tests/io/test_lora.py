"""A LoRA adapter's folder: what is added to the base, and what is refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import covector
from covector.errors import BadRequest, CheckpointMismatch, CorruptCheckpoint, UnknownModel, UnsupportedConfig
from covector.io.lora import is_adapter, read_lora
from covector.model.opened import Model

RANK, D = 2, 128
PLAIN = {
    "peft_type": "LORA", "r": RANK, "lora_alpha": 6, "fan_in_fan_out": True, "bias": "none", "use_rslora": False,
    "target_modules": ["c_attn", "c_proj"], "lora_dropout": 0.1, "base_model_name_or_path": "demo-lm",
    "init_lora_weights": True, "modules_to_save": None, "rank_pattern": {}, "use_dora": False,
}  # fmt: skip
ATTN, PROJ, MLP, EMBED = (
    "transformer.h.1.attn.c_attn", "transformer.h.1.attn.c_proj", "transformer.h.2.mlp.c_proj", "transformer.wte"
)  # fmt: skip


def factors(seed: int, n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((RANK, n_in)).astype(np.float32), rng.standard_normal((n_out, RANK)).astype(np.float32)


def tensors(*modules: tuple[str, int, int]) -> dict[str, np.ndarray]:
    made = {}
    for i, (module, n_in, n_out) in enumerate(modules):
        A, B = factors(i, n_in, n_out)
        made |= {f"base_model.model.{module}.lora_A.weight": A, f"base_model.model.{module}.lora_B.weight": B}
    return made


def adapter(folder: Path, arrays: dict[str, np.ndarray], **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(arrays, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **config}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def base() -> Model:
    return covector.open("demo-lm")


def added(base: Model, folder: Path, name: str) -> np.ndarray:
    other = covector.adapted(base, folder)
    return other.stored[name] - base.stored[name].astype(np.float64)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / RANK), (True, 6 / np.sqrt(RANK))])
def test_what_is_added_is_scale_times_b_a_turned_for_input_by_output_storage(base, tmp_path, rslora, scale):
    folder = adapter(tmp_path / "a", tensors((PROJ, D, D), (ATTN, D, 3 * D)), use_rslora=rslora)
    A, B = (array.astype(np.float64) for array in factors(0, D, D))
    whole = scale * (B @ A).T  # [in, out]: rows are d_head blocks of the heads, columns the stream
    found = added(base, folder, "L1.W_O")
    np.testing.assert_allclose(found.reshape(D, D), whole, atol=1e-12)
    A, B = (array.astype(np.float64) for array in factors(1, D, 3 * D))
    values = scale * (B @ A).T[:, 2 * D :]  # q | k | v
    by_head = values.reshape(D, 4, 32).transpose(1, 0, 2)
    np.testing.assert_allclose(added(base, folder, "L1.W_V"), by_head, atol=1e-12)


def test_what_the_adapter_does_not_name_is_the_base_bit_by_bit(base, tmp_path):
    folder = adapter(tmp_path / "a", tensors((PROJ, D, D)))
    other = covector.adapted(base, folder)
    changed = [n for n in base.stored.names() if not np.array_equal(other.stored[n], base.stored[n])]
    assert changed == ["L1.W_O"]
    same = [n for n in base.stored.names() if other.stored.origin(n) == base.stored.origin(n)]
    assert set(base.stored.names()) - set(same) == {"L1.W_O"}


def test_an_embedding_s_factors_are_stored_the_other_way_round(base, tmp_path):
    A, B = factors(3, base.spec.n_vocab, D)
    lead = f"base_model.model.{EMBED}.lora_embedding_"
    folder = adapter(tmp_path / "a", {lead + "A": A, lead + "B": B}, fan_in_fan_out=False)
    np.testing.assert_allclose(added(base, folder, "W_E"), 3.0 * (B.astype(float) @ A).T, atol=1e-12)


def test_module_names_are_found_with_and_without_the_prefix_of_a_task(base, tmp_path):
    for i, name in enumerate(("h.1.attn.c_proj", "wrapper.transformer.h.1.attn.c_proj")):
        folder = adapter(tmp_path / str(i), tensors((name, D, D)))
        assert np.any(added(base, folder, "L1.W_O"))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"rank_pattern": {"c_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"c_proj": 4}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"some_new_key": 3}, "some_new_key = 3"),
        ({"bias": "all"}, "bias 'none', got 'all'"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "IA3"}, "got 'IA3'"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, config, told):
    with pytest.raises(UnsupportedConfig, match=told):
        read_lora(adapter(tmp_path / "a", tensors((PROJ, D, D)), **config))


def test_tensors_that_are_no_lora_factors_are_refused_by_name(tmp_path):
    extra = {f"base_model.model.{PROJ}.lora_magnitude_vector": np.ones(D, np.float32)}
    with pytest.raises(UnsupportedConfig, match="lora_magnitude_vector"):
        read_lora(adapter(tmp_path / "a", tensors((PROJ, D, D)) | extra))


@pytest.mark.parametrize("name", [f"{EMBED}.base_layer.weight", f"{EMBED}.weight"])
def test_a_matrix_saved_whole_has_to_be_the_base_s_own(base, tmp_path, name):
    own = np.array(base.stored["W_E"])
    whole = {f"base_model.model.{name}": own}
    other = covector.adapted(base, adapter(tmp_path / "a", tensors((PROJ, D, D)) | whole))
    np.testing.assert_array_equal(other.stored["W_E"], own)
    folder = adapter(tmp_path / "b", tensors((PROJ, D, D)) | {f"base_model.model.{name}": own + 1})
    with pytest.raises(UnsupportedConfig, match=rf"whole matrix of '{EMBED}'"):
        covector.adapted(base, folder)


@pytest.mark.parametrize(
    ("arrays", "config", "told"),
    [
        ({f"base_model.model.{PROJ}.lora_A.weight": np.ones((2, D), np.float32)}, {}, "lora_A and lora_B"),
        (tensors((PROJ, D, D)), {"r": 3}, r"A \[3, in\]"),
        (tensors((PROJ, D, D)), {"r": 0}, "r >= 1"),
        (tensors((PROJ, D, D)), {"lora_alpha": "much"}, "much"),
        ({}, {}, "holds none"),
    ],
)
def test_damaged_adapters_are_named(tmp_path, arrays, config, told):
    with pytest.raises(CorruptCheckpoint, match=told):
        read_lora(adapter(tmp_path / "a", arrays, **config))


def test_the_adapter_of_another_base_is_refused_with_both_shapes(base, tmp_path):
    with pytest.raises(CheckpointMismatch, match=r"\(512, 128\), 'transformer\.h\.1\.attn\.c_proj\.weight'"):
        covector.adapted(base, adapter(tmp_path / "a", tensors((PROJ, 512, D))))
    with pytest.raises(CheckpointMismatch, match=r"model\.layers\.0\.self_attn\.q_proj"):
        covector.adapted(base, adapter(tmp_path / "b", tensors(("model.layers.0.self_attn.q_proj", D, D))))
    with pytest.raises(CheckpointMismatch, match="fan_in_fan_out"):
        covector.adapted(base, adapter(tmp_path / "c", tensors((MLP, 512, D)), fan_in_fan_out=False))


def test_a_folder_without_one_and_a_base_in_memory_are_refused(base, tmp_path):
    assert not is_adapter(tmp_path)
    with pytest.raises(UnknownModel, match=r"adapter_config\.json"):
        read_lora(tmp_path)
    toy = covector.open("toy")
    with pytest.raises(BadRequest, match="read from a checkpoint"):
        covector.adapted(toy, tmp_path)
