"""Paths found best first: the parts always make up the whole, dyads make up edges, planted circuits come out first."""

from collections.abc import Callable

import numpy as np
import pytest

import covector
from captured_runs import asked, run_of, runs_of, world_of
from covector.arch.toy import RMS_NORM, Plant, induction, planted, random_model
from covector.errors import BadSite
from covector.model.opened import Model
from covector.model.spec import Rotary
from covector.model.weights import Weights
from covector.propagation.linearised import Linearised, Policies
from covector.propagation.search import World, find_paths, functional
from covector.study.observable import Observable
from covector.study.path import Path, Step, parse_path
from random_checkpoints import random_weights

CLOSE = {"rtol": 1e-10, "atol": 1e-11}
ANATOMIES: dict[str, Callable[[], Weights]] = {
    "pre-norm": random_model,
    "rms, gated, rotary, grouped": lambda: random_model(
        norm=RMS_NORM, gated=True, activation="silu", rotary=Rotary(4, 1e2), n_kv_heads=2, qk_norm=RMS_NORM
    ),
    "parallel": lambda: random_model(parallel=True),
    "post-norm": lambda: random_model(placement="post"),
    "sandwich, soft-caps": lambda: random_weights("gemma2"),
    "encoder": lambda: random_weights("bert"),
    "agent": lambda: random_weights("decision_transformer"),
}


@pytest.mark.identity("OP-17", "OP-28")
@pytest.mark.parametrize("name", ANATOMIES)
def test_at_any_moment_the_unsplit_parts_sum_to_the_whole_prompt_by_prompt(name: str) -> None:
    weights = ANATOMIES[name]()
    plus, minus = runs_of(weights)
    world = world_of(weights, [plus, minus])
    wanted = asked(weights, plus) - asked(weights, minus)
    for expansions in (0, 1, 2, 5, 12):
        found = find_paths([world], expansions)
        assert found.expanded == expansions
        np.testing.assert_allclose(found.total.shares, wanted, **CLOSE)
        np.testing.assert_allclose(sum(part.shares for part in found.frontier), wanted, **CLOSE)
        texts = [str(part.path) for part in found.frontier]
        assert len(set(texts)) == len(texts)
        complete = sum(part.share for part in found.frontier if str(part.path).startswith("embed"))
        assert found.remainder == pytest.approx(found.total.share - complete, rel=1e-9, abs=1e-11)


def test_the_children_of_each_part_sum_to_it() -> None:
    weights = ANATOMIES["rms, gated, rotary, grouped"]()
    found = find_paths([world_of(weights, runs_of(weights))], 15)
    by_text = {str(part.path): part.shares for part in found.parts}
    unsplit = {str(part.path) for part in found.frontier}
    split = [text for text in by_text if text not in unsplit]
    assert len(split) == 14  # the first expansion is of the whole
    for text in split:
        children = [shares for other, shares in by_text.items() if other.partition(">")[2] == text]
        np.testing.assert_allclose(sum(children), by_text[text], **CLOSE)


def test_a_part_is_its_functional_on_what_its_first_component_reads() -> None:
    """Found shares against functionals made anew from the path's text, on the change of the stream there."""
    weights = random_model(n_kv_heads=2)
    plus, minus = runs_of(weights)
    world = world_of(weights, [plus, minus])
    for part in find_paths([world], 12).parts:
        path = parse_path(str(part.path), weights.spec)
        assert path == part.path
        step = path.steps[0]
        hook = "resid_in" if step.kind == "embed" else f"L{step.layer}.{step.sublayer}_in"
        F = functional(world, path)
        np.testing.assert_allclose(np.sum(F * (plus[hook] - minus[hook]), axis=(1, 2)), part.shares, **CLOSE)


def test_the_largest_part_is_split_first_and_small_ones_never() -> None:
    weights = random_model()
    world = world_of(weights, runs_of(weights))
    one = find_paths([world], 1)
    two = find_paths([world], 2)
    largest = max((p for p in one.parts if not p.complete), key=lambda p: abs(p.share))
    new = {str(p.path) for p in two.parts} - {str(p.path) for p in one.parts}
    assert new
    assert {text.partition(">")[2] for text in new} == {str(largest.path)}
    limited = find_paths([world], 1000, least=0.2)
    bar = 0.2 * abs(limited.total.share)
    assert limited.expanded < 1000
    assert all(p.complete or abs(p.share) < bar for p in limited.frontier)
    np.testing.assert_allclose(sum(p.shares for p in limited.frontier), limited.total.shares, **CLOSE)


@pytest.mark.parametrize("kind", ["v", "q", "k"])
@pytest.mark.parametrize("later", ["", ">L1.mlp", ">L1H3", ">L1H2.k"])
def test_the_dyads_of_a_head_sum_to_its_edge(kind: str, later: str) -> None:
    weights = ANATOMIES["rms, gated, rotary, grouped"]()
    world = world_of(weights, runs_of(weights))
    tail = parse_path(later[1:], weights.spec).steps
    whole = functional(world, Path((Step(kind, 0, 1), *tail)))
    parts = [functional(world, Path((Step(kind, 0, 1, dyad), *tail))) for dyad in range(4)]
    np.testing.assert_allclose(sum(parts), whole, **CLOSE)
    sizes = [np.linalg.norm(p) for p in parts]
    assert min(sizes) > 1e-3 * np.linalg.norm(whole)
    with pytest.raises(BadSite, match=r"L0H1.*:4: this map has 4 dyads"):
        functional(world, Path((Step(kind, 0, 1, 4), *tail)))


def test_a_dyad_of_ov_passes_its_own_gain() -> None:
    """Without norms a V step through dyad i is u ↦ pattern · σᵢ (vᵢ·u) uᵢ, by a dense decomposition."""
    weights = random_model(norm=None, d_mlp=0)
    (run,) = runs_of(weights, (1,))
    world = world_of(weights, [run], "frozen")
    U, S, Vh = np.linalg.svd(weights["L1.W_V"][2] @ weights["L1.W_O"][2])
    for i in range(4):
        wanted = np.einsum("bts,bt,d->bsd", run["L1.pattern"][:, 2], S[i] * (world.start @ Vh[i]), U[:, i])
        np.testing.assert_allclose(functional(world, Path((Step("v", 1, 2, i),))), wanted, **CLOSE)


def test_batches_of_unequal_length_are_taken_together_by_the_names_of_their_slots() -> None:
    weights = random_model()
    pairs = [
        (np.array([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]]), np.array([[3, 9, 4, 1, 5], [2, 6, 1, 8, 2]])),
        (np.array([[5, 3, 1, 4, 2, 6, 7]]), np.array([[5, 3, 9, 4, 2, 6, 7]])),
    ]
    names = (["0", "NAME", "NAME+1", "NAME+2", "end"], ["0", "1", "NAME", "NAME+1", "NAME+2", "NAME+3", "end"])
    worlds = []
    for (clean, corrupt), row in zip(pairs, names, strict=True):
        world = world_of(weights, [run_of(weights, clean), run_of(weights, corrupt)], at=[len(row) - 1] * len(clean))
        worlds.append(World(world.model, world.start, [row] * len(clean)))
    found = find_paths(worlds, 6)
    wanted = np.concatenate([find_paths([w], 0).total.shares for w in worlds])
    assert wanted.shape == (3,)
    np.testing.assert_allclose(found.total.shares, wanted, **CLOSE)
    np.testing.assert_allclose(sum(p.shares for p in found.frontier), wanted, **CLOSE)
    alone = [{str(p.path): p.shares for p in find_paths([w], 1).parts} for w in worlds]
    for part in find_paths(worlds, 1).parts:
        text = str(part.path)
        expected = [a.get(text, np.zeros(n)) for a, n in zip(alone, (2, 1), strict=True)]
        np.testing.assert_allclose(part.shares, np.concatenate(expected), **CLOSE)
    # Nothing before the name differs, and the short prompts have no fourth place behind it.
    slots = {p.path.steps[0].slot for p in found.parts}
    assert "0" not in slots
    assert "1" not in slots
    only_long = [p for p in found.parts if p.path.steps[0].slot == "NAME+3"]
    assert only_long
    assert all(not p.shares[:2].any() for p in only_long)


def test_all_positions_together_are_the_sum_over_positions() -> None:
    weights = random_model()
    apart = world_of(weights, runs_of(weights))
    together = World(apart.model, apart.start, [["*"] * 6] * 2)
    sums: dict[Step, np.ndarray] = {}
    for part in find_paths([apart], 1).parts:
        step = part.path.steps[0]
        key = Step(step.kind, step.layer, step.head, slot="*")
        sums[key] = sums.get(key, 0) + part.shares
    for part in find_paths([together], 1).parts:
        np.testing.assert_allclose(part.shares, sums.pop(part.path.steps[0]), **CLOSE)
    assert not sums


def world_for(model: Model, task: dict[str, float], clean: list[int], corrupt: list[int]) -> World:
    runs = tuple(run_of(model.weights, np.array([tokens])) for tokens in (clean, corrupt))
    linear = Linearised(model.weights, runs, Policies.all("secant"))
    start = linear.start(Observable(task, model).vector[None], "token", np.array([len(clean) - 1]))
    return World(linear, start, [[str(t) for t in range(len(clean))]])


def complete(world: World, expansions: int = 30) -> dict[str, float]:
    parts = sorted(find_paths([world], expansions, least=1e-6).complete, key=lambda p: -abs(p.share))
    return {str(p.path): p.share for p in parts}


def test_what_an_induction_head_copies_is_found_as_one_path_through_values() -> None:
    """… a b … a ↦ b: with another b the copied token alone carries the difference (attention moves by e⁻⁴⁰)."""
    model = covector.open(induction())
    world = world_for(model, {"token 2": 1.0, "token 4": -1.0}, [0, 1, 2, 3, 1], [0, 1, 4, 3, 1])
    found = complete(world)
    assert next(iter(found)) == "embed@2>L1H0@2>out"
    assert found["embed@2>L1H0@2>out"] == pytest.approx(2, abs=1e-9)
    assert sum(map(abs, found.values())) == pytest.approx(2, abs=1e-9)


def test_where_an_induction_head_looks_is_found_as_paths_through_its_keys() -> None:
    """The same two candidates in both prompts, their predecessors exchanged: only attention differs."""
    model = covector.open(induction())
    world = world_for(model, {"token 2": 1.0, "token 4": -1.0}, [0, 1, 2, 3, 4, 1], [0, 3, 2, 1, 4, 1])
    found = complete(world)
    circuit = {"embed@1>L0H0@1>L1H0.k@2>out", "embed@3>L0H0@3>L1H0.k@4>out"}
    assert set(list(found)[:2]) == circuit
    # 2 = (+1) − (−1); the two keys are each other's mirror.
    assert [found[path] for path in circuit] == pytest.approx([1, 1], abs=1e-9)
    assert sum(map(abs, found.values())) == pytest.approx(2, abs=1e-9)


def test_a_planted_head_is_the_first_path_with_the_share_that_its_attention_gives() -> None:
    weights = planted([Plant(0, 1, 3.0), Plant(2, 3, 2.0)], "L0H0.ov", n_heads=1, d_mlp=0)
    model = covector.open(weights)
    world = world_for(model, {"token 1": 1.0, "token 3": -1.0}, [6, 0, 7], [6, 2, 7])
    found = find_paths([world], 1)
    first = max(found.parts, key=lambda p: abs(p.share))
    assert str(first.path) == "L0H0@1>out"
    # The head reads 3 (token 0) or −2 (token 2) at position 1, times the mean of the two runs' attention there.
    A = [run["L0.pattern"][0, 0, 2, 1] for run in world.model.runs]
    assert first.share == pytest.approx((3 + 2) * (A[0] + A[1]) / 2, rel=1e-12)
    total = 3 * A[0] + 2 * A[1]
    assert found.total.share == pytest.approx(total, rel=1e-12)
