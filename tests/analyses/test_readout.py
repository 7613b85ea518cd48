"""Readouts: planted directions are found, laws of signs and rotations hold, chance is calibrated."""

import dataclasses
import re

import numpy as np
import pytest

from covector.analyses.readout import readout
from covector.errors import BadRank, BadRequest, NotOneToken, UnknownBasis
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from random_checkpoints import random_model

TOKENS = tuple(f" word{i}" for i in range(61))


def changed(model: Model, **arrays: np.ndarray) -> Model:
    """The model with some canonical tensors replaced (dots in names are written as double underscores)."""
    base = model.stored
    held = {n: np.array(base[n]) for n in base.names()} | {k.replace("__", "."): v for k, v in arrays.items()}
    weights = ArrayWeights(dataclasses.replace(base.spec, tied=False), held)
    return dataclasses.replace(model, stored=weights, weights=weights, frame=Frame())


def planted(seed: int = 0) -> Model:
    """A head that reads token 7 and writes token 11 with gain 5, on top of noise of gain ~0.1."""
    model, rng = random_model("gpt2", labels={"token": TOKENS}), np.random.default_rng(seed)
    d = model.spec.d_model
    W_E, W_U = rng.standard_normal((61, d)), rng.standard_normal((d, 61))
    W_V, W_O = 0.05 * rng.standard_normal((4, d, 5)), 0.05 * rng.standard_normal((4, 5, d))
    W_V[2, :, 0] = np.sqrt(5.0) * W_E[7] / np.linalg.norm(W_E[7])
    W_O[2, 0] = np.sqrt(5.0) * W_U[:, 11] / np.linalg.norm(W_U[:, 11])
    return changed(model, W_E=W_E, W_U=W_U, L1__W_V=W_V, L1__W_O=W_O)


@pytest.mark.identity("SV-5")
def test_a_planted_dyad_is_read_from_its_input_token_and_written_to_its_output_token() -> None:
    row = readout(planted(), "L1H2", rank=1, k=3).rows[0]
    pole = "plus" if row["write_plus"][0] == " word11" else "minus"
    assert row[f"write_{pole}"][0] == " word11"
    assert row[f"read_{pole}"][0] == " word7"
    assert row["sigma"] == pytest.approx(5.0, rel=0.02)
    assert row["write_p_dir"] < 1e-6
    assert row["write_p_svd"] < 0.05


@pytest.mark.identity("SV-39")
def test_reading_and_writing_are_not_interchangeable() -> None:
    model = planted()
    w = model.weights
    swapped = changed(
        model,
        L1__W_V=np.ascontiguousarray(w["L1.W_O"].transpose(0, 2, 1)),
        L1__W_O=np.ascontiguousarray(w["L1.W_V"].transpose(0, 2, 1)),
    )
    row = readout(swapped, "L1H2", rank=1, k=1, basis="token_out,token_in").rows[0]
    assert {row["read_label"], row["write_label"]} == {" word11", " word7"}
    assert row["write_label"] == " word7"


@pytest.mark.identity("SV-7")
def test_a_rotation_of_the_stream_changes_no_score_and_no_gain() -> None:
    model, rng = planted(), np.random.default_rng(1)
    Q = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    w = model.weights
    turned = changed(model, W_E=w["W_E"] @ Q, W_U=Q.T @ w["W_U"], L1__W_V=Q.T @ w["L1.W_V"], L1__W_O=w["L1.W_O"] @ Q)
    before, after = readout(model, "L1H2", rank=5, k=4), readout(turned, "L1H2", rank=5, k=4)
    for name in ("sigma", "write_p_dir", "write_p_svd", "read_p_dir"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-8)
    np.testing.assert_allclose(np.abs(after["write_cos"]), np.abs(before["write_cos"]), rtol=1e-9)


@pytest.mark.identity("SV-8")
def test_the_basis_inside_a_head_does_not_matter() -> None:
    model, G = planted(), np.random.default_rng(2).standard_normal((5, 5))
    w = model.weights
    other = changed(model, L1__W_V=w["L1.W_V"] @ G, L1__W_O=np.linalg.inv(G) @ w["L1.W_O"])
    before, after = readout(model, "L1H2", k=3), readout(other, "L1H2", k=3)
    np.testing.assert_allclose(after["sigma"], before["sigma"], rtol=1e-8)
    np.testing.assert_allclose(np.abs(after["write_zeta"]), np.abs(before["write_zeta"]), atol=1e-6)


@pytest.mark.identity("SV-6", "SV-35")
def test_both_poles_are_shown_and_one_is_the_others_negative() -> None:
    table = readout(planted(), "L1H2", rank=3, k=61)
    for row in table.rows:
        assert row["write_plus"] == row["write_minus"][::-1]
        assert sorted(row["write_plus"]) == sorted(TOKENS)
        assert abs(row["write_cos"]) == max(row["write_plus_score"][0], -row["write_minus_score"][0])


@pytest.mark.identity("SV-36")
def test_scaling_a_map_scales_gains_and_nothing_else() -> None:
    model = planted()
    louder = changed(model, L1__W_O=3 * model.weights["L1.W_O"])
    before, after = readout(model, "L1H2", k=3), readout(louder, "L1H2", k=3)
    np.testing.assert_allclose(after["sigma"], 3 * before["sigma"], rtol=1e-10)
    np.testing.assert_allclose(after["write_zeta"], before["write_zeta"], rtol=1e-8)
    assert after["write_plus"] == before["write_plus"]


@pytest.mark.identity("SV-40")
def test_labels_without_a_direction_are_left_out_and_counted() -> None:
    model = planted()
    W_U = np.array(model.weights["W_U"])
    W_U[:, [3, 4]] = 0.0
    table = readout(changed(model, W_U=W_U), "L1H2", rank=2, k=61)
    assert table.meta["left_out"] == {"read": 0, "write": 2}
    assert len(table.rows[0]["write_plus"]) == 59
    assert np.isfinite(table["write_p_dir"]).all()
    assert "write: 2 left out" in table.not_says


@pytest.mark.identity("SV-35")
def test_filters_leave_out_and_never_re_rank() -> None:
    model = random_model("gpt2", labels={"token": tuple("é" if i % 3 == 0 else f"w{i}" for i in range(61))})
    every, some = (readout(model, "L0H1", rank=2, k=61, without=w) for w in ((), ("ascii",)))
    for whole, kept in zip(every["write_plus"], some["write_plus"], strict=True):
        assert kept == [t for t in whole if t != "é"]
    assert some.meta["labels"]["write"] == 40


@pytest.mark.identity("SV-35")
def test_what_counts_as_hardly_trained_does_not_depend_on_the_direction() -> None:
    """A fact of the label's vector: the same labels go from both poles of every dyad, whichever head or weights."""
    W_U = np.array(random_model("gpt2").weights["W_U"])
    W_U[:, [7, 30]] *= 1e-3
    model = random_model("gpt2", labels={"token": TOKENS})
    rng = np.random.default_rng(4)
    for one in (changed(model, W_U=W_U), changed(model, W_U=W_U, L1__W_O=rng.standard_normal((4, 5, 20)))):
        for head in ("L0H1", "L1H2"):
            table = readout(one, head, k=61, without=("trained",))
            kept = set(TOKENS) - {TOKENS[7], TOKENS[30]}
            assert all(set(row[f"write_{pole}"]) == kept for row in table.rows for pole in ("plus", "minus"))


@pytest.mark.slow
def test_random_weights_pass_for_chance_and_the_best_label_is_judged_as_a_best_label() -> None:
    """Under the null p_dir is conservative: at most 5 % of dyads of random heads fall below .05 (union bound)."""
    p = np.concatenate(
        [readout(random_model("gpt2", seed), f"L{layer}H{head}")["write_p_dir"]
         for seed in range(4) for layer in range(3) for head in range(4)]
    )  # fmt: skip
    assert len(p) == 240
    # Binomial(240, .05): mean 12, sd 3.4; the bound makes fewer.
    assert np.sum(p < 0.05) <= 12 + 3 * 3.4


def test_exact_p_values_are_below_their_bounds_within_monte_carlo_error() -> None:
    model = random_model("gpt2")
    bound, exact = readout(model, "L0H1"), readout(model, "L0H1", exact=True, draws=1000)
    slack = 4 * exact["write_p_error"] + 1e-3
    assert np.all(exact["write_p_dir"] <= bound["write_p_dir"] + slack)
    assert np.all(np.isfinite(exact["write_p_cov"]))


def test_the_same_request_gives_the_same_bytes() -> None:
    one, two = (readout(random_model("gpt2"), "L0H1", exact=True, draws=300, seed=7).to_json() for _ in range(2))
    assert one == two
    assert one != readout(random_model("gpt2"), "L0H1", exact=True, draws=300, seed=8).to_json()


def test_a_map_as_wide_as_the_stream_has_no_p_svd() -> None:
    table = readout(random_model("gpt2"), "L1.mlp.out", rank=4)
    assert np.isnan(table["write_p_svd"]).all()
    assert table["read_plus"][0][0].startswith("n")


@pytest.mark.parametrize("name", ["gauge_fixed", "folded"])
def test_a_centred_side_is_judged_in_one_dimension_less(name: str) -> None:
    table = readout(random_model("gpt2"), "L1H1", frame=name)
    assert table.meta["dimension"] == {"read": 19, "write": 19 if name == "gauge_fixed" else 20}


def test_asked_tokens_are_scored_on_every_dyad() -> None:
    model = planted()
    table = readout(model, "L1H2", rank=2, tokens=(" word11",))
    W_U = model.weights["W_U"]
    v = np.linalg.svd(model.map("L1H2").dense())[2][0]
    want = np.sqrt(20) * abs(v @ W_U[:, 11]) / np.linalg.norm(W_U[:, 11])
    assert abs(table["zeta:  word11"][0]) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"rank": 0}, BadRank, "expected rank >= 1 dyads, got 0"),
        ({"k": 0}, BadRequest, "expected k >= 1"),
        ({"basis": "tokens"}, UnknownBasis, r"expected a basis of gpt2 \(token_in, position_in"),
        ({"basis": "token_in:ridge=-1"}, UnknownBasis, "λ ≥ 0"),
        ({"without": ("short",)}, BadRequest, "expected filters among ascii, trained"),
        ({"score": "best"}, BadRequest, "expected score cosine or raw"),
        ({"tokens": ("zz",)}, (NotOneToken, UnknownBasis), "zz"),
    ],
)
def test_impossible_requests_say_what_is_possible(arguments: dict, error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        readout(random_model("gpt2"), "L0H1", **arguments)


def test_a_line_fits_its_width_and_keeps_both_sides_of_a_dyad_together() -> None:
    from covector.analyses.readout_lines import dyad_line
    from covector.render.labels import cell_len

    for width in (80, 100, 120, 160):
        for row in readout(planted(), "L1H2", rank=5).rows:
            line = dyad_line(row, width)
            assert cell_len(line) <= width
            assert line.count("→") == 2
            assert line.index("→") < line.index("|", line.index("→"))


@pytest.mark.parametrize("frame", ["raw", "folded", "gauge_fixed"])
@pytest.mark.parametrize("variant", ["", ":centred", ":pinv", ":ridge=0.3", ":whitened"])
def test_asking_for_the_best_label_gives_its_score_in_every_metric_and_frame(variant: str, frame: str) -> None:
    model = planted()
    table = readout(model, "L1H2", rank=1, basis=f"token_in,token_out{variant}", frame=frame)
    best = table["write_label"][0]
    asked = readout(model, "L1H2", rank=1, basis=f"token_in,token_out{variant}", frame=frame, tokens=best)
    assert asked[f"zeta: {best}"][0] == pytest.approx(table["write_zeta"][0], rel=1e-9)


@pytest.mark.slow
def test_the_sentence_counts_what_the_columns_say_and_chance_gives_next_to_nothing() -> None:
    beyond = inside = 0
    for seed in range(3):
        for layer in range(3):
            for head in range(4):
                table = readout(random_model("gpt2", seed), f"L{layer}H{head}", rank=5)
                told = re.findall(r"(\d+) of \d+ dyads|; (\d+) of them", table.says)
                read, write, svd = (int(a or b) for a, b in told)
                assert read == int((table["read_q"] < 0.05).sum())
                assert write == int((table["write_q"] < 0.05).sum())
                assert svd <= read + write
                beyond, inside = beyond + read + write, inside + svd
    # 360 tests of random heads at a false-discovery rate of 5 %: each of 36 families errs with chance .05 at the most.
    assert beyond <= 8
    assert inside <= beyond


def test_results_of_two_checkpoints_with_the_same_header_are_told_apart() -> None:
    one, two = (readout(random_model("gpt2", seed), "L1H2") for seed in (0, 1))
    assert one.meta["tensors"].keys() == two.meta["tensors"].keys()
    assert one.meta["tensors"] != two.meta["tensors"]
    assert any("c_attn" in name for name in one.meta["tensors"])
    folded = readout(random_model("gpt2"), "L1H2", frame="folded")
    assert any("ln_1" in name for name in folded.meta["tensors"])
