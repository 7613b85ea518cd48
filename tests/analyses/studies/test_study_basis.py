"""Singular bases against rotated ones."""

import numpy as np
import pytest
from scipy import special

import covector
from covector.analyses.studies.basis import basis
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.errors import BadRequest
from synthetic_atlas import built, synthetic


def row(table, kind, side, score="coherence"):
    return next(r for r in table.rows if (r["kind"], r["side"], r["score"]) == (kind, side, score))


def test_superiority_is_the_share_of_pairs_that_the_singular_direction_wins(tmp_path):
    """p = (1 + losses)/(B + 1) is known, so wins are 1 − losses/B: 6 of 8 everywhere is .75."""

    def change(columns, rng):
        columns["p_coherence_svd"] = np.where(np.isnan(columns["p_coherence_svd"]), np.nan, 3 / 9)

    found = row(basis(synthetic(tmp_path / "a", change)), "ov", "write")
    assert found["superior"] == pytest.approx(0.75, abs=1e-12)
    assert (found["heads"], found["n"]) == (16, 128)


def test_directions_that_share_their_draws_are_worth_half_of_their_number(tmp_path):
    """128 directions, 8 draws for the 8 of each head: the distance is judged as one of 64. Cosines share nothing."""
    table = basis(synthetic(tmp_path / "a"))
    lists, cosines = row(table, "ov", "read"), row(table, "ov", "read", "cosine")
    assert lists["p_excess"] == pytest.approx(special.smirnov(64, lists["excess"]), rel=1e-9)
    assert cosines["p_excess"] == pytest.approx(special.smirnov(128, cosines["excess"]), rel=1e-9)


def test_the_chance_of_a_small_p_is_that_of_its_steps(tmp_path):
    """Counted among 8 draws p is a multiple of 1/9: never below .05; among 24 it is 1/25 or more: once in 25."""
    for rotations, wanted in ((1, 0.0), (3, 1 / 25), (5, 2 / 41)):
        table = basis(synthetic(tmp_path / str(rotations), rotations=rotations))
        assert row(table, "ov", "read")["small_null"] == pytest.approx(wanted, abs=1e-12)
        assert row(table, "ov", "read", "cosine")["small_null"] == 0.05


def counted(columns, rng):
    """p of every head counted among one random basis of its own, as large as the head is, shared by its directions."""
    site, side = columns["site"].astype(str), columns["side"].astype(str)
    is_head = ~np.isnan(columns["p_coherence_svd"])
    for one in np.unique(site[is_head]):
        for which in np.unique(side[site == one]):
            at = (site == one) & (side == which)
            draws = rng.normal(size=at.sum())
            columns["p_coherence_svd"][at] = (1 + (draws >= rng.normal(size=(at.sum(), 1))).sum(axis=1)) / (
                at.sum() + 1
            )


def test_heads_of_unlike_rank_win_half_of_their_pairs_by_chance(tmp_path):
    """Eight heads of 2 dyads and eight of 8, p counted among 2 and 8: wins of ½ on average, said so as often as 5 %.

    Undone as if all were counted among 8, the thin heads would win .44: 1 − (9p − 1)/8 of p = ⅓, ⅔, 1 is .75, .375, 0.
    """
    superior, small = [], []
    for seed in range(60):
        for r in basis(synthetic(tmp_path / str(seed), counted, seed=seed, kinds=("ov",), ranks=(8, 2))).rows:
            if r["score"] == "coherence":
                superior.append(r["superior"])
                small.append(r["p_heads"])
    # The mean of r × r wins of r + r exchangeable values has a variance of (2r + 1)/12r²: .104 and .022 for 2 and 8,
    # so a centre of 16 heads errs by about .06, and 120 of them by .006.
    assert np.mean(superior) == pytest.approx(0.5, abs=3 * 0.006)
    assert np.mean(np.array(small) <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(small))


def test_a_thin_head_is_judged_by_its_own_random_directions(tmp_path):
    """A p of ⅓ among 2 is both beaten: 1; the same among 8, 3/9, is 6 of 8. Their mean is what the row centres on."""

    def change(columns, rng):
        columns["p_coherence_svd"] = np.where(np.isnan(columns["p_coherence_svd"]), np.nan, 1 / 3)

    found = row(basis(synthetic(tmp_path / "a", change, ranks=(8, 2))), "ov", "write")
    assert found["superior"] == pytest.approx((1 + 0.75) / 2, abs=1e-12)
    # By steps of ⅓ and of 1/9 no p is below .05; 2 directions with 2 draws are worth 1, 8 with 8 are worth 4.
    assert found["small_null"] == 0.0
    assert found["n"] == 80
    assert found["p_excess"] == pytest.approx(special.smirnov(40, found["excess"]), rel=1e-9, abs=0)


@pytest.mark.parametrize(("raised", "sign"), [(0.5, 1), (-0.5, -1)])
def test_a_basis_that_is_better_or_worse_than_rotated_ones_is_told_so(tmp_path, raised, sign):
    def change(columns, rng):
        at = (columns["kind"] == "ov") & (columns["side"] == "write")
        scores = rng.normal(raised, 1, (at.sum(), 1))
        losses = (rng.normal(size=(at.sum(), 8)) >= scores).sum(axis=1)
        columns["p_coherence_svd"][at] = (1 + losses) / 9

    table = basis(synthetic(tmp_path / "a", change, layers=6))
    found = row(table, "ov", "write")
    assert np.sign(found["superior"] - 0.5) == sign
    assert found["q"] < 0.05
    words = "Singular directions have more coherent lists" if sign > 0 else "Rotated bases have the more coherent lists"
    assert f"{words} than rotated ones: ov write" in table.says or f"{words}: ov write" in table.says


def test_bases_that_are_exchangeable_are_told_alike_at_the_nominal_rate(tmp_path):
    """Draws shared by the directions of a head, as in an atlas."""

    def change(columns, rng):
        is_head = ~np.isnan(columns["p_coherence_svd"])
        p = np.full(len(is_head), np.nan)
        for site in np.unique(columns["site"][is_head].astype(str)):
            for side in ("read", "write"):
                at = (columns["site"] == site) & (columns["side"] == side)
                draws = rng.normal(size=8)
                p[at] = (1 + (draws >= rng.normal(size=(at.sum(), 1))).sum(axis=1)) / 9
        columns["p_coherence_svd"] = p

    heads, excess = [], []
    for seed in range(60):
        for r in basis(synthetic(tmp_path / str(seed), change, seed=seed, kinds=("ov",))).rows:
            if r["score"] == "coherence":
                heads.append(r["p_heads"])
                excess.append(r["p_excess"])
    reach = 3 * np.sqrt(0.05 * 0.95 / len(heads))
    assert np.mean(np.array(heads) <= 0.05) < 0.05 + reach
    assert np.mean(np.array(excess) <= 0.05) < 0.05 + reach


def test_an_excess_of_small_p_of_cosines_is_found_and_too_large_ones_are_not(tmp_path):
    def change(columns, rng):
        columns["p_svd"] = np.where(columns["kind"] == "ov", columns["p_svd"] ** 2, np.sqrt(columns["p_svd"]))

    table = basis(synthetic(tmp_path / "a", change))
    assert row(table, "ov", "read", "cosine")["q"] < 0.05
    assert row(table, "qk", "query", "cosine")["p_excess"] > 0.2
    assert row(table, "ov", "read", "cosine")["superior"] is None
    assert "Single tokens are closer to singular directions than to rotated ones: ov read" in table.says


def test_on_random_weights_rotated_bases_score_alike(tmp_path):
    model = covector.open(random_model(seed=8, n_layers=4, d_model=32, d_head=8, n_vocab=300))
    atlas = built(model, tmp_path / "a", Options(("ov", "qk"), draws=200))
    table = basis(atlas)
    assert "Rotated bases score alike" in table.says
    for r in table.rows:
        assert r["q"] > 0.05
        if r["score"] == "coherence":
            # 16 heads of 8 against 8: the share of wins has a standard error of about √(1/6/8)/√16 = .036.
            assert r["superior"] == pytest.approx(0.5, abs=4 * 0.036)


def test_heads_as_wide_as_the_stream_have_no_other_basis(tmp_path):
    with pytest.raises(BadRequest, match="expected heads that read or write a smaller space"):
        basis(synthetic(tmp_path / "a", kinds=("mlp.in",)))
