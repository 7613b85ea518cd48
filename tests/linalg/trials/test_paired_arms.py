"""Two arms on the same seeds: the p of sign flips, shares of successes."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from covector.errors import BadRequest
from covector.linalg.trials.paired import paired_difference, paired_shares, share_interval, sign_flip_p

# Sums of a few dozen float64 terms.
CLOSE = 1e-12


def p_of(differences: np.ndarray, **kwargs: int) -> float:
    return float(sign_flip_p(differences.astype(np.float64), **kwargs).value)


def test_few_differences_have_the_p_of_all_their_signs() -> None:
    d = np.random.default_rng(0).standard_normal(9) + 0.5
    wanted = stats.permutation_test(
        (d, 0 * d), lambda a, b: np.sum(a - b), permutation_type="samples", n_resamples=np.inf
    )  # fmt: skip
    assert p_of(d) == pytest.approx(wanted.pvalue, abs=CLOSE)


@pytest.mark.parametrize(("lost", "gained"), [(30, 12), (0, 5), (7, 7), (1, 0)])
def test_successes_have_the_p_of_mcnemars_exact_test(lost: int, gained: int) -> None:
    d = np.concatenate([-np.ones(lost), np.ones(gained), np.zeros(300 - lost - gained)])
    wanted = stats.binomtest(lost, lost + gained).pvalue
    assert p_of(d) == pytest.approx(wanted, rel=1e-10)
    # Successes worth 0.1 each are the same test.
    assert p_of(0.1 * d) == pytest.approx(wanted, rel=1e-10)


def test_the_law_by_convolution_is_that_of_all_signs() -> None:
    d = np.random.default_rng(1).integers(-6, 9, 12).astype(np.float64)
    signs = 1.0 - 2.0 * ((np.arange(2**12)[:, None] >> np.arange(12)) & 1)
    assert p_of(d) == pytest.approx(np.mean(np.abs(signs @ d) >= abs(d.sum())), abs=CLOSE)


def test_random_signs_agree_with_the_exact_law_within_their_error() -> None:
    d = np.random.default_rng(2).integers(-20, 25, 60).astype(np.float64)
    exact = sign_flip_p(d)
    # The same differences, no longer multiples of one unit but for a millionth.
    drawn = sign_flip_p(d * (1 + 1e-7 * np.arange(60)), draws=20_000, seed=3)
    assert float(exact.error) == 0 < float(drawn.error)
    assert abs(float(exact.value) - float(drawn.value)) < 4 * float(drawn.error)


def test_the_size_of_the_exact_test_is_what_it_says() -> None:
    """9 differences: p is a multiple of 2/512, 24/512 the largest up to 5 %. 6000 null samples, 4 standard errors."""
    d = np.random.default_rng(3).standard_cauchy((6000, 9))
    size, wanted = np.mean(sign_flip_p(d).value <= 0.05), 24 / 512
    assert abs(size - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 6000)


def test_the_size_with_random_signs_is_what_it_says() -> None:
    """199 draws: p ≤ .05 for 10 of 200 ranks. Rows of one call share their signs, so 100 calls of 100 rows: the error
    is √(.0475/(199·100) + .0475/10⁴) = .0027."""
    rng = np.random.default_rng(4)
    reached = [
        np.mean(sign_flip_p(rng.laplace(size=(100, 25)), draws=199, seed=i).value <= 0.05 + CLOSE) for i in range(100)
    ]
    assert abs(np.mean(reached) - 0.05) < 4 * 0.0027


def test_random_signs_count_the_observed_ones() -> None:
    d = 5 + np.random.default_rng(9).random((2, 30))
    np.testing.assert_allclose(sign_flip_p(d, draws=99).value, 1 / 100)


def test_pairing_finds_an_effect_that_is_small_beside_the_difference_of_seeds() -> None:
    rng = np.random.default_rng(5)
    clean = 10 * rng.standard_normal(200)
    arm = clean - 0.3 + rng.standard_normal(200)
    assert p_of(arm - clean) < 0.01
    assert stats.ttest_ind(clean, arm).pvalue > 0.2


def test_p_does_not_depend_on_sign_order_unit_or_seeds_without_a_difference() -> None:
    rng = np.random.default_rng(6)
    for d in (rng.standard_normal(10) + 0.4, rng.integers(-9, 12, 40).astype(np.float64)):
        for same in (-d, d[rng.permutation(len(d))], 0.3 * d, np.append(d, np.zeros(30))):
            assert p_of(same) == pytest.approx(p_of(d), abs=CLOSE)


def test_ties_count_for_the_null() -> None:
    """Ten equal differences: only the two samples of one sign do as much; three signs of four tie with |sum| 2."""
    assert p_of(np.full(10, 0.7)) == pytest.approx(2 / 2**10, abs=CLOSE)
    assert p_of(np.array([1.0, 1, 1, -1])) == pytest.approx(10 / 16, abs=CLOSE)
    # 0.1 + 0.2 and 0.3 are equal up to rounding.
    assert p_of(np.array([0.1, 0.2, 0.3, np.sqrt(5)]) * -1) == pytest.approx(2 / 16, abs=CLOSE)
    assert p_of(np.array([0.1, 0.2, -0.3, 1e-3 * np.sqrt(5)])) == pytest.approx(1.0)


def test_an_arm_that_is_the_clean_one_differs_by_nothing() -> None:
    found = paired_difference(np.zeros((2, 40)), draws=100)
    assert (found.mean == 0).all()
    assert (found.low == 0).all()
    assert (found.high == 0).all()
    assert (found.p == 1).all()


def test_rows_are_summarised_one_by_one() -> None:
    d = np.random.default_rng(7).standard_normal((3, 2, 30))
    found = paired_difference(d, draws=500, seed=1)
    alone = paired_difference(d[2, 1], draws=500, seed=1)
    assert found.p.shape == (3, 2)
    for name in ("mean", "sd", "low", "high", "p", "p_error"):
        assert getattr(found, name)[2, 1] == pytest.approx(float(getattr(alone, name)), abs=CLOSE)
    assert alone.sd == pytest.approx(d[2, 1].std(ddof=1))


def most_likely(gained: int, lost: int, n: int, delta: float) -> float:
    """The chance of a loss that makes the data likeliest if the shares differ by delta, by search."""

    def cost(q: float) -> float:
        cells = [(gained, q + delta), (lost, q), (n - gained - lost, 1 - 2 * q - delta)]
        return -sum(k * np.log(max(p, 1e-300)) for k, p in cells if k)

    return float(minimize_scalar(cost, bounds=(max(0, -delta), (1 - delta) / 2), method="bounded",
                                 options={"xatol": 1e-12}).x)  # fmt: skip


@pytest.mark.parametrize(("gained", "lost", "n"), [(12, 2, 50), (3, 9, 40), (0, 6, 100)])
def test_the_ends_of_the_interval_of_shares_are_z_standard_errors_away(gained: int, lost: int, n: int) -> None:
    for end, sign in zip(share_interval(gained, lost, n), (1, -1), strict=True):
        q = most_likely(gained, lost, n, end)
        error = np.sqrt((2 * q + end - end**2) / n)
        # The search finds the flat top to 1e-7 or so.
        assert ((gained - lost) / n - end) / error == pytest.approx(sign * 1.959964, rel=1e-4)


def test_no_change_at_all_leaves_an_interval() -> None:
    z2 = 1.959964**2
    assert share_interval(0, 0, 50) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), rel=1e-6)
    assert share_interval(0, 50, 50)[0] == -1
    assert share_interval(50, 0, 50)[1] == 1


def test_the_interval_of_shares_covers_near_its_level() -> None:
    """Summed over all outcomes of 30 seeds: no simulation. 93 % is the least seen in Tango's tables at such n."""
    n = 30
    pairs = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    ends = np.array([share_interval(b, c, n) for b, c in pairs])
    for gained, lost in ((0.1, 0.3), (0.05, 0.05), (0.3, 0.3), (0.02, 0.5)):
        chance = stats.multinomial.pmf([(b, c, n - b - c) for b, c in pairs], n, [gained, lost, 1 - gained - lost])
        inside = (ends[:, 0] <= gained - lost) & (gained - lost <= ends[:, 1])
        assert 0.93 < chance[inside].sum() <= 1 + 1e-9


def test_arms_that_change_places_change_the_sign() -> None:
    rng = np.random.default_rng(8)
    clean, arm = rng.random(80) < 0.9, rng.random(80) < 0.6
    one, other = paired_shares(clean, arm), paired_shares(arm, clean)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.difference == pytest.approx(arm.mean() - clean.mean())
    assert one.difference < 0
    assert (one.p, one.gained, one.lost) == (other.p, other.lost, other.gained)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(BadRequest, match="leave a seed that was not finished out"):
        paired_difference(np.array([1.0, np.nan]))
    with pytest.raises(BadRequest, match="the same seeds in both arms"):
        paired_shares(np.ones(0, bool), np.ones(0, bool))
    with pytest.raises(BadRequest, match="draws >= 1"):
        sign_flip_p(np.ones(3), draws=0)
