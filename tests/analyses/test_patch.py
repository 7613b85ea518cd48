"""Patching: what is put in changes what stands behind it and nothing else, and the guess is the gradient."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

import covector
from covector.analyses.patch import patch
from covector.analyses.patch_places import mask_of, places_of
from covector.arch.toy import random_model
from covector.errors import BadRequest
from covector.linalg.sign_flips import sign_flips
from covector.model.opened import Model
from covector.model.spec import Norm, Rotary
from covector.model.weights import Weights
from covector.run.decoder import Decoder
from covector.run.hooks import hook_names
from covector.run.points import captured
from covector.run.prompts import Pair, batches
from covector.run.sweep import Place, sweep
from covector.study.observable import Observable
from random_checkpoints import random_weights

WHATS = ("heads", "resid", "attn", "mlp", "q", "k", "v", "pattern")
MODELS: dict[str, Callable[[], Weights]] = {
    "plain": random_model,
    "rotary grouped": lambda: random_model(
        rotary=Rotary(4, 1e4), n_kv_heads=2, norm=Norm("rms", 1e-6), gated=True, activation="silu", positions="none"
    ),
    "parallel": lambda: random_model(parallel=True),
    "post-norm": lambda: random_model(placement="post"),
    "gemma2": lambda: random_weights("gemma2"),
}


def pairs_for(model: Model, n: int = 3, length: int = 6, seed: int = 0) -> list[Pair]:
    ids = np.random.default_rng(seed).integers(0, model.spec.n_vocab, (n, 2, length))
    slots = {"NAME": 1, "end": length - 1}
    return [Pair(tuple(map(int, a)), tuple(map(int, b)), slots, ("", "")) for a, b in ids]


def asked(model: Model) -> Observable:
    return Observable({"token 3": 1, "token 5": -1}, model)


@pytest.mark.identity("OP-28")
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("name", MODELS)
def test_patching_clean_into_clean_changes_nothing(name: str, what: str) -> None:
    model = covector.open(MODELS[name]())
    same = [Pair(p.clean, p.clean, p.slots, p.texts) for p in pairs_for(model)]
    table = patch(model, asked(model), same, what=what)
    np.testing.assert_allclose(np.abs(np.asarray(table["effect"])), 0, atol=1e-12)


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("name", MODELS)
def test_a_sweep_that_starts_at_the_layer_is_a_whole_run_with_the_same_intervention(name: str, what: str) -> None:
    model = covector.open(MODELS[name]())
    observable, decoder = asked(model), Decoder(model.weights)
    (batch,) = batches(pairs_for(model))
    base, other = captured(decoder, batch.clean), captured(decoder, batch.corrupt)
    places = [p for p in places_of(model.spec, what, ("NAME",) if what == "resid" else ()) if p.layer == 1]
    masks = {"NAME": mask_of(batch, "NAME")}
    for place, values in sweep(decoder, base, other, places, masks, observable, batch.at("end")):

        def change(x: torch.Tensor, place: Place = place) -> torch.Tensor:
            x, new = x.clone(), torch.from_numpy(other[place.hook])
            if place.slot:
                x[:, 1] = new[:, 1]
            elif place.head is None:
                x = new
            elif place.role == "pattern":
                x[:, place.head] = new[:, place.head]
            else:
                x[:, :, place.head] = new[:, :, place.head]
            return x

        run = decoder.run(torch.from_numpy(batch.clean), intervene={place.hook: change})
        wanted = observable.of(run.outputs["token"][:, -1].numpy())
        np.testing.assert_allclose(values, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.identity("OP-28")
def test_the_whole_stream_taken_from_the_corrupt_run_is_the_corrupt_run() -> None:
    model = covector.open(random_model())
    pairs = pairs_for(model)
    decoder, observable = Decoder(model.weights), asked(model)
    (batch,) = batches(pairs)
    base, other = captured(decoder, batch.clean), captured(decoder, batch.corrupt)
    places = [Place(layer, "resid_pre") for layer in range(2)]
    corrupt = observable.of(other["out.token"][:, -1])
    for _, values in sweep(decoder, base, other, places, {}, observable, batch.at("end")):
        np.testing.assert_allclose(values, corrupt, rtol=1e-12)


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("name", MODELS)
def test_the_first_order_guess_is_the_slope_of_the_patch(name: str, what: str) -> None:
    """Finite difference of the decoder along the change, step 1e-5: curvature leaves 1e-5 relative of the change."""
    model = covector.open(MODELS[name]())
    observable, decoder = asked(model), Decoder(model.weights)
    (pair,) = pairs_for(model, 1)
    base, other = (captured(decoder, np.array([ids])) for ids in (pair.clean, pair.corrupt))
    slots = ("NAME",) if what in ("resid", "attn", "mlp") else ()
    table = patch(model, observable, [pair], what=what, slots=slots)
    guess = dict(zip(table["place"], np.asarray(table["first_order"]), strict=True))
    for place in places_of(model.spec, what, slots):
        values = []
        for step in (1e-5, -1e-5):
            near = {place.hook: base[place.hook] + step * (other[place.hook] - base[place.hook])}
            ((_, value),) = sweep(decoder, base, near, [place], {"NAME": np.eye(6)[[1]]}, observable, np.array([5]))
            values.append(value[0])
        slope = (values[0] - values[1]) / 2e-5
        np.testing.assert_allclose(guess[str(place)], -slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_a_direct_patch_moves_the_last_stream_and_nothing_else(name: str) -> None:
    model = covector.open(MODELS[name]())
    observable, decoder = asked(model), Decoder(model.weights)
    (batch,) = batches(pairs_for(model))
    base, other = captured(decoder, batch.clean), captured(decoder, batch.corrupt)
    place, hook = Place(0, "z", 1), "L0.attn_out"
    ((_, values),) = sweep(decoder, base, other, [place], {}, observable, batch.at("end"), route=[])
    out = torch.from_numpy(base[hook] + (other["L0.z"] - base["L0.z"])[:, :, 1] @ model.weights["L0.W_O"][1])
    # Everything after block 0's attention is given, so that only what that attention adds moves.
    given = {n: (lambda _, n=n: torch.from_numpy(base[n])) for n in ("L0.mlp_out", "L1.attn_out", "L1.mlp_out")}
    run = decoder.run(torch.from_numpy(batch.clean), intervene={**given, hook: lambda _: out})
    np.testing.assert_allclose(values, observable.of(run.outputs["token"][:, -1].numpy()), rtol=1e-11, atol=1e-11)


@pytest.mark.identity("OP-27")
def test_a_direct_patch_of_content_is_the_feature_of_the_change() -> None:
    """Without norms nothing is nonlinear between a head's values and the output: Σ A·f·Δx exactly."""
    model = covector.open(random_model(norm=None))
    observable, decoder, pairs = asked(model), Decoder(model.weights), pairs_for(model)
    (batch,) = batches(pairs)
    base, other = captured(decoder, batch.clean), captured(decoder, batch.corrupt)
    table = patch(model, observable, pairs, what="ov", route=[])
    effects = dict(zip(table["place"], np.asarray(table["effect"]), strict=True))
    for layer, head in ((0, 2), (1, 1)):
        f = covector.propagate(model, observable, f"L{layer}H{head}", normed=True).vector
        change = (base[f"L{layer}.attn_normed"] - other[f"L{layer}.attn_normed"]) @ f
        wanted = np.einsum("bs,bs->b", base[f"L{layer}.pattern"][:, head, -1], change).mean()
        assert effects[f"L{layer}H{head}"] == pytest.approx(wanted, rel=1e-10)
    np.testing.assert_allclose(np.asarray(table["first_order"]), np.asarray(table["effect"]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["plain", "rotary grouped", "gemma2"])
def test_receivers_see_the_change_and_pass_on_what_they_do_with_it(name: str) -> None:
    """Two runs written out: the receiver behind a changed stream with all else held, then its part put into the run."""
    model = covector.open(MODELS[name]())
    observable, decoder = asked(model), Decoder(model.weights)
    (batch,) = batches(pairs_for(model))
    base, other = captured(decoder, batch.clean), captured(decoder, batch.corrupt)
    tokens, place = torch.from_numpy(batch.clean), Place(0, "z", 1)
    receivers = [Place(1, "z", 0), Place(1, "mlp_post")]
    ((_, values),) = sweep(decoder, base, other, [place], {}, observable, batch.at("end"), route=receivers)

    def head(layer: int, index: int, new: torch.Tensor):
        return lambda x: torch.cat([x[:, :, :index], new[:, :, index : index + 1], x[:, :, index + 1 :]], dim=2)

    held = {n: (lambda _, n=n: torch.from_numpy(base[n])) for n in ("L0.mlp_out", "L1.attn_out", "L1.mlp_out")}
    first = decoder.run(
        tokens, intervene={**held, "L0.z": head(0, 1, torch.from_numpy(other["L0.z"]))}, capture=["L1.z", "L1.mlp_post"]
    )
    put = {"L1.z": head(1, 0, first.cache["L1.z"]), "L1.mlp_post": lambda _: first.cache["L1.mlp_post"]}
    wanted = observable.of(decoder.run(tokens, intervene=put).outputs["token"][:, -1].numpy())
    np.testing.assert_allclose(values, wanted, rtol=1e-11, atol=1e-11)
    assert np.abs(values - observable.of(base["out.token"][:, -1])).max() > 1e-6


def test_a_receiver_that_is_no_component_is_refused() -> None:
    model = covector.open(random_model())
    with pytest.raises(BadRequest, match="expected a head"):
        patch(model, asked(model), pairs_for(model), route=["L1H0.q"])


def test_ablations_put_in_what_they_say() -> None:
    model = covector.open(random_model())
    pairs, observable, decoder = pairs_for(model, 3), asked(model), Decoder(model.weights)
    (batch,) = batches(pairs)
    clean = decoder.run(torch.from_numpy(batch.clean), capture=hook_names(model.spec))
    both = torch.cat(
        [clean.cache["L0.z"], decoder.run(torch.from_numpy(batch.corrupt), capture=["L0.z"]).cache["L0.z"]]
    )
    before = observable.of(clean.outputs["token"][:, -1].numpy())
    others = torch.stack([(both.sum(0) - both[i] - both[i + 3]) / 4 for i in range(3)])  # of the other two pairs
    for source, new in (("zero", torch.zeros_like(both[:3])), ("mean", others)):

        def change(x: torch.Tensor, new: torch.Tensor = new) -> torch.Tensor:
            return torch.cat([x[:, :, :2], new[:, :, 2:3], x[:, :, 3:]], dim=2)

        after = decoder.run(torch.from_numpy(batch.clean), intervene={"L0.z": change}).outputs["token"][:, -1]
        table = patch(model, observable, pairs, source=source)
        effect = dict(zip(table["place"], np.asarray(table["effect"]), strict=True))["L0H2"]
        assert effect == pytest.approx(float((before - observable.of(after.numpy())).mean()), abs=1e-11)


def test_sign_flip_p_of_few_pairs_counts_all_signs() -> None:
    effects = np.array([[1.0, 2.0, 3.0], [1.0, -1.0, 0.5]])
    # |±1±2±3| >= 6 in 2 of 8; |±1±1±.5| >= .5 in all 8.
    np.testing.assert_allclose(sign_flips(effects, 0), [0.25, 1.0])


def test_sign_flip_p_is_uniform_under_the_null() -> None:
    effects = np.random.default_rng(1).standard_normal((400, 12))
    p = sign_flips(effects, 0)
    # Share below .1 of 400 independent p: binomial standard error .015.
    assert abs(np.mean(p <= 0.1) - 0.1) < 4 * 0.015


@pytest.mark.parametrize(
    ("options", "told"),
    [({"what": "neurons"}, "--what heads, ov, qk"), ({"source": "noise"}, "corrupt, zero, mean, resample")],
)
def test_unknown_words_are_refused_with_the_known_ones(options: dict, told: str) -> None:
    model = covector.open(random_model())
    with pytest.raises(BadRequest, match=told):
        patch(model, asked(model), pairs_for(model), **options)


def test_resampling_a_single_prompt_is_refused() -> None:
    model = covector.open(random_model())
    with pytest.raises(BadRequest, match="at least two pairs of one length"):
        patch(model, asked(model), pairs_for(model, 1), source="resample")


def named(pairs: list[Pair]) -> list[Pair]:
    return [dataclasses.replace(p, names=(f"a{i}", f"b{i}")) for i, p in enumerate(pairs)]


def test_the_same_names_twice_are_no_more_evidence() -> None:
    model = covector.open(random_model())
    pairs = named(pairs_for(model, 4))
    once, twice = (patch(model, asked(model), ps) for ps in (pairs, [*pairs, *pairs]))
    for column in ("effect", "low", "high", "p"):
        np.testing.assert_allclose(np.asarray(once[column]), np.asarray(twice[column]), rtol=1e-9, atol=1e-12)
    assert (once.meta["names"], twice.meta["names"]) == (4, 4)


@pytest.mark.parametrize("alias", ["NAME", "1", "end-4", "NAME+0"])
def test_a_slot_is_the_same_place_by_whatever_name(alias: str) -> None:
    model = covector.open(random_model())
    pairs = pairs_for(model)
    wanted = patch(model, asked(model), pairs, what="resid", slots=["NAME"])
    got = patch(model, asked(model), pairs, what="resid", slots=[alias])
    np.testing.assert_allclose(np.asarray(got["effect"]), np.asarray(wanted["effect"]), rtol=1e-12)
    assert np.abs(np.asarray(got["effect"])).max() > 1e-3


def test_a_misspelt_slot_is_refused() -> None:
    model = covector.open(random_model())
    with pytest.raises(BadRequest, match="expected a slot among NAME, end"):
        patch(model, asked(model), pairs_for(model), what="resid", slots=["NMAE"])


def test_receivers_take_what_feeds_them_and_nothing_else() -> None:
    model = covector.open(random_model(n_layers=3))
    table = patch(model, asked(model), pairs_for(model), route=["L1H0", "L2H1"])
    layers = {place[:2] for place in table["place"]}
    assert layers == {"L0", "L1"}  # a head of block 1 feeds L2H1; none of block 2 feeds anything here
    assert "L1H0" not in table["place"]
    alone = patch(model, asked(model), pairs_for(model), route=["L2H1"])
    both = {row["place"]: row["effect"] for row in table.rows}
    for row in alone.rows:
        if row["place"].startswith("L1") and row["place"] in both:
            assert both[row["place"]] == pytest.approx(row["effect"], abs=1e-12)


@pytest.mark.identity("OP-30")
@pytest.mark.parametrize("source", ["mean", "corrupt", "zero"])
def test_the_order_of_pairs_does_not_matter(source: str) -> None:
    model = covector.open(random_model(n_layers=1))
    pairs = named(pairs_for(model, 35))
    one, other = (patch(model, asked(model), ps, source=source) for ps in (pairs, pairs[::-1]))
    for name, table in (("one", one), ("other", other)):
        assert table.meta["pairs"] == 35, name
    a, b = ({row["place"]: row["effect"] for row in table.rows} for table in (one, other))
    assert a == pytest.approx(b, rel=1e-9)
