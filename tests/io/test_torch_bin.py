"""A `.bin` file is read without running what it carries."""

import pickle
from pathlib import Path

import pytest
import torch

from covector.errors import CheckpointMismatch, CorruptCheckpoint, MissingExtra, UnsafeCheckpoint
from covector.io import torch_bin
from covector.io.tensors import open_folder
from covector.io.torch_bin import load_state_dict

ZIP, OLD = True, False


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


@pytest.fixture
def witness(tmp_path):
    return tmp_path / "the-code-ran"


def save(content, path, zipped=ZIP):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [ZIP, OLD])
def test_both_formats_give_the_tensors_that_were_saved(tmp_path, zipped):
    state = {"w": torch.randn(3, 4), "b": torch.ones(2).bfloat16()}
    loaded = load_state_dict(save(state, tmp_path / "m.bin", zipped))
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_the_trap_is_a_trap(tmp_path, witness):
    pickle.loads(pickle.dumps(Trap(witness)))
    assert witness.exists()


@pytest.mark.parametrize("zipped", [ZIP, OLD])
def test_code_in_the_file_is_named_and_does_not_run(tmp_path, witness, zipped):
    path = save({"w": torch.ones(1), "trap": Trap(witness)}, tmp_path / "m.bin", zipped)
    with pytest.raises(
        UnsafeCheckpoint, match=r"would run code stored in it \(global '[\w.]+'\); convert it"
    ) as caught:
        load_state_dict(path)
    assert "\n" not in str(caught.value)
    assert not witness.exists()


def test_a_bare_pickle_does_not_run_either(tmp_path, witness):
    (tmp_path / "m.bin").write_bytes(pickle.dumps({"trap": Trap(witness)}))
    with pytest.raises((UnsafeCheckpoint, CorruptCheckpoint), match=r"m\.bin"):
        load_state_dict(tmp_path / "m.bin")
    assert not witness.exists()


def test_a_folder_with_such_a_file_does_not_open(tmp_path, witness):
    save({"trap": Trap(witness)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpoint, match=r"pytorch_model\.bin"):
        open_folder(tmp_path)
    assert not witness.exists()


def test_a_pickled_module_counts_as_code(tmp_path):
    with pytest.raises(UnsafeCheckpoint, match=r"global 'torch.nn.modules.linear.Linear'"):
        load_state_dict(save(torch.nn.Linear(2, 2), tmp_path / "m.bin"))


@pytest.mark.parametrize(
    "content", [b"", b"hello world" * 30, b"PK\x03\x04 no zip", pickle.dumps([1])], ids=["empty", "text", "zip", "list"]
)
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises((CorruptCheckpoint, CheckpointMismatch), match=r"m\.bin: expected .*, found .*; "):
        load_state_dict(tmp_path / "m.bin")


def test_a_file_cut_short_is_refused(tmp_path):
    path = save({"w": torch.ones(1000)}, tmp_path / "m.bin")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CorruptCheckpoint, match=r"a file that torch cannot load .* fetch it again"):
        load_state_dict(path)


def test_a_missing_file_and_a_pointer_are_told_apart(tmp_path):
    with pytest.raises(CorruptCheckpoint, match="No such file"):
        load_state_dict(tmp_path / "m.bin")
    (tmp_path / "m.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CorruptCheckpoint, match="git lfs pull"):
        load_state_dict(tmp_path / "m.bin")


def test_weights_inside_something_else_are_not_dug_out(tmp_path):
    with pytest.raises(CheckpointMismatch, match="found 'model' to be a dict; if the weights lie inside it"):
        load_state_dict(save({"model": {"w": torch.ones(1)}}, tmp_path / "m.bin"))
    with pytest.raises(CheckpointMismatch, match="found one Tensor; save a state dict"):
        load_state_dict(save(torch.ones(1), tmp_path / "m.bin"))


def test_a_torch_whose_loader_can_be_tricked_is_not_used(tmp_path, monkeypatch):
    path = save({"w": torch.ones(1)}, tmp_path / "m.bin")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(UnsafeCheckpoint, match=r"expected torch 2.6 or later.* found 2.5.1\+cpu; upgrade"):
        load_state_dict(path)


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"pip install 'covector\[run\]'"):
        torch_bin.load_state_dict(tmp_path / "m.bin")
