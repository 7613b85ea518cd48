"""Spectra of models: numbers are those of the dense matrices, noise shows nothing, and what was planted is named."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import covector
from covector.analyses.site_spectra import SiteSpectrum, chosen_sites, site_spectra
from covector.analyses.spectrum import foremost, spectrum
from covector.arch.toy import RMS_NORM, random_model
from covector.errors import BadRequest, BadSite
from covector.linalg.chance.outliers import largest_z_null
from covector.model.address import Site
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from covector.render.picture import Curve

DEEP = {"n_layers": 8, "n_heads": 4, "d_model": 24, "d_head": 6, "d_mlp": 40, "n_vocab": 30}


def toy(seed: int = 0, **changes: object) -> Model:
    return covector.open(random_model(seed=seed, **(DEEP | changes)))  # type: ignore[arg-type]


def changed(model: Model, **arrays: np.ndarray) -> Model:
    """The model with some canonical tensors replaced (dots in names are written as double underscores)."""
    weights = model.stored
    assert isinstance(weights, ArrayWeights)
    new = dict(weights.arrays) | {k.replace("__", "."): v for k, v in arrays.items()}
    return covector.open(ArrayWeights(weights.spec, new))


def scaled(model: Model, factors: dict[str, float]) -> Model:
    """The model with whole tensors multiplied."""
    return changed(model, **{n.replace(".", "__"): f * np.array(model.weights[n]) for n, f in factors.items()})


def random_records(seed: int, layers: int = 6, heads: int = 4, d: int = 24, d_head: int = 6) -> list[SiteSpectrum]:
    """Spectra of an untrained model, from whole matrices."""
    rng, made = np.random.default_rng(seed), []
    for layer in range(layers):
        for head in range(heads):
            product = rng.standard_normal((d, d_head)) @ rng.standard_normal((d_head, d))
            made.append(SiteSpectrum(Site(layer, head, "ov"), (d, d), d_head, np.linalg.svdvals(product)[:d_head]))
        made.append(
            SiteSpectrum(Site(layer, None, "in"), (d, 40), None, np.linalg.svdvals(rng.standard_normal((d, 40))))
        )
    return made


def row(table: covector.Table, site: str) -> dict:
    return next(r for r in table.rows if r["site"] == site)


@pytest.mark.identity("SV-17")
def test_the_numbers_of_a_place_are_those_of_its_dense_matrix() -> None:
    model = toy()
    w = model.weights
    dense = {
        "L3H2.ov": w["L3.W_V"][2] @ w["L3.W_O"][2],
        "L1H0.qk": w["L1.W_Q"][0] @ w["L1.W_K"][0].T,
        "L5.mlp.in": w["L5.W_in"],
        "L0.mlp.out": w["L0.W_out"],
    }
    table = spectrum(model, draws=100)
    for site, W in dense.items():
        found, S = row(table, site), np.linalg.svdvals(W)
        assert found["sigma1"] == pytest.approx(S[0], rel=1e-10)
        assert found["frobenius"] == pytest.approx(np.linalg.norm(W), rel=1e-10)
        assert found["nuclear"] == pytest.approx(np.linalg.norm(W, "nuc"), rel=1e-9)
        assert found["stable"] == pytest.approx(np.sum(W**2) / S[0] ** 2, rel=1e-9)
        assert found["participation"] == pytest.approx(np.sum(W**2) ** 2 / np.sum((W @ W.T) ** 2), rel=1e-9)
        assert found["rank"] == np.linalg.matrix_rank(W)


@pytest.mark.identity("SV-8")
def test_the_basis_inside_a_head_changes_no_number() -> None:
    model, G = toy(), np.random.default_rng(2).standard_normal((6, 6))
    w = model.weights
    other = changed(model, L2__W_V=w["L2.W_V"] @ G, L2__W_O=np.linalg.inv(G) @ w["L2.W_O"])
    before, after = (spectrum(m, "L*H*.ov", draws=100) for m in (model, other))
    for column in before.columns:
        if column.is_number:
            np.testing.assert_allclose(after[column.name], before[column.name], rtol=1e-8)


@pytest.mark.identity("SV-36")
def test_scale_changes_sizes_and_no_comparison() -> None:
    model = toy()
    factors = {f"L{i}.{name}": 10.0 for i in range(8) for name in ("W_O", "W_K", "W_in", "W_out")}
    before, after = spectrum(model, draws=100), spectrum(scaled(model, factors), draws=100)
    for name in ("sigma1", "sigma1_null", "frobenius", "nuclear", "edge"):
        np.testing.assert_allclose(after[name], 10 * before[name], rtol=1e-9)
    for name in ("stable", "effective", "p_spike", "spikes", "soft_rank", "z", "z_norm", "p_z", "z_layer", "z_trend"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6, atol=1e-9)


def test_a_head_that_was_made_larger_is_named() -> None:
    model = toy()
    W_O = np.array(model.weights["L5.W_O"])
    W_O[2] *= 8
    table = spectrum(changed(model, L5__W_O=W_O), draws=200)
    assert table.says.startswith("Out of line: L5H2.ov: ")
    assert "σ₂ too" in table.says
    assert table.next == "covector svd toy L5H2.ov"
    found = row(table, "L5H2.ov")
    assert abs(found["z"]) > found["z_level"]
    assert found["p_z"] < 0.01
    others = [r for r in table.rows if r["site"] != "L5H2.ov"]
    assert all(abs(r["z"]) < r["z_level"] for r in others)


def test_a_jump_of_one_dyad_is_told_from_that_of_a_head() -> None:
    model = toy()
    W_V, W_O = np.array(model.weights["L7.W_V"]), np.array(model.weights["L7.W_O"])
    U, S, Vh = np.linalg.svd(W_V[1] @ W_O[1])
    S[0] *= 40
    W_V[1], W_O[1] = U[:, :6] * S[:6], Vh[:6]
    table = spectrum(changed(model, L7__W_V=W_V, L7__W_O=W_O), kinds="ov", draws=200)
    assert table.says.startswith("Out of line: L7H1.ov")
    assert "one dyad: σ₂ is in line" in table.says


def test_a_layer_whose_heads_are_all_larger_is_named() -> None:
    # Heads of a layer differ by a factor of seven, so none is out of line alone; layer 4 is larger as a whole.
    spread = np.exp(np.linspace(-1, 1, 8))
    records = [
        dataclasses.replace(r, S=r.S * spread[r.site.head or 0] * (4.0 if r.site.layer == 4 else 1))
        for r in random_records(0, layers=7, heads=8)
        if r.site.kind == "ov"
    ]
    table = spectrum(records, draws=100)
    assert max(np.abs(table["z"]) / table["z_level"]) < 1
    assert table.says.startswith("Out of line: layer 4, ov: the median σ₁ is ")
    at_four = table["layer"] == 4
    beyond = np.abs(table["z_layer"]) > table["z_layer_level"]
    np.testing.assert_array_equal(beyond, at_four)


def test_growth_with_depth_hides_no_jump_and_is_none() -> None:
    growing = {f"L{i}.W_in": 1.6**i for i in range(8)}
    smooth = spectrum(scaled(toy(), growing), kinds="in", draws=100)
    assert smooth.says.startswith("No layer or head is out of line")
    jump = spectrum(scaled(toy(), growing | {"L6.W_in": 3 * 1.6**6}), kinds="in", draws=100)
    assert re.search(r"Out of line: layer 6, mlp.in: σ₁ is \d\.\d+ times the trend over 8 layers", jump.says)
    assert np.nanmax(np.abs(jump["z"]) / jump["z_level"]) < 1  # what growth alone would have hidden


@pytest.mark.slow
def test_untrained_models_show_no_jump_and_no_spike_beyond_the_level() -> None:
    jumps, spiky, n = 0, [], 200
    for seed in range(n):
        table = spectrum(random_records(seed), draws=500, seed=1)
        jumps += table.says.startswith("Out of line")
        spiky.append(np.mean(table["spikes"] > 0))
    # Binomial error of 200 at 5 % is 1.5 %. Comparisons of one model hang together, so Bonferroni may stay below 5 %.
    assert jumps / n < 0.05 + 3 * 0.015
    assert jumps > 0
    # One null of 500 draws serves all: its level is off by 1 %. 30 maps per model: their own error is 0.3 %.
    assert np.mean(spiky) == pytest.approx(0.05, abs=0.03)


def test_a_planted_spike_is_counted_and_the_rest_is_noise() -> None:
    model, rng = toy(d_model=48, d_mlp=96), np.random.default_rng(1)
    W = rng.standard_normal((48, 96))
    u, v = (np.linalg.qr(rng.standard_normal((size, 2)))[0] for size in W.shape)
    planted = W + u * (3 * np.linalg.norm(W, 2) * np.array([1.0, 0.8])) @ v.T
    table = spectrum(changed(model, L4__W_in=planted), kinds="in", draws=1000)
    found = row(table, "L4.mlp.in")
    assert found["spikes"] == 2
    assert found["q_spike"] < 0.01
    assert found["stable"] < found["stable_null"]
    assert found["sigma1"] > found["sigma1_null"]
    assert found["edge"] == pytest.approx(np.sqrt(48) + np.sqrt(96), rel=0.08)  # the upper edge of the noise, s = 1


def test_a_centred_side_has_one_dimension_less() -> None:
    model = toy()
    raw, fixed = (
        {
            str(r.site): r
            for r in site_spectra(m, chosen_sites(m.spec, "*", ("ov", "qk", "in", "out", "embed", "unembed")))
        }
        for m in (model, model.framed("gauge_fixed"))
    )
    assert raw["L0H0.ov"].shape == (24, 24)
    assert fixed["L0H0.ov"].shape == (23, 23)
    assert fixed["L0H0.qk"].shape == (23, 23)
    assert fixed["L0.mlp.in"].shape == (23, 40)
    assert fixed["L0.mlp.out"].shape == (40, 23)
    assert fixed["embed"].shape == (30, 23)
    assert fixed["unembed"].shape == (23, 29)
    # The shape says how many values noise would have: exactly as many as there are.
    assert all(r.S.size == r.rank for r in (*raw.values(), *fixed.values()))


def test_a_jump_of_the_direction_that_norms_remove_is_gone_in_the_folded_frame() -> None:
    model = toy()
    W_in = np.array(model.weights["L3.W_in"])
    # What γ turns into the direction 1, which centring takes off: an input that no LayerNorm can give.
    unseen = 1 / model.weights["L3.mlp_norm.gain"]
    W_in += 6 * np.outer(unseen, np.random.default_rng(0).standard_normal(40))
    odd = changed(model, L3__W_in=W_in)
    raw, folded = (spectrum(odd, kinds="in", frame=f, draws=100) for f in ("raw", "folded"))
    assert raw.says.startswith("Out of line: L3.mlp.in")
    assert folded.says.startswith("No layer or head")
    assert folded.meta["frame"] == "folded"


def test_shared_key_value_maps_are_counted_once() -> None:
    model = toy(n_kv_heads=2, norm=RMS_NORM)
    assert [str(s) for s in chosen_sites(model.spec, "L0H*.v")] == ["L0K0.v", "L0K1.v"]
    assert len(chosen_sites(model.spec, "*", ("v",))) == 16
    assert len(chosen_sites(model.spec, "*", ("ov",))) == 32


def test_sites_come_by_kind_layer_and_head_and_once() -> None:
    model = toy()
    found = [str(s) for s in chosen_sites(model.spec, "L1.mlp.out,L2H1.qk,L0-1H3,L1H3.ov")]
    assert found == ["L0H3.ov", "L1H3.ov", "L2H1.qk", "L1.mlp.out"]
    assert len(chosen_sites(model.spec, "*")) == 8 * (4 + 4 + 2)
    assert [str(s) for s in chosen_sites(model.spec, "*", ("unembed", "embed"))] == ["embed", "unembed"]


def test_a_map_of_zeros_has_no_numbers_and_disturbs_none() -> None:
    model = toy()
    W_O = np.array(model.weights["L2.W_O"])
    W_O[1] = 0
    table = spectrum(changed(model, L2__W_O=W_O), draws=100)
    found = row(table, "L2H1.ov")
    assert (found["sigma1"], found["frobenius"], found["rank"], found["spikes"]) == (0, 0, 0, 0)
    assert found["z"] is None
    assert found["p_spike"] is None
    assert row(table, "L2H2.ov")["z"] is not None
    curve = picture(table)
    assert np.isfinite(curve.ys[2]).any()  # the median of the layer's other heads


def test_the_null_of_a_jump_counts_the_maps_that_are_not_zero() -> None:
    """Four heads of sixteen: the largest of four scores is not held against the largest of sixteen, nor the reverse."""
    model = toy(n_layers=1, n_heads=16, d_model=64, d_head=4)
    W_O = np.array(model.weights["L0.W_O"])
    W_O[5:] = 0
    few = spectrum(changed(model, L0__W_O=W_O), kinds=("ov",), draws=100)
    five = spectrum(toy(n_layers=1, n_heads=5, d_model=64, d_head=4), kinds=("ov",), draws=100)
    assert row(few, "L0H0.ov")["z_level"] == row(five, "L0H0.ov")["z_level"]
    assert row(few, "L0H9.ov")["z"] is None
    assert "inf" not in few.says


def test_a_layer_of_zeros_is_no_layer_to_compare_with() -> None:
    model = toy(n_layers=6, n_heads=3)
    zeros = np.zeros_like(np.array(model.weights["L2.W_O"]))
    table = spectrum(changed(model, L2__W_O=zeros), kinds=("ov",), draws=100)
    assert row(table, "L2H1.ov")["z_layer"] is None
    others = [row(table, f"L{layer}H0.ov")["z_layer"] for layer in (0, 1, 3, 4, 5)]
    assert all(z is not None for z in others)
    five = spectrum(toy(n_layers=5, n_heads=3), kinds=("ov",), draws=100)
    assert row(table, "L0H0.ov")["z_layer_level"] == row(five, "L0H0.ov")["z_layer_level"]


def test_few_places_are_not_compared() -> None:
    table = spectrum(toy(n_layers=1, n_heads=2), kinds=("ov", "in"), draws=100)
    assert table.says.startswith("Too few places")
    assert np.isnan(table["z"]).all()


def picture(table: covector.Table) -> Curve:
    made = table.picture(table) if callable(table.picture) else table.picture
    assert isinstance(made, Curve)
    return made


def test_the_picture_lays_layers_over_each_other_with_the_band_of_noise() -> None:
    records = [r for r in random_records(0) if r.site.kind == "ov"]
    odd = next(i for i, r in enumerate(records) if (r.site.layer, r.site.head) == (4, 2))
    records[odd] = dataclasses.replace(records[odd], S=20 * records[odd].S[:4])
    found = picture(spectrum(records, draws=100))
    assert found.log_y
    assert [n.split(",")[0] for n in found.names] == [*(f"L{i}" for i in range(6)), "L4H2.ov"]
    assert found.shades == [*np.arange(6) / 5, None]
    np.testing.assert_array_equal(found.ys[6][:4], records[odd].S)
    assert np.isnan(found.ys[6][4:]).all()  # cut at rank
    assert found.band is not None
    low, high = found.band
    assert np.all(low < found.ys[0] * 1.3)
    assert np.all(found.ys[0] < high * 1.3)


def test_the_depth_view_shows_sizes_with_the_band_of_what_is_in_line() -> None:
    records = [r for r in random_records(3) if r.site.kind == "in"]
    table = spectrum(records, draws=100, view="depth")
    found = picture(table)
    np.testing.assert_array_equal(found.x, np.arange(6))
    np.testing.assert_array_equal(found.ys[0], table["sigma1"])
    np.testing.assert_allclose(found.ys[1], table["frobenius"])
    assert found.band is not None
    # On the edge of the band z is its level.
    logs = np.log(table["sigma1"])
    mad = np.median(np.abs(logs - np.median(logs)))
    edge = (np.log(found.band[1]) - np.median(logs)) / (1.482602218505602 * mad)
    assert edge == pytest.approx(table["z_level"][0], rel=1e-9)


def test_the_foremost_rows_are_those_most_out_of_line_in_their_order() -> None:
    table = spectrum(random_records(5), draws=100)
    shown = foremost(table, 3)
    strength = np.fmax(np.abs(table["z"]) / table["z_level"], np.abs(table["z_norm"]) / table["z_norm_level"])
    assert set(shown["site"]) == {table["site"][i] for i in np.argsort(-strength)[:3]}
    order = [list(table["site"]).index(s) for s in shown["site"]]
    assert order == sorted(order)
    assert len(foremost(table, 1000)) == len(table)


def test_rows_stand_where_their_records_stood() -> None:
    records = random_records(2)  # heads and MLPs in turn
    table = spectrum(records, draws=100)
    assert list(table["site"]) == [str(r.site) for r in records]
    np.testing.assert_array_equal(table["sigma1"], [r.S[0] for r in records])
    np.testing.assert_array_equal(table["full"], [r.rank for r in records])


def test_probabilities_and_levels_are_over_every_comparison_of_the_request() -> None:
    records = random_records(4, layers=7)
    records[3] = dataclasses.replace(records[3], S=2.2 * records[3].S)
    alone, among = (spectrum(records, kinds=kinds, draws=100) for kinds in ("ov", ("ov", "in")))
    # ov: σ₁, norm, layers, trend; in: σ₁, norm, trend.
    assert (alone.meta["tests"], among.meta["tests"]) == (4, 7)
    one, other = row(alone, str(records[3].site)), row(among, str(records[3].site))
    assert one["z"] == other["z"]
    assert other["p_z"] == pytest.approx(one["p_z"] * 7 / 4)
    assert other["z_level"] > one["z_level"]
    for what in ("z", "z_norm", "z_layer", "z_trend"):
        found = [r for r in among.rows if r[what] is not None]
        assert all((abs(r[what]) > r[f"{what}_level"]) == (r[f"p_{what}"] <= 0.05) for r in found)


def test_levels_are_those_of_the_law_of_what_is_compared() -> None:
    table = spectrum(random_records(0), kinds="ov", draws=100, seed=2)
    share = 1 - 0.05 / table.meta["tests"]
    largest, norms = (
        np.quantile(largest_z_null([4] * 6, law=law, draws=4000, seed=2), share) for law in ("largest value", "normal")
    )
    assert table["z_level"][0] == largest
    assert table["z_norm_level"][0] == norms


def test_the_same_request_gives_the_same_bytes() -> None:
    assert spectrum(toy(), draws=100).to_json() == spectrum(toy(), draws=100).to_json()
    assert spectrum(toy(), draws=100, seed=1).to_json() != spectrum(toy(), draws=100).to_json()


def test_the_result_says_where_it_comes_from() -> None:
    meta = spectrum(toy(), "L*H*.ov", draws=150, seed=3).meta
    assert (meta["analysis"], meta["draws"], meta["seed"], meta["frame"]) == ("spectrum", 150, 3, "raw")
    assert meta["groups"] == [{"kind": "ov", "shape": [24, 24], "inner": 6, "maps": 32}]
    assert spectrum(random_records(0), draws=100, meta={"model": "mine"}).meta["model"] == "mine"


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        ({"kinds": "oov"}, BadRequest, "expected kinds among ov, qk, in"),
        ({"sites": "L0H0.ov", "kinds": "qk"}, BadRequest, "names none of kind qk"),
        ({"sites": "L9H0"}, BadSite, "layers run 0–7"),
        ({"draws": 10}, BadRequest, "expected draws >= 100"),
        ({"view": "pie"}, BadRequest, "expected a view (spectra, depth)"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(request_: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        spectrum(toy(), **request_)


def test_records_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(BadRequest, match="has at most 2 singular values, came 3"):
        SiteSpectrum(Site(0, 0, "ov"), (5, 5), 2, np.ones(3))
    with pytest.raises(BadRequest, match="leave sites and frame out"):
        spectrum(random_records(0), frame="folded")
    with pytest.raises(BadRequest, match="none is left"):
        spectrum(random_records(0), kinds="qk")
    with pytest.raises(BadRequest, match="rows >= 1"):
        foremost(spectrum(random_records(0), draws=100), 0)


def test_trained_heads_have_more_than_noise_and_fewer_dimensions() -> None:
    table = spectrum(covector.open("demo-lm"), kinds=("ov", "qk"), draws=300)
    assert np.all(table["q_spike"] < 0.05)
    assert np.all(table["effective"] < table["effective_null"])


def test_the_numbers_of_a_real_agent_are_those_that_another_program_measured(shared: Path) -> None:
    layout = Path(__file__).parents[1] / "layouts" / "dt-minigrid-obstacles.toml"
    model = covector.open(str(shared / "models" / "dt-minigrid-obstacles"), layout)
    table = spectrum(model, draws=200)
    assert row(table, "L0H0.ov")["sigma1"] == pytest.approx(0.83672, abs=5e-6)
    assert row(table, "L0H1.qk")["sigma1"] == pytest.approx(1.67259, abs=5e-6)
    assert row(table, "L0.mlp.in")["stable"] == pytest.approx(37.877, abs=5e-4)
    assert row(table, "L0.mlp.in")["participation"] == pytest.approx(76.319, abs=5e-4)
    assert row(table, "L0.mlp.out")["stable"] == pytest.approx(23.523, abs=5e-4)
    assert row(table, "L0.mlp.out")["participation"] == pytest.approx(66.538, abs=5e-4)
