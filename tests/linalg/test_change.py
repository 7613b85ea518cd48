"""A change of a map: its difference in factors, what it does to dyads, and random changes of equal norm and rank."""

import numpy as np
import pytest
from scipy.stats import kstest

from covector.errors import SpaceMismatch
from covector.linalg.change import (
    angles,
    bands,
    difference,
    first_order_shifts,
    is_zero,
    likeness,
    matched,
    nearest,
    rank_above_noise,
    relative_change,
)
from covector.linalg.change_null import RandomChanges
from covector.linalg.maps import Dense, Factored, Map, Space, frobenius
from covector.linalg.svd import svd

D, HEAD, MLP = 24, 6, 40
RESIDUAL, NEURONS = Space("residual", D), Space("neurons", MLP)
SIZE = 0.05


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def head(A: np.ndarray, B: np.ndarray) -> Factored:
    return Factored(A, B, RESIDUAL, RESIDUAL)


def head_pair(seed: int, size: float = SIZE) -> tuple[Factored, Factored]:
    A, B = normal(seed, D, HEAD) * np.geomspace(1, 0.2, HEAD), normal(seed + 1, HEAD, D)
    return head(A, B), head(A + size * normal(seed + 2, D, HEAD), B + size * normal(seed + 3, HEAD, D))


def mlp_pair(seed: int, size: float = SIZE) -> tuple[Dense, Dense]:
    W = normal(seed, D, MLP)
    return Dense(W, RESIDUAL, NEURONS), Dense(W + size * normal(seed + 1, D, MLP), RESIDUAL, NEURONS)


def factors(m: Map) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(m, Factored)
    return m.A, m.B


EVERY = pytest.mark.parametrize("pair", [head_pair, mlp_pair], ids=["head", "mlp"])


@EVERY
def test_the_difference_is_that_of_the_dense_matrices(pair):
    base, other = pair(0)
    expected = np.array(other.dense(), dtype=np.float64) - base.dense()
    np.testing.assert_allclose(difference(other, base).dense(), expected, atol=1e-13)
    assert relative_change(difference(other, base), base) == pytest.approx(
        np.linalg.norm(expected) / np.linalg.norm(base.dense()), rel=1e-12
    )


def test_a_head_s_difference_stays_in_factors_of_twice_its_size_and_of_once_where_one_factor_changed():
    base, other = head_pair(1)
    assert [a.shape for a in factors(difference(other, base))] == [(D, 2 * HEAD), (2 * HEAD, D)]
    for mixed in (head(base.A, other.B), head(other.A, base.B)):
        found = difference(mixed, base)
        assert [a.shape for a in factors(found)] == [(D, HEAD), (HEAD, D)]
        np.testing.assert_allclose(found.dense(), mixed.dense() - base.dense(), atol=1e-13)


def test_a_change_a_billion_times_smaller_than_the_map_keeps_its_digits():
    # Subtracting products would leave 1e-16 · ‖A‖‖B‖ ≈ 1e-14 of error in a change of 1e-9: five digits. Stored factors
    # that differ by 1e-9 are themselves rounded at 1e-16, so seven are there to be had.
    A, B = normal(2, D, HEAD), normal(3, HEAD, D)
    dB = 1e-9 * normal(4, HEAD, D)
    found = difference(head(A, B + dB), head(A, B))
    kept = (B + dB) - B  # what the two stored arrays differ by, exactly
    np.testing.assert_allclose(found.dense(), A @ kept, rtol=1e-12, atol=1e-24)


@EVERY
def test_no_change_is_zero_exactly_and_has_no_dyads(pair):
    base, _ = pair(5)
    found = difference(base, base)
    assert is_zero(found)
    assert frobenius(found) == 0.0 == relative_change(found, base)
    assert svd(found).rank == 0
    assert not bands(svd(base), found, 3).any()


def test_maps_of_other_sizes_or_kinds_are_refused_by_name():
    base, _ = head_pair(6)
    space = Space("residual", 12)
    small = Factored(normal(0, 12, 6), normal(1, 6, 12), space, space)
    with pytest.raises(SpaceMismatch, match=r"residual\[24\] → residual\[24\] and residual\[12\]"):
        difference(small, base)
    with pytest.raises(SpaceMismatch, match="kept in the same way"):
        difference(Dense(normal(0, D, D), RESIDUAL, RESIDUAL), base)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_rank_of_a_change_leaves_storage_rounding_out(rank):
    A, B = normal(7, D, HEAD), normal(8, HEAD, D).astype(np.float32)
    changed = (B + 0.3 * normal(9, HEAD, rank) @ normal(10, rank, D)).astype(np.float32)
    found = svd(difference(head(A, changed), head(A, B)))
    assert found.rank == HEAD  # rounding to float32 has every direction
    assert rank_above_noise(found) == rank


@pytest.mark.identity("SV-28")
@EVERY
def test_gains_move_no_further_than_the_norm_of_the_change(pair):
    for seed in range(10):
        base, other = pair(20 + seed, 0.2)
        old, new, change = svd(base), svd(other), svd(difference(other, base), 1)
        r = min(old.rank, new.rank)
        assert np.abs(new.S[:r] - old.S[:r]).max() <= change.S[0] * (1 + 1e-12)


@pytest.mark.identity("SV-28")
@EVERY
def test_leading_subspaces_turn_no_further_than_wedin_allows(pair):
    top = 2
    for seed in range(10):
        base, other = pair(40 + seed, 0.004)
        old, new, error = svd(base), svd(other), svd(difference(other, base), 1).S[0]
        gap = old.S[top - 1] - new.S[top]
        assert gap > 2 * error
        for found in angles(old, new, top).values():
            assert np.sin(np.radians(found[0])) <= error / gap


@pytest.mark.identity("SV-29")
@EVERY
def test_a_small_change_shifts_gains_by_what_first_order_says(pair):
    base, other = pair(60)
    change = difference(other, base)
    predicted = first_order_shifts(svd(base), change)
    leading, errors = 4, []
    for t in (1e-2, 1e-3):
        # The change is scaled as a whole: t·ΔM is no change of the factors by t.
        moved = np.asarray(base.dense()) + t * np.asarray(change.dense())
        shift = np.linalg.svd(moved, compute_uv=False)[:leading] - svd(base).S[:leading]
        errors.append(np.abs(shift - t * predicted[:leading]).max())
    # Second order: a hundredth where t falls to a tenth (0.5 … 2 % for what third order and rounding do).
    assert errors[1] / errors[0] == pytest.approx(0.01, rel=0.2)


def test_bands_share_out_the_norm_of_the_change_as_projectors_do():
    base, other = head_pair(80)
    old, change, top = svd(base), difference(other, base), 2
    U, V = old.U, old.Vh.T
    reads = [U[:, :top] @ U[:, :top].T, U[:, top:] @ U[:, top:].T, np.eye(D) - U @ U.T]
    writes = [V[:, :top] @ V[:, :top].T, V[:, top:] @ V[:, top:].T, np.eye(D) - V @ V.T]
    total = np.sum(change.dense() ** 2)
    expected = [[np.sum((P @ change.dense() @ Q) ** 2) / total for Q in writes] for P in reads]
    np.testing.assert_allclose(bands(old, change, top), expected, atol=1e-12)


def test_a_change_of_the_output_alone_reads_where_the_old_map_reads():
    base, other = head_pair(81)
    found = bands(svd(base), difference(head(base.A, other.B), base), 2)
    np.testing.assert_allclose(found[2], 0.0, atol=1e-12)


def test_permuted_and_flipped_dyads_are_matched_to_themselves():
    old = svd(head_pair(82)[0])
    order = np.array([2, 0, 1, 3, 5, 4])
    gains = np.sort(np.geomspace(5, 1, HEAD))[::-1]
    U, Vh = old.U[:, order], -old.Vh[order]
    new = svd(Factored(U * gains, Vh, RESIDUAL, RESIDUAL))
    found = matched(old, new, 4)
    assert found.partner.tolist() == order[:4].tolist()
    np.testing.assert_allclose([*found.read, *found.write, *found.nearest], 1.0, atol=1e-12)


def test_a_planted_dyad_outside_the_old_ones_is_the_one_intruder():
    base, _ = head_pair(83)
    old = svd(base)
    u = np.linalg.qr(np.concatenate([old.U, normal(84, D, 1)], axis=1))[0][:, -1]
    v = np.linalg.qr(np.concatenate([old.Vh.T, normal(85, D, 1)], axis=1))[0][:, -1]
    planted = 2 * old.S[0]
    new = svd(Factored(np.c_[base.A, planted * u], np.r_[base.B, v[None]], RESIDUAL, RESIDUAL))
    found = matched(old, new, 4)
    assert found.intruders(0.5).tolist() == [True, False, False, False]
    assert likeness(old, new)[:, 0].max() < 1e-10
    np.testing.assert_allclose(nearest(old, new, 4)[1:], 1.0, atol=1e-10)


def test_dyads_that_read_alike_and_write_otherwise_are_not_alike():
    U, V = (np.linalg.qr(normal(seed, D, 4))[0] for seed in (86, 87))
    gains = np.array([4.0, 3.0])
    old = svd(Factored(U[:, :2] * gains, V[:, :2].T, RESIDUAL, RESIDUAL))
    new = svd(Factored(U[:, :2] * gains, V[:, 2:].T, RESIDUAL, RESIDUAL))
    np.testing.assert_allclose(likeness(old, new), 0.0, atol=1e-12)
    assert matched(old, new, 2).intruders(0.5).all()


# ---- random changes


@EVERY
def test_a_random_change_has_the_norm_and_its_arrays_the_gains_of_the_real_one(pair):
    base, other = pair(90)
    size = frobenius(difference(other, base))
    random = RandomChanges(other, base, size, 0)
    for index in range(3):
        change, new = random.draw(index)
        assert frobenius(change) == pytest.approx(size, rel=1e-12)
        np.testing.assert_allclose(new.dense(), np.asarray(base.dense()) + change.dense(), atol=1e-12)
    gains = np.linalg.svd((other.B if isinstance(other, Factored) else other.W)
                          - (base.B if isinstance(base, Factored) else base.W), compute_uv=False)  # fmt: skip
    np.testing.assert_allclose(random.gains[-1], gains, rtol=1e-9)


def test_a_random_change_of_rank_one_in_the_output_has_rank_one_and_reads_through_the_old_input():
    base, _ = head_pair(91)
    other = head(base.A, base.B + np.outer(normal(92, HEAD), normal(93, D)))
    change, _ = RandomChanges(other, base, 0.7, 0).draw(5)
    found = svd(change)
    assert found.rank == 1
    assert found.S[0] == pytest.approx(0.7, rel=1e-12)
    reach = np.linalg.qr(base.A)[0]
    assert np.linalg.norm(reach.T @ found.U[:, 0]) == pytest.approx(1.0, rel=1e-12)


def test_directions_of_random_changes_are_spread_evenly_on_both_sides():
    W, draws = normal(95, D, MLP), 400
    base = Dense(W, RESIDUAL, NEURONS)
    other = Dense(W + np.outer(normal(96, D), normal(97, MLP)), RESIDUAL, NEURONS)
    random = RandomChanges(other, base, 1.0, 0)
    dyads = [svd(random.draw(i)[0], 1) for i in range(draws)]
    for rows in (np.array([d.U[:, 0] for d in dyads]), np.array([d.Vh[0] for d in dyads])):
        n = rows.shape[1]
        # cos² is Beta(½, (n − 1)/2): standard deviation √2/n, the mean of 400 within six of its errors.
        np.testing.assert_allclose(rows.T @ rows / draws, np.eye(n) / n, atol=6 * np.sqrt(2) / n / np.sqrt(draws))


def test_draw_number_five_is_the_same_whatever_was_drawn_before():
    base, other = head_pair(94)
    alone = RandomChanges(other, base, 1.0, 3).draw(5)[0].dense()
    after = RandomChanges(other, base, 1.0, 3)
    for index in range(5):
        after.draw(index)
    np.testing.assert_array_equal(after.draw(5)[0].dense(), alone)
    assert not np.allclose(RandomChanges(other, base, 1.0, 4).draw(5)[0].dense(), alone)


def chances(pair, replicates: int, draws: int) -> np.ndarray:
    """p of the share inside the old leading dyads, for changes that are noise."""

    def inside(old, change: Map) -> float:
        return float(bands(old, change, 3)[0, 0])

    made = []
    for i in range(replicates):
        base, other = pair(1000 + 10 * i)
        old, change = svd(base), difference(other, base)
        random = RandomChanges(other, base, frobenius(change), i)
        null = np.array([inside(old, random.draw(j)[0]) for j in range(draws)])
        made.append((1 + np.sum(null >= inside(old, change))) / (1 + draws))
    return np.array(made)


@pytest.mark.slow
@EVERY
def test_noise_in_the_stored_arrays_gets_uniform_chances(pair):
    p = chances(pair, 120, 39)
    # Steps of 1/40 are coarser than the law's own 1/√120 only at the ends: shift them to their middles.
    assert kstest(p - 0.5 / 40, "uniform").pvalue > 0.01


def test_the_same_noise_against_random_dense_matrices_would_look_meaningful():
    # The wrong null, and why it is not used: a head's noise reads through the old W_V, dense noise everywhere.
    found = []
    for i in range(20):
        base, other = head_pair(2000 + 10 * i)
        old, change = svd(base), difference(other, base)
        dense = [Dense(normal(i * 100 + j, D, D), RESIDUAL, RESIDUAL) for j in range(39)]
        null = [bands(old, one, 3)[0, 0] for one in dense]
        found.append((1 + np.sum(np.array(null) >= bands(old, change, 3)[0, 0])) / 40)
    assert np.mean(np.array(found) < 0.05) > 0.5
