"""The 2³ factorial of folding."""

import numpy as np
import pytest

import covector
from covector.analyses.studies.factorial import Judged, _rows, _terms, factorial
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.errors import BadRequest
from covector.linalg.svd import svd
from covector.model.spec import Norm
from synthetic_atlas import built, frame

OV = Options(("ov",), rank=2, draws=20, scores=False)
CELLS = [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)]


def model_of(seed=0, **other):
    sizes = {"n_layers": 3, "d_model": 32, "d_head": 8, "d_mlp": 0, "n_vocab": 300} | other
    return covector.open(random_model(seed=seed, **sizes))


@pytest.mark.parametrize(("gain", "centre", "name"), [(False, False, "raw"), (True, True, "gauge_fixed")])
@pytest.mark.parametrize("kind", ["ov", "qk"])
def test_combinations_that_are_frames_have_the_directions_of_these_frames(gain, centre, name, kind):
    """Up to sign: |cos| of each pair of directions of equal index is 1. MLPs too."""
    model = model_of(d_mlp=40)
    rows = _rows(model, gain, centre)
    sides = {"ov": ("read", "write"), "qk": ("query", "key")}[kind]
    framed = model.framed(name)
    for i, address in enumerate(f"L{layer}H{h}.{kind}" for layer in range(3) for h in range(4)):
        dyads = svd(framed.map(address))
        for side, wanted in zip(sides, (dyads.U.T, dyads.Vh), strict=True):
            np.testing.assert_allclose(np.abs(np.sum(rows[kind, side][i] * wanted, axis=1)), 1, atol=1e-8)
    into, out = svd(framed.map("L1.mlp.in")), svd(framed.map("L1.mlp.out"))
    live = len(rows["mlp.in", "read"][1])
    assert live == 32 - centre
    np.testing.assert_allclose(np.abs(np.sum(rows["mlp.in", "read"][1] * into.U.T[:live], axis=1)), 1, atol=1e-7)
    np.testing.assert_allclose(np.abs(np.sum(rows["mlp.out", "write"][1] * out.Vh[:live], axis=1)), 1, atol=1e-7)


def test_folding_alone_is_the_folded_frame_for_what_is_read_after_centring():
    """The frame `folded` centres readers and leaves writers: its read sides are those of gain and centre together
    wherever the written side does not matter (MLP in)."""
    model = model_of(d_mlp=40)
    wanted = svd(model.framed("folded").map("L2.mlp.in"))
    rows = _rows(model, True, True)["mlp.in", "read"][2]
    np.testing.assert_allclose(np.abs(np.sum(rows * wanted.U.T[: len(rows)], axis=1)), 1, atol=1e-7)


def test_terms_are_those_of_a_table_worked_by_hand():
    """z = 1·gain + .6·(centre and unembed): effects 1, .3, .3, and .3 for centre × unembed; no others."""
    rng = np.random.default_rng(0)
    noise, spans = rng.standard_normal(12), [frame(rng, 16, 4) for _ in range(12)]
    found = {
        cell: Judged(noise + cell[0] + 0.6 * (cell[1] and cell[2]), np.zeros(12), np.full(12, 0.1 * cell[0]), spans)
        for cell in CELLS
    }
    terms = {t.factors: t for t in _terms("ov", "read", found, ("gain", "centre", "unembed"), 4, 16)}
    wanted = {("gain",): 1, ("centre",): 0.3, ("unembed",): 0.3, ("centre", "unembed"): 0.3}
    assert {names: round(t.test.centre, 9) for names, t in terms.items()} == wanted
    assert terms["gain",].share == pytest.approx(0.1)
    assert terms["centre",].share == pytest.approx(0)
    assert terms["gain",].overlap == pytest.approx(1)
    assert terms["gain",].overlap_null == 0.25
    assert np.isnan(terms["centre", "unembed"].overlap)


def test_what_random_directions_show_is_taken_off():
    random = np.random.default_rng(1).standard_normal(12)
    found = {cell: Judged(random * cell[1], random * cell[1], np.zeros(12), [np.eye(4)] * 12) for cell in CELLS}
    assert list(_terms("ov", "read", found, ("gain", "centre", "unembed"), 4, 4)) == []


def test_topics_that_only_gains_bring_out_are_an_effect_of_gain_on_what_is_read(tmp_path):
    """W_V = diag(1/γ) topics: as stored heads read nothing of the embedding, folded they read near its topics."""
    weights = random_model(seed=6, n_layers=3, d_model=32, d_head=8, d_mlp=0, n_vocab=300)
    rng = np.random.default_rng(6)
    topics = rng.standard_normal((30, 32)) / np.sqrt(32)
    arrays = dict(weights.arrays)
    arrays["W_E"] = topics[np.arange(300) % 30] + 0.7 * rng.standard_normal((300, 32)) / np.sqrt(32)
    for layer in range(3):
        gain = np.exp(rng.choice([-2.0, 2.0], 32) + 0.1 * rng.standard_normal(32))
        arrays[f"L{layer}.attn_norm.gain"] = gain
        near = [topics[rng.permutation(30)[:8]] + 0.5 * rng.standard_normal((8, 32)) / np.sqrt(32) for _ in range(4)]
        arrays[f"L{layer}.W_V"] = np.stack([np.linalg.qr(n.T)[0] * np.linspace(4, 1, 8) / gain[:, None] for n in near])
        arrays[f"L{layer}.W_O"] = np.stack([frame(rng, 32, 8) for _ in range(4)])
    model = covector.open(type(weights)(weights.spec, arrays))
    table = factorial(built(model, tmp_path / "a", OV), model, draws=800)
    rows = {(r["kind"], r["side"], r["term"]): r for r in table.rows}
    found = rows["ov", "read", "gain"]
    assert found["effect"] > 0.5
    assert found["q"] < 0.05
    assert found["share"] > 0.1
    assert found["overlap"] < 0.7
    assert ("ov", "read", "unembed") not in rows
    assert all(r["q"] > 0.05 for key, r in rows.items() if key[:2] == ("ov", "write") or key[0] == "qk")
    assert table.says.startswith("Changed coherence beyond chance: gain, ov read +")


@pytest.mark.slow
def test_on_random_weights_p_is_small_at_the_nominal_rate(tmp_path):
    """8 models of 16 terms. Terms of one model share directions, so the bound is for half of them independent."""
    p = []
    for seed in range(8):
        model = model_of(seed)
        p += [r["p"] for r in factorial(built(model, tmp_path / str(seed), OV), model, draws=300, seed=seed).rows]
    assert len(p) == 8 * 16
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 64)


def test_steps_that_the_anatomy_forbids_are_left_out_and_said(tmp_path):
    model = model_of(norm=Norm("rms", 1e-6))
    table = factorial(built(model, tmp_path / "a", OV), model, draws=60)
    assert table.meta["factors"] == ["gain", "unembed"]
    assert table.meta["combinations"] == 4
    assert "Not possible here: centre." in table.says
    assert {r["term"] for r in table.rows} == {"gain", "unembed", "gain × unembed"}


def test_a_model_without_norms_has_nothing_to_combine(tmp_path):
    model = model_of(norm=None)
    atlas = built(model, tmp_path / "a", OV)
    with pytest.raises(BadRequest, match="it allows unembed"):
        factorial(atlas, model)
    with pytest.raises(BadRequest, match="expected leading >= 1"):
        factorial(atlas, model, leading=0)
