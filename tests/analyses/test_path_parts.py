"""Paths through single dyads, and paths that are given: the same shares, split further."""

from collections.abc import Callable

import numpy as np
import pytest

import covector
from covector.analyses.paths import paths
from covector.arch.toy import random_model
from covector.errors import BadRequest, BadSite
from covector.model.opened import Model
from covector.model.spec import Norm, Rotary
from covector.model.weights import Weights
from covector.propagation.search import find_paths, share_of, split_dyads
from covector.run.pairs import worlds_of
from covector.run.prompts import Pair
from covector.study.observable import Observable
from covector.study.path import parse_path
from random_checkpoints import random_weights

MODELS: dict[str, Callable[[], Weights]] = {
    "plain": random_model,
    "rotary grouped qk-norm": lambda: random_model(
        rotary=Rotary(4, 1e4), n_kv_heads=2, qk_norm=Norm("rms", 1e-6), norm=Norm("rms", 1e-6), positions="none"
    ),
    "parallel": lambda: random_model(parallel=True),
    "gemma2": lambda: random_weights("gemma2"),
}


def pairs_for(model: Model, lengths: tuple[int, ...] = (6, 6, 5)) -> list[Pair]:
    rng = np.random.default_rng(0)
    made = []
    for length in lengths:
        a, b = rng.integers(0, model.spec.n_vocab, (2, length))
        made.append(Pair(tuple(map(int, a)), tuple(map(int, b)), {"NAME": 1, "end": length - 1}, ("", "")))
    return made


def worlds_for(name: str):
    model = covector.open(MODELS[name]())
    return worlds_of(model, Observable({"token 3": 1, "token 5": -1}, model), pairs_for(model))[0], model


@pytest.mark.identity("OP-20")
@pytest.mark.parametrize("edge", ["", ".q", ".k"])
@pytest.mark.parametrize("name", MODELS)
def test_the_dyads_of_an_edge_sum_to_the_edge(name: str, edge: str) -> None:
    worlds, model = worlds_for(name)
    path = parse_path(f"L0H1{edge}@NAME>L1H0>out", model.spec)
    whole, parts = share_of(worlds, path), list(split_dyads(worlds, path))
    assert len(parts) == model.spec.d_head
    total = np.sum([part.shares for part in parts], axis=0)
    np.testing.assert_allclose(total, whole.shares, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_a_dyads_share_is_that_of_its_path(name: str) -> None:
    worlds, model = worlds_for(name)
    path = parse_path("L0H1>L1.mlp>out", model.spec)
    for part in list(split_dyads(worlds, path))[:3]:
        np.testing.assert_allclose(share_of(worlds, part.path).shares, part.shares, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dyads", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_whatever_is_split_the_parts_sum_to_the_difference(name: str, dyads: bool) -> None:
    worlds, _ = worlds_for(name)
    for expansions in (1, 2, 7):
        found = find_paths(worlds, expansions, dyads=dyads)
        total = np.sum([part.shares for part in found.frontier], axis=0)
        np.testing.assert_allclose(total, found.total.shares, rtol=1e-9, atol=1e-10)


def test_given_paths_have_the_shares_that_a_search_finds() -> None:
    model = covector.open(random_model())
    pairs, task = pairs_for(model), Observable({"token 3": 1, "token 5": -1}, model)
    searched = {row["path"]: row["share"] for row in paths(model, task, pairs, expansions=30, least=0.0).rows}
    deep = max(searched, key=lambda path: path.count(">"))
    given = {row["path"]: row["share"] for row in paths(model, task, pairs, given=[deep]).rows}
    assert deep.count(">") >= 2
    assert set(given) <= set(searched)
    for path, share in given.items():
        assert share == pytest.approx(searched[path], rel=1e-9, abs=1e-12)


def test_a_dyad_that_a_map_has_not_is_refused() -> None:
    model = covector.open(random_model())
    with pytest.raises(BadSite, match="has 4 dyads"):
        paths(model, Observable({"token 3": 1, "token 5": -1}, model), pairs_for(model), given=["L0H0:9>out"])


def test_pairs_that_point_both_ways_are_refused() -> None:
    model = covector.open(random_model())
    (pair,) = pairs_for(model, (6,))
    swapped = Pair(pair.corrupt, pair.clean, pair.slots, pair.texts)
    with pytest.raises(BadRequest, match="they point both ways"):
        paths(model, Observable({"token 3": 1, "token 5": -1}, model), [pair, swapped])


def test_a_given_path_may_name_positions_in_any_way() -> None:
    model = covector.open(random_model())
    pairs, task = pairs_for(model, (6, 6)), Observable({"token 3": 1, "token 5": -1}, model)
    shares = [
        paths(model, task, pairs, given=[f"L0H0@{slot}>L1.mlp@5>out"])["share"] for slot in ("NAME", "1", "end-4")
    ]
    assert np.abs(shares[0]).max() > 1e-6
    for other in shares[1:]:
        np.testing.assert_allclose(other, shares[0], rtol=1e-12)


def test_what_was_not_looked_into_is_summed_from_its_parts() -> None:
    worlds, _ = worlds_for("plain")
    found = find_paths(worlds, 6)
    assert abs(found.closure) < 1e-10 * abs(found.total.share) + 1e-12
    assert found.remainder == pytest.approx(found.total.share - sum(p.share for p in found.complete), rel=1e-9)
