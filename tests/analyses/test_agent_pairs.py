"""Pairs of an agent's inputs in the place of prompts: read from files, run, and accounted for exactly.

The judge of every number is transformers' own decision transformer, or autograd through the decoder.
"""

import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import covector
from covector.analyses.patch import patch
from covector.arch.family import families
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.hf_load import tiny_judge
from covector.run.hf_runner import HFRunner
from covector.run.inputs_file import read_input_pairs
from covector.run.points import as_inputs
from covector.run.prompts import Pair, batches, side_of
from covector.study.observable import Observable

STEPS = 4
TASK = "0 - 2"
# transformers computes the softmax of this family in the model's precision, and nothing in float32.
TOLERANCE = 1e-9


@cache
def made() -> tuple[Model, HFRunner]:
    judge, weights = tiny_judge(families()["decision_transformer"], seed=4)
    return covector.open(weights), HFRunner(judge, weights)


def drawn(seed: int, steps: int = STEPS, actions: int | None = None) -> dict[str, list]:
    rng = np.random.default_rng(seed)
    return {
        "return": rng.standard_normal(steps).tolist(),
        "state": rng.standard_normal((steps, 5)).tolist(),
        "action": rng.standard_normal((steps if actions is None else actions, 3)).tolist(),
        "timestep": list(range(3, 3 + steps)),
    }


def lines(folder: Path, *values: dict[str, Any]) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(value) for value in values), encoding="utf-8")
    return str(path)


def files(folder: Path, *values: dict[str, Any]) -> str:
    """CLEAN.json:CORRUPT.json."""
    names = [str(folder / f"{i}.json") for i in range(len(values))]
    for name, value in zip(names, values, strict=True):
        Path(name).write_text(json.dumps(value), encoding="utf-8")
    return ":".join(names)


def pairs_for(folder: Path, n: int = 3) -> list[Pair]:
    model, _ = made()
    return read_input_pairs(model, [lines(folder, *({"clean": drawn(i), "corrupt": drawn(50 + i)} for i in range(n)))])


def judged(pairs: list[Pair], side: int, step: int = STEPS - 1) -> np.ndarray:
    """The task as transformers' own forward returns it at a timestep's state."""
    given = as_inputs(side_of(pairs, side))
    assert isinstance(given, dict)
    actions = made()[1].returned(given)["action"][:, step].detach().numpy()
    return actions[:, 0] - actions[:, 2]


def difference(pairs: list[Pair], step: int = STEPS - 1) -> float:
    return float(np.mean(judged(pairs, 0, step) - judged(pairs, 1, step)))


def test_shares_sum_to_the_difference_that_transformers_measures(tmp_path: Path) -> None:
    model, _ = made()
    pairs = pairs_for(tmp_path)
    table = covector.shares(model, TASK, pairs, at="state")
    assert sum(table["direct"]) == pytest.approx(difference(pairs), abs=TOLERANCE)
    assert table.meta["total"] == pytest.approx(difference(pairs), abs=TOLERANCE)
    assert abs(difference(pairs)) > 1e-3


def test_a_share_is_read_at_the_timestep_that_is_named(tmp_path: Path) -> None:
    model, _ = made()
    pairs = pairs_for(tmp_path)
    table = covector.shares(model, TASK, pairs, at="state1")
    assert sum(table["direct"]) == pytest.approx(difference(pairs, 1), abs=TOLERANCE)
    assert abs(difference(pairs, 1) - difference(pairs)) > 1e-3


def test_what_stands_behind_a_state_is_in_no_share_of_its_action(tmp_path: Path) -> None:
    """Pairs that differ in the last action alone do not differ in what is decided before it."""
    model, _ = made()
    clean, corrupt = drawn(0), drawn(0)
    corrupt["action"][-1] = [9.0, 9.0, 9.0]
    pairs = read_input_pairs(model, [files(tmp_path, clean, corrupt)])
    assert pairs[0].differs
    np.testing.assert_allclose(covector.shares(model, TASK, pairs, at="state")["direct"], 0, atol=TOLERANCE)


def test_paths_close_over_the_same_difference_and_name_inputs_by_timestep(tmp_path: Path) -> None:
    model, _ = made()
    pairs = pairs_for(tmp_path)
    table = covector.paths(model, TASK, pairs, at="state", expansions=40, least=1e-9)
    assert table.meta["total"] == pytest.approx(difference(pairs), abs=TOLERANCE)
    assert table.meta["net"] + table.meta["remainder"] == pytest.approx(difference(pairs), abs=TOLERANCE)
    slots = {step.split("@")[1] for path in table["path"] for step in path.split(">") if "@" in step}
    assert slots <= {*(f"{name}{t}" for name in ("return", "state", "action") for t in range(STEPS)), "end"}
    assert {f"state{STEPS - 1}", f"return{STEPS - 1}"} <= slots


@pytest.mark.parametrize("what", ["heads", "resid", "mlp", "v"])
def test_patching_an_agent_is_what_transformers_does(what: str, tmp_path: Path) -> None:
    model, runner = made()
    pairs = pairs_for(tmp_path)
    tables = [patch(model, TASK, pairs, what=what, at="state", runner=r) for r in (None, runner)]
    ours, theirs = (dict(zip(t["place"], t["effect"], strict=True)) for t in tables)
    assert max(map(abs, ours.values())) > 1e-3
    np.testing.assert_allclose([theirs[place] for place in ours], list(ours.values()), atol=TOLERANCE)
    assert tables[1].meta["total"] == pytest.approx(difference(pairs), abs=TOLERANCE)


def test_patching_one_input_changes_what_comes_from_its_position_on(tmp_path: Path) -> None:
    model, _ = made()
    pairs = pairs_for(tmp_path)
    table = patch(model, TASK, pairs, what="resid", slots=("state1", "action3"), at="state")
    effect = dict(zip(table["place"], table["effect"], strict=True))
    assert abs(effect["L0.resid_pre@state1"]) > 1e-3
    assert effect["L0.resid_pre@action3"] == pytest.approx(0, abs=TOLERANCE)


def test_the_first_order_guess_of_an_agent_is_the_gradient_that_autograd_takes(tmp_path: Path) -> None:
    model, _ = made()
    pairs = pairs_for(tmp_path)
    table = patch(model, TASK, pairs, what="attn", slots=("state2",), at="state")
    guess = dict(zip(table["place"], table["first_order"], strict=True))
    decoder, at = Decoder(model.weights), 3 * (STEPS - 1) + 1
    runs = [decoder.run(as_inputs(side_of(pairs, side)), capture=["L*.attn_out"]).cache for side in (0, 1)]
    for layer in range(model.spec.n_layers):
        hook = f"L{layer}.attn_out"
        leaf = runs[0][hook].clone().requires_grad_()
        out = decoder.run(as_inputs(side_of(pairs, 0)), intervene={hook: lambda _, leaf=leaf: leaf}).outputs["action"]
        (gradient,) = torch.autograd.grad((out[:, at, 0] - out[:, at, 2]).sum(), leaf)
        change = (runs[0][hook] - runs[1][hook])[:, 7]  # return, state, action: state2 is position 7
        wanted = float((gradient[:, 7] * change).sum(-1).mean())
        assert guess[f"{hook}@state2"] == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.parametrize("by", ["component", "head", "token"])
def test_parts_of_an_answer_sum_to_what_transformers_gives(by: str, tmp_path: Path) -> None:
    model, _ = made()
    pairs = pairs_for(tmp_path, n=1)
    table = covector.attribute(model, TASK, pairs[0], by=by, at="state")
    assert table.meta["value"] == pytest.approx(judged(pairs, 0)[0], abs=TOLERANCE)
    # A tanh stands behind the action: held at its slope it leaves a constant, which the biases' row has.
    assert sum(table[table.columns[-2].name]) == pytest.approx(judged(pairs, 0)[0], abs=TOLERANCE)
    if by == "token":
        assert list(table["of"])[:4] == ["return0", "state0", "action0", "return1"]


def test_a_vector_that_steers_an_agent_does_what_it_does_in_transformers(tmp_path: Path) -> None:
    from covector.analyses.steer import steer

    model, runner = made()
    pairs, path = pairs_for(tmp_path, n=1), "L1H0>out"
    table = steer(
        model, [TASK], pairs, path=path, place="L0.resid_pre", token="state2", at="state", scales=[0.5], draws=2
    )
    row = next(row for row in table.rows if row["vector"] == "vector")
    f = covector.propagate(model, Observable.parse(TASK, model), path).vector
    delta = torch.zeros(3 * STEPS, model.spec.d_model, dtype=torch.float64)
    # One unit is what the feature reads as 1; return, state, action: state2 is position 7.
    delta[7] = torch.from_numpy(row["dose"] * f / (f @ f))
    found = []
    for side in (0, 1):
        given = as_inputs(side_of(pairs, side))
        actions = runner.run(given, intervene={"L0.resid_pre": lambda x: x + delta}).outputs["action"]
        steered = actions[:, 3 * (STEPS - 1) + 1].detach().numpy()
        found.append(float(steered[0, 0] - steered[0, 2] - judged(pairs, side)[0]))
    assert abs(found[0]) > 1e-4
    assert row["effect"] == pytest.approx(np.mean(found), abs=TOLERANCE)


def test_sequences_of_different_lengths_run_in_batches_of_their_own(tmp_path: Path) -> None:
    model, _ = made()
    values = [{"clean": drawn(i, n), "corrupt": drawn(9 + i, n)} for i, n in enumerate((2, 4, 2))]
    pairs = read_input_pairs(model, [lines(tmp_path, *values)])
    assert [len(pair) for pair in pairs] == [6, 12, 6]
    assert [len(batch.pairs) for batch in batches(pairs)] == [2, 1]
    table = covector.shares(model, TASK, pairs, at="state")
    wanted = np.mean([difference([p], len(p) // 3 - 1) for p in pairs])
    assert sum(table["direct"]) == pytest.approx(wanted, abs=TOLERANCE)


def test_a_sequence_may_stop_where_the_action_is_decided(tmp_path: Path) -> None:
    """Then its end is the last state; the action that is missing would have been seen by nothing before it."""
    model, _ = made()
    short = [drawn(i, actions=STEPS - 1) for i in (0, 50)]
    stopped = read_input_pairs(model, [files(tmp_path, *short)])
    whole = read_input_pairs(model, [files(tmp_path, *({**s, "action": [*s["action"], [0.0] * 3]} for s in short))])
    assert len(stopped[0]) == 3 * STEPS - 1
    assert covector.shares(model, TASK, stopped).meta["total"] == pytest.approx(difference(whole), abs=TOLERANCE)


def test_positions_go_by_input_and_timestep_or_by_the_names_that_were_given(tmp_path: Path) -> None:
    model, _ = made()
    value = {"clean": drawn(0), "corrupt": drawn(1), "slots": {"KEY": "state1", "PUSH": -4}, "label": "seen"}
    (pair,) = read_input_pairs(model, [lines(tmp_path, value)])
    assert [pair.position(s) for s in ("return0", "state0", "state", "action2", "end", "KEY", "PUSH", "state+1")] == [
        0, 1, 10, 8, 11, 4, 8, 11]  # fmt: skip
    assert [pair.slot_of(t) for t in (0, 4, 5, 8, 10, 11)] == ["return0", "KEY", "action1", "PUSH", "state3", "end"]
    assert pair.label == "seen"


def test_an_action_is_not_read_where_no_action_is_decided(tmp_path: Path) -> None:
    model, _ = made()
    pairs = pairs_for(tmp_path, n=1)
    says = "--at end: expected a position where the output action is read, a state, got action 3; give --at state"
    for ask in (
        lambda: covector.shares(model, TASK, pairs),
        lambda: patch(model, TASK, pairs),
        lambda: covector.attribute(model, TASK, pairs[0]),
        lambda: covector.paths(model, TASK, pairs),
    ):
        with pytest.raises(BadRequest, match=says):
            ask()
    from covector.analyses.steer import steer

    with pytest.raises(BadRequest, match=r"--read end: expected a position .* give --read state"):
        steer(model, [TASK], pairs, path="L1H0>out", token="state2")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v["corrupt"]["state"].pop(), "expected inputs of equal length"),
        (lambda v: v["corrupt"].update(reward=[1]), "expected an object with return, state, action, timestep, got"),
        (lambda v: v["clean"].update(state=[[1, 2]] * STEPS), "state: expected 5 numbers per timestep"),
        (lambda v: v["clean"].update(timestep=[99] * STEPS), "timestep: expected whole numbers 0 … 29"),
        (lambda v: v.pop("clean"), "line 1: expected an object with 'clean'"),
        (lambda v: v.update(slots={"KEY": "state9"}), "expected a slot's position by number or name"),
        (lambda v: v.update(slots={"KEY": 12}), "expected a slot's position by number or name"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(change: Any, says: str, tmp_path: Path) -> None:
    value: dict[str, Any] = {"clean": drawn(0), "corrupt": drawn(1)}
    change(value)
    with pytest.raises(BadRequest, match=says):
        read_input_pairs(made()[0], [lines(tmp_path, value)])


def test_files_that_are_not_there_or_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="expected JSON inputs at"):
        read_input_pairs(made()[0], [str(tmp_path / "none.json")])
    with pytest.raises(BadRequest, match="expected pairs of inputs, got none"):
        read_input_pairs(made()[0], [lines(tmp_path)])


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    folder = tmp_path / "agent"
    made()[1].model.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["patch"], ["observe", "shares"], ["observe", "paths"]])
def test_commands_take_an_agents_inputs_and_say_how_to_go_on(
    command: list[str], checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from covector.cli.main import run

    given = files(tmp_path, drawn(0), drawn(1))
    assert run([*command, checkpoint, TASK, "--inputs", given, "--at", "state"]) == 0
    shown = capsys.readouterr().out
    following = "".join(shown[shown.index("next: covector ") :].splitlines()).removeprefix("next: covector ")
    assert "--at state" in following
    assert run(shlex.split(following)) == 0


def test_attribute_takes_one_sequence(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from covector.cli.main import run

    assert run(["attribute", checkpoint, TASK, "--inputs", files(tmp_path, drawn(0)), "--at", "state"]) == 0
    shown = capsys.readouterr().out
    assert "action" in shown  # the unit: a tanh action is no logit
    assert "logits" not in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--template", "[N] is", "--fill", "N=a:b"], "an agent reads no text"),
        ([], "reads no text: --inputs CLEAN.json:CORRUPT.json"),
    ],
)
def test_texts_and_inputs_are_not_mixed(
    words: list[str], says: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from covector.cli.main import run

    given = ["--inputs", files(tmp_path, drawn(0), drawn(1))] if words else []
    assert run(["patch", checkpoint, TASK, *given, *words]) == 2
    assert says in capsys.readouterr().err


def test_a_trained_agent_pushes_to_where_the_pole_falls(shared: Path, tmp_path: Path) -> None:
    """CartPole: a pole that leans right against one that leans left; inputs of a timestep are summed, not in a row."""
    layout = Path(__file__).resolve().parents[1] / "layouts" / "dt-cartpole.toml"
    model = covector.open(shared / "models" / "dt-cartpole", layout)

    def leaning(sign: float) -> dict[str, list]:
        return {"state": [[0.0, 0.0, sign, sign]], "action": [0], "return": [500], "time": [0]}

    pairs = read_input_pairs(model, [files(tmp_path, leaning(1), leaning(-1))])
    table = covector.shares(model, "'push right' - 'push left'", pairs)
    assert table.meta["total"] > 0
    assert sum(table["direct"]) == pytest.approx(table.meta["total"], abs=TOLERANCE)
    assert pairs[0].slot_of(0) == "end"
