"""The reader believes a safetensors file only where every byte of its header fits, and widens exactly."""

import hashlib
import json
import re
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from covector.errors import CorruptCheckpoint, CovectorError, UnsupportedConfig
from covector.io.safetensors_file import Entry, SafetensorsFile


def file_bytes(header: dict | str | bytes, data: bytes = b"") -> bytes:
    """A file of the format from its parts, however wrong they are."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return struct.pack("<Q", len(header)) + header + data


def one(dtype: object = "F32", shape: object = (2, 3), offsets: object = (0, 24)) -> dict:
    """A header with one tensor 'w'; the defaults fit 24 bytes of data."""
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.fixture
def opened(tmp_path):
    """Bytes → the opened file."""

    def write_and_open(content: bytes) -> SafetensorsFile:
        path = tmp_path / "w.safetensors"
        path.write_bytes(content)
        return SafetensorsFile(path)

    return write_and_open


FITTING = 24 * b"\0"


# What it reads


FLOATS = ["float64", "float32", "float16", "bfloat16"]
WHOLE = ["int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"]


@pytest.mark.parametrize("dtype", FLOATS + WHOLE)
def test_every_plain_dtype_reads_as_the_library_reads_it(opened, dtype):
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(getattr(torch, dtype))
    ours = opened(safetensors.torch.save({"w": tensor})).read("w")
    expected = tensor.float() if dtype in ("float16", "bfloat16") else tensor
    assert ours.dtype == expected.numpy().dtype
    assert ours.shape == (2, 3)
    assert np.array_equal(ours, expected.numpy())


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_widening_is_exact_for_each_of_the_65536_values(opened, dtype):
    patterns = np.arange(2**16, dtype=np.uint16)
    ours = opened(file_bytes(one(dtype, [2**16], [0, 2**17]), patterns.tobytes())).read("w", finite=False)
    stored = torch.from_numpy(patterns).view(torch.bfloat16 if dtype == "BF16" else torch.float16)
    assert ours.dtype == np.float32
    assert np.array_equal(ours, stored.float().numpy(), equal_nan=True)
    back = torch.from_numpy(ours.copy()).to(stored.dtype)
    assert torch.equal(back[stored.isfinite()], stored[stored.isfinite()])


@pytest.mark.parametrize("dtype", ["F32", "F64", "BF16", "F16", "I64", "BOOL"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2)])
def test_scalars_and_empty_tensors_keep_their_shape(opened, dtype, shape):
    size = {"F32": 4, "F64": 8, "BF16": 2, "F16": 2, "I64": 8, "BOOL": 1}[dtype] * int(np.prod(shape, dtype=int))
    array = opened(file_bytes(one(dtype, shape, [0, size]), size * b"\0")).read("w")
    assert array.shape == shape
    assert not array.any()


def test_full_precision_is_a_view_of_the_file_and_not_a_copy(opened):
    file = opened(safetensors.torch.save({"w": torch.ones(4, 5)}))
    assert np.shares_memory(file.read("w"), file.read("w"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_what_is_read_cannot_be_written_to(opened, dtype):
    array = opened(safetensors.torch.save({"w": torch.ones(4).to(dtype)})).read("w")
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2


def test_arrays_outlive_the_file_object_and_a_release(opened):
    file = opened(safetensors.torch.save({"w": torch.arange(100_000.0)}))
    array = file.read("w")
    file.release("w")
    del file
    assert np.array_equal(array, np.arange(100_000, dtype=np.float32))


def test_an_unaligned_tensor_is_read_aligned(opened):
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    data = b"\x07" + np.array([1.5, -2.5], np.float32).tobytes()
    for padding in range(4):  # one of these puts b off its place
        file = opened(file_bytes(json.dumps(header) + " " * padding, data))
        assert file.read("b").flags.aligned
        assert file.read("b").tolist() == [1.5, -2.5]


def test_the_header_is_read_without_the_buffer(opened):
    file = opened(safetensors.torch.save({"w": torch.zeros(2, 3)}, metadata={"format": "pt"}))
    (entry,) = file.entries.values()
    assert entry == Entry("F32", (2, 3), entry.stop - 24, entry.stop)
    assert entry.nbytes == 24
    assert dict(file.metadata) == {"format": "pt"}


def test_digests_are_of_the_header_and_of_the_stored_bytes(opened):
    header = json.dumps(one("BF16", [2], [0, 4])).encode()
    file = opened(file_bytes(header, b"\x80\x3f\x00\x40"))
    assert file.header_sha256 == hashlib.sha256(header).hexdigest()
    assert file.sha256("w") == hashlib.sha256(b"\x80\x3f\x00\x40").hexdigest()


def test_the_order_of_the_header_need_not_be_that_of_the_buffer(opened):
    header = {
        "second": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
        "first": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
    }
    file = opened(file_bytes(header, b"\x01\x02"))
    assert (file.read("first")[0], file.read("second")[0]) == (1, 2)


# What it refuses


def offsets_of_two(first: list[int], second: list[int]) -> dict:
    return {
        "a": {"dtype": "U8", "shape": [first[1] - first[0]], "data_offsets": first},
        "b": {"dtype": "U8", "shape": [second[1] - second[0]], "data_offsets": second},
    }


REFUSED = {
    "empty": (b"", "at least 8 bytes .* found 0"),
    "seven_bytes": (7 * b"\0", "at least 8 bytes .* found 7"),
    "header_beyond_the_file": (struct.pack("<Q", 99) + b"{}", "a header of 99 bytes, found 2 bytes after its length"),
    "header_beyond_the_limit": (struct.pack("<Q", 2**63) + b"{}", "at most 100000000 bytes, found a length of 9223372"),
    "git_lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "a git-lfs pointer .* run 'git lfs pull'"),
    "no_header": (file_bytes(""), "begins with '{'"),
    "not_utf8": (file_bytes(b'{"\xff":1}'), "a header in UTF-8, found byte 0xff at 2"),
    "not_json": (file_bytes("{,}"), "a JSON object as header, found Expecting"),
    "not_an_object": (file_bytes("[1]"), "begins with '{'"),
    "two_objects": (file_bytes("{}{}"), "a JSON object as header, found Extra data"),
    "deeply_nested": (file_bytes('{"w":' + "[" * 100_000 + "]" * 100_000 + "}"), "a JSON object as header"),
    "not_a_number_in_json": (file_bytes('{"w":NaN}'), "the constant NaN"),
    "minus_zero": (file_bytes('{"w":-0}'), "the number -0"),
    "lone_surrogate": (file_bytes(r'{"__metadata__":{"\ud800":""}}'), "a lone surrogate"),
    "duplicate_name": (file_bytes('{"w":{},"w":{}}'), "the key 'w' twice"),
    "duplicate_field": (file_bytes('{"w":{"dtype":"U8","dtype":"I8"}}'), "the key 'dtype' twice"),
    "metadata_not_strings": (file_bytes({"__metadata__": {"n": 1}}), "'__metadata__' to map strings to strings"),
    "entry_not_an_object": (file_bytes({"w": 3}), "tensor 'w' to have dtype, shape and data_offsets, found 3"),
    "entry_without_shape": (file_bytes({"w": {"dtype": "U8", "data_offsets": [0, 0]}}), "to have dtype, shape and"),
    "unknown_dtype": (file_bytes(one("F31"), FITTING), "'w' to have a dtype of the format, found 'F31'"),
    "dtype_not_text": (file_bytes(one(["F32"]), FITTING), "a dtype of the format, found .'F32'."),
    "negative_size": (file_bytes(one("F32", [-2, -3]), FITTING), r"sizes ≥ 0, found \[-2, -3\]"),
    "size_true": (file_bytes(one("F32", [True, 6]), FITTING), r"sizes ≥ 0, found \[True, 6\]"),
    "size_not_whole": (file_bytes(one("F32", [2.0, 3]), FITTING), r"sizes ≥ 0, found \[2.0, 3\]"),
    "shape_not_a_list": (file_bytes(one("F32", 6), FITTING), "sizes ≥ 0, found 6"),
    "65_axes": (file_bytes(one("F32", [1] * 65, [0, 4]), 4 * b"\0"), "at most 64 sizes"),
    "size_beyond_int64": (file_bytes(one("U8", [2**63], [0, 0])), "sizes ≥ 0, found .9223372036854775808."),
    "overflow_behind_a_zero": (file_bytes(one("F32", [0, 2**40, 2**40], [0, 0])), "'w' to fit into memory"),
    "too_large_product": (file_bytes(one("F32", [2**40, 2**40], [0, 24]), FITTING), "'w' to fit into memory"),
    "shape_against_offsets": (file_bytes(one("F32", [2, 4]), FITTING), "to take 32 bytes .* which are 24"),
    "half_a_byte": (file_bytes(one("F4", [3], [0, 1]), b"\0"), "to take 1.5 bytes"),
    "offsets_fall": (file_bytes(one("F32", [2, 3], [24, 0]), FITTING), "two rising data_offsets"),
    "three_offsets": (file_bytes(one("F32", [2, 3], [0, 24, 24]), FITTING), "two rising data_offsets"),
    "offsets_negative": (file_bytes(one("F32", [2, 3], [-24, 0]), FITTING), "two rising data_offsets"),
    "cut_short": (file_bytes(one(), FITTING[:-1]), "24 bytes of tensors, found 23; the file is cut short"),
    "trailing_bytes": (file_bytes(one(), FITTING + b"\0"), "24 bytes of tensors, found 1 bytes after them"),
    "trailing_bytes_alone": (file_bytes({}, b"\0"), "0 bytes of tensors, found 1 bytes after them"),
    "hole": (file_bytes(offsets_of_two([0, 2], [3, 5]), 5 * b"\0"), "'b' to begin where .* a hole of 1 bytes"),
    "hole_at_the_start": (file_bytes(offsets_of_two([1, 2], [2, 5]), 5 * b"\0"), "'a' to begin where .* a hole of 1"),
    "overlap": (file_bytes(offsets_of_two([0, 3], [2, 5]), 5 * b"\0"), "'b' to begin where .* an overlap of 1 bytes"),
    "the_same_bytes_twice": (file_bytes(offsets_of_two([0, 5], [0, 5]), 5 * b"\0"), "an overlap of 5 bytes"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_malformed_file_is_refused_with_what_was_expected_and_what_came(opened, fault):
    content, text = REFUSED[fault]
    with pytest.raises(CorruptCheckpoint, match=text) as caught:
        opened(content)
    assert str(caught.value).startswith("cannot read ")
    assert "w.safetensors: expected " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CorruptCheckpoint, match=r"none\.safetensors: expected a readable file, found No such file"):
        SafetensorsFile(tmp_path / "none.safetensors")


def test_a_hostile_name_cannot_break_the_line_or_flood_it(opened):
    with pytest.raises(CorruptCheckpoint) as caught:
        opened(file_bytes({"a\n\x1b[31m" * 10_000: 3}))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_is_listed_but_not_read(opened, dtype):
    file = opened(safetensors.torch.save({"w": torch.ones(4).to(dtype)}))
    assert file.entries["w"].is_packed
    with pytest.raises(UnsupportedConfig, match=r"'w' of .* found F8_E.*; fp8 tensors are not read: dequantise"):
        file.read("w")


def test_complex_numbers_are_not_read(opened):
    file = opened(file_bytes(one("C64", [3], [0, 24]), FITTING))
    with pytest.raises(UnsupportedConfig, match="complex tensors are not read"):
        file.read("w")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_counted_and_placed(opened, dtype, bad):
    tensor = torch.zeros(4, 5)
    tensor[2, 3] = tensor[3, 0] = bad
    file = opened(safetensors.torch.save({"w": tensor.to(dtype)}))
    with pytest.raises(CorruptCheckpoint, match=r"'w' of .* found 2 of 20 .* first at index \(2, 3\)"):
        file.read("w")
    assert file.read("w", finite=False).shape == (4, 5)


def test_opposite_infinities_do_not_hide_each_other(opened):
    file = opened(safetensors.torch.save({"w": torch.tensor([float("inf"), float("-inf")])}))
    with pytest.raises(CorruptCheckpoint, match=r"found 2 of 2 .* first at index \(0,\)"):
        file.read("w")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_large_finite_values_are_not_taken_for_infinite_though_their_sum_is(opened, dtype):
    tensor = torch.full((8,), torch.finfo(dtype).max, dtype=dtype)
    assert np.isfinite(opened(safetensors.torch.save({"w": tensor})).read("w")).all()


def test_booleans_are_zero_or_one(opened):
    with pytest.raises(CorruptCheckpoint, match="'w' to hold booleans 0 and 1, found a byte 2"):
        opened(file_bytes(one("BOOL", [2], [0, 2]), b"\x01\x02")).read("w")


# Whatever the bytes are


SEED = safetensors.torch.save(
    {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "c": torch.tensor(7),
        "d": torch.tensor([True, False]),
        "e": torch.zeros(0, 3),
    },
    metadata={"format": "pt"},
)
HEADER_LENGTH = struct.unpack("<Q", SEED[:8])[0]
WORDS = ["-1", "0", "-0", "1", "2", "6", "24", "1.0", "1e3", "true", "null", "NaN", "[]", "[0]", "{}", '""', '"F32"']
WORDS += ['"F16"', '"BF16"', '"U8"', '"F8_E4M3"', '"a"', '"b"', '"shape"', '"dtype"', '"__metadata__"', "9" * 5000]
WORDS += ["18446744073709551615", "18446744073709551616", "9223372036854775807", "[0,9223372036854775807]"]


@st.composite
def mutants(draw) -> bytes:
    """The seed file with bytes changed, an end cut off, or a number or word of its header replaced."""
    kind = draw(st.sampled_from(["bytes", "cut", "words", "words"]))
    if kind == "cut":
        return SEED[: draw(st.integers(0, len(SEED) - 1))] + draw(st.binary(max_size=3))
    if kind == "bytes":
        changed = bytearray(SEED)
        for _ in range(draw(st.integers(1, 4))):
            changed[draw(st.integers(0, 8 + HEADER_LENGTH - 1))] = draw(st.integers(0, 255))
        return bytes(changed)
    header = SEED[8 : 8 + HEADER_LENGTH].decode()
    tokens = [token for token in _tokens(header) if token.strip()]
    for _ in range(draw(st.integers(1, 3))):
        tokens[draw(st.integers(0, len(tokens) - 1))] = draw(st.sampled_from(WORDS))
    return file_bytes("".join(tokens), SEED[8 + HEADER_LENGTH :])


def _tokens(text: str) -> list[str]:
    return re.findall(r'"[^"]*"|-?\d+|[^"\d]', text)


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(mutants())
@example(SEED)
@example(file_bytes(one("U8", [2**63 - 1, 0], [0, 0])))
def test_a_mutated_file_is_refused_or_reads_as_the_library_reads_it(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "mutant.safetensors"
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
        ours = {name: file.read(name) for name in file.entries}
    except CovectorError:
        assert content != SEED
        return
    theirs = safetensors.torch.load(content)  # what we accept, the library accepts
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        expected = (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()
        assert np.array_equal(ours[name], expected)
        assert ours[name].dtype == expected.dtype
        assert ours[name].shape == expected.shape
