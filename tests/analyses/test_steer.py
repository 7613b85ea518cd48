"""Steering: first-order predictions are slopes, closed forms deliver, bounds hold, and effects split exactly."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import covector
from covector.analyses.propagate import propagate
from covector.analyses.steer import steer
from covector.analyses.steer_experiment import Setup, set_up
from covector.analyses.steer_setup import Prompts, gradients, held_out, path_slope, prompts_of, spot_for, token_of
from covector.analyses.steer_split import split_of
from covector.arch.toy import random_model
from covector.errors import BadRequest, BadSite
from covector.model.opened import Model
from covector.model.spec import Norm, Rotary
from covector.model.weights import Weights
from covector.propagation.entry import first_readers, spot_of
from covector.propagation.linearised import Linearised, Policies
from covector.propagation.saturation import saturation
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.prompts import Pair
from covector.run.steered import changes, steered
from covector.study.observable import Observable
from covector.study.path import parse_path
from random_checkpoints import random_weights

MODELS: dict[str, Callable[[], Weights]] = {
    "plain": random_model,
    "rotary grouped": lambda: random_model(
        rotary=Rotary(4, 1e4), n_kv_heads=2, norm=Norm("rms", 1e-6), gated=True, activation="silu", positions="none"
    ),
    "parallel": lambda: random_model(parallel=True),
    "post-norm": lambda: random_model(placement="post"),
    "gemma2": lambda: random_weights("gemma2"),
}
SPOTS = ("L0.resid_pre", "L1.resid_pre", "L0.resid_mid", "L1.resid_post", "L1.attn_in", "L1.mlp_in")


def pairs_for(model: Model, n: int = 4, length: int = 6, seed: int = 0) -> list[Pair]:
    ids = np.random.default_rng(seed).integers(0, model.spec.n_vocab, (n, 2, length))
    slots = {"NAME": 2, "end": length - 1}
    return [
        Pair(tuple(map(int, a)), tuple(map(int, b)), slots, ("", ""), (f"a{i}", f"b{i}"))
        for i, (a, b) in enumerate(ids)
    ]


def asked(model: Model, second: bool = False) -> Observable:
    return Observable({"token 1": 1, "token 4": -1} if second else {"token 3": 1, "token 5": -1}, model)


def there(model: Model, spot: str) -> bool:
    try:
        spot_of(spot, model.spec)
    except (BadSite, BadRequest):
        return False
    return True


# Every model with every spot that its anatomy has.
PLACES = [(name, spot) for name in MODELS for spot in SPOTS if there(covector.open(MODELS[name]()), spot)]


def prepared(model: Model, token: str = "NAME") -> tuple[Decoder, Prompts]:
    decoder = Decoder(model.weights)
    return decoder, prompts_of(decoder, pairs_for(model), token, "end")[0]


def small(d: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(d)


@pytest.mark.parametrize(("name", "spot"), PLACES)
def test_the_predicted_slope_is_autograds(name: str, spot: str) -> None:
    model = covector.open(MODELS[name]())
    observable, place = asked(model), spot_of(spot, model.spec)
    for token in ("NAME", "end"):
        decoder, p = prepared(model, token)
        delta = torch.zeros(model.spec.d_model, dtype=torch.float64, requires_grad=True)
        moved = torch.from_numpy(p.mask)[..., None] * delta
        run = decoder.run(torch.from_numpy(p.tokens), intervene={place.hook: lambda x, moved=moved: x + moved})
        logits = run.logits[torch.arange(len(p.at)), torch.from_numpy(p.at)]
        (logits @ torch.from_numpy(observable.vector)).sum().backward()
        assert delta.grad is not None
        found = gradients(model, p, [observable], place)[0].sum(axis=0)
        np.testing.assert_allclose(found, delta.grad.numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("name", "spot"), PLACES)
def test_a_sweep_of_doses_is_a_whole_run_with_the_vector_added(name: str, spot: str) -> None:
    model = covector.open(MODELS[name]())
    observable, place = asked(model), spot_of(spot, model.spec)
    decoder, p = prepared(model)
    deltas = np.stack([k * small(model.spec.d_model) for k in (-1, 0, 2)])
    found = steered(decoder, p.base, place, deltas, p.mask, [observable], p.at)[0]
    for delta, values in zip(deltas, found, strict=True):

        def plus(x: torch.Tensor, delta: np.ndarray = delta) -> torch.Tensor:
            x = x.clone()
            x[:, 2] += torch.from_numpy(delta)
            return x

        run = decoder.run(torch.from_numpy(p.tokens), intervene={place.hook: plus})
        np.testing.assert_allclose(values, observable.of(run.logits[:, -1].numpy()), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(found[1], p.unsteered(observable), rtol=1e-12)


@pytest.mark.parametrize("token", ["NAME", "end"])
@pytest.mark.parametrize(("name", "spot"), PLACES)
def test_shares_of_what_reads_the_vector_first_sum_to_the_effect(name: str, token: str, spot: str) -> None:
    model = covector.open(MODELS[name]())
    observable, place = asked(model), spot_of(spot, model.spec)
    decoder, p = prepared(model, token)
    delta = small(model.spec.d_model)
    run = captured(decoder, p.tokens, changes(decoder, place, delta[None], p.mask))
    linear = Linearised(model.weights, (run, p.base), Policies.all("secant"))
    start = linear.start(observable.vector[None], observable.output, p.at)
    parts = [v.sum(axis=1) for _, _, v in first_readers(linear, start, place, p.mask[..., None] * delta)]
    wanted = steered(decoder, p.base, place, delta[None], p.mask, [observable], p.at)[0, 0] - p.unsteered(observable)
    assert np.abs(wanted).max() > 1e-3 or token == "NAME"
    np.testing.assert_allclose(np.sum(parts, axis=0), wanted, atol=1e-11)


def test_a_vector_on_another_token_goes_nowhere_straight_and_on_the_last_stream_nowhere_else() -> None:
    model = covector.open(random_model())
    observable = asked(model)
    delta = small(model.spec.d_model)[None]
    decoder, p = prepared(model)
    place = spot_of("L0.resid_pre", model.spec)
    before = p.unsteered(observable)
    direct = steered(decoder, p.base, place, delta, p.mask, [observable], p.at, "direct")[0, 0]
    np.testing.assert_allclose(direct, before, rtol=1e-13)
    both = [steered(decoder, p.base, place, delta, p.mask, [observable], p.at, arm)[0, 0] for arm in
            ("whole", "indirect")]  # fmt: skip
    np.testing.assert_allclose(both[0], both[1], rtol=1e-12)
    decoder, p = prepared(model, "end")
    last = spot_of("L1.resid_post", model.spec)
    whole, straight, rest = (steered(decoder, p.base, last, delta, p.mask, [observable], p.at, arm)[0, 0]
                             for arm in ("whole", "direct", "indirect"))  # fmt: skip
    np.testing.assert_allclose(whole, straight, rtol=1e-13)
    np.testing.assert_allclose(rest, before, rtol=1e-13)
    assert np.abs(whole - rest).max() > 1e-2


def test_without_norms_the_direct_part_and_the_rest_are_the_whole() -> None:
    """The output is linear in the last stream, so taking the vector off there takes off exactly its direct effect."""
    model = covector.open(random_model(norm=None))
    observable, place = asked(model), spot_of("L0.resid_pre", model.spec)
    decoder, p = prepared(model, "end")
    delta, before = small(model.spec.d_model), p.unsteered(observable)
    whole, direct, rest = (
        steered(decoder, p.base, place, delta[None], p.mask, [observable], p.at, arm)[0, 0] - before
        for arm in ("whole", "direct", "indirect")
    )
    np.testing.assert_allclose(direct, delta @ observable.readout(model) * np.ones(8), rtol=1e-9)
    np.testing.assert_allclose(rest + direct, whole, atol=1e-9 * np.abs(direct).max())
    assert np.abs(rest).max() > 1e-3


def test_what_goes_straight_through_is_refused_behind_norms_after_the_addition() -> None:
    model = covector.open(random_model(placement="post"))
    decoder, p = prepared(model)
    place = spot_of("L0.resid_pre", model.spec)
    with pytest.raises(BadRequest, match="nothing goes straight"):
        steered(decoder, p.base, place, np.ones((1, model.spec.d_model)), p.mask, [asked(model)], p.at, "direct")


def experiment(model: Model, **options: object) -> Setup:
    given: dict[str, object] = {"place": "L0.resid_pre", "token": "NAME", "wants": [0.4, -0.2]} | options
    return set_up(model, [asked(model), asked(model, True)], pairs_for(model, 8), **given)  # pyright: ignore


@pytest.mark.identity("OP-29")
@pytest.mark.parametrize("name", MODELS)
def test_the_closed_form_gives_every_observable_what_was_wished_to_first_order(name: str) -> None:
    model = covector.open(MODELS[name]())
    setup = experiment(model)
    np.testing.assert_allclose(setup.slopes, [0.4, -0.2], atol=1e-10)
    # On the training prompts themselves, a step of 1e-6 follows the prediction up to curvature.
    p = setup.train[0]
    small = np.stack([k * setup.vector.unit * 1e-6 for k in (1, -1)])
    values = steered(setup.decoder, p.base, setup.spot, small, p.mask, setup.observables, p.at).mean(axis=2)
    np.testing.assert_allclose((values[:, 0] - values[:, 1]) / 2e-6, [0.4, -0.2], rtol=1e-4)


@pytest.mark.identity("OP-29")
def test_on_a_linear_model_the_wish_is_fulfilled_exactly_at_any_dose() -> None:
    """No norms, a linear MLP, and a vector at the last stream: attention reads nothing behind it."""
    linear = covector.open(random_model(norm=None, activation="linear"))
    setup = experiment(linear, place="L1.resid_mid", token="end", scales=[-3.0, 1.0, 50.0])
    deltas = setup.doses[:, None] * setup.vector.unit
    wanted = np.outer([0.4, -0.2], [-3.0, 1.0, 50.0])
    np.testing.assert_allclose(setup.measured(deltas), wanted[..., None] * np.ones(8), atol=1e-9)


def test_the_whitened_form_also_delivers_and_stays_closer_to_the_activations() -> None:
    model = covector.open(random_model())
    setup = experiment(model)
    from covector.linalg.steering import prescribed

    white = prescribed(setup.gradient, np.array([0.4, -0.2]), setup.covariance)
    np.testing.assert_allclose(setup.gradient @ white, [0.4, -0.2], atol=1e-10)
    inverse = np.linalg.inv(setup.covariance)
    assert white @ inverse @ white < setup.vector.unit @ inverse @ setup.vector.unit


def test_doses_in_logits_stream_and_multiples_mean_what_they_say() -> None:
    model = covector.open(random_model())
    f = propagate(model, asked(model), "L1H0>out")
    for unit, scales in (("logits", [-1.0, 0.5]), ("stream", [-1.0, 0.5]), ("feature", [-3.0, 50.0])):
        setup = experiment(model, wants=[], feature=f, scales=scales, unit=unit, place=None)
        assert setup.spot.hook == "L1.resid_pre"
        deltas = setup.doses[:, None] * setup.vector.unit
        if unit == "logits":
            np.testing.assert_allclose(deltas @ setup.gradient[0], scales, rtol=1e-10)
        elif unit == "stream":
            np.testing.assert_allclose(np.linalg.norm(deltas, axis=1) / setup.stream, np.abs(scales), rtol=1e-12)
            assert np.all(np.sign(deltas @ setup.gradient[0]) == np.sign(scales))
        else:
            np.testing.assert_allclose(deltas, np.outer(scales, f.vector), rtol=1e-10)


@pytest.mark.identity("OP-26")
@pytest.mark.parametrize("name", MODELS)
def test_no_strength_of_steering_gets_past_the_saturation_of_the_final_norm(name: str) -> None:
    model = covector.open(MODELS[name]())
    observable = asked(model)
    constant, reach = saturation(model, observable)
    assert np.isfinite(reach)
    decoder, p = prepared(model, "end")
    # Behind a norm after the addition nothing is bounded any more.
    last = spot_of("L1.resid_pre" if name == "post-norm" else "L1.resid_post", model.spec)
    for direction in (gradients(model, p, [observable], last)[0].mean(axis=0), small(model.spec.d_model)):
        deltas = np.outer([-1e9, -10, -0.1, 10, 1e4, 1e9], direction)
        values = steered(decoder, p.base, last, deltas, p.mask, [observable], p.at)
        assert np.abs(values - constant).max() <= reach * (1 + 1e-12)


@pytest.mark.identity("OP-26")
def test_the_saturation_is_met_where_the_stream_is_parallel_to_the_feature() -> None:
    model = covector.open(random_model())
    observable = asked(model)
    constant, reach = saturation(model, observable)
    gain = model.weights["final_norm.gain"].astype(np.float64)
    w = gain * observable.readout(model)
    decoder, p = prepared(model, "end")
    last = spot_of("L1.resid_post", model.spec)
    # At 1e7 lengths what was in the stream before changes its direction by 1e-7, the cosine by its square.
    values = steered(decoder, p.base, last, np.outer([1e7, -1e7], w - w.mean()), p.mask, [observable], p.at)[0]
    np.testing.assert_allclose(values, np.array([[constant + reach], [constant - reach]]) * np.ones(8), rtol=1e-9)


def test_the_slope_through_a_path_is_the_gradient_with_everything_else_held() -> None:
    """One layer, one head, no MLP: with the pattern held, that head's values are all there is besides the stream."""
    model = covector.open(random_model(n_layers=1, n_heads=1))
    decoder, p = prepared(model)
    observable, place = asked(model), spot_of("L0.attn_in", model.spec)
    v = small(model.spec.d_model)
    base = {k: torch.from_numpy(x) for k, x in p.base.items()}
    step, found = 1e-5, []
    for sign in (1, -1):

        def plus(x: torch.Tensor, sign: int = sign) -> torch.Tensor:
            return x + sign * step * torch.from_numpy(p.mask[..., None] * v)

        held = {name: lambda _, name=name: base[name] for name in ("L0.pattern", "L0.mlp_out")}
        run = decoder.run(torch.from_numpy(p.tokens), intervene=held | {"L0.attn_in": plus})
        found.append(observable.of(run.logits[:, -1].detach().numpy()).mean())
    wanted = (found[0] - found[1]) / (2 * step)
    assert place.reader == "L0.attn"
    ours = path_slope(model, [p], observable, parse_path("L0H0>out", model.spec), v)
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)


def test_auto_chooses_the_token_that_differs_and_neither_the_start_nor_the_one_read() -> None:
    model = covector.open(random_model())
    rng = np.random.default_rng(0)
    slots = {"A": 1, "B": 3, "end": 5}
    pairs = []
    for i in range(3):
        clean = rng.integers(0, model.spec.n_vocab, 6)
        corrupt = clean.copy()
        corrupt[3] = (clean[3] + 1) % model.spec.n_vocab
        pairs.append(Pair(tuple(map(int, clean)), tuple(map(int, corrupt)), slots, ("", ""), (str(i), str(i))))
    # In the first block everything but the changed token brings the same in both prompts, the pattern's norm aside.
    path = parse_path("L0H1>out", model.spec)
    assert token_of(model, Decoder(model.weights), pairs, asked(model), path, "end", "auto") == "B"
    ends = [
        Pair(p.clean, (*p.clean[:5], (p.clean[5] + 1) % model.spec.n_vocab), slots, p.texts, p.names) for p in pairs
    ]
    for head in ("L0H0", "L0H1", "L1H0", "L1H1"):
        one = parse_path(f"{head}>out", model.spec)
        assert token_of(model, Decoder(model.weights), ends, asked(model), one, "end", "auto") != "end"
    with pytest.raises(BadRequest, match="begins with a head"):
        token_of(model, Decoder(model.weights), pairs, asked(model), parse_path("out", model.spec), "end", "auto")


def test_no_name_is_both_trained_and_measured_on() -> None:
    model = covector.open(random_model())
    setup = experiment(model)
    train = {c for p in setup.train for c in p.clusters}
    assert setup.disjoint
    assert len(train) == 4
    assert not train & set(setup.clusters)
    assert held_out(["one"], 0.5, 0) == frozenset()
    with pytest.raises(BadRequest, match="between 0 and 1"):
        held_out(["a", "b"], 1.0, 0)


def test_the_table_shows_the_vector_and_controls_of_its_length_beside_their_chance() -> None:
    model = covector.open(random_model())
    table = steer(model, [asked(model)], pairs_for(model, 6), path="L1H0>out", token="NAME", draws=9)
    rows = table.rows
    assert {r["vector"] for r in rows} == {"vector", "random", "random, covariance", "mean difference", "gradient"}
    assert table.meta["kind"] == "prediction"
    sizes = {r["vector"]: [x["size"] for x in rows if x["vector"] == r["vector"]] for r in rows}
    for some in sizes.values():
        np.testing.assert_allclose(some, sizes["vector"])
    assert all(0.1 <= r["p"] <= 1 for r in rows if r["vector"] == "vector")  # nine draws: no p below 1/10
    end = steer(model, [asked(model)], pairs_for(model, 6), path="L1H0>out", token="end", draws=2)
    assert {"straight through alone", "without straight through"} <= {r["vector"] for r in end.rows}


def test_both_signs_are_split_and_the_sum_is_the_measured_effect() -> None:
    model = covector.open(random_model())
    setup = experiment(model, wants=[], path="L0H1>out", place=None)
    table = split_of(setup)
    rows = {r["part"]: r for r in table.rows}
    dose = table.meta["dose"]
    measured = setup.measured(np.array([[dose], [-dose]]) * setup.vector.unit)[0].mean(axis=1)
    np.testing.assert_allclose([rows["sum"]["plus"], rows["sum"]["minus"]], measured, atol=1e-11)
    parts = [r for name, r in rows.items() if name != "sum"]
    np.testing.assert_allclose(sum(r["plus"] for r in parts), rows["sum"]["plus"], atol=1e-11)
    np.testing.assert_allclose([r["asymmetry"] for r in parts], [r["plus"] + r["minus"] for r in parts], atol=1e-12)
    assert abs(rows["this head"]["plus"]) > 1e-6


def test_the_place_follows_from_the_feature_and_words_that_fit_nothing_are_refused() -> None:
    model = covector.open(random_model())
    f = propagate(model, asked(model), "L1H0>out")
    assert spot_for(model, None, f).hook == "L1.resid_pre"
    assert spot_for(model, "L0.resid_mid", f).hook == "L0.resid_mid"
    with pytest.raises(BadRequest, match="such as L9"):
        spot_of("nonsense", model.spec)
    with pytest.raises(BadSite, match="layers run 0"):
        spot_of("L7.resid_pre", model.spec)
    with pytest.raises(BadRequest, match="behind a norm"):
        spot_for(model, None, propagate(model, asked(model), "L1H0>out", normed=True))
    with pytest.raises(BadRequest, match="expected a vector"):
        experiment(model, wants=[])
    with pytest.raises(BadRequest, match="name the token"):
        experiment(model, token="auto")
    with pytest.raises(BadRequest, match="--whiten"):
        experiment(model, whiten=True)
