"""`covector steer`, `debias` and `observe feature` as they are typed."""

import json
from pathlib import Path

import numpy as np
import pytest

from covector.cli.main import run
from covector.io.feature_file import load_feature

PROMPTS = [
    "--template",
    "Yesterday [NAME] was happy because",
    "--fill",
    "NAME=Mary,Lisa,Emma,Laura:John,Mark,Paul,Jack",
]
SHE = "' she' - ' he'"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_saved_feature_steers_as_its_path_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f.safetensors"
    table = said(capsys, "observe", "feature", "demo-lm", SHE, "L2H3>out", "--out", str(file))
    assert load_feature(file).hook == table["meta"]["hook"] == "L2.attn_in"
    both = [
        said(capsys, "steer", "demo-lm", SHE, *how, "--scale", "-0.01,0.01", "--draws", "2", *PROMPTS)
        for how in (("--feature", str(file)), ("--path", "L2H3>out"))
    ]
    assert both[0]["meta"]["token"] == "NAME"
    assert both[0]["rows"] == both[1]["rows"]
    vector = [r for r in both[0]["rows"] if r["vector"] == "vector"]
    np.testing.assert_allclose([r["predicted"] for r in vector], [-0.01, 0.01], rtol=1e-9)


def test_wishes_are_predictions_and_the_largest_dose_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = pytest.importorskip("gguf").GGUFReader
    file = tmp_path / "c.gguf"
    words = ["--want", f"{SHE}=+0.5", "--want", "' her' - ' his'=0", "--at", "L2.resid_pre", "--token", "NAME"]
    table = said(
        capsys, "steer", "demo-lm", *words, "--scale", "1,-2", "--draws", "2", "--gguf", str(file), *PROMPTS
    )  # fmt: skip
    found = {(r["observable"], r["dose"]): r["predicted"] for r in table["rows"] if r["vector"] == "vector"}
    np.testing.assert_allclose(sorted(found.values()), [-1, 0, 0, 0.5], atol=1e-9)
    (tensor,) = reader(str(file)).tensors
    assert tensor.name == "direction.1"
    np.testing.assert_allclose(np.linalg.norm(tensor.data), 2 * table["meta"]["unit_length"], rtol=1e-6)


def test_debias_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = pytest.importorskip("gguf").GGUFReader
    file = tmp_path / "d.gguf"
    table = said(
        capsys, "debias", "demo-lm", "--bias", "' nurse' - ' pilot'", "--keep", "' queen' - ' king'", "--at",
        "L2.resid_pre", "--heads", "1", "--draws", "2", "--gguf", str(file), *PROMPTS,
    )  # fmt: skip
    (tensor,) = reader(str(file)).tensors
    np.testing.assert_array_equal(tensor.data, np.array(table["meta"]["vector"], dtype=np.float32))
    assert table["meta"]["held_out"][0] == "2 of 4 names"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["steer", "demo-lm", *PROMPTS], "expected tasks"),
        (["steer", "demo-lm", SHE, *PROMPTS], "expected a vector"),
        (["steer", "demo-lm", "--want", "she", *PROMPTS], "--want: expected"),
        (["steer", "demo-lm", SHE, "--path", "L2H3>out", "--scale", "a", *PROMPTS], "--scale: expected numbers"),
        (["steer", "demo-lm", SHE, "--path", "L2H3>out"], "--template"),
        (["steer", "demo-lm", SHE, "--path", "L2H3>out", "--gguf", "x.gguf", "--at", "L0.resid_pre", "--token", "NAME",
          "--draws", "1", *PROMPTS], "leaves block 1"),
    ],
)  # fmt: skip
def test_requests_that_make_no_sense_are_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1
