"""Single neurons: nearness to the task against chance, and effects that are what a changed run shows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import beta

import covector
from covector.analyses.neurons import neurons, writes
from covector.arch.toy import LAYER_NORM, RMS_NORM, Plant, planted, random_model
from covector.errors import BadRequest, BadSite
from covector.model.opened import Model
from covector.model.spec import Norm
from covector.run.decoder import Decoder
from covector.run.prompts import Pair
from covector.study.observable import Observable
from random_checkpoints import random_weights


def pairs_for(model: Model, n: int = 3, length: int = 6, seed: int = 0) -> list[Pair]:
    ids = np.random.default_rng(seed).integers(0, model.spec.n_vocab, (n, 2, length))
    return [Pair(tuple(map(int, a)), tuple(map(int, b)), {"NAME": 1, "end": length - 1}, ("", "")) for a, b in ids]


def asked(model: Model) -> Observable:
    return Observable({"token 3": 1, "token 5": -1}, model)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert"])
@pytest.mark.parametrize("source", ["corrupt", "zero", "mean"])
def test_effects_are_those_of_a_whole_run_with_that_neuron_changed(name: str, source: str) -> None:
    model = covector.open(random_weights(name))
    pairs, decoder, observable = pairs_for(model), Decoder(model.weights), asked(model)
    table = neurons(model, observable, pairs, top=3, source=source)
    clean, corrupt = (torch.tensor([getattr(p, side) for p in pairs]) for side in ("clean", "corrupt"))
    for row in table.rows:
        layer, i = map(int, row["neuron"][1:].split("N"))
        hook = f"L{layer}.mlp_post"
        own, other = (decoder.run(ids, capture=[hook]).cache[hook][..., i] for ids in (clean, corrupt))
        new = {"corrupt": other, "zero": 0 * own, "mean": ((own + other) / 2).mean(0, keepdim=True)}[source]

        def change(x: torch.Tensor, new: torch.Tensor = new, i: int = i) -> torch.Tensor:
            x = x.clone()
            x[..., i] = new
            return x

        logits = [decoder.run(clean, intervene=h).outputs["token"][:, -1].numpy() for h in ({}, {hook: change})]
        wanted = np.mean(observable.of(logits[0]) - observable.of(logits[1]))
        assert row["effect"] == pytest.approx(wanted, abs=1e-10)


def test_without_norms_and_behind_everything_the_guess_is_the_effect() -> None:
    """The last MLP writes into the output linearly."""
    model = covector.open(random_model(n_layers=1, norm=None))
    table = neurons(model, asked(model), pairs_for(model), top=8)
    np.testing.assert_allclose(np.asarray(table["guess"]), np.asarray(table["effect"]), atol=1e-11)
    weights = model.weights
    n = weights["W_U"][:, 3] - weights["W_U"][:, 5]
    for row in table.rows:
        own = weights["L0.W_out"][int(row["neuron"][3:])]
        assert row["per_unit"] == pytest.approx(own @ n, rel=1e-10)
        assert row["cos"] == pytest.approx(own @ n / np.linalg.norm(own) / np.linalg.norm(n), rel=1e-10)


def test_planted_neurons_are_found_and_carry_the_effect() -> None:
    """Planted: neuron 0 is driven by token 0 and writes token 3, neuron 1 by token 1 and writes token 5."""
    model = covector.open(planted([Plant(0, 3, 2.0), Plant(1, 5, 2.0)], "L0.mlp.out", n_heads=0))
    pairs = [Pair((7, 0), (7, 1), {"end": 1}, ("", ""))] * 2
    table = neurons(model, asked(model), pairs, top=2)
    assert set(table["neuron"][:2]) == {"L0N0", "L0N1"}
    np.testing.assert_allclose(np.asarray(table["effect"])[:2], 2.0, rtol=1e-9)  # +2 lost, or −2 gained
    np.testing.assert_allclose(np.abs(np.asarray(table["cos"])[:2]), np.sqrt(0.5), rtol=1e-9)
    assert table.meta["together"]["nearest"] == pytest.approx(4.0)


def test_neurons_of_random_weights_are_beyond_chance_as_often_as_chance_has_it() -> None:
    """960 p of ten random models; neurons are independent directions, standard error of the share .009."""
    found = []
    for seed in range(10):
        model = covector.open(random_model(seed=seed, d_mlp=48))
        table = neurons(model, asked(model), top=96)
        found += list(np.asarray(table["p"]))
    assert len(found) == 960
    assert abs(np.mean(np.array(found) <= 0.1) - 0.1) < 4 * 0.0097


@pytest.mark.parametrize(("norm", "d"), [(None, 16), (LAYER_NORM, 15), (RMS_NORM, 16)])
def test_p_is_the_beta_law_of_the_space_that_the_final_norm_leaves(norm: Norm | None, d: int) -> None:
    model = covector.open(random_model(norm=norm))
    table = neurons(model, asked(model))
    law = beta.sf(np.asarray(table["cos"]) ** 2, 0.5, (d - 1) / 2)
    np.testing.assert_allclose(np.asarray(table["p"]), law, rtol=1e-9)


def test_names_tell_the_layer_and_number() -> None:
    found = writes(covector.open(random_model()), asked(covector.open(random_model())))
    assert (found.names()[0], found.names()[24], len(found.names())) == ("L0N0", "L1N0", 48)


def test_bad_requests_are_refused() -> None:
    model = covector.open(random_model())
    with pytest.raises(BadRequest, match="corrupt, zero, mean"):
        neurons(model, asked(model), source="noise")
    bare = covector.open(random_model(d_mlp=0))
    with pytest.raises(BadSite, match="MLPs"):
        neurons(bare, asked(bare))


def test_intervals_and_p_count_names_not_pairs() -> None:
    """Names a/b, a/c, d/e: the first two are one. Effects by hand from each pair alone; t₀.₉₇₅(1) = 12.7062."""
    model = covector.open(random_model())
    named = [("a", "b"), ("a", "c"), ("d", "e")]
    pairs = [replace(p, names=names) for p, names in zip(pairs_for(model), named, strict=True)]
    table = neurons(model, asked(model), pairs, top=2)
    each = [{r["neuron"]: r["effect"] for r in neurons(model, asked(model), [p], top=2).rows} for p in pairs]
    for row in table.rows:
        x = np.array([one[row["neuron"]] for one in each])
        sums = np.array([x[0] + x[1] - 2 * x.mean(), x[2] - x.mean()])
        error = 12.7062 * sums.std(ddof=1) * np.sqrt(2) / 3
        assert (row["low"], row["high"]) == pytest.approx((x.mean() - error, x.mean() + error), rel=1e-5)
        # Of two clusters, four sign patterns: two of them have the sum's own size, or all where a cluster is nearly 0.
        assert row["p_effect"] == pytest.approx(0.5) or row["p_effect"] == pytest.approx(1.0)
    one = neurons(model, asked(model), [replace(p, names=("a", "b")) for p in pairs], top=2)
    assert np.isnan(np.asarray(one["low"])).all()
    assert "3 pairs of 1 name, have no interval: all are the same" in one.not_says
