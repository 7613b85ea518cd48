"""Branch and bound over chains of heads: what it calls the longest are the longest, ties and budgets included."""

import dataclasses
from itertools import combinations, product

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.branch_and_bound import BestPaths, best_paths, growth
from covector.linalg.virtual import Chain, Crossing, compress, pair_bounds

D = 12
# The same product in another order: a few hundred roundings.
ROUNDING = 1e-10


def chain(
    layers: int = 5, heads: int = 3, r: int = 3, gain: float = 0.4, *, seed: int = 0, crossing: bool = False
) -> Chain:
    """Random heads of unequal strength."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(layers):
        V, O = rng.standard_normal((heads, D, r)) / 3, rng.standard_normal((heads, r, D)) / 3  # noqa: E741
        strength = gain * np.exp(rng.standard_normal(heads))
        norms = (Crossing(1 + 0.3 * rng.standard_normal(D), True),) if crossing else ()
        made.append(compress(V, O * strength[:, None, None], None, norms))
    return Chain(tuple(made))


def enumerated(model: Chain, f: np.ndarray, length: int) -> list[tuple[float, tuple[int, ...]]]:
    """Every path with its length, longest first, each pulled back on its own."""
    found = []
    for m in range(1, length + 1):
        for layers in combinations(range(len(model.layers)), m):
            for heads in product(*(range(len(model.layers[i].M)) for i in layers)):
                F, above = f, len(model.layers)
                for layer, h in reversed(list(zip(layers, heads, strict=True))):
                    F = model.down(F, above, layer)
                    F, above = model.layers[layer].read((F @ model.layers[layer].M[h].T)[None], h)[0], layer
                path = tuple(int(model.starts[i]) + h for i, h in zip(layers, heads, strict=True))
                found.append((float(np.linalg.norm(F)), path))
    return sorted(found, key=lambda row: (-row[0], row[1]))


def functional(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(D)


@pytest.mark.slow
@pytest.mark.parametrize("crossing", [False, True])
@pytest.mark.parametrize("gain", [0.05, 0.4, 2.0])  # pruning at once, some, and none: heads that amplify
@pytest.mark.parametrize(("k", "length"), [(1, 5), (7, 3), (40, 2), (10, 1), (10_000, 3)])
def test_the_longest_paths_are_those_of_enumeration(gain: float, k: int, length: int, crossing: bool) -> None:
    for seed in range(4):
        model, f = chain(gain=gain, seed=seed, crossing=crossing), functional(seed)
        found, every = best_paths(model, f, k, length), enumerated(model, f, length)
        assert found.proven
        assert found.total == len(every)
        assert found.paths == tuple(path for _, path in every[:k])
        np.testing.assert_allclose(found.norms, [norm for norm, _ in every[:k]], rtol=ROUNDING)
        assert found.gap == 0


def test_few_paths_are_looked_at_where_heads_do_not_amplify() -> None:
    model = chain(layers=8, heads=4, gain=0.05)
    found = best_paths(model, functional(), 5, 8)
    assert found.proven
    assert found.generated < 0.01 * found.total


def test_a_path_whose_first_step_is_weak_is_not_missed() -> None:
    """A greedy beam keeps strong prefixes: here the longest feature begins with the weakest head."""
    e = np.eye(D)
    last = compress(np.stack([e[:, :1], e[:, 1:2]]), np.stack([1.0 * e[:1], 0.01 * e[:1]]))
    first = compress(e[:, 2:3][None], 1000 * e[1:2][None])  # reads on only what the weak head hands down
    found = best_paths(Chain((first, last)), e[0], 1, 2)
    assert found.paths == ((0, 2),)
    np.testing.assert_allclose(found.norms, [10.0])


def twins(seed: int = 0) -> Chain:
    """Every layer holds the same head twice, so that a path of m heads comes 2^m times."""
    single = chain(layers=4, heads=1, gain=0.6, seed=seed)
    return Chain(tuple(
        dataclasses.replace(layer, M=np.repeat(layer.M, 2, axis=0), group=(0, 0)) for layer in single.layers
    ))  # fmt: skip


@pytest.mark.parametrize("k", [1, 3, 5, 6, 17])
def test_ties_come_in_the_order_of_heads_and_those_left_out_are_counted(k: int) -> None:
    model, f = twins(), functional()
    every = enumerated(model, f, 3)
    order = sorted(every, key=lambda row: (-round(row[0], 9), row[1]))  # twins differ by rounding alone
    found = best_paths(model, f, k, 3)
    assert found.proven
    assert found.paths == tuple(path for _, path in order[:k])
    assert found.tied == sum(abs(norm - found.norms[-1]) < 1e-9 for norm, _ in order[k:])


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1, 2, 5, 20])
def test_a_budget_leaves_a_gap_that_holds(budget: int) -> None:
    for seed in range(6):
        model, f = chain(gain=0.7, seed=seed), functional(seed)
        found, every = best_paths(model, f, 10, 5, budget=budget), enumerated(model, f, 5)
        assert found.expanded <= budget
        unseen = [norm for norm, path in every if path not in found.paths]
        assert max(unseen) <= found.bound * (1 + ROUNDING)
        assert not found.proven or found.paths == tuple(path for _, path in every[:10])
        assert found.gap == pytest.approx(0 if found.proven else found.bound / found.norms[-1] - 1)
        if not found.proven:
            assert found.gap >= 0


def test_a_budget_that_suffices_still_proves() -> None:
    model, f = chain(gain=0.4), functional()
    whole = best_paths(model, f, 5, 5)
    assert best_paths(model, f, 5, 5, budget=whole.expanded).proven
    starved = best_paths(chain(gain=2.0), f, 5, 5, budget=1)
    assert not starved.proven
    assert starved.gap > 0


def test_paths_of_no_length_are_no_answer() -> None:
    e = np.eye(D)
    blind = compress(e[:, :1][None], e[3:4][None])  # hands on nothing of what the second layer reads
    model = Chain((blind, compress(e[:, 1:2][None], e[:1][None])))
    found = best_paths(model, e[0], 10, 2)
    assert found.paths == ((1,),)
    assert found.proven
    assert best_paths(model, np.zeros(D), 10, 2).paths == ()
    assert best_paths(Chain(()), np.ones(D), 10, 2).paths == ()


def test_growth_bounds_every_extension() -> None:
    model = chain(gain=0.8)
    G = growth(pair_bounds(model), 3)
    np.testing.assert_array_equal(G[0], 0)
    for norm, path in [row for row in enumerated(model, functional(), 4) if len(row[1]) > 1]:
        for cut in range(1, len(path)):
            later = path[cut:]
            F = functional() @ model.operator(later).T
            assert norm <= np.linalg.norm(F) * G[cut, later[0]] * (1 + ROUNDING)
    assert np.all(np.diff(G, axis=0) >= 0)


def test_bounds_may_be_made_ahead_and_change_nothing() -> None:
    model, f = chain(), functional()
    a, b = best_paths(model, f, 5, 4), best_paths(model, f, 5, 4, bounds=pair_bounds(model))
    assert isinstance(a, BestPaths)
    assert (a.paths, a.expanded, a.generated) == (b.paths, b.expanded, b.generated)


@pytest.mark.parametrize(("k", "length", "budget"), [(0, 3, None), (5, 0, None), (5, 3, 0)])
def test_requests_for_nothing_are_refused(k: int, length: int, budget: int | None) -> None:
    with pytest.raises(BadRequest, match="at least 1"):
        best_paths(chain(), functional(), k, length, budget=budget)
