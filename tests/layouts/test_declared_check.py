"""Declared layouts prove themselves against recorded pairs, or say that nobody can judge them."""

import re
from pathlib import Path

import numpy as np
import pytest
from stand_ins import PLANTED, layout, with_words

from covector.arch.declared_check import arranged, recorded_names
from covector.arch.declared_keys import read_declaration
from covector.cli.main import run
from covector.errors import BadLayout, CheckpointMismatch


def without_check(model: str) -> str:
    return re.sub(r"\[check[^\[]*", "", layout(model))


MODELS = ("dt-cartpole", "dt-minigrid-memory", "dt-minigrid-obstacles", "modadd59-clock")


@pytest.mark.parametrize("model", MODELS)
def test_inspect_check_proves_a_declaration(
    shared: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reader finds: each of the four home-made models is proven against its recorded pairs to 1e-9."""
    (tmp_path / "layout.toml").write_text(layout(model))
    words = ["inspect", str(shared / "models" / model), "--layout", str(tmp_path / "layout.toml"), "--check"]
    assert run(words) == 0
    assert "proven against its recorded input/output pairs" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("model", "mistake", "words", "caught"), PLANTED[:6], ids=lambda v: v if isinstance(v, str) else ""
)
def test_inspect_check_names_what_a_wrong_declaration_breaks(
    shared: Path, model: str, mistake: str, words: dict, caught: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "layout.toml").write_text(with_words(layout(model), words))
    assert run(["inspect", str(shared / "models" / model), "--layout", str(tmp_path / "layout.toml"), "--check"]) == 2
    told = capsys.readouterr().err
    assert caught == "refused" or "it differs by" in told, mistake


def test_without_recorded_pairs_nobody_can_judge(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "layout.toml").write_text(without_check("modadd59-clock"))
    words = ["inspect", str(shared / "models" / "modadd59-clock"), "--layout", str(tmp_path / "layout.toml"), "--check"]
    assert run(words) == 2
    assert "not proven: no independent judge" in capsys.readouterr().err


def test_recorded_axes_are_reordered_and_features_flattened() -> None:
    image = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    got = arranged("image: batch time x y channel -> batch time channel x y", {"image": image}, "t")
    assert got.shape == (2, 3, 120)
    assert got[1, 2, 6 + 20 * 3 - 1] == image[1, 2, 1, 0, 3]  # 20·channel + 5·x + y, here channel 3, x 1, y 0
    assert np.array_equal(arranged("image", {"image": image}, "t"), image)


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        ("gone", CheckpointMismatch, "expected a recorded tensor 'gone', found a"),
        ("a: x y", BadLayout, "an arrow"),
        ("a: x y -> x z", BadLayout, "the same axes"),
        ("a: x -> x", BadLayout, "the 2 axes of 'a'"),
    ],
)
def test_wrong_words_about_recorded_pairs_are_refused(words: str, error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        arranged(words, {"a": np.zeros((2, 2))}, "t")


def test_half_a_check_table_is_refused() -> None:
    text = layout("modadd59-clock").replace("[check.expected]", "[check.inputs.more]")
    text = re.sub(r"\[check\.inputs\.more\]\n.*\n", "", text)
    with pytest.raises(BadLayout, match=r"needs both \[check.inputs\] and \[check.expected\]"):
        recorded_names(read_declaration(text, "t"), "t")
