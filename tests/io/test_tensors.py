"""A tensor is the same tensor whichever container it lies in, and a folder is read only if its files agree."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from covector.errors import CheckpointMismatch, CorruptCheckpoint, UnknownModel, UnsupportedConfig
from covector.io.tensors import ArrayTensors, StateDictTensors, TensorInfo, TensorSource, open_folder

torch.manual_seed(0)
STATE = {
    "h.0.weight": torch.randn(4, 3),
    "h.0.bias": torch.randn(3).bfloat16(),
    "h.1.weight": torch.randn(4, 3).half(),
    "h.1.bias": torch.randn(3, dtype=torch.float64),
    "scale": torch.tensor(0.5).bfloat16(),
    "ids": torch.arange(5),
    "mask": torch.tensor([True, False]),
    "none": torch.zeros(0, 3),
}
INDEX = "model.safetensors.index.json"


def whole(folder):
    save_file(STATE, folder / "model.safetensors")
    return open_folder(folder)


def otherwise_named(folder):
    save_file(STATE, folder / "weights.safetensors")
    save_file({"lora": torch.ones(1)}, folder / "adapter_model.safetensors")
    save_file({"out": torch.ones(1)}, folder / "check.safetensors")
    return open_folder(folder)


def write_shards(folder):
    first = dict(list(STATE.items())[:3])
    second = dict(list(STATE.items())[3:])
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file(second, folder / "model-00002-of-00002.safetensors")
    shards = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    shards |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    write_index(folder, shards)
    return shards


def write_index(folder, shards):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))


def sharded(folder):
    write_shards(folder)
    return open_folder(folder)


def pickled(folder):
    torch.save(STATE, folder / "pytorch_model.bin")
    return open_folder(folder)


def pickled_shards(folder):
    torch.save(dict(list(STATE.items())[:3]), folder / "a.bin")
    torch.save(dict(list(STATE.items())[3:]), folder / "b.bin")
    shards = {name: "a.bin" if i < 3 else "b.bin" for i, name in enumerate(STATE)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    return open_folder(folder)


def in_a_module(folder):
    module = torch.nn.Module()
    for name, tensor in STATE.items():
        module.register_buffer(name.replace(".", "_"), tensor)
    return StateDictTensors({name: module.state_dict()[name.replace(".", "_")] for name in STATE})


SOURCES = [whole, otherwise_named, sharded, pickled, pickled_shards, in_a_module]


@pytest.mark.parametrize("container", SOURCES)
def test_every_container_gives_the_same_tensors(tmp_path, container):
    source = container(tmp_path)
    assert isinstance(source, TensorSource)
    assert source.names() == tuple(sorted(STATE))
    for name, tensor in STATE.items():
        array = source.read(name)
        expected = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
        assert source.info(name) == TensorInfo(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        assert array.dtype == expected.numpy().dtype
        assert np.array_equal(array, expected.numpy())
        assert not array.flags.writeable
        source.release(name)
        assert np.array_equal(source.read(name), expected.numpy())


@pytest.mark.parametrize("container", SOURCES[1:])
def test_size_and_digests_do_not_depend_on_the_container(tmp_path, container):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one, other = whole(tmp_path / "one"), container(tmp_path / "other")
    assert one.nbytes == other.nbytes == sum(t.nelement() * t.element_size() for t in STATE.values())
    assert [one.sha256(name) for name in one.names()] == [other.sha256(name) for name in other.names()]


def test_arrays_in_memory_are_a_source_too():
    arrays = {"w": np.arange(6.0).reshape(2, 3), "half": np.array([1.5], np.float16), "n": np.array([1, 2])}
    source = ArrayTensors(arrays)
    assert isinstance(source, TensorSource)
    assert source.info("half") == TensorInfo("float16", (1,))
    assert source.read("half").dtype == np.float32
    assert np.shares_memory(source.read("w"), arrays["w"])
    assert not source.read("w").flags.writeable
    assert source.nbytes == 48 + 2 + 16
    assert source.sha256("w") == ArrayTensors({"w": np.asfortranarray(arrays["w"])}).sha256("w")


def test_files_and_header_digests_are_those_of_the_shards(tmp_path):
    source = sharded(tmp_path)
    assert [file.name for file in source.files] == sorted(source.headers)
    assert len(set(source.headers.values())) == 2
    assert pickled(_new(tmp_path, "bin")).headers == {}


def _new(folder, name):
    (folder / name).mkdir()
    return folder / name


def test_training_on_does_not_change_what_was_read():
    layer = torch.nn.Linear(3, 2)
    read = StateDictTensors(layer).read("weight")
    before = read.copy()
    with torch.no_grad():
        layer.weight.add_(1)
    assert np.array_equal(read, before)


def test_a_transposed_tensor_reads_as_it_is_seen():
    tensor = torch.randn(4, 3).T
    assert np.array_equal(StateDictTensors({"w": tensor}).read("w"), tensor.numpy())
    assert StateDictTensors({"w": tensor}).sha256("w") == StateDictTensors({"w": tensor.contiguous()}).sha256("w")


def test_safetensors_is_preferred_to_bin(tmp_path):
    torch.save({"wrong": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert whole(tmp_path).names() == tuple(sorted(STATE))


# Refusals


def test_an_unknown_name_is_answered_with_its_neighbours(tmp_path):
    with pytest.raises(CheckpointMismatch, match=r"'h.0.weigth': .* among the 8 tensors .* did you mean 'h.0.weight'"):
        whole(tmp_path).read("h.0.weigth")
    with pytest.raises(CheckpointMismatch, match=r"it has ab$"):
        ArrayTensors({"ab": np.ones(1)}).info("zzzzzz")


def test_a_folder_without_weights_is_described(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"lora": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(
        UnknownModel, match=r"expected model.safetensors.* found adapter_model.safetensors, config.json;"
    ):
        open_folder(tmp_path)
    with pytest.raises(UnknownModel, match="found an empty folder; point to"):
        open_folder(_new(tmp_path, "empty"))
    with pytest.raises(UnknownModel, match="expected a folder with weights, found No such file"):
        open_folder(tmp_path / "nowhere")


def test_two_candidates_are_not_chosen_between(tmp_path):
    for name in ("a", "b"):
        save_file({"w": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(
        CheckpointMismatch, match=r"one other safetensors file, found a.safetensors, b.safetensors; keep"
    ):
        open_folder(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointMismatch, match=r"expected 2 shards .* model-00002-of-00002.safetensors is not there"):
        open_folder(tmp_path)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path):
    write_index(tmp_path, write_shards(tmp_path) | {"h.9.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointMismatch, match=r"'h.9.weight' in model-00001-.* which does not hold it \(1 such\)"):
        open_folder(tmp_path)


def test_a_tensor_that_the_index_lacks_is_named(tmp_path):
    shards = write_shards(tmp_path)
    del shards["ids"]
    write_index(tmp_path, shards)
    with pytest.raises(
        CheckpointMismatch, match=r"every tensor of model-00002-.* 'ids' is not listed there \(1 such\)"
    ):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"w": "../other/model.safetensors"}}', "'../other/model.safetensors' for 'w'"),
        ('{"weight_map": {"w": "/etc/passwd"}}', "'/etc/passwd' for 'w'"),
        ('{"weight_map": {"w": "passwd"}}', "'passwd' for 'w'"),
        ('{"weight_map": {"w": 3}}', "3 for 'w'"),
        ('{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}', "the key 'w' twice"),
    ],
)
def test_an_index_is_not_believed_before_it_is_checked(tmp_path, content, text):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(CorruptCheckpoint, match=f"weight_map gives a plain file name .* found .*{text}"):
        open_folder(tmp_path)


def test_fp8_weights_are_refused_when_the_folder_is_opened(tmp_path):
    save_file({"w": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedConfig, match=r"'w' of .* found F8_E4M3; fp8 tensors are not read"):
        open_folder(tmp_path)
    with pytest.raises(
        UnsupportedConfig, match=r"'w' of a state dict .* found FLOAT8_E4M3FN; fp8 tensors are not read"
    ):
        StateDictTensors({"w": torch.ones(4).to(torch.float8_e4m3fn)}).read("w")


@pytest.mark.parametrize("dtype", [np.complex64, np.longdouble, object, "U3"])
def test_arrays_of_other_kinds_are_refused(dtype):
    with pytest.raises(UnsupportedConfig, match="expected float, integer or boolean values"):
        ArrayTensors({"w": np.ones(2).astype(dtype)}).read("w")


@pytest.mark.parametrize(
    "source", [ArrayTensors({"w": np.array([1, np.nan])}), StateDictTensors({"w": torch.tensor([1, torch.nan])})]
)
def test_memory_is_checked_for_finite_values_as_files_are(source):
    with pytest.raises(CorruptCheckpoint, match=r"'w' of .* in memory: .* found 1 of 2 .* first at index \(1,\)"):
        source.read("w")


def test_weights_that_are_not_in_memory_are_refused():
    with torch.device("meta"):
        layer = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedConfig, match="a dense tensor with values, found device meta"):
        StateDictTensors(layer).read("weight")
    with pytest.raises(UnsupportedConfig, match=r"layout torch\.sparse_coo"):
        StateDictTensors({"w": torch.eye(2).to_sparse()}).read("w")


def test_a_state_dict_holds_tensors_only():
    with pytest.raises(CheckpointMismatch, match="found 'model' to be a dict; pass a module or its plain state dict"):
        StateDictTensors({"model": {"w": torch.ones(1)}})
