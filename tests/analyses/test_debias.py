"""Debiasing: levels and gaps are what they are called, splits are honest, and the published search is what it was."""

import numpy as np
import pytest
import torch

import covector
from covector.analyses.debias import Shift, Split, _closed, _split, debias, template, values_of
from covector.analyses.debias_baseline import candidates
from covector.analyses.propagate import head_features, propagate
from covector.analyses.steer_setup import gradients
from covector.arch.toy import random_model
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.propagation.entry import spot_of
from covector.run.decoder import Decoder
from covector.run.prompts import Pair
from covector.study.observable import Observable


def task(model: Model, up: int, down: int) -> Observable:
    return Observable({f"token {up}": 1, f"token {down}": -1}, model)


def tasks(model: Model) -> tuple[list[Observable], list[Observable]]:
    return [task(model, 0, 1), task(model, 2, 3)], [task(model, 4, 5), task(model, 6, 7)]


def pairs_for(model: Model, names: int = 6, templates: int = 2) -> list[Pair]:
    rng = np.random.default_rng(0)
    made = []
    for t in range(templates):
        for i in range(names):
            a, b = (tuple(map(int, rng.integers(0, model.spec.n_vocab, 6))) for _ in range(2))
            texts = (f"template {t} with Ann{i}", f"template {t} with Bob{i}")
            made.append(Pair(a, b, {"NAME": 2, "end": 5}, texts, (f"Ann{i}", f"Bob{i}")))
    return made


def split_of(model: Model, **options: object) -> tuple[Split, Split, list[str]]:
    given = {"token": "NAME", "at": "end", "held": 0.5, "seed": 0} | options
    return _split(Decoder(model.weights), pairs_for(model), tasks(model), **given)  # pyright: ignore


def test_names_templates_and_tasks_are_all_held_out() -> None:
    model = covector.open(random_model())
    train, test, told = split_of(model)
    for of in (
        lambda s: {c for p in s.prompts for c in p.clusters},
        lambda s: {template(pair) for p in s.prompts for pair in p.batch.pairs},
        lambda s: {str(o) for o in s.bias},
        lambda s: {str(o) for o in s.keep},
    ):
        assert of(train)
        assert of(test)
        assert not of(train) & of(test)
    assert told == [
        "3 of 6 names", "1 of 2 templates", "1 of 2 bias observables", "1 of 2 kept observables",
    ]  # fmt: skip


def test_the_closed_form_asks_for_minus_the_level_of_the_bias_and_nothing_of_the_kept_task() -> None:
    model = covector.open(random_model())
    train, _, _ = split_of(model)
    decoder, spot = Decoder(model.weights), spot_of("L0.resid_pre", model.spec)
    shifts = {s.name: s for s in _closed(model, decoder, train, [spot], "NAME", 1.0)}
    plain = np.concatenate([p.unsteered(train.bias[0]) for p in train.prompts])
    sides = np.concatenate([p.sides for p in train.prompts])
    gap = plain[sides > 0].mean() - plain[sides < 0].mean()
    for name, wanted in (
        ("closed form", [-plain.mean(), 0]),
        ("closed form, whitened", [-plain.mean(), 0]),
        ("closed form, gap too", [-plain.mean(), 0, -gap, 0]),
    ):
        g = [np.concatenate([gradients(model, p, o, spot)[0] for p in train.prompts]) @ shifts[name].delta
             for o in (train.bias, train.keep)]  # fmt: skip
        found = [x.mean() for x in g] + [x[sides > 0].mean() - x[sides < 0].mean() for x in g]
        np.testing.assert_allclose(found[: len(wanted)], wanted, atol=1e-9)


def test_levels_and_gaps_of_the_table_are_those_of_runs_with_the_vector_added() -> None:
    model = covector.open(random_model())
    pairs = pairs_for(model)
    table = debias(model, *tasks(model), pairs, heads=1, draws=2)
    _, test, _ = split_of(model)
    assert table.meta["held_bias"] == [str(o) for o in test.bias]
    decoder, delta = Decoder(model.weights), np.array(table.meta["vector"])
    p = test.prompts[0]

    rows = {r["measure"]: r for r in table.rows if r["vector"] == "closed form"}
    for change, column in (({}, "before"), ({table.meta["hook"]: lambda x: plus_of(x, delta)}, "after")):
        logits = decoder.run(torch.from_numpy(p.tokens), intervene=change).logits[:, -1].numpy()
        for word, group in (("bias", test.bias), ("kept", test.keep)):
            values = np.mean([o.of(logits) for o in group], axis=0)
            np.testing.assert_allclose(rows[f"{word} level"][column], values.mean(), rtol=1e-9)
            gap = (values[p.sides > 0] - values[p.sides < 0]).mean()
            np.testing.assert_allclose(rows[f"{word} gap"][column], gap, rtol=1e-9)


def plus_of(x: torch.Tensor, delta: np.ndarray) -> torch.Tensor:
    x = x.clone()
    x[:, 2] += torch.from_numpy(delta)
    return x


def test_the_published_search_ranks_heads_and_pairs_of_heads_by_their_data_free_coupling() -> None:
    model = covector.open(random_model())
    bias, keep = ([t] for t in (task(model, 0, 1), task(model, 2, 3)))
    names, first = head_features(model, bias[0])
    _, second = head_features(model, keep[0])
    wanted = {f"{n}>out": float(a @ b / (a @ a)) for n, a, b in zip(names, first, second, strict=True)}
    for low in [n for n in names if n.startswith("L0")]:
        for high in [n for n in names if n.startswith("L1")]:
            a, b = (propagate(model, o, f"{low}>{high}>out").vector for o in (bias[0], keep[0]))
            wanted[f"{low}>{high}>out"] = float(a @ b / (a @ a))
    found, looked = candidates(model, bias, keep, 4)
    assert looked == len(wanted)
    best = sorted((c, path) for path, c in wanted.items() if c < 0)[:4]
    assert [(c.path) for c in found] == [path for _, path in best]
    np.testing.assert_allclose([c.coupling for c in found], [c for c, _ in best], rtol=1e-9)


def test_steering_values_use_the_shifts_own_token() -> None:
    model = covector.open(random_model())
    train, _, _ = split_of(model)
    delta = np.random.default_rng(1).standard_normal(model.spec.d_model)
    decoder, spot = Decoder(model.weights), spot_of("L0.resid_pre", model.spec)
    here, there = (values_of(decoder, train, Shift("", spot, t, delta), delta[None]) for t in ("NAME", "NAME+1"))
    assert np.abs(here - there).max() > 1e-4


def test_prompts_that_compare_nothing_and_missing_tasks_are_refused() -> None:
    model = covector.open(random_model())
    same = [Pair(p.clean, p.clean, p.slots, p.texts, p.names) for p in pairs_for(model)]
    bias, keep = tasks(model)
    with pytest.raises(BadRequest, match="differ"):
        debias(model, bias, keep, same)
    with pytest.raises(BadRequest, match="both sides"):
        debias(model, bias, [], pairs_for(model))
