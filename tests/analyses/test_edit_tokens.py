"""What a model says next at every dose of an edit, against models whose weights were edited by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import covector
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.prompts import Pair

TASK = "' she' - ' he'"
EDIT = "L2H3.ov:2*0"
# Float64 runs of the same weights; the edited tensors are made in two orders of additions.
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def model() -> Model:
    return covector.open("demo-lm")


@pytest.fixture(scope="module")
def pairs(model: Model) -> list[Pair]:
    names = {"NAME": (["Mary", "Lisa"], ["John", "Mark"])}
    return covector.fill_template(model, "Yesterday [NAME] was happy because", names)


def next_logp(model: Model, ids: tuple[int, ...]) -> np.ndarray:
    """log p of the next token, by the decoder on the whole model."""
    with torch.no_grad():
        logits = Decoder(model.weights).run(torch.tensor([ids])).logits[0, -1].double().numpy()
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def rows(table: covector.Table, **wanted: Any) -> list[dict[str, Any]]:
    every = json.loads(table.to_json())["rows"]
    return [r for r in every if all(r[k] == v for k, v in wanted.items())]


def test_probabilities_at_dose_1_are_those_of_the_edited_model(model: Model, pairs: list[Pair]) -> None:
    table = covector.edit_tokens(model, EDIT, TASK, pairs)
    edited = model.edited(covector.Edit.parse(EDIT))
    labels = list(model.labels["token"])
    for pair in pairs:
        for side, ids, text in (("clean", pair.clean, pair.texts[0]), ("corrupt", pair.corrupt, pair.texts[1])):
            before, after = next_logp(model, ids), next_logp(edited, ids)
            kl = float(np.sum(np.exp(before) * (before - after)))
            found = rows(table, prompt=text, side=side, dose=1.0)
            assert len(found) >= 8
            for r in found:
                token = labels.index(r["token"])
                assert r["p"] == pytest.approx(np.exp(after[token]), abs=TOLERANCE)
                assert r["before"] == pytest.approx(np.exp(before[token]), abs=TOLERANCE)
                assert r["rank"] == 1 + int(np.sum(after > after[token]))
                assert r["kl"] == pytest.approx(kl, abs=TOLERANCE)


def test_a_dose_below_0_strengthens_what_the_edit_removes(model: Model, pairs: list[Pair]) -> None:
    """W − ΔW of "removed" is W + ΔW of "doubled"."""
    other = covector.edit_tokens(model, "L2H3.ov:2*2", TASK, pairs)
    for r in rows(covector.edit_tokens(model, EDIT, TASK, pairs, doses=[-1.0]), dose=-1.0):
        same = rows(other, prompt=r["prompt"], side=r["side"], token=r["token"], dose=1.0)
        if same:  # the lists of both runs hold the likeliest of their own doses
            assert r["p"] == pytest.approx(same[0]["p"], abs=TOLERANCE)


def test_dose_0_is_the_model_as_it_is(model: Model, pairs: list[Pair]) -> None:
    for r in rows(covector.edit_tokens(model, EDIT, TASK, pairs), dose=0.0):
        assert (r["p"], r["kl"]) == (r["before"], 0.0)


def test_every_token_of_the_observable_is_listed_however_unlikely(model: Model, pairs: list[Pair]) -> None:
    table = covector.edit_tokens(model, EDIT, "' camera' - ' window'", pairs, top=1)
    for pair in pairs:
        listed = {r["token"] for r in rows(table, prompt=pair.texts[0])}
        assert {" camera", " window"} <= listed


def test_a_dose_that_turns_a_direction_around_is_refused_unless_asked_for(model: Model, pairs: list[Pair]) -> None:
    with pytest.raises(BadRequest, match=r"--dose 1\.5: ε would become -1\.5"):
        covector.edit_tokens(model, EDIT, TASK, pairs, doses=[1.5])
    with pytest.raises(BadRequest, match=r"--dose -2: ε would become -2"):
        covector.edit_tokens(model, "L2H3.ov:2*2", TASK, pairs, doses=[-2.0])
    turned = covector.edit_tokens(model, covector.Edit.parse(EDIT, reflects=True), TASK, pairs, doses=[1.5])
    assert rows(turned, dose=1.5)


def test_the_recipe_is_the_edit(model: Model, pairs: list[Pair]) -> None:
    table = covector.edit_tokens(model, EDIT, TASK, pairs)
    kept = covector.Edit.from_json(str(table.meta["edit_json"]))
    again = covector.edit_tokens(model, kept, TASK, pairs)
    assert json.loads(again.to_json())["rows"] == json.loads(table.to_json())["rows"]
    assert table.meta["epsilon"] == -1.0


def test_a_prompt_that_comes_twice_is_listed_once(model: Model) -> None:
    """Two names against one: the same corrupt prompt in both pairs."""
    names = {"NAME": (["Mary", "Lisa"], ["John", "John"])}
    pairs = covector.fill_template(model, "Yesterday [NAME] was happy because", names)
    table = covector.edit_tokens(model, EDIT, TASK, pairs, doses=[0.5])
    assert {(r["prompt"], r["side"]) for r in table.rows} == {
        ("Yesterday Mary was happy because", "clean"), ("Yesterday Lisa was happy because", "clean"),
        ("Yesterday John was happy because", "corrupt"),
    }  # fmt: skip
    assert "of 3 prompts" in table.says
    before = next_logp(model, pairs[0].corrupt)
    for r in rows(table, side="corrupt"):
        assert r["before"] == pytest.approx(
            np.exp(before[list(model.labels["token"]).index(r["token"])]), abs=TOLERANCE
        )


def test_prompts_of_different_length_are_each_read_at_their_own_end(model: Model, pairs: list[Pair]) -> None:
    longer = covector.fill_template(model, "One day [NAME] went home and then", {"NAME": (["Mary"], ["John"])})
    table = covector.edit_tokens(model, EDIT, TASK, [*longer, *pairs])
    assert len({len(p) for p in (*longer, *pairs)}) == 2
    labels = list(model.labels["token"])
    for pair in (*longer, *pairs):
        before = next_logp(model, pair.clean)
        for r in rows(table, prompt=pair.texts[0], side="clean"):
            assert r["before"] == pytest.approx(np.exp(before[labels.index(r["token"])]), abs=TOLERANCE)


def test_the_picture_draws_what_the_edit_changes_most(model: Model, pairs: list[Pair]) -> None:
    table = covector.edit_tokens(model, "L3.mlp.out:0-20*0", TASK, pairs, doses=[-1.0], top=30)
    drawn = table.drawn
    span = {name: max(p) - min(p) for name, p in zip(drawn.names, drawn.ys.tolist(), strict=True)}
    first = rows(table, prompt=table.rows[0]["prompt"], side=table.rows[0]["side"])
    every = {t: [r["p"] for r in first if r["token"] == t] for t in {r["token"] for r in first}}
    left = [max(p) - min(p) for t, p in every.items() if t not in span]
    assert len(left) > 10
    assert min(span.values()) >= max(left)


def test_tokens_of_one_text_are_told_apart(shared: Path) -> None:
    """A vocabulary with bytes beside the letters that they are: two tokens are called 'a'."""
    model = covector.open(shared / "models" / "stories260k")
    labels = list(model.labels["token"])
    assert labels.count("a") == 2
    pairs = covector.fill_template(model, "Once upon a time [NAME]", {"NAME": (["he"], ["she"])})
    table = covector.edit_tokens(model, "L2.mlp.out:0*0", "' was' - ' had'", pairs, doses=[0.5], top=len(labels))
    found = rows(table, side="clean", dose=0.0)
    assert sum(r["p"] for r in found) == pytest.approx(1, abs=TOLERANCE), "every token of the vocabulary, once"
    twice = [i for i, text in enumerate(labels) if text == "a"]
    before = np.exp(next_logp(model, pairs[0].clean))
    for token in twice:
        (row,) = [r for r in found if r["token"] == f"a (id {token})"]
        assert row["before"] == pytest.approx(before[token], abs=TOLERANCE)
