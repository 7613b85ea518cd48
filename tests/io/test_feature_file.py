"""Features and control vectors as files: what is written is what is read."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from covector.errors import BadRequest, CorruptCheckpoint
from covector.io.feature_file import load_feature, save_feature, vector_in
from covector.io.gguf import direction_layer, write_control_vector
from covector.io.safetensors_file import SafetensorsFile
from covector.study.feature import Feature

VECTOR = np.random.default_rng(0).standard_normal(16)


def a_feature(constant: float = 0.25) -> Feature:
    norms, origin = (("out", 2.0), ("L6H6", 1.5)), {"model": "m", "frame": "raw", "files": {"a": "sha"}}
    return Feature(VECTOR, constant, "L6.attn_in", "L6H6>out", "' she' - ' he'", "ignore", norms, "as said", origin)


@pytest.mark.parametrize("constant", [0.25, float("nan")])
def test_a_saved_feature_comes_back_bit_by_bit(tmp_path: Path, constant: float) -> None:
    path = save_feature(a_feature(constant), tmp_path / "f.safetensors")
    back = load_feature(path)
    assert back.vector.tobytes() == VECTOR.tobytes()
    assert back.to_meta().items() >= {k: v for k, v in a_feature().to_meta().items() if k != "constant"}.items()
    np.testing.assert_equal(back.constant, constant)
    meta = json.loads(SafetensorsFile(path).metadata["feature"], parse_constant=lambda word: pytest.fail(word))
    assert meta["hook"] == "L6.attn_in"


def test_a_bare_vector_is_a_feature_that_does_not_know_where_it_is_read(tmp_path: Path) -> None:
    save_file({"direction": VECTOR.astype(np.float32)}, tmp_path / "v.safetensors")
    found = load_feature(tmp_path / "v.safetensors")
    assert (found.hook, found.path) == ("", "")
    np.testing.assert_array_equal(found.vector, VECTOR.astype(np.float32))


def test_files_that_hold_no_vector_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="there is none"):
        vector_in(tmp_path / "none.safetensors")
    save_file({"a": VECTOR, "b": VECTOR}, tmp_path / "two.safetensors")
    with pytest.raises(BadRequest, match="it holds a, b"):
        load_feature(tmp_path / "two.safetensors")
    save_file({"vector": np.stack([VECTOR, VECTOR])}, tmp_path / "rows.safetensors")
    with pytest.raises(BadRequest, match="one vector"):
        load_feature(tmp_path / "rows.safetensors")
    for text in ("{", "[]", '{"hook": "L1.attn_in"}'):
        save_file({"vector": VECTOR}, tmp_path / "bad.safetensors", {"feature": text})
        with pytest.raises((BadRequest, CorruptCheckpoint), match="metadata"):
            load_feature(tmp_path / "bad.safetensors")


def test_a_direction_is_added_to_what_leaves_a_block_and_never_to_block_0() -> None:
    assert direction_layer(9, "resid_pre") == 8
    assert direction_layer(9, "resid_post") == 9
    for layer, role in ((0, "resid_pre"), (1, "resid_pre"), (0, "resid_post"), (5, "resid_mid"), (5, "attn_in")):
        with pytest.raises(BadRequest, match="leaves block 1"):
            direction_layer(layer, role)


def test_a_control_vector_is_read_back_byte_by_byte(tmp_path: Path) -> None:
    """Read here by the layout of the format itself, version 3: counts, key–values, tensor infos, aligned data."""
    pytest.importorskip("gguf")
    about = {"operation": "add", "hook": "L3.resid_pre", "layer": "3", "token": "NAME"}
    path = write_control_vector(
        tmp_path / "c.gguf", VECTOR, layer=3, role="resid_pre", n_layers=5, architecture="gpt2", about=about
    )
    meta, tensors = parsed(path.read_bytes())
    assert list(tensors) == ["direction.2"]
    assert tensors["direction.2"] == VECTOR.astype("<f4").tobytes()
    wanted = {f"covector.{k}": v for k, v in about.items()} | {
        "general.architecture": "controlvector", "controlvector.model_hint": "gpt2", "controlvector.layer_count": 5,
    }  # fmt: skip
    assert meta == wanted


def parsed(data: bytes) -> tuple[dict[str, object], dict[str, bytes]]:
    magic, version, n_tensors, n_keys = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3)
    at = 24

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return value

    def text() -> str:
        nonlocal at
        n = take("Q")
        at += n
        return data[at - n : at].decode()

    meta: dict[str, object] = {}
    for _ in range(n_keys):
        key, kind = text(), take("I")
        meta[key] = {4: lambda: take("I"), 8: text}[kind]()
    infos = []
    for _ in range(n_tensors):
        name, dims = text(), take("I")
        shape = [take("Q") for _ in range(dims)]
        assert take("I") == 0  # float32
        infos.append((name, shape, take("Q")))
    start = -(-at // 32) * 32
    return meta, {name: data[start + o : start + o + 4 * int(np.prod(shape))] for name, shape, o in infos}
