"""The command line: what it prints, what it writes, how it fails. Every failure is one line and exit code 2."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import covector
from covector.arch.family import families
from covector.arch.toy import Plant, planted
from covector.cli.main import run
from random_checkpoints import random_tensors


def saved(folder: Path, family: str = "gpt2", *, drop: str = "", **config: object) -> Path:
    """A tiny random checkpoint on disk, float32."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(families()[family], **config)
    tensors.pop(drop, None)
    save_file({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(families()[family].tiny()) | config))
    return folder


def test_svd_prints_one_line_per_dyad_within_120_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["svd", str(saved(tmp_path / "m")), "L1H2", "--rank", "4"]) == 0
    out = capsys.readouterr().out
    dyads = [line for line in out.splitlines() if re.match(r" *\d+ σ", line)]
    assert len(dyads) == 4
    assert max(map(len, out.splitlines()[1:])) <= 120
    assert "L1H2.ov" in out
    assert "chance 95 %" in out
    assert out.rstrip().splitlines()[-1].startswith("next: covector svd")


def test_json_is_one_strict_object_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["svd", str(saved(tmp_path / "m")), "L1.mlp.out", "--json", "--rank", "3", "--frame", "folded"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert len(found["rows"]) == 3
    assert found["meta"]["frame"] == "folded"
    assert found["meta"]["site"] == "L1.mlp.out"
    assert found["rows"][0]["write_p_svd"] is None


def test_out_and_plot_write_files_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["svd", str(saved(tmp_path / "m")), "L0H0", "--out", str(tmp_path / "o"), "--plot", str(tmp_path / "p.svg")]
    assert run(words) == 0
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"readout.json", "readout.parquet", "readout.picture.json"}
    assert (tmp_path / "p.svg").read_text().lstrip().startswith("<")
    assert "written:" in capsys.readouterr().err


def test_the_grid_shows_labels_by_dyads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["svd", str(saved(tmp_path / "m")), "L0H0", "--grid", "--rank", "3", "-k", "4"]) == 0
    out = capsys.readouterr().out
    assert "+1" in out
    assert "−1" in out
    assert out.count("token ") >= 24


def test_the_grid_writes_files_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["svd", str(saved(tmp_path / "m")), "L0H0", "--grid", "--rank", "2"]
    assert run([*words, "--out", str(tmp_path / "o"), "--plot", str(tmp_path / "p.svg")]) == 0
    assert (tmp_path / "o" / "readout.json").exists()
    assert (tmp_path / "p.svg").exists()
    assert "+1" in capsys.readouterr().out


def test_check_shows_sizes_and_the_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(saved(tmp_path / "m")), "--check"]) == 0
    out = capsys.readouterr().out
    assert "3 layers of d_model 20" in out
    assert "proven against transformers' GPT2LMHeadModel" in " ".join(out.split())
    assert run(["inspect", str(tmp_path / "m"), "--check", "--json"]) == 0
    meta = json.loads(capsys.readouterr().out)["meta"]
    assert meta["proven"] is True
    assert meta["spec"]["d_model"] == 20


def test_a_toy_opens_saves_and_reads_like_any_model() -> None:
    toy = covector.open(planted([Plant(3, 5, 2.0)], "L0H0.ov"))
    row = covector.readout(toy, "L0H0", rank=1).rows[0]
    assert row["sigma"] == pytest.approx(2.0, rel=1e-9)
    pole = "plus" if row["write_cos"] > 0 else "minus"
    assert (row[f"read_{pole}"][0], row[f"write_{pole}"][0]) == ("token 3", "token 5")


def test_inspect_lists_every_tensor_and_the_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(saved(tmp_path / "m"))]) == 0
    out = capsys.readouterr().out
    assert "3 layers of d_model 20; 4 heads of size 5" in out
    assert "h.{i}.attn.c_attn.weight" in out


def test_help_needs_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, contextlib, io\n"
        "from covector.cli.main import run\n"
        "with contextlib.redirect_stdout(io.StringIO()): assert run(['--help']) == 0 and run(['svd', '--help']) == 0\n"
        "heavy = {'numpy', 'scipy', 'torch', 'transformers', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_readout_does_not_import_scipy_special() -> None:
    """It would add a twentieth of a second to every start, for one function that `chance.incomplete_beta` has."""
    code = "import sys, covector.analyses.readout\nassert 'scipy.special' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_opening_and_reading_a_site_needs_no_torch(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    code = (
        "import sys, covector\n"
        f"covector.readout(covector.open({str(folder)!r}), 'L0H0')\n"
        "heavy = {'torch', 'transformers', 'pandas', 'matplotlib', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["svd", "{m}", "L7H1"], r"L7H1 is outside gpt2: layers run 0–2, heads 0–3. Did you mean L2H1"),
        (["svd", "{m}", "L1H1", "--rank", "0"], r"expected rank >= 1"),
        (["svd", "{m}", "L1H1", "--basis", "tokens"], r"expected a basis of gpt2"),
        (["svd", "{m}", "L1H1", "--frame", "centred"], r"expected a frame \(raw, folded"),
        (["svd", "{m}", "L1H1", "--token", "zz"], r"zz"),
        (["svd", "{m}", "L1H1", "--device", "cuda"], r"--device: expected cpu"),
        (["svd", "{m}", "L1H1", "--plot", "x.bmp"], r"\.png, \.svg"),
        (["svd", "./nowhere", "L1H1"], r"expected a folder with a checkpoint, there is none at './nowhere'"),
        (["svd", "no/such-model", "L1H1"], r"either it was never downloaded or the name is wrong"),
        (["svd", "{m}"], r"Missing argument"),
        (["svd", "{m}", "L1H1", "--nonsense"], r"No such option"),
        (["frobnicate"], r"No such command"),
        (["svd", "{m}", "L1H1", "--layout", "gone.toml"], r"expected a layout file at 'gone.toml'"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    folder = saved(tmp_path / "m")
    before = sorted(tmp_path.rglob("*"))
    assert run([w.replace("{m}", str(folder)) for w in words]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert len(streams.err.splitlines()) == 1
    assert re.search(told, streams.err), streams.err
    assert [p for p in sorted(tmp_path.rglob("*")) if "empty" not in p.parts] == before


class _Runs:
    """An object that a careless unpickler would let write a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return (open, (self.path, "w"))


def damaged(folder: Path, how: str) -> Path:
    """A checkpoint folder, broken in one way."""
    path = saved(folder) / "model.safetensors"
    data = path.read_bytes()
    config = json.loads((folder / "config.json").read_text())
    if how == "truncated":
        path.write_bytes(data[:-100])
    if how == "header":
        path.write_bytes((1 << 60).to_bytes(8, "little") + data[8:])
    if how == "nan":
        path.write_bytes(data[:-4] + np.float32(np.nan).tobytes())
    if how == "family":
        config["model_type"] = "mamba"
    if how == "config":
        config["n_embd"] = 24
    if how == "quantised":
        config["quantization_config"] = {"bits": 4}
    if how == "strict":
        config["secret_gate\x1b[2J"] = 3
    if how == "overlap":
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        first, second = [n for n in header if n != "__metadata__"][:2]
        header[second]["data_offsets"] = header[first]["data_offsets"]
        header[second]["shape"], header[second]["dtype"] = header[first]["shape"], header[first]["dtype"]
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :])
    if how == "code":
        path.unlink()
        torch.save({"weight": _Runs(folder / "ran")}, folder / "pytorch_model.bin")
    if how == "size":
        config["n_head"] = "two"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("truncated", "model.safetensors"),
        ("header", "model.safetensors"),
        ("nan", "not finite|NaN"),
        ("family", "expected a supported model_type, got 'mamba'; supported: .*gpt2.*llama"),
        ("config", r"tensor '.*' has shape \(.*\), the layout '.*' and the config give \("),
        ("quantised", "'quantization_config'"),
        ("strict", r"secret_gate\\x1b\[2J"),
        ("overlap", "overlap"),
        ("code", r"reading it would run code stored in it \(global 'io.open'\)"),
        ("size", "expected 'n_head' to be a whole number above 0, got 'two'"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, told: str
) -> None:
    folder = damaged(tmp_path / "m", how)
    # The last tensor in the file is the one whose value was spoilt: read everything that svd of the embeddings reads.
    sites = ["embed", "pos", "unembed", *(f"L{i}.mlp.{s}" for i in range(3) for s in ("in", "out"))]
    codes = [run(["svd", str(folder), s, "--strict"]) for s in (sites if how == "nan" else sites[:1])]
    assert 2 in codes
    assert set(codes) <= {0, 2}
    errors = capsys.readouterr().err.splitlines()
    assert any(re.search(told, line) for line in errors), errors
    assert {p.name for p in folder.iterdir()} <= {"config.json", "model.safetensors", "pytorch_model.bin"}


def test_a_text_of_several_tokens_is_shown_with_its_split(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["svd", "demo-lm", "L3H0", "--token", " market"]) == 2
    told = capsys.readouterr().err
    assert re.search(r"expected a single token, got ' market': it is .*\|.* near single tokens: ", told)


def test_no_words_are_a_cry_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "svd" in capsys.readouterr().out


def test_a_defect_of_ours_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import covector.workbench

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(covector.workbench, "open", broken)
    assert run(["inspect", "anything"]) == 1
    assert "a defect of ours: ZeroDivisionError: planted" in capsys.readouterr().err
