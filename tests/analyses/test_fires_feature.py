"""A feature along a text: r² with its observable is that of the model's own logits, beside random directions."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import covector
from covector.analyses.fires import activations, fires
from covector.analyses.fires_probe import vector_probe
from covector.cli.main import run
from covector.errors import CovectorError
from covector.io.feature_file import save_feature
from covector.run.decoder import Decoder
from covector.study.feature import Feature

SHE = "' she' - ' he'"
STORY = "The nurse asked where she was. Mary said that she saw the king, and he was sad.\n<|endoftext|>\n" * 12


@pytest.fixture(scope="module")
def model() -> covector.Model:
    return covector.open("demo-lm")


@pytest.fixture(scope="module")
def story() -> str:
    from covector.demo.corpus import documents

    return "\n<|endoftext|>\n".join(d.text for d in documents(seed=2, count=20))


def test_r2_is_the_squared_correlation_with_the_logits_of_a_run_of_its_own(model: covector.Model, story: str) -> None:
    """Windows of n_ctx run one by one in float64; the observable is a difference of two logits, written out here."""
    feature = covector.propagate(model, SHE, "L2H3>out")
    table = fires(model, "L2.resid_post", story, vector=feature, top=3)
    assert model.vocabulary is not None
    she, he = (model.vocabulary.one(t) for t in (" she", " he"))
    pieces = [p.strip("\n") for p in story.split("<|endoftext|>")]
    ids = np.array([i for p in pieces for i in model.vocabulary.encode(p)])
    decoder, length = Decoder(model.weights, torch.float64), min(model.spec.n_ctx, 256)
    x, y, last = [], [], []
    for start in range(0, len(ids) - 1, length):
        ran = decoder.run(torch.from_numpy(ids[None, start : start + length]), capture=["L2.resid_post"])
        x.append((ran.cache["L2.resid_post"][0].numpy() @ feature.vector)[1:])
        logits = ran.outputs["token"][0].numpy()
        y.append((logits[:, she] - logits[:, he])[1:])
        last.append((x[-1][-1], y[-1][-1]))
    r = np.corrcoef(np.concatenate(x), np.concatenate(y))[0, 1]
    # float32 runs against float64: activations to 1e-5 of their size.
    assert table.meta["r"] == pytest.approx(r, abs=1e-4)
    assert table.meta["r2"] == pytest.approx(r**2, abs=1e-4)
    assert (table.meta["r2_n"], table.meta["r2_passages"]) == (sum(map(len, x)), len(x))
    assert table.meta["r2_last"] == pytest.approx(np.corrcoef(np.array(last).T)[0, 1] ** 2, abs=1e-3)
    assert table.meta["r2_low"] < table.meta["r2"] < table.meta["r2_high"]
    whole = np.concatenate([np.r_[np.nan, part] for part in y])
    for row in table.rows:
        assert row["observable"] == pytest.approx(whole[row["position"]], abs=1e-3)
    assert f"r² with {SHE} over {table.meta['r2_n']:,} positions" in table.says


def test_the_observable_itself_read_where_it_is_linear_is_said_whole(model: covector.Model, story: str) -> None:
    feature = covector.propagate(model, SHE, "")
    read = dataclasses.replace(feature, vector=covector.Observable.parse(SHE, model).readout(model))
    told = fires(model, "final_normed", story, vector=read).meta
    assert told["r2"] == pytest.approx(1, abs=1e-6)
    assert told["p_r2"] == pytest.approx(1 / 101)
    centred = dataclasses.replace(read, observable="centred(' she')")
    assert fires(model, "final_normed", story, vector=centred).meta["observable"] == "centred(' she')"


def test_random_directions_beside_it_are_those_of_the_same_text(model: covector.Model, story: str) -> None:
    feature = covector.propagate(model, SHE, "L2H3>out")
    told = fires(model, "L2.attn_in", story, vector=feature, draws=19, seed=3).meta
    observable = covector.Observable.parse(SHE, model)
    found = activations(model, vector_probe(model, feature.vector, "L2.attn_in", 19, 3), story, observable=observable)
    r2 = [np.corrcoef(column, found.observed)[0, 1] ** 2 for column in found.values.T.astype(float)]
    assert told["r2_level"] == pytest.approx(max(r2[1:]), rel=1e-6)
    assert told["p_r2"] == pytest.approx((1 + sum(r >= r2[0] for r in r2[1:])) / 20)


def test_a_vector_that_knows_no_observable_has_no_r2(model: covector.Model, story: str) -> None:
    table = fires(model, "L2.attn_in", story, vector=np.ones(128))
    assert "r2" not in table.meta
    assert "observable" not in table
    with pytest.raises(CovectorError, match="quux"):
        fires(model, "L2.attn_in", story, vector=Feature(np.ones(128), 0.0, "", "", "' quux'", ""))


def test_what_a_feature_was_made_for_is_said_where_it_is_measured_elsewhere(model: covector.Model, story: str) -> None:
    feature = covector.propagate(model, SHE, "L2H3>out")
    there, here = (fires(model, hook, story, vector=feature).not_says for hook in ("L2.resid_post", "L2.attn_in"))
    assert "reads the feature at L2.attn_in, not at L2.resid_post" in there
    assert "not at" not in here
    other = dataclasses.replace(feature, origin={"model": "gpt2", "files": {"model.safetensors": "0"}})
    assert "made of other tensors (gpt2)" in fires(model, "L2.attn_in", story, vector=other).not_says


def test_documents_are_told_apart_on_the_screen(model: covector.Model) -> None:
    """The model sees no newline there; a reader does."""
    table = fires(model, "L3H0:0", STORY, top=4)
    for row in table.rows:
        text = row["before"] + row["token"] + row["after"]
        assert "sad.The" not in text
        assert row["before"] + "|" + row["after"] == "".join(
            t if i != row["at"] else "|" for i, t in enumerate(row["tokens"])
        )
    assert any("sad.\nThe" in r["before"] + r["token"] + r["after"] for r in table.rows)


# As it is typed


def test_a_feature_file_brings_r2_to_the_screen_and_the_json(
    model: covector.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_feature(covector.propagate(model, SHE, "L2H3>out"), tmp_path / "feat.safetensors")
    (tmp_path / "story.txt").write_text(STORY, encoding="utf-8")
    words = ["fires", "demo-lm", "L2.attn_in", "--vector", str(tmp_path / "feat.safetensors"), "--text",
             str(tmp_path / "story.txt")]  # fmt: skip
    assert run([*words, "--top", "2"]) == 0
    out = capsys.readouterr().out
    assert f"r² with {SHE} over" in out.replace("\n", " ")
    assert max(map(len, out.splitlines()[:-1])) <= 120
    assert out.splitlines()[-1] == f"next: covector search demo-lm --vector {tmp_path / 'feat.safetensors'}"
    assert run([*words, "--json"]) == 0
    meta = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["meta"]
    assert {"r2", "r2_low", "r2_high", "r2_n", "p_r2", "p_r2_passages", "r2_is"} <= set(meta)
    assert meta["feature"]["path"] == "L2H3>out"


def test_files_that_cannot_be_read_are_refused_without_the_systems_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"vector": np.zeros(128)}, tmp_path / "zero.safetensors")
    (tmp_path / "story.txt").write_text(STORY, encoding="utf-8")
    words = ["fires", "demo-lm", "L2.attn_in", "--vector", str(tmp_path / "zero.safetensors"), "--text"]
    cases = {"none.txt": "got: there is none; check the path", "": "got: is a directory", "story.txt": "but zeros"}
    for name, told in cases.items():
        assert run([*words, str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert "Errno" not in error
        assert error.count("\n") == 1
