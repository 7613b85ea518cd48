"""Where a direction fires: activations are those of the definition, places are right, chance keeps its promise."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import covector
from covector.analyses.fires import APART, AROUND, activations, fires
from covector.analyses.fires_probe import Probe, dyad_probe, inside, vector_probe
from covector.arch.toy import random_model as toy
from covector.cli.main import run
from covector.errors import BadRank, BadRequest, BadSite, FrameUnavailable
from covector.linalg.firing import level, traces
from covector.linalg.svd import svd
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.text import LONGEST, readable, text_ids, windows
from random_checkpoints import random_model


@dataclasses.dataclass(frozen=True)
class Words:
    """A tokenizer of one token per word: ``w7`` is 7."""

    labels: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        return [int(word[1:]) for word in text.split()]

    def one(self, text: str) -> int:
        return self.labels.index(text)


def reading(model: Model) -> Model:
    return dataclasses.replace(model, vocabulary=Words(tuple(f" w{i}" for i in range(model.spec.n_vocab))))


def some_text(model: Model, n: int, seed: int = 0) -> str:
    drawn = np.random.default_rng(seed).integers(0, model.spec.n_vocab, n)
    return " ".join(f"w{i}" for i in drawn)


def captured(model: Model, text: str, hook: str) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the text and what passes the hook at each, window by window, float64; NaN at first positions.

    Written from the definition: cut every n_ctx tokens, run each piece alone, drop its first row.
    """
    assert model.vocabulary is not None
    ids = np.array(model.vocabulary.encode(text))
    decoder, length = Decoder(model.weights, torch.float64), min(model.spec.n_ctx, LONGEST)
    rows = []
    for start in range(0, len(ids), length):
        passed = decoder.run(torch.from_numpy(ids[None, start : start + length]), capture=[hook]).cache[hook][0]
        flat = passed.numpy().copy()
        flat[0] = np.nan
        rows.append(flat)
    return ids, np.concatenate(rows)


MODELS = {
    "layer norms": lambda: reading(random_model("gpt2")),
    "grouped, gated, rotary": lambda: reading(random_model("llama")),
}
# Side → (hook, what multiplies it): written out here from the dense map M = U S Vh, not taken from the code.
CASES = [
    ("L1H1.ov", "read", "attn_normed"),
    ("L1H1.ov", "write", "z"),
    ("L1H1.o", "read", "z"),
    ("L1H1.o", "write", "z"),
    ("L1H1.qk", "query", "attn_normed"),
    ("L1H1.qk", "key", "attn_normed"),
    ("L1H1.q", "read", "attn_normed"),
    ("L1H1.v", "read", "attn_normed"),
    ("L1.mlp.in", "read", "mlp_normed"),
    ("L1.mlp.gate", "read", "mlp_normed"),
    ("L1.mlp.out", "read", "mlp_post"),
    ("L1.mlp.out", "write", "mlp_post"),
    ("unembed", "read", "final_normed"),
]


def by_definition(model: Model, text: str, site: str, side: str, role: str, dyad: int) -> np.ndarray:
    hook = role if role == "final_normed" else f"L1.{role}"
    _, x = captured(model, text, hook)
    x = x[:, 1] if role == "z" else x
    U, _, Vh = np.linalg.svd(np.asarray(model.map(site).dense(), dtype=np.float64), full_matrices=False)
    found = svd(model.map(site))
    if side in ("read", "query"):
        return (x @ U[:, dyad]) * np.sign(U[:, dyad] @ found.U[:, dyad])
    written = Vh[dyad] * np.sign(Vh[dyad] @ found.Vh[dyad])
    if site.endswith(".mlp.out"):
        return x @ model.weights["L1.W_out"] @ written
    return x @ model.weights["L1.W_O"][1] @ written if role == "z" else x @ written


@pytest.mark.parametrize(
    ("name", "site", "side", "role"),
    [(name, *case) for name in MODELS for case in CASES if "gate" not in case[0] or "gated" in name],
)
def test_activations_are_projections_of_what_the_map_multiplies(name: str, site: str, side: str, role: str) -> None:
    model = MODELS[name]()
    text = some_text(model, 50)
    expected = by_definition(model, text, site, side, role, 2)
    probe = dyad_probe(model, model.site(site), 2, side, 20, 0)
    found = activations(model, probe, text, torch.float64)
    # Sums of a few dozen terms in float64 through a few layers.
    np.testing.assert_allclose(found.values[:, 0], expected[found.places], rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(found.places, np.flatnonzero(~np.isnan(expected)))
    # float32 rounds each of some hundred operations by 6e-8 of what is added up.
    rough = activations(model, probe, text).values[:, 0]
    np.testing.assert_allclose(rough, found.values[:, 0], atol=2e-5 * np.abs(found.values[:, 0]).max())


# gauge_fixed is not a frame of models with RMSNorm: nothing in them centres.
FRAMES = {"layer norms": ("raw", "folded", "gauge_fixed"), "grouped, gated, rotary": ("raw", "folded")}


@pytest.mark.parametrize(("name", "frame"), [(n, f) for n, frames in FRAMES.items() for f in frames])
def test_a_head_without_attention_writes_the_sum_of_its_dyads(name: str, frame: str) -> None:
    """Σᵢ σᵢ aᵢ vᵢ = x W_V W_O at every position: equation 1."""
    model = MODELS[name]().framed(frame)
    text, found = some_text(model, 40), svd(model.map("L1H1.ov"))
    probes = [dyad_probe(model, model.site("L1H1.ov"), i, "read", 20, 0) for i in range(found.rank)]
    measured = [activations(model, probe, text, torch.float64) for probe in probes]
    total = sum(p.sigma * a.values[:, :1] * v for p, a, v in zip(probes, measured, found.Vh, strict=True))
    _, x = captured(model, text, "L1.attn_normed")
    kv = model.spec.blocks[1].attn.kv_of(1)  # type: ignore[union-attr]
    expected = x[measured[0].places] @ model.weights["L1.W_V"][kv] @ model.weights["L1.W_O"][1]
    np.testing.assert_allclose(total, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_every_frame_writes_the_same_but_for_the_mean_that_layer_norm_ignores(name: str) -> None:
    """Σᵢ (write side of dyad i) vᵢ is the head's output z W_O, whatever the frame; centred writes lack its mean.

    A frame may move the constant that b_V adds to b_O. It is the same at every position: deviations from the mean over
    positions are compared.
    """
    outputs = {}
    for frame in FRAMES[name]:
        model = MODELS[name]().framed(frame)
        text, found = some_text(model, 40), svd(model.map("L1H1.ov"))
        site = model.site("L1H1.ov")
        sides = [
            activations(model, dyad_probe(model, site, i, "write", 20, 0), text, torch.float64).values[:, 0]
            for i in range(found.rank)
        ]
        written = np.array(sides).T @ found.Vh
        written = written - written.mean(axis=0)
        outputs[frame] = written - written.mean(axis=1, keepdims=True) if name == "layer norms" else written
    for frame in FRAMES[name][1:]:
        np.testing.assert_allclose(outputs[frame], outputs["raw"], rtol=1e-7, atol=1e-9, err_msg=frame)


@pytest.mark.parametrize("shape", ["vector", "row"])
def test_a_vector_is_measured_at_its_hook_as_a_unit_vector(shape: str) -> None:
    model = MODELS["layer norms"]()
    text, rng = some_text(model, 40), np.random.default_rng(3)
    for hook in ("L0.resid_post", "L1.mlp_post", "resid_in", "final_normed"):
        _, x = captured(model, text, hook)
        vector = rng.standard_normal(x.shape[1])
        given = vector if shape == "vector" else vector[None]
        found = activations(model, vector_probe(model, given, hook, 20, 0), text, torch.float64)
        expected = x @ vector / np.linalg.norm(vector)
        np.testing.assert_allclose(found.values[:, 0], expected[found.places], rtol=1e-9, atol=1e-11)
    table = fires(model, "L0.resid_post", text, vector=rng.standard_normal(20))
    assert table.meta["sigma"] is None
    assert table.next == ""


# Places


def test_windows_cover_the_text_once_and_leave_out_first_positions() -> None:
    model = reading(covector.open(toy(n_ctx=24)))
    for n in (2, 23, 24, 25, 26, 48, 49, 700):
        ids = np.arange(n)
        cut = [
            (start, row) for some in windows(model, ids) for start, row in zip(some.starts, some.tokens, strict=True)
        ]
        whole = np.concatenate([row for _, row in cut])
        # A last token alone in its window has nothing before it: it is dropped.
        np.testing.assert_array_equal(whole, ids[: n - (n % 24 == 1)])
        assert all(row[0] == start and 2 <= len(row) <= 24 for start, row in cut)


def test_the_place_that_fires_is_named_right_across_window_borders() -> None:
    """A direction that only the embedding of token 7 has fires at token 7: position, token and passage say so."""
    weights = toy(n_ctx=10, n_vocab=23, d_model=24, norm=None, positions="none")
    W_E = np.array(weights["W_E"])
    spike = np.linalg.qr(np.concatenate([W_E[:7], W_E[8:], W_E[7:8]]).T)[0][:, -1]  # orthogonal to the other tokens
    model = reading(covector.open(weights))
    rng = np.random.default_rng(1)
    ids = rng.choice([i for i in range(23) if i != 7], 95)
    at = [3, 19, 20, 31, 58, 94]  # 20 is the first of a window, 19 the last of one, 94 the last of all
    ids[at] = 7
    table = fires(model, "resid_in", " ".join(f"w{i}" for i in ids), vector=spike * np.sign(W_E[7] @ spike), top=20)
    plus = table.where(np.array([p == "+" for p in table["pole"]]))
    # Within the others the least distance is 11 tokens, so that none hides another.
    hits = plus.where(np.asarray(plus["z"]) > 2)
    assert sorted(np.asarray(hits["position"]).tolist()) == [3, 19, 31, 58, 94]
    for row in hits.rows:
        place = row["position"]
        assert row["token"] == " w7"
        assert row["before"] == "".join(f" w{i}" for i in ids[max(0, place - AROUND) : place])
        assert row["after"] == "".join(f" w{i}" for i in ids[place + 1 : place + 1 + AROUND])
        assert "".join(row["tokens"]) == row["before"] + row["token"] + row["after"]
        assert row["tokens"][row["at"]] == " w7"
        assert row["strengths"][row["at"]] == pytest.approx(row["z"])
        first = max(0, place - AROUND)
        assert [v is None for v in row["strengths"]] == [(first + i) % 10 == 0 for i in range(len(row["strengths"]))]


def test_passages_are_the_strongest_in_order_and_apart() -> None:
    model = reading(random_model("gpt2"))
    table = fires(model, "L0H0:0", some_text(model, 400), top=6)
    for pole, sign in (("+", 1), ("−", -1)):
        chosen = table.where(np.array([p == pole for p in table["pole"]]))
        assert len(chosen) == 6
        assert (np.diff(sign * np.asarray(chosen["z"])) <= 0).all()
        places = np.sort(np.asarray(chosen["position"]))
        assert (np.diff(places) >= APART).all()
    probe = dyad_probe(model, model.site("L0H0"), 0, "read", 100, 0)
    values = activations(model, probe, some_text(model, 400)).values[:, 0]
    assert table["value"][0] == pytest.approx(values.max())
    assert table["value"][6] == pytest.approx(values.min())


def test_separators_and_the_newlines_around_them_are_no_part_of_the_text() -> None:
    model = reading(covector.open(toy()))
    apart = text_ids(model, "w1 w2\n<|endoftext|>\nw3\n<|endoftext|>\n\n<|endoftext|>w4\n")
    np.testing.assert_array_equal(apart, [1, 2, 3, 4])


def test_characters_spread_over_tokens_stand_whole_at_the_last_of_them() -> None:
    assert readable([" a", " <0xE6>", "<0x97><0xA5>", "本", "<0xF0><0x9F>"]) == [" a", " ", "日", "本", "\\xf0\\x9f"]
    assert readable(["<0x97>", "x"]) == ["\\x97", "x"]
    assert readable([]) == []


# Chance


def test_a_random_direction_passes_the_level_once_in_twenty_and_its_p_are_uniform() -> None:
    """The calibration: trials share the text, and are independent given it."""
    model, trials, draws = reading(random_model("gpt2")), 800, 19
    every = svd(model.map("L1H2.ov")).U.T
    rows = inside(every, trials * (draws + 1), seed=5)
    found = activations(model, Probe("L1.attn_normed", None, rows, "", ""), some_text(model, 150)).values
    beyond, p = 0, {"skew": [], "share": [], "peak": []}
    told = traces(found)
    for trial in range(trials):
        part = slice(trial * (draws + 1), (trial + 1) * (draws + 1))
        peak, skew, share = told.peak[part], np.abs(told.skew[part]), np.abs(told.share[part] - 0.5)
        beyond += peak[0] > level(peak[1:])
        for name, far in (("peak", peak), ("skew", skew), ("share", share)):
            p[name].append((1 + np.sum(far[1:] >= far[0])) / (draws + 1))
    # 1 of 20 ranks passes, exactly 5 %; four binomial standard errors of 800 trials.
    assert beyond / trials == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / trials))
    for name, values in p.items():
        counts = np.bincount((np.array(values) * 5 - 1e-9).astype(int), minlength=5)
        # χ² of 5 bins of 4 ranks each, 4 degrees: 23.5 has p = 1e-4.
        assert np.sum((counts - trials / 5) ** 2 / (trials / 5)) < 23.5, (name, counts)


def test_random_rows_are_unit_directions_of_the_subspace_in_every_direction_alike() -> None:
    model = random_model("gpt2")
    site = model.site("L1H2.ov")
    U = svd(model.map(site)).U
    rows = dyad_probe(model, site, 0, "read", 4000, 7).rows[1:]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(rows @ U @ U.T, rows, atol=1e-12)
    # Cov of a uniform unit vector of r dimensions is I/r; an entry's standard error is below 1/(r √draws).
    r = U.shape[1]
    np.testing.assert_allclose((rows @ U).T @ (rows @ U) / 4000, np.eye(r) / r, atol=5 / (r * np.sqrt(4000)) * 1.5)


def test_the_table_compares_with_the_directions_of_the_written_space() -> None:
    model = reading(random_model("gpt2"))
    site, text = model.site("L1.mlp.out"), some_text(model, 80)
    rows = dyad_probe(model, site, 1, "write", 30, 2).rows
    # v (a unit row of Vh) seen from the neurons: W_out vᵀ.
    U, S, _ = np.linalg.svd(np.asarray(model.weights["L1.W_out"], dtype=float), full_matrices=False)
    assert np.linalg.norm(rows[0]) == pytest.approx(S[1], rel=1e-9)
    weights = rows[1:] @ U / S
    np.testing.assert_allclose(np.linalg.norm(weights, axis=1), 1, rtol=1e-9)
    table = fires(model, "L1.mlp.out:1", text, side="write", draws=30, seed=2)
    assert table.meta["null"].startswith("30 random directions of the 20-dimensional write space of L1.mlp.out")


def test_meta_tells_the_statistics_of_the_definition_and_no_p_is_ever_zero() -> None:
    model = reading(random_model("llama"))
    text = some_text(model, 120)
    _, x = captured(model, text, "L1.attn_normed")
    a = (x @ svd(model.map("L1H1.ov")).U[:, 0])[~np.isnan(x[:, 0])]
    told = fires(model, "L1H1:0", text, draws=19).meta
    z = (a - a.mean()) / a.std()
    for name, value in {"mean": a.mean(), "sd": a.std(), "peak": abs(z).max(), "skew": (z**3).mean()}.items():
        assert told[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert told["share_plus"] == pytest.approx(sum(a[a > 0] ** 2) / sum(a**2), rel=1e-4)
    assert told["tokens"] == len(a)
    assert all(1 / 20 <= told[f"p_{name}"] <= 1 for name in ("peak", "skew", "share_plus"))
    spiked = np.where(np.arange(500) == 77, 50.0, 0.0)[:, None] + np.random.default_rng(0).standard_normal((500, 40))
    spiked[:, 1:] -= np.where(np.arange(500) == 77, 50.0, 0.0)[:, None]
    assert traces(spiked).peak[0] > level(traces(spiked).peak[1:])


def test_a_level_is_the_value_that_one_more_draw_exceeds_with_the_probability_asked() -> None:
    assert level(np.arange(19.0)) == 18.0  # the largest of 19: 1/20
    assert level(np.arange(100.0)) == 95.0  # five of 101 ranks lie above
    with pytest.raises(BadRequest, match="expected 19 draws or more"):
        level(np.arange(18.0))


def test_turning_a_signal_round_turns_its_skew_and_share_and_keeps_its_peak() -> None:
    values = np.random.default_rng(4).exponential(size=(200, 3)) - 0.5
    one, turned = traces(values), traces(-values)
    np.testing.assert_allclose(turned.peak, one.peak, rtol=1e-12)
    np.testing.assert_allclose(one.peak, np.abs((values - values.mean(0)) / values.std(0)).max(0), rtol=1e-12)
    np.testing.assert_allclose(turned.skew, -one.skew, rtol=1e-9)
    np.testing.assert_allclose(turned.share, 1 - one.share, rtol=1e-9)


def test_a_constant_signal_has_no_poles() -> None:
    found = traces(np.full((9, 1), 0.1))
    assert (found.peak[0], found.skew[0], found.share[0]) == (0, 0, 1)
    model = reading(random_model("gpt2"))
    table = fires(model, "resid_in", "w3 " * 4, vector=np.ones(20))  # positions alone differ
    assert len(table) > 0
    still = reading(covector.open(toy(positions="none")))
    table = fires(still, "resid_in", "w3 " * 9, vector=np.ones(16))
    assert len(table) == 0
    assert "nothing in this text drives it" in table.says


def test_the_same_request_gives_the_same_bytes_and_another_seed_other_chances() -> None:
    model = reading(random_model("gpt2"))
    text = some_text(model, 90)
    one, again, other = (fires(model, "L0H1:1", text, seed=s) for s in (1, 1, 2))
    assert one.to_json() == again.to_json()
    assert one.meta["peak_level"] != other.meta["peak_level"]
    np.testing.assert_array_equal(one["value"], other["value"])


# Requests that cannot be met


@pytest.mark.parametrize(
    ("place", "options", "error", "told"),
    [
        ("L0H0:99", {}, BadRank, "L0H0.ov: expected a dyad 0 to"),
        ("L0H0:x", {}, BadRequest, "expected one dyad such as L3H1:0, got 'L0H0:x'"),
        ("L0H0:²", {}, BadRequest, "expected one dyad"),
        ("L0H*:0", {}, BadSite, "expected one site"),
        ("embed:0", {}, BadSite, "expected a side that a text drives, got read"),
        ("L0.mlp.in:0", {"side": "write"}, BadSite, "expected a side that a text drives, got write"),
        ("L0H0.qk:0", {"side": "write"}, BadRequest, "expected --side query or key, got 'write'"),
        ("L0H0:0", {"side": "key"}, BadRequest, "expected --side read or write, got 'key'"),
        ("L0H0:0", {"top": 0}, BadRequest, "expected top >= 1 and draws >= 19, got top = 0"),
        ("L0H0:0", {"draws": 18}, BadRequest, "got top = 10, draws = 18"),
        ("L9.resid_post", {"vector": np.ones(20)}, BadRequest, "expected a hook point of this model"),
        ("L0.z", {"vector": np.ones(20)}, BadRequest, "expected one hook point of the stream or of neurons"),
        ("L*.resid_post", {"vector": np.ones(20)}, BadRequest, "expected one hook point of the stream"),
        ("L0.resid_post", {"vector": np.ones(7)}, BadRequest, "expected one finite vector of width 20"),
        ("L0.resid_post", {"vector": np.zeros(20)}, BadRequest, "not all zeros"),
        ("L0.resid_post", {"vector": np.full(20, np.nan)}, BadRequest, "expected one finite vector"),
        ("L0.resid_post", {"vector": np.ones((2, 20))}, BadRequest, r"got shape \(2, 20\)"),
    ],
)
def test_a_request_that_cannot_be_met_says_what_was_expected(
    place: str, options: dict, error: type[Exception], told: str
) -> None:
    model = reading(random_model("gpt2"))
    with pytest.raises(error, match=told):
        fires(model, place, "w1 w2 w3", **options)


@pytest.mark.parametrize("frame", ["folded+bias", "tl_demo"])
def test_frames_that_do_not_run_are_refused(frame: str) -> None:
    model = reading(random_model("gpt2")).framed(frame)
    for place, vector in (("L0H0:0", None), ("L0.resid_post", np.ones(20))):
        with pytest.raises(FrameUnavailable, match="expected a frame that keeps its function"):
            fires(model, place, "w1 w2 w3", vector=vector)


def test_texts_that_cannot_be_run_are_refused() -> None:
    model = random_model("gpt2")
    with pytest.raises(BadRequest, match="has no tokenizer"):
        fires(model, "L0H0:0", "w1 w2")
    with pytest.raises(BadRequest, match="at least two tokens, got 1"):
        fires(reading(model), "L0H0:0", "w1")


def test_what_the_weights_cannot_show_is_said_where_the_numbers_stand() -> None:
    model = reading(random_model("llama"))
    text = some_text(model, 40)
    assert "rotary positions" in fires(model, "L0H0.qk:0", text).not_says
    assert "rotary" not in fires(model, "L0H0:0", text).not_says


# As it is typed


@pytest.fixture
def story(tmp_path: Path) -> str:
    path = tmp_path / "story.txt"
    path.write_text("The nurse asked where she was. Mary said that she saw the king.\n<|endoftext|>\n" * 12, "utf-8")
    return str(path)


def test_a_screen_fits_120_columns_and_names_the_level(story: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fires", "demo-lm", "L3H0:0", "--text", story, "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    passages = [line for line in lines if "«" in line]
    assert len(passages) == 6
    assert len({line.index("«") for line in passages}) == 1
    assert "95 % of random directions" in " ".join(lines)
    assert lines[-1] == "next: covector svd demo-lm L3H0.ov"


def test_files_are_written_and_json_is_one_object(
    story: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, plot = tmp_path / "p.html", tmp_path / "p.svg"
    words = ["fires", "demo-lm", "L1.mlp.in:0", "--text", story, "--json", "--page", str(page), "--plot", str(plot)]
    assert run([*words, "--out", str(tmp_path / "o")]) == 0
    found = capsys.readouterr()
    table = json.loads(found.out, parse_constant=pytest.fail)
    assert len(table["rows"]) == 20
    assert table["meta"]["direction"] == "L1.mlp.in:0 read"
    assert found.err.count("written:") == 3
    assert page.read_text("utf-8").count("outline:") == 20
    assert "random directions" in plot.read_text("utf-8")


def test_a_vector_from_a_file_is_measured_at_a_hook(
    story: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    width = covector.open("demo-lm").spec.d_model
    save_file({"vector": np.ones(width, dtype=np.float32)}, tmp_path / "v.safetensors")
    words = ["fires", "demo-lm", "L1.resid_post", "--text", story, "--vector", str(tmp_path / "v.safetensors")]
    assert run(words) == 0
    assert "vector at L1.resid_post" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--text", "nowhere.txt"], "--text: expected a UTF-8 text file at 'nowhere.txt'"),
        (["--page", "p.pdf"], "--page: expected a file name that ends in .html, got 'p.pdf'"),
        (["--characters", "0"], "--characters: expected at least 1, got 0"),
        (["--draws", "3"], "expected top >= 1 and draws >= 19"),
        (["--vector", "nowhere.safetensors"], "expected a safetensors file with a vector"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    words: list[str], told: str, story: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fires", "demo-lm", "L3H0:0", "--text", story, *words]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert len(found.err.splitlines()) == 1
    assert told in found.err


def test_only_so_many_characters_are_read(story: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fires", "demo-lm", "L3H0:0", "--text", story, "--characters", "60", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["meta"]["tokens"] < 20
