"""Better guesses of a patch than the gradient at its start: along the line complete, and of the stated order."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import covector
from covector.analyses.patch import patch
from covector.arch.toy import random_model
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.model.spec import Norm, Rotary
from covector.model.weights import Weights
from covector.run.decoder import Decoder
from covector.run.integrated import changed_patterns, integrated
from covector.run.points import captured
from covector.run.prompts import Pair, batches
from covector.run.sweep import Place, sweep
from covector.study.observable import Observable
from random_checkpoints import random_weights

# Smooth: SiLU, GELU and tanh have no kinks.
SMOOTH: dict[str, Callable[[], Weights]] = {
    "gelu": lambda: random_model(activation="gelu_new"),
    "rotary grouped": lambda: random_model(
        rotary=Rotary(4, 1e4), n_kv_heads=2, norm=Norm("rms", 1e-6), gated=True, activation="silu", positions="none"
    ),
    "post-norm": lambda: random_model(placement="post", activation="gelu_new"),
    "gemma2": lambda: random_weights("gemma2"),
}
# Nodes that leave less than 1e-7. gemma2's attention is all or nothing here and turns within a twentieth of a line.
NODES = {name: 96 if name == "gemma2" else 24 for name in SMOOTH}
WHATS = ("heads", "ov", "qk", "resid", "attn", "mlp", "q", "k", "v", "pattern")


def pairs_for(model: Model, n: int = 3, length: int = 6, seed: int = 0) -> list[Pair]:
    ids = np.random.default_rng(seed).integers(0, model.spec.n_vocab, (n, 2, length))
    slots = {"NAME": 1, "end": length - 1}
    return [Pair(tuple(map(int, a)), tuple(map(int, b)), slots, ("", "")) for a, b in ids]


def asked(model: Model) -> Observable:
    return Observable({"token 3": 1, "token 5": -1}, model)


def columns(table: covector.Table, *names: str) -> list[np.ndarray]:
    return [np.asarray(table[name]) for name in names]


@pytest.mark.parametrize(
    ("name", "what"),
    [*(("gelu", what) for what in WHATS), *((name, "heads") for name in SMOOTH if name != "gelu")],
)
def test_along_the_line_nothing_of_the_effect_is_left_out(name: str, what: str) -> None:
    """Completeness, place by place; effects are of order 1."""
    model = covector.open(SMOOTH[name]())
    slots = ("NAME",) if what in ("resid", "attn", "mlp", "q") else ()
    table = patch(
        model, asked(model), pairs_for(model, 1), what=what, slots=slots, guess="integrated", steps=NODES[name]
    )
    effect, found = columns(table, "effect", "integrated")
    assert np.abs(effect).max() > 1e-3
    np.testing.assert_allclose(found, effect, atol=1e-7)
    assert table.meta["first_order"]["error"] < 1e-6


@pytest.mark.parametrize("name", ["gelu", "rotary grouped", "post-norm"])
def test_along_the_line_a_direct_patch_is_complete_too(name: str) -> None:
    model = covector.open(SMOOTH[name]())
    table = patch(model, asked(model), pairs_for(model, 1), guess="integrated", steps=NODES[name], route=[])
    effect, found = columns(table, "effect", "integrated")
    np.testing.assert_allclose(found, effect, atol=1e-9)


@pytest.mark.parametrize(
    ("what", "n", "size"),
    [("z", 1, 0.05), ("z", 2, 0.1), ("k", 1, 0.05), ("k", 2, 0.1), ("resid_pre", 1, 0.00625), ("resid_pre", 2, 0.025)],
)
def test_the_error_of_n_nodes_falls_with_the_power_that_is_promised(what: str, n: int, size: float) -> None:
    """Halving a change of length ε divides the error by 2^(2n+1).

    At these sizes the next power of ε is some percent of the error, and rounding (1e-15) below a thousandth of it.
    """
    model = covector.open(random_model(activation="gelu_new"))
    observable, decoder = asked(model), Decoder(model.weights)
    (batch,) = batches(pairs_for(model, 2))
    base, other = captured(decoder, batch.clean), captured(decoder, batch.corrupt)
    place = Place(1, what, None if what == "resid_pre" else 1)
    at = batch.at("end")
    clean = observable.of(base["out.token"][np.arange(2), at])
    errors = []
    for length in (size, size / 2):
        near = {place.hook: base[place.hook] + length * (other[place.hook] - base[place.hook])}
        ((_, patched),) = sweep(decoder, base, near, [place], {}, observable, at)
        ((_, found),) = integrated(decoder, base, near, [place], {}, observable, at, steps=n)
        errors.append(np.abs(found - (clean - patched)).sum())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2 * n + 1, abs=0.15)


def test_each_place_has_a_line_of_its_own() -> None:
    """The gradient of one head's line must not see the other heads of its layer move: autograd written out."""
    model = covector.open(random_model(activation="gelu_new"))
    observable, decoder = asked(model), Decoder(model.weights)
    (batch,) = batches(pairs_for(model, 2))
    base, other = captured(decoder, batch.clean), captured(decoder, batch.corrupt)
    places = [Place(0, "z", h) for h in range(model.spec.blocks[0].attn.n_heads)]
    found = dict(integrated(decoder, base, other, places, {}, observable, batch.at("end"), steps=1))
    for place in places:
        middle = torch.from_numpy(base["L0.z"].copy())
        middle[:, :, place.head] = torch.from_numpy(0.5 * (base["L0.z"] + other["L0.z"])[:, :, place.head])
        leaf = middle.requires_grad_()
        run = decoder.run(torch.from_numpy(batch.clean), intervene={"L0.z": lambda _, leaf=leaf: leaf})
        out = (run.outputs["token"][:, -1] @ torch.from_numpy(observable.vector)).sum()
        (gradient,) = torch.autograd.grad(out, leaf)
        change = (base["L0.z"] - other["L0.z"])[:, :, place.head]
        wanted = np.sum(gradient.numpy()[:, :, place.head] * change, axis=(1, 2))
        np.testing.assert_allclose(found[place], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("what", ["q", "k"])
@pytest.mark.parametrize("name", ["gelu", "rotary grouped", "gemma2"])
def test_with_the_softmax_exact_only_what_stands_behind_the_pattern_is_first_order(name: str, what: str) -> None:
    """Gradient on the pattern by finite differences of the decoder, times the change that the decoder itself makes."""
    model = covector.open(SMOOTH[name]())
    observable, decoder = asked(model), Decoder(model.weights)
    (pair,) = pairs_for(model, 1)
    base, other = (captured(decoder, np.array([ids])) for ids in (pair.clean, pair.corrupt))
    table = patch(model, observable, [pair], what=what, guess="softmax")
    guess = {row["place"]: row["softmax"] for row in table.rows}
    tokens, at = torch.tensor([pair.clean]), np.array([len(pair) - 1])
    for layer, block in enumerate(model.spec.blocks):
        assert block.attn is not None
        for head in range(block.attn.n_heads if what == "q" else block.attn.n_kv_heads):
            place, hook = Place(layer, what, head), f"L{layer}.pattern"

            def change(x: torch.Tensor, place: Place = place) -> torch.Tensor:
                x = x.clone()
                x[:, :, place.head] = torch.from_numpy(other[place.hook])[:, :, place.head]
                return x

            moved = decoder.run(tokens, capture=[hook], intervene={place.hook: change}).cache[hook].numpy()
            values = []
            for step in (1e-4, -1e-4):
                near = {hook: base[hook] + step * (moved - base[hook])}
                ((_, value),) = sweep(decoder, base, near, [Place(layer, "pattern")], {}, observable, at)
                values.append(value[0])
            np.testing.assert_allclose(guess[str(place)], -(values[0] - values[1]) / 2e-4, rtol=1e-5, atol=1e-8)


def test_changed_patterns_change_where_the_mask_is_and_nowhere_else() -> None:
    model = covector.open(random_model())
    decoder = Decoder(model.weights)
    (batch,) = batches(pairs_for(model))
    base, other = captured(decoder, batch.clean), captured(decoder, batch.corrupt)
    mask = np.zeros((3, 6))
    mask[:, 4] = 1
    found = changed_patterns(decoder, base, other, "q", mask)["L1.pattern"] - base["L1.pattern"]
    assert np.abs(found[:, :, 4]).max() > 1e-3
    assert np.abs(np.delete(found, 4, axis=2)).max() < 1e-12


def test_a_saturated_softmax_hides_an_effect_from_the_gradient_alone() -> None:
    """Queries and keys 6 times as long: attention is all or nothing, and its slope next to nothing."""
    plain = random_model(norm=None, n_layers=1)
    names = plain.names()
    sharp = {n: plain[n] * (6.0 if n.endswith(("W_Q", "W_K")) else 1.0) for n in names}
    model = covector.open(type(plain)(plain.spec, sharp))
    table = patch(model, asked(model), pairs_for(model, 8), what="q", guess="softmax")
    effect, first, exact = columns(table, "effect", "first_order", "softmax")
    assert np.abs(exact - effect).max() < 0.5 * np.abs(first - effect).max()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"guess": "better"}, "plain, integrated, softmax"),
        ({"guess": "softmax"}, "--what q or k"),
        ({"guess": "integrated", "steps": 0}, "at least one node"),
        ({"guess": "integrated", "route": ["L1H0"]}, "not defined through receivers"),
    ],
)
def test_guesses_that_cannot_be_made_are_refused(options: dict, told: str) -> None:
    model = covector.open(random_model())
    with pytest.raises(BadRequest, match=told):
        patch(model, asked(model), pairs_for(model), **options)
