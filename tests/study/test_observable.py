"""Observables: what is typed, what it weighs, what is refused, and how soft-caps and actions are read."""

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import covector
from captured_runs import run_of, runs_of
from covector.arch.toy import random_model
from covector.errors import BadRequest, NotOneToken, UnknownBasis
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from covector.propagation.linearised import Linearised, Policies
from covector.study.expression import parse
from covector.study.observable import Observable
from random_checkpoints import random_weights

CLOSE = {"rtol": 1e-12, "atol": 1e-13}
WORDS = ("<s>", " she", " he", "she", " She", " nurse", " doctor", " it's", *(f" w{i}" for i in range(15)))


class Words:
    """A vocabulary of whole words; anything else is split into letters."""

    labels = WORDS

    def encode(self, text: str) -> list[int]:
        return [WORDS.index(text)]

    def one(self, text: str) -> int:
        if text in WORDS:
            return WORDS.index(text)
        raise NotOneToken(f"expected a single token, got {text!r}: it is {' | '.join(map(repr, text))};")


def language() -> Model:
    weights = random_model(n_vocab=len(WORDS))
    return Model("words", weights, weights, Frame(), {"token": WORDS}, Words())


@pytest.fixture(scope="module")
def demo() -> Model:
    return covector.open("demo-lm")


@pytest.mark.parametrize(
    ("typed", "weights"),
    [
        ("' she' - ' he'", {1: 1.0, 2: -1.0}),
        ("0.5*' nurse' + 2*' she' − ' doctor'", {5: 0.5, 1: 2.0, 6: -1.0}),
        ('" it\'s" - "▁he"', {7: 1.0, 2: -1.0}),
        ("·she - Ġhe", {1: 1.0, 2: -1.0}),
        # A bare word shares its weight among the tokens that it may be.
        ("she - he", {1: 1 / 3, 4: 1 / 3, 3: 1 / 3, 2: -1.0}),
        ("' she' + ' she' - ' he'", {1: 2.0, 2: -1.0}),
        ("' she' - ' she' + ' he'", {2: 1.0}),
    ],
)
def test_what_is_typed_is_what_is_weighed(typed: str, weights: dict[int, float]) -> None:
    model = language()
    observable = Observable.parse(typed, model)
    wanted = np.zeros(len(WORDS))
    wanted[list(weights)] = list(weights.values())
    np.testing.assert_allclose(observable.vector, wanted, **CLOSE)
    again = Observable.parse(str(observable), model)
    np.testing.assert_allclose(again.vector, wanted, **CLOSE)
    y = np.random.default_rng(0).standard_normal((3, len(WORDS)))
    np.testing.assert_allclose(observable.of(y), y @ wanted, **CLOSE)
    assert observable.total == pytest.approx(wanted.sum())


def test_a_file_holds_weights_or_a_list(tmp_path: Path) -> None:
    model = language()
    file = tmp_path / "task.json"
    file.write_text(json.dumps({" she": 1, " he": -1.5}))
    assert Observable.parse(f"@{file}", model).weights == (1.0, -1.5)
    file.write_text(json.dumps([" she", " nurse"]))
    assert Observable.parse(f"@{file}", model).weights == (1.0, 1.0)


@pytest.mark.parametrize(
    ("typed", "error", "told"),
    [
        ("' she' - ' xyz'", NotOneToken, r"got ' xyz': it is ' ' \| 'x' \| 'y' \| 'z'"),
        ("' she' - ' she'", BadRequest, "the weights of .* cancel: nothing is observed"),
        ("' she' + * ' he'", BadRequest, "cannot read"),
        ("", BadRequest, "got an empty expression"),
    ],
)
def test_what_means_nothing_is_refused(typed: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Observable.parse(typed, language())


def test_a_word_of_several_tokens_is_refused_with_its_split(demo: Model) -> None:
    with pytest.raises(NotOneToken) as caught:
        Observable.parse("' Elisabeth' - ' he'", demo)
    assert demo.vocabulary is not None
    pieces = [demo.labels["token"][i] for i in demo.vocabulary.encode(" Elisabeth")]
    assert len(pieces) > 1
    assert " | ".join(map(repr, pieces)) in str(caught.value)


@pytest.mark.identity("OP-1")
@pytest.mark.parametrize("centred", [False, True])
def test_the_readout_and_the_constant_are_the_observable_of_the_output(centred: bool) -> None:
    model = language()
    observable = Observable({" she": 1.5, " he": -1.0}, model)
    observable = observable.centred() if centred else observable
    x = np.random.default_rng(0).standard_normal((4, model.spec.d_model))
    logits = x @ model.weights["W_U"] + model.weights["b_U"]
    np.testing.assert_allclose(
        x @ observable.readout(model) + observable.constant(model), observable.of(logits), **CLOSE
    )
    np.testing.assert_allclose(logits @ observable.vector, observable.of(logits), **CLOSE)


@pytest.mark.identity("OP-23", "OP-25")
def test_centred_observables_do_not_see_a_common_shift_and_the_others_warn() -> None:
    model = language()
    y = np.random.default_rng(0).standard_normal((4, len(WORDS)))
    for weights, warns in (({" she": 1.0, " he": -1.0}, False), ({" she": 1.0}, True)):
        observable = Observable(weights, model)
        assert bool(observable.warning) is warns
        moved = observable.of(y + 3) - observable.of(y)
        np.testing.assert_allclose(moved, 3 * sum(weights.values()), atol=1e-12)
        centred = observable.centred()
        np.testing.assert_allclose(centred.of(y + 3), centred.of(y), atol=1e-12)
        np.testing.assert_allclose(centred.of(y), observable.of(y) - sum(weights.values()) * y.mean(-1), **CLOSE)
        assert centred.balanced
        assert centred.warning == ""
    assert "sum to 1: softmax ignores a common shift" in Observable({" she": 1.0}, model).warning
    a, b = Observable({" she": 1.0}, model), Observable({" he": 1.0}, model)
    both = Observable({" she": 2.0, " he": -3.0}, model)
    np.testing.assert_allclose(both.of(y), 2 * a.of(y) - 3 * b.of(y), **CLOSE)
    np.testing.assert_allclose(both.readout(model), 2 * a.readout(model) - 3 * b.readout(model), **CLOSE)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("typed", ["' she' - ' he'", "2*' it\\'s'", "'\"' - ' he'"])
def test_the_words_for_a_command_line_mean_the_same_observable(typed: str, centred: bool) -> None:
    """As a shell splits them: one word for the task, then the options that it needs."""
    names = (*WORDS[:-1], '"')
    model = dataclasses.replace(language(), labels={"token": names})
    observable = Observable.parse(typed, model)
    observable = observable.centred() if centred else observable
    words = shlex.split(observable.typed)
    assert words[1:] == (["--centred"] if centred and not Observable.parse(typed, model).balanced else [])
    again = Observable.parse(words[0], model)
    np.testing.assert_allclose((again.centred() if centred else again).vector, observable.vector, **CLOSE)
    agent = covector.open(random_weights("decision_transformer"))
    assert shlex.split(Observable({"0": 1.0}, agent).typed) == ["'action 0'", "--output", "action"]


def test_a_soft_cap_is_read_at_its_working_point() -> None:
    """Gemma-2: y = c·tanh(z/c), so n' = (1 − (y/c)²) ⊙ n; what is held reproduces the value, differences are exact."""
    weights = random_weights("gemma2")
    cap = weights.spec.outputs[0].softcap
    assert cap is not None
    model = covector.open(weights)
    observable = Observable({"token 3": 1.0, "token 7": -1.0}, model)
    plus, minus = runs_of(weights)
    at, rows = np.array([5, 3]), np.arange(2)
    y, x = plus["out.token"][rows, at], plus["final_normed"][rows, at]
    assert np.abs(y / cap).max() > 0.5
    np.testing.assert_allclose(cap * np.tanh(x @ weights["W_U"] / cap), y, rtol=1e-10)

    def start(policy: str, *runs: dict[str, np.ndarray]) -> np.ndarray:
        linear = Linearised(weights, runs, Policies("ignore", "ignore", "ignore", policy))  # type: ignore[arg-type]
        return linear.start(observable.vector[None], "token", at)[rows, at]

    gain = weights["final_norm.gain"]
    exact = (observable.vector * (1 - (y / cap) ** 2)) @ weights["W_U"].T * gain
    np.testing.assert_allclose(start("exact", plus), exact, rtol=1e-11, atol=1e-12)
    held = np.sum(start("frozen", plus) / gain * x, axis=-1)
    np.testing.assert_allclose(held, observable.of(y), rtol=1e-11, atol=1e-12)
    change = np.sum(start("secant", plus, minus) / gain * (x - minus["final_normed"][rows, at]), axis=-1)
    wanted = observable.of(y) - observable.of(minus["out.token"][rows, at])
    np.testing.assert_allclose(change, wanted, rtol=1e-11, atol=1e-12)
    # Without a working point the cap is left out.
    np.testing.assert_allclose(
        start("ignore", plus), np.broadcast_to(observable.readout(model) * gain, x.shape), rtol=1e-11
    )


def test_actions_of_an_agent_are_observed_behind_their_tanh() -> None:
    weights = random_weights("decision_transformer")
    model = covector.open(weights)
    n = weights.spec.outputs[0].n
    first = Observable({"0": 1.0}, model)
    assert (first.output, first.size, first.labels) == ("action", n, ("action 0",))
    # Not a softmax: a single action means something.
    assert first.warning == ""
    (plus,) = runs_of(weights, (1,))
    at, rows = np.array([4, 7]), np.arange(2)
    y, x = plus["out.action"][rows, at], plus["final_normed"][rows, at]
    np.testing.assert_allclose(y, np.tanh(x @ weights["out.action.W"] + weights["out.action.b"]), rtol=1e-10)
    np.testing.assert_allclose(first.readout(model), weights["out.action.W"][:, 0], **CLOSE)
    assert first.constant(model) == pytest.approx(weights["out.action.b"][0])
    linear = Linearised(weights, (plus,), Policies("ignore", "ignore", "ignore", "exact"))
    exact = (1 - y[:, :1] ** 2) * weights["out.action.W"][:, 0] * weights["final_norm.gain"]
    exact -= exact.mean(-1, keepdims=True)
    np.testing.assert_allclose(linear.start(first.vector[None], "action", at)[rows, at], exact, rtol=1e-11, atol=1e-12)
    state = Observable({"state 2": 1.0, "state 0": -1.0}, model, "state")
    assert state.output == "state"
    np.testing.assert_allclose(state.of(plus["out.state"]), plus["out.state"][..., 2] - plus["out.state"][..., 0])


@pytest.mark.parametrize(
    ("weights", "output", "error", "told"),
    [
        ({"jump": 1.0}, None, UnknownBasis, "output action: expected one of its . labels, got 'jump'"),
        ({"9": 1.0}, None, UnknownBasis, "got '9'"),
        ({"0": 1.0}, "reward", BadRequest, "expected an output among action, state, return, got 'reward'"),
    ],
)
def test_actions_that_an_agent_lacks_are_refused(weights, output, error, told) -> None:
    with pytest.raises(error, match=told):
        Observable(weights, covector.open(random_weights("decision_transformer")), output)


def test_a_model_without_outputs_is_refused() -> None:
    weights = random_weights("bert")
    if weights.spec.outputs:
        bare = dataclasses.replace(weights.spec, outputs=())
        weights = ArrayWeights(bare, {n: np.array(weights[n]) for n in weights.names()})
    with pytest.raises(BadRequest, match="has no outputs"):
        Observable({"a": 1.0}, covector.open(weights))


def test_what_was_measured_is_what_was_run(demo: Model) -> None:
    """The observable of logits, against transformers-free algebra on the final stream of the bundled model."""
    assert demo.vocabulary is not None
    tokens = np.array([demo.vocabulary.encode("Yesterday Mary was happy because")])
    run = run_of(demo.weights, tokens)
    observable = Observable(parse("' she' - ' he'"), demo)
    ids = [demo.vocabulary.one(" she"), demo.vocabulary.one(" he")]
    logits = torch.from_numpy(run["out.token"])
    np.testing.assert_allclose(observable.of(run["out.token"]), (logits[..., ids[0]] - logits[..., ids[1]]).numpy())
    final = run["final_normed"] @ observable.readout(demo) + observable.constant(demo)
    np.testing.assert_allclose(final, observable.of(run["out.token"]), rtol=1e-10, atol=1e-10)
