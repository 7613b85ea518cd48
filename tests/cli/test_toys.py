"""Ready toys open by name, from the command line as from Python, and read as they were planted."""

import json

import numpy as np
import pytest

import covector
from covector.cli.main import run
from covector.io import safetensors_file


def test_the_planted_toy_reads_animals_and_writes_their_sounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["svd", "toy", "L0H1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(r["read_label"], r["write_label"]) for r in rows] == [
        (" cat", " meow"),
        (" dog", " bark"),
        (" cow", " moo"),
    ]
    np.testing.assert_allclose([r["sigma"] for r in rows], [3, 2, 1], rtol=1e-12)  # float64 weights


def test_the_other_head_of_the_toy_has_no_such_dyads() -> None:
    table = covector.readout(covector.open("toy"), "L0H0", rank=3)
    pairs = set(zip(table["read_label"], table["write_label"], strict=True))
    assert (" cat", " meow") not in pairs


def test_inspecting_a_toy_lists_its_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "toy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # 12 tokens of width 16 (tied), 2 heads of size 8 (four matrices), an MLP of 24.
    assert found["meta"]["parameters"] == 12 * 16 + 4 * 2 * 16 * 8 + 2 * 16 * 24
    assert {row["role"] for row in found["rows"]} == {"W_E", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"}


def test_the_induction_toy_copies_what_it_finds() -> None:
    table = covector.readout(covector.open("toy-induction"), "L1H0", rank=9)
    assert list(table["read_label"]) == list(table["write_label"])


def test_hashing_ahead_gives_the_digests_that_results_record(monkeypatch: pytest.MonkeyPatch) -> None:
    model = covector.open("demo-lm")
    asked = covector.open("demo-lm").origins("W_E")
    started = []
    monkeypatch.setattr("threading.Thread.start", lambda self: started.append(self) or self.run())
    model.hash_ahead()
    assert len(started) == 1
    # Nothing can be hashed any more: only remembered digests can be told.
    monkeypatch.setattr(safetensors_file.hashlib, "sha256", None)
    assert model.origins("W_E") == asked
