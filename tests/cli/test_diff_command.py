"""`covector diff` and `covector rank` as they are typed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from covector.cli.main import run
from covector.demo import DEMO_LM


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A copy of the bundled model in which one head of layer 1 writes a little more along one direction."""
    folder = tmp_path / "other model"
    shutil.copytree(DEMO_LM, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "transformer.h.1.attn.c_proj.weight"
    W = tensors[name].astype(np.float32)
    rng = np.random.default_rng(0)
    W[64:96] += 0.1 * np.outer(rng.standard_normal(32), rng.standard_normal(128)).astype(np.float32) / np.sqrt(32)
    save_file(tensors | {name: W}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_the_changed_place_stands_first_and_the_next_command_works(other, capsys):
    table = said(capsys, "diff", "demo-lm", str(other))
    assert [r["site"] for r in table["rows"] if r["change"]] == ["L1H2.ov"]
    assert table["rows"][0]["rank"] == 1
    assert run(["diff", "demo-lm", str(other)]) == 0
    shown = capsys.readouterr().out
    assert f"next: covector diff demo-lm '{other}' L1H2.ov" in shown
    assert shown.count("unchanged") == 0  # what did not change is counted, not listed
    place = said(capsys, "diff", "demo-lm", str(other), "L1H2")
    assert place["meta"]["site"] == "L1H2.ov"
    parts = said(capsys, "diff", "demo-lm", str(other), "L1H2", "--components", "--leading", "4")
    assert len(parts["rows"]) == 4


@pytest.mark.slow
def test_an_atlas_of_the_change_is_searched_and_refuses_to_run(other, tmp_path, capsys):
    folder = tmp_path / "d.atlas"
    assert run(["diff", "demo-lm", str(other), "--kinds", "ov", "--out", str(folder), "-q"]) == 0
    capsys.readouterr()
    found = said(capsys, "search", str(folder), "' she'")
    assert {r["place"] for r in found["rows"]} == {"L1H2.ov:0"}  # the others are rounding: of rank one is the change
    assert said(capsys, "svd", str(folder), "L1H2.ov")["meta"]["site"] == "L1H2.ov"
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a girl.", encoding="utf-8")
    assert run(["fires", str(folder), "L1H2.ov:0", "--text", str(text)]) == 2
    assert "a change of weights is no model" in capsys.readouterr().err


@pytest.mark.slow
def test_an_atlas_that_is_there_is_kept_or_refused_before_anything_long(other, tmp_path, capsys, monkeypatch):
    """The rules of `covector atlas`: the same request finds it, another one is refused; one next command."""
    folder = tmp_path / "d.atlas"
    words = ["diff", "demo-lm", str(other), "--kinds", "ov", "--tested", "0", "--out", str(folder)]
    assert run(words) == 0
    said_first = capsys.readouterr()
    assert said_first.out.count("next:") == 1
    assert f"next: covector search {folder}" in said_first.out
    assert "2 directions of the change above the rounding of storage" in said_first.err
    before = {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in folder.iterdir()}
    assert run(words) == 0
    assert {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in folder.iterdir()} == before

    def never(*_: object, **__: object) -> None:
        raise AssertionError("compared before the folder was looked at")

    monkeypatch.setattr("covector.analyses.diff.diff", never)
    capsys.readouterr()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    for wrong in (
        ["--kinds", "ov,qk", "--out", str(folder)],
        ["--out", str(tmp_path / "mine")],
        ["--frame", "folded", "--out", str(tmp_path / "new")],
    ):
        assert run(["diff", "demo-lm", str(other), *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {name: data for name, (data, _) in before.items()}


def test_identical_checkpoints_are_told_so_in_a_sentence(capsys):
    assert run(["diff", "demo-lm", str(DEMO_LM)]) == 0
    assert "Nothing changed: all 42 places" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["demo-lm", "toy"], "one anatomy"),
        (["demo-lm", "demo-lm", "--components"], "--components shows one place"),
        (["demo-lm", "demo-lm", "L0H0"], "expected a place that changed"),
        (["demo-lm", "demo-lm", "L9H0"], "outside"),
        (["demo-lm", "demo-lm", "--kinds", "heads"], "kinds among"),
        (["demo-lm", "demo-lm", "--draws", "5"], "at least 100 draws"),
    ],
)
def test_what_cannot_be_compared_is_one_line(words, told, capsys):
    assert run(["diff", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_sweep_of_ranks_has_a_row_for_each_and_its_controls(tmp_path, capsys):
    pytest.importorskip("torch")
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little girl who lived near the river. " * 12, encoding="utf-8")
    names = ["--template", "Yesterday [NAME] was happy because", "--fill", "NAME=Mary,Lisa:John,Mark"]
    table = said(capsys, "rank", "demo-lm", "L2H3.ov", "--keep", "0,2", "--text", str(text), "--observe",
                 "' she' - ' he'", *names)  # fmt: skip
    assert [r["kept"] for r in table["rows"]] == [0, 2]
    assert table["meta"]["prompts"] == 2
    assert table["rows"][1]["of"] == 21
    for name in ("kl", "loss", "effect"):  # no ties here: the place says how many are smaller
        assert table["rows"][1][f"{name}_p"] == table["rows"][1][f"{name}_place"] / 21
        assert table["rows"][0][f"{name}_p"] is None
    for words, told in (
        (["--keep", "1.5", "--text", str(text)], "whole numbers"),
        (["--keep", "one", "--text", str(text)], "numbers with commas"),
        (["--keep", "1"], "--text: expected a file"),
        (["--keep", "1", "--text", str(text), "--observe", "' she'"], "needs prompts"),
        (["--keep", "99", "--text", str(text)], "up to 32"),
    ):
        assert run(["rank", "demo-lm", "L2H3.ov", *words]) == 2
        assert told in capsys.readouterr().err
