"""Splits of one answer: sums that could fail, biases made from biases, parts that are what removing them changes."""

import dataclasses

import numpy as np
import pytest
import torch

import covector
from covector.analyses import attribute as module
from covector.analyses.attribute import attribute, closed
from covector.arch.toy import RMS_NORM, random_model
from covector.model.opened import Model
from covector.model.weights import Weights
from covector.run.decoder import Decoder
from covector.run.hooks import Intervention
from covector.run.prompts import Pair
from covector.study.observable import Observable

LINEAR = {"norm": None, "d_mlp": 0, "n_layers": 2, "n_kv_heads": 2}
PAIR = Pair((3, 9, 1, 14, 20, 7), (3, 9, 1, 14, 20, 8), {"end": 5}, ("", ""))
CLOSE = {"rtol": 1e-10, "abs": 1e-11}


def asked(model: Model) -> Observable:
    return Observable({"token 3": 1, "token 5": -1}, model)


def value(weights: Weights, changes: dict[str, Intervention] | None = None) -> float:
    outputs = Decoder(weights).run(torch.tensor([PAIR.clean]), intervene=changes).outputs["token"]
    return float(outputs[0, -1, 3] - outputs[0, -1, 5])


def parts(weights: Weights, by: str) -> dict[tuple[str, str], float]:
    table = attribute(covector.open(weights), asked(covector.open(weights)), PAIR, by=by)
    told = table["of"] if by != "component" else [""] * len(table)
    return dict(zip(zip(table["part"], told, strict=True), map(float, np.asarray(table["logits"])), strict=True))


def test_a_head_of_the_last_layer_brings_what_the_answer_loses_without_it() -> None:
    weights = random_model(**LINEAR)
    found = parts(weights, "component")
    for head in range(4):

        def without(z: torch.Tensor, head: int = head) -> torch.Tensor:
            z = z.clone()
            z[:, :, head] = 0
            return z

        lost = value(weights) - value(weights, {"L1.z": without})
        assert found[f"L1H{head}", ""] == pytest.approx(lost, rel=1e-9, abs=1e-11)


def test_a_source_token_brings_what_a_head_loses_without_its_value() -> None:
    weights = random_model(**{**LINEAR, "n_kv_heads": 4})
    found = parts(weights, "head")
    for head in range(4):
        for source in range(6):

            def without(v: torch.Tensor, head: int = head, source: int = source) -> torch.Tensor:
                v = v.clone()
                v[:, source, head] = 0
                return v

            lost = value(weights) - value(weights, {"L1.v": without})
            own = next(logits for (part, of), logits in found.items() if part == f"L1H{head}" and of[0] == str(source))
            assert own == pytest.approx(lost, rel=1e-9, abs=1e-11)


def test_an_input_token_brings_what_the_answer_loses_without_it_while_patterns_are_held() -> None:
    weights = random_model(**LINEAR)
    run = Decoder(weights).run(torch.tensor([PAIR.clean]), capture=["L0.pattern", "L1.pattern"]).cache
    held = {name: (lambda _, name=name: run[name]) for name in ("L0.pattern", "L1.pattern")}
    found = parts(weights, "token")
    for token in range(6):

        def without(x: torch.Tensor, token: int = token) -> torch.Tensor:
            x = x.clone()
            x[:, token] = 0
            return x

        lost = value(weights) - value(weights, {**held, "resid_in": without})
        own = next(logits for (part, _), logits in found.items() if part == str(token))
        assert own == pytest.approx(lost, rel=1e-9, abs=1e-11)
    nothing = value(weights, {**held, "resid_in": torch.zeros_like})
    assert next(v for (part, _), v in found.items() if part == "biases") == pytest.approx(nothing, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("by", ["component", "head", "token"])
def test_a_model_without_biases_has_none_to_show(by: str) -> None:
    """Relu is 0 at 0 and RMS norms have no bias: nothing comes from nothing."""
    weights = random_model(biases=False, norm=RMS_NORM, activation="relu")
    held = next(logits for (part, _), logits in parts(weights, by).items() if part == "biases")
    assert held == pytest.approx(0, abs=1e-12)
    found = parts(weights, by)
    assert sum(found.values()) == pytest.approx(value(weights), rel=1e-10)


@pytest.mark.parametrize("by", ["component", "head", "token"])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_split_that_loses_a_part_does_not_close(by: str, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = module.SPLITS[by]

    def short(*given: object) -> list[module.Row]:
        rows = whole(*given)
        del rows[place]
        return rows

    monkeypatch.setitem(module.SPLITS, by, short)
    with pytest.raises(AssertionError, match="a defect of covector"):
        parts(random_model(), by)


def test_a_constant_that_forgets_a_bias_does_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_model(activation="sigmoid")
    model = covector.open(weights)
    for by in ("component", "token"):
        for name in ("final_norm.bias", "b_U") if by == "component" else ("L0.b_in", "L1.b_out", "L0.b_V", "L1.b_O"):
            zeroed = dataclasses.replace(weights, arrays={**weights.arrays, name: 0 * weights[name]})
            with monkeypatch.context() as patch:
                real = module.constant
                patch.setattr(
                    module, "constant",
                    lambda linear, *a, real=real, zeroed=zeroed, **k: real(
                        dataclasses.replace(linear, weights=zeroed, _parts={}), *a, **k
                    ),
                )  # fmt: skip
                with pytest.raises(AssertionError, match="a defect of covector"):
                    attribute(model, asked(model), PAIR, by=by)


def test_a_gap_is_shown_between_rounding_and_defect() -> None:
    rows = [("a", "", 2.0), ("b", "", -1.0)]
    assert closed(rows, 1.0) == rows
    assert closed(rows, 1.0 + 1e-14) == rows
    *same, last = closed(rows, 1.0 + 1e-10)
    assert same == rows
    assert (last[0], last[2]) == ("unexplained", pytest.approx(1e-10, rel=1e-3))
    for broken in (1.0 + 1e-8, float("nan")):
        with pytest.raises(AssertionError, match="the parts should sum to"):
            closed(rows, broken)
