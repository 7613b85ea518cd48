"""Sweeps: gradients are finite differences, ablations are ablations, the planted dyad comes first, p is calibrated."""

from dataclasses import replace

import numpy as np
import pytest

import covector
from covector.analyses.choose_metric import Metric, on_text
from covector.analyses.dyad_sweep import dyad_sweep, first_order_p, slopes, sweep
from covector.analyses.sweep_setup import Ground, grounds, started, whole
from covector.arch.toy import Plant, planted
from covector.arch.toy import random_model as toy_model
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.model.overlay import Change, Update
from covector.run.decoder import Decoder
from covector.run.edit_runs import scaled
from covector.run.neutral import Neutral
from random_checkpoints import random_model

SITES = ("L*H*.ov", "L*.mlp.out")


def text_of(vocab: int, batch: int = 8, length: int = 7, seed: int = 0) -> Neutral:
    tokens = np.random.default_rng(seed).integers(0, vocab, (batch, length))
    n = batch * length
    return Neutral((tokens,), (np.ones(tokens.shape, dtype=bool),), ("neutral",), np.zeros(n, dtype=int),
                   np.repeat(np.arange(batch), length))  # fmt: skip


def metric_of(model: Model, seed: int = 5) -> Metric:
    functional = np.random.default_rng(seed).standard_normal(model.spec.n_vocab)
    return on_text(Decoder(model.stored), "a functional", functional, text_of(model.spec.n_vocab, seed=9))


def ground_of(model: Model) -> Ground:
    return grounds(model, metric_of(model), SITES)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def ground(request: pytest.FixtureRequest) -> Ground:
    return ground_of(random_model(request.param))


def test_runs_that_start_late_are_whole_runs(ground: Ground) -> None:
    """`Started.of` from the changed block on, and `laid` of many at once, against the metric of the whole model."""
    found, half = ground.found, ground.held
    np.testing.assert_allclose(half.of(), half.metric.of(), rtol=1e-10)
    for i in (0, len(found) // 2, len(found) - 1):
        change = found.changed_by(-(np.arange(len(found)) == i).astype(float))
        expected = half.metric.of(change)
        np.testing.assert_allclose(half.of(change), expected, rtol=1e-9, atol=1e-10)
        s = int(found.site[i])
        u = change.updates[0]
        laid = half.laid(found.sites[s], np.stack([u.left, 0 * u.left]), np.stack([u.right, u.right]))
        np.testing.assert_allclose(laid, np.stack([expected, half.metric.of()]), rtol=1e-9, atol=1e-10)


def test_slopes_are_those_of_the_pieces_and_finite_differences(ground: Ground) -> None:
    """−∂f/∂dose of each dyad: the shared backward pass, and central differences of step 1e-4 (error of order 1e-8)."""
    found, half = ground.found, ground.chosen
    mine = slopes(ground, half)
    np.testing.assert_allclose(mine, -half.metric.slopes(found.pieces(range(len(found)))), rtol=1e-8, atol=1e-10)
    for i in range(0, len(found), 11):
        (piece,) = found.pieces([i])
        up, down = (half.mean(half.of(scaled(piece, t))) for t in (-1e-4, 1e-4))
        assert mine[i] == pytest.approx((up - down) / 2e-4, rel=1e-5, abs=1e-7)


def test_prompts_are_read_where_their_weight_is() -> None:
    """With one place a row outputs are computed there alone: the same values."""
    model = random_model("gpt2")
    metric = metric_of(model)
    one = [np.where(np.arange(w.shape[1]) == 4, 1 / 8, 0.0) * np.ones_like(w) for w in metric.weights]
    metric = replace(metric, weights=tuple(one))
    half = started(metric, [0, 1])
    assert half.at[0] is not None
    np.testing.assert_allclose(half.of(), metric.of(), rtol=1e-12)
    change = Change((Update("L1.W_out", 0.1 * np.ones((model.stored["L1.W_out"].shape[0], 1)),
                            np.eye(1, model.spec.d_model)),))  # fmt: skip
    np.testing.assert_allclose(half.of(change), metric.of(change), rtol=1e-10)


def test_second_moments_stop_where_the_metric_does() -> None:
    """Places behind the last one that counts cannot be seen by a causal model."""
    model = random_model("gpt2")
    metric = metric_of(model)
    kept = [np.where(np.arange(w.shape[1]) <= 3, w, 0.0) for w in metric.weights]
    found = started(replace(metric, weights=tuple(kept)), []).second(["L1.mlp_post"])["L1.mlp_post"]
    short = replace(metric, weights=tuple(w[:, :4] for w in kept), tokens=tuple(t[:, :4] for t in metric.tokens))
    np.testing.assert_allclose(found, started(short, []).second(["L1.mlp_post"])["L1.mlp_post"], rtol=1e-9)


def test_everything_of_a_site_removed(ground: Ground) -> None:
    """All dyads of a site together are its matrix set to zero."""
    for s in (0, len(ground.found.sites) - 1):
        dyads = ground.found.changed_by(-(ground.found.site == s).astype(float))
        removed = whole(ground, s)
        name, head = removed.updates[0].tensor, removed.updates[0].head
        left = ground.model.stored[name] if head is None else ground.model.stored[name][head]
        rest = left + removed.updates[0].left @ removed.updates[0].right
        assert np.abs(rest).max() < 1e-12
        if head is None:  # of a head W_V has a part that W_O never reads, and the other way round
            np.testing.assert_allclose(left + sum(u.left @ u.right for u in dyads.updates), 0.0, atol=1e-9)


def plant_model(site: str = "L0H0.ov") -> Model:
    """Gains that fall; token i is read and token 12 + i written, by head 0 alone."""
    plants = [Plant(i, 10 + i, 3.0 - 0.2 * i) for i in range(8)]
    return covector.open(planted(plants, site, n_vocab=24, d_model=32, d_head=8, d_mlp=24))


def test_the_planted_dyad_is_found_first() -> None:
    """Token 3 is read, so token 13 is written: of all dyads of all sites its own is removed with the largest effect."""
    model = plant_model()
    functional = np.zeros(24)
    functional[13] = 1.0
    tokens = np.stack([np.r_[np.random.default_rng(k).permutation([18, 19, 20, 21])[:3], 3, 3] for k in range(8)])
    text = Neutral((tokens,), (np.ones(tokens.shape, dtype=bool),), ("neutral",), np.zeros(tokens.size, dtype=int),
                   np.repeat(np.arange(8), 5))  # fmt: skip
    metric = on_text(Decoder(model.stored), "token 13", functional, text)
    table = dyad_sweep(model, metric, sites=SITES, top=6, sample=10, draws=40)
    assert table["dyad"][0] == "L0H0.ov:3"
    row = table.rows[0]
    assert row["effect"] < 0
    assert row["q"] <= 0.05
    assert row["p_runs"] == pytest.approx(1 / 41)
    assert row["cos"] == pytest.approx(1.0)
    # One layer of attention is linear in W_O, and what the MLP adds is small beside the planted gain.
    assert row["slope"] == pytest.approx(row["effect"], rel=0.3)


def test_p_of_the_dyads_of_random_models_is_uniform() -> None:
    """Below .05, .25 and .5 as often as it says, within four errors over twelve models (dyads of one are not free)."""
    shares = []
    for seed in range(12):
        model = covector.open(toy_model(seed=seed, d_model=24, n_heads=3, d_head=8, d_mlp=20))
        ground = grounds(model, metric_of(model, 100 + seed), SITES)
        p = first_order_p(ground, ground.chosen, slopes(ground, ground.chosen), 0)
        shares.append([(p <= level).mean() for level in (0.05, 0.25, 0.5)])
    error = np.std(shares, axis=0, ddof=1) / np.sqrt(len(shares))
    assert (np.abs(np.mean(shares, axis=0) - [0.05, 0.25, 0.5]) < 4 * error).all()
    assert error.max() < 0.03


def test_the_halves_do_not_meet_and_seeds_decide() -> None:
    model = random_model("gpt2")
    ground = ground_of(model)
    assert len(ground.chosen.metric.shares) == len(ground.held.metric.shares) == 4
    a, b = (sweep(ground, top=4, sample=6, draws=5, seed=1) for _ in range(2))
    np.testing.assert_array_equal(a.controls, b.controls)
    np.testing.assert_array_equal(a.measured, b.measured)
    assert len(np.unique(a.measured)) == 10
    order = np.argsort(-np.abs(a.slopes[0]), kind="stable")
    np.testing.assert_array_equal(np.sort(a.measured[:4]), np.sort(order[:4]))
    assert np.isfinite(a.controls).all()


def test_a_table_says_what_was_not_measured() -> None:
    model = random_model("gpt2")
    table = dyad_sweep(model, metric_of(model), top=5, sample=0, draws=3)
    assert list(table["group"][:6]) == ["top"] * 5 + ["rest"]
    assert "nothing is known" in table.says
    assert np.isnan(table["effect"][5:]).all()
    assert (np.diff(np.abs(table["effect"][:5])) <= 0).all()


def test_bad_requests() -> None:
    model = random_model("gpt2")
    with pytest.raises(BadRequest, match="--first"):
        dyad_sweep(model, metric_of(model), top=0)
    with pytest.raises(BadRequest, match="write to the stream"):
        dyad_sweep(model, metric_of(model), sites=("L0H0.qk",))
    with pytest.raises(BadRequest, match="frame raw"):
        dyad_sweep(model.framed("folded"), metric_of(model))
