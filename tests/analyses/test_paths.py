"""Paths between two kinds of prompts as a table: shares that sum to what was measured, and what it says of them."""

import numpy as np
import pytest

import covector
from covector.analyses.paths import paths
from covector.arch.toy import induction, random_model
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.prompts import Pair
from covector.study.observable import Observable
from random_checkpoints import random_weights

TASK = {"token 3": 1.0, "token 7": -1.0}


def pair(clean: list[int], corrupt: list[int], **slots: int) -> Pair:
    words = (" ".join(map(str, clean)), " ".join(map(str, corrupt)))
    return Pair(tuple(clean), tuple(corrupt), {**slots, "end": len(clean) - 1}, words, words)


PAIRS = [
    pair([3, 1, 4, 1, 5], [3, 9, 4, 1, 5], NAME=1),
    pair([2, 7, 1, 8, 2], [2, 6, 1, 8, 2], NAME=1),
    pair([5, 3, 1, 4, 2, 6, 7], [5, 3, 9, 4, 2, 6, 7], NAME=2),
]


def measured(model: Model, observable: Observable) -> np.ndarray:
    decoder = Decoder(model.weights)
    found = []
    for p in PAIRS:
        runs = [captured(decoder, np.array([ids]))["out.token"][0, -1:] for ids in (p.clean, p.corrupt)]
        found.append(float((observable.of(runs[0]) - observable.of(runs[1]))[0]))
    return np.array(found)


@pytest.mark.parametrize("make", [random_model, lambda: random_weights("gemma2"), lambda: random_weights("llama")])
def test_the_parts_of_one_step_sum_to_what_was_measured(make) -> None:
    """Everything that reaches the output directly: the first expansion, over prompts of two lengths."""
    model = covector.open(make())
    observable = Observable(TASK, model)
    table = paths(model, observable, PAIRS, expansions=1, least=0.0)
    difference = measured(model, observable)
    assert table.meta["total"] == pytest.approx(difference.mean(), rel=1e-10)
    assert sum(row["share"] for row in table.rows) == pytest.approx(difference.mean(), rel=1e-9)
    assert sum(row["of_total"] for row in table.rows) == pytest.approx(1, rel=1e-9)
    assert {row["steps"] for row in table.rows} == {1}
    sizes = [abs(row["share"]) for row in table.rows]
    assert sizes == sorted(sizes, reverse=True)
    assert (table.meta["kind"], table.meta["policy"], table.meta["pairs"]) == ("accounting", "secant", 3)


def test_net_and_gross_are_those_of_the_complete_paths_and_cancellation_of_all_parts() -> None:
    model = covector.open(random_model())
    table = paths(model, Observable(TASK, model), PAIRS, expansions=60, least=0.0)
    complete = np.array([row["share"] for row in table.rows if row["complete"]])
    assert all(row["path"].startswith("embed") == bool(row["complete"]) for row in table.rows)
    meta = table.meta
    assert meta["net"] == pytest.approx(complete.sum(), rel=1e-10)
    assert meta["gross"] == pytest.approx(np.abs(complete).sum(), rel=1e-10)
    # The parts that are left sum to the total, so cancellation is what their sizes have beyond it.
    assert meta["cancellation"] == pytest.approx(1 - abs(meta["total"]) / meta["frontier_gross"], rel=1e-9)
    assert meta["frontier_gross"] == pytest.approx(meta["gross"] + meta["remainder_gross"], rel=1e-9)
    assert abs(meta["closure"]) < 1e-10 * meta["gross"]
    assert meta["net"] + meta["remainder"] == pytest.approx(meta["total"], rel=1e-10)
    assert meta["complete"] == len(complete)
    assert meta["expanded"] == 60


def test_intervals_are_students_over_pairs() -> None:
    model = covector.open(random_model())
    observable = Observable(TASK, model)
    row = next(
        r for r in paths(model, observable, PAIRS, expansions=1, least=0.0).rows if r["path"] == "L1.mlp@end>out"
    )
    each = []
    for p in PAIRS:
        alone = paths(model, observable, [p], expansions=1, least=0.0)
        each += [r["share"] for r in alone.rows if r["path"] == "L1.mlp@end>out"]
        assert np.isnan(np.asarray(alone["low"])).all()
    error = np.std(each, ddof=1) / np.sqrt(3) * 4.302653 / 1.96  # t of two degrees of freedom at 97.5 %
    assert row["share"] == pytest.approx(np.mean(each), rel=1e-9)
    assert (row["low"], row["high"]) == pytest.approx((np.mean(each) - 1.96 * error, np.mean(each) + 1.96 * error))
    assert row["agree"] == pytest.approx(np.mean(np.sign(each) == np.sign(np.mean(each))))


def test_positions_together_are_the_sum_of_positions_apart() -> None:
    model = covector.open(random_model())
    apart, together = (
        paths(model, Observable(TASK, model), PAIRS, expansions=1, least=0.0, by_slot=by) for by in (True, False)
    )
    sums: dict[str, float] = {}
    for row in apart.rows:
        name = row["path"].partition("@")[0]
        sums[name] = sums.get(name, 0.0) + row["share"]
    assert {row["path"].partition("@")[0]: row["share"] for row in together.rows} == pytest.approx(sums, rel=1e-9)


def test_the_output_may_be_read_at_another_slot() -> None:
    model = covector.open(random_model())
    observable = Observable(TASK, model)
    table = paths(model, observable, PAIRS[:2], at="NAME+1", expansions=1, least=0.0)
    decoder = Decoder(model.weights)
    runs = [
        captured(decoder, np.array(side))["out.token"][:, 2]
        for side in zip(*((p.clean, p.corrupt) for p in PAIRS[:2]), strict=True)
    ]
    assert table.meta["total"] == pytest.approx(
        float(np.mean(observable.of(runs[0]) - observable.of(runs[1]))), rel=1e-10
    )


def test_an_induction_head_is_said_to_bring_the_difference() -> None:
    model = covector.open(induction())
    observable = Observable({"token 2": 1.0, "token 4": -1.0}, model)
    table = paths(model, observable, [pair([0, 1, 2, 3, 1], [0, 1, 4, 3, 1], NAME=2)])
    assert [row["path"] for row in table.rows[:2]] == ["L1H0@NAME>out", "embed@NAME>L1H0@NAME>out"]
    assert [row["share"] for row in table.rows[:2]] == pytest.approx([2, 2], abs=1e-9)
    assert table.says.startswith("L1H0@NAME>out brings 100% of the difference in 'token 2' - 'token 4' directly")
    assert table.meta["cancellation"] == pytest.approx(0, abs=1e-9)


def test_what_has_nothing_to_account_for_is_refused() -> None:
    model = covector.open(random_model())
    with pytest.raises(BadRequest, match="expected pairs of prompts, got none"):
        paths(model, Observable(TASK, model), [])
    same = [pair([3, 1, 4], [3, 1, 4])]
    with pytest.raises(BadRequest, match=r"clean and corrupt prompts give the same .* no difference to account for"):
        paths(model, Observable(TASK, model), same)
    with pytest.raises(BadRequest, match="expected a slot among NAME, end or a number, got 'WHO'"):
        paths(model, Observable(TASK, model), PAIRS, at="WHO")
    assert "softmax ignores" in paths(model, Observable({"token 3": 1.0}, model), PAIRS, expansions=1).not_says
