"""Chains of heads: lengths, links, bounds and gains against dense d × d products."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import pytest

from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.virtual import Chain, Crossing, all_links, all_norms, compress, pair_bounds
from covector.linalg.virtual_gains import all_gains

D = 10


@dataclass(frozen=True)
class Dense:
    """A chain beside what it stands for: per layer the d × d maps of its heads, and the map of what is crossed."""

    chain: Chain
    heads: list[list[np.ndarray]]
    crossed: list[np.ndarray]

    def paths(self, length: int) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Every path of exactly this length with its map of functionals, rows, from the end to the read space."""
        starts = np.cumsum([0, *map(len, self.heads)])
        for layers in combinations(range(len(self.heads)), length):
            for chosen in product(*(range(len(self.heads[i])) for i in layers)):
                T, above = np.eye(D), len(self.heads)
                for layer, h in reversed(list(zip(layers, chosen, strict=True))):
                    for i in range(above - 1, layer - 1, -1):
                        T = T @ self.crossed[i]
                    T, above = T @ self.heads[layer][h].T, layer
                yield tuple(int(starts[i]) + h for i, h in zip(layers, chosen, strict=True)), T


def built(
    sizes: list[tuple[int, int, int]], *, crossing: bool = False, rank: int | None = None, seed: int = 0
) -> Dense:
    """Random layers of (heads, read factors, r); with `crossing` a norm with gain and centring above each."""
    rng = np.random.default_rng(seed)
    layers, heads, crossed = [], [], []
    for n, kv, r in sizes:
        V, O = rng.standard_normal((kv, D, r)) / 3, rng.standard_normal((n, r, D)) / 3  # noqa: E741
        if rank is not None:
            V[:, :, rank:] = 0
        group = [h // (n // kv) for h in range(n)]
        norms = [Crossing(1 + rng.standard_normal(D), centre) for centre in (True, False)] if crossing else []
        T = np.eye(D)
        for norm in norms:
            assert norm.gain is not None
            T = T @ np.diag(norm.gain) @ (np.eye(D) - np.full((D, D), 1 / D) if norm.centre else np.eye(D))
        layers.append(compress(V, O, group, tuple(norms)))
        heads.append([V[group[h]] @ O[h] for h in range(n)])
        crossed.append(T)
    return Dense(Chain(tuple(layers)), heads, crossed)


KINDS: dict[str, Callable[[], Dense]] = {
    "plain": lambda: built([(3, 3, 4)] * 4),
    "grouped": lambda: built([(4, 2, 3), (4, 1, 3), (4, 4, 3)]),
    "norms crossed": lambda: built([(2, 2, 4), (2, 1, 4), (2, 2, 4), (1, 1, 4)], crossing=True),
    "wider than the stream": lambda: built([(2, 2, 13)] * 3),
    "rank deficient": lambda: built([(2, 2, 5)] * 3, rank=2),
    "unequal layers": lambda: built([(2, 1, 3), (1, 1, 6), (3, 3, 2)]),
    "one layer": lambda: built([(3, 3, 4)]),
}


@pytest.fixture(params=KINDS)
def dense(request: pytest.FixtureRequest) -> Dense:
    return KINDS[request.param]()


def test_lengths_of_all_paths_are_those_of_dense_products(dense: Dense) -> None:
    f = np.random.default_rng(5).standard_normal(D)
    for m, found in enumerate(all_norms(dense.chain, f, 4), start=1):
        wanted = {path: np.linalg.norm(f @ T) for path, T in dense.paths(m)}
        got = {tuple(p): n for p, n in zip(found.heads.tolist(), found.norms, strict=True)}
        assert got.keys() == wanted.keys()
        # Products of a few dozen terms in float64.
        np.testing.assert_allclose([got[p] for p in wanted], list(wanted.values()), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("length", [2, 3])
def test_kept_links_change_no_length(dense: Dense, length: int) -> None:
    f = np.random.default_rng(6).standard_normal(D)
    links = all_links(dense.chain)
    for a, b in zip(all_norms(dense.chain, f, length), all_norms(dense.chain, f, length, links=links), strict=True):
        order, other = (np.lexsort(p.heads.T) for p in (a, b))
        np.testing.assert_array_equal(a.heads[order], b.heads[other])
        np.testing.assert_allclose(b.norms[other], a.norms[order], rtol=1e-10, atol=1e-13)


def test_many_paths_extended_at_once_give_what_few_carried_down_give(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, f = KINDS["norms crossed"](), np.random.default_rng(7).standard_normal(D)
    carried = all_norms(dense.chain, f, 3)[-1]
    monkeypatch.setattr("covector.linalg.virtual.FEW", 0)
    monkeypatch.setattr("covector.linalg.virtual.BLOCK", 20)  # several blocks of rows
    at_once = all_norms(dense.chain, f, 3)[-1]
    order, other = np.lexsort(carried.heads.T), np.lexsort(at_once.heads.T)
    np.testing.assert_allclose(at_once.norms[other], carried.norms[order], rtol=1e-12)


def test_the_number_of_paths_is_counted_without_listing_them(dense: Dense) -> None:
    for length in (1, 2, 3, 9):
        assert dense.chain.count(length) == sum(len(list(dense.paths(m))) for m in range(1, min(length, 4) + 1))


def test_operators_and_links_are_the_dense_maps_in_orthonormal_coordinates(dense: Dense) -> None:
    f = np.random.default_rng(8).standard_normal(D)
    P = np.eye(D) - 1 / D
    for path, T in [row for m in (1, 2, 3) for row in dense.paths(m)]:
        layer, head = dense.chain.within(path[0])
        y = dense.chain.operator(path) @ f
        np.testing.assert_allclose(dense.chain.layers[layer].read(y[None], head)[0], f @ T, rtol=1e-9, atol=1e-12)
        centred = dense.chain.operator(path, centred=True)
        np.testing.assert_allclose(np.linalg.norm(centred), np.linalg.norm(P @ T), rtol=1e-9, atol=1e-12)


def test_bounds_of_pairs_are_above_the_gain_and_by_no_more_than_they_promise(dense: Dense) -> None:
    N = pair_bounds(dense.chain)
    exact = np.zeros_like(N)
    for (a, b), _ in dense.paths(2):
        exact[a, b] = np.linalg.norm(dense.chain.link(a, b), 2)
    r = max(len(layer.M[0]) for layer in dense.chain.layers)
    assert np.all(exact <= N)
    assert np.all(exact * r ** (1 / 16) * (1 + 1e-6) + 1e-10 >= N)
    assert np.all(N[exact == 0] <= 1e-10)


def test_gains_are_frobenius_norms_of_dense_maps(dense: Dense) -> None:
    P = np.eye(D) - 1 / D
    for centred in (False, True):
        gains = all_gains(dense.chain, 3, centred=centred)
        for m in (1, 2, 3):
            rows = list(dense.paths(m))
            if rows:
                wanted = [np.linalg.norm((P if centred else np.eye(D)) @ T) for _, T in rows]
                # Gains are roots of sums of squares: half the digits where a map is zero.
                np.testing.assert_allclose(gains.of(np.array([p for p, _ in rows])), wanted, rtol=1e-8, atol=1e-7)


def test_a_gain_is_the_mean_square_of_what_random_functionals_get_through() -> None:
    dense = KINDS["plain"]()
    (path, T), *_ = dense.paths(3)
    u = np.random.default_rng(9).standard_normal((20_000, D))
    squares = np.sum((u / np.linalg.norm(u, axis=1, keepdims=True) @ T) ** 2, axis=1)
    wanted = all_gains(dense.chain).of(np.array([path]))[0] ** 2 / D
    assert abs(squares.mean() - wanted) < 5 * squares.std() / np.sqrt(len(squares))


def test_a_chain_of_float32_stays_in_float32() -> None:
    rng = np.random.default_rng(0)
    V, O = rng.standard_normal((2, D, 3), np.float32), rng.standard_normal((2, 3, D), np.float32)  # noqa: E741
    chain = Chain((compress(V, O), compress(V, O)))
    assert {p.norms.dtype for p in all_norms(chain, np.ones(D), 2)} == {np.dtype(np.float32)}
    assert pair_bounds(chain).dtype == np.float64


def test_what_does_not_fit_is_refused() -> None:
    dense = KINDS["plain"]()
    with pytest.raises(BadRequest, match="at least 1 head, got length 0"):
        all_norms(dense.chain, np.ones(D), 0)
    with pytest.raises(BadRequest, match="earlier layer first, got heads 3 and 0"):
        dense.chain.link(3, 0)
    with pytest.raises(BadRequest, match="at most 3 heads where all gains are wanted, got 4"):
        all_gains(dense.chain, 4)
    with pytest.raises(SpaceMismatch, match=r"got \(1, 10, 3\), \(2, 3, 10\)"):
        compress(np.ones((1, D, 3)), np.ones((2, 3, D)))


def test_a_chain_without_layers_has_no_paths() -> None:
    assert [len(p.norms) for p in all_norms(Chain(()), np.ones(D), 2)] == [0, 0]
    assert Chain(()).count(3) == 0
