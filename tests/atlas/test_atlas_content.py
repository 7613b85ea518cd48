"""Every row of an atlas is what dense float64 algebra, a brute-force vocabulary and SciPy's Beta law give.

Expected values come from the weights of the opened model and nothing else of covector: matrices are multiplied out,
decomposed by NumPy, and compared with every vector of the basis one by one. Where a frame centres is written down here
a second time, from its definition.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import covector
from covector.arch.toy import random_model as toy
from covector.atlas.plan import Options
from covector.building import build_atlas
from covector.errors import BadRank, BadRequest
from covector.io.atlas import Atlas
from covector.linalg import chance
from covector.model.opened import Model
from covector.model.spec import Norm
from random_checkpoints import random_model

# Two float64 algorithms for one matrix: 1e-11 of the largest gain (the promise of `linalg.svd`).
GAIN = 1e-10
# float16 rows of length one: half a unit in the last place of each entry, d of them, is below this.
HALF = 1e-3
RMS = Norm("rms", 1e-6)


def cache(function):
    """Answers by identity of the model: maps are decomposed once for all tests."""
    known = {}

    def remembered(model, *words):
        if (id(model), words) not in known:
            known[id(model), words] = function(model, *words)
        return known[id(model), words]

    return remembered


@dataclass(frozen=True)
class Case:
    name: str
    model: Model
    options: Options = field(default_factory=lambda: Options(k=5, draws=50, scores=False))


def cases() -> list[Case]:
    opened = covector.open
    return [
        Case("grouped heads, gated, rms", opened(toy(seed=3, n_kv_heads=2, gated=True, norm=RMS))),
        Case("wide heads", opened(toy(seed=4, n_layers=1, n_heads=2, d_head=16))),
        Case("small mlp and vocabulary", opened(toy(seed=5, n_layers=1, d_mlp=9, n_vocab=7))),
        Case("folded, rms", opened(toy(seed=6, n_layers=1, norm=RMS), frame="folded")),
        Case("folded", opened(toy(seed=6, n_layers=1), frame="folded")),
        Case("gauge_fixed", opened(toy(seed=7), frame="gauge_fixed")),
        Case("folded+bias", opened(toy(seed=8, n_layers=1), frame="folded+bias")),
        Case("post-norm", opened(toy(seed=9, n_layers=1, placement="post"))),
        Case("agent", opened(toy(seed=10, n_layers=1, agent="interleaved"))),
        Case("attention only, tied", opened(toy(seed=11, n_layers=1, d_mlp=0, tied=True))),
        Case("gpt2 file layout", random_model("gpt2", seed=13, n_layer=2), Options(k=5, draws=50)),
    ]


@pytest.fixture(scope="module", params=cases(), ids=lambda case: case.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("atlas") / "a"
    atlas = build_atlas(case.model, folder, options=case.options, workers=1)
    assert atlas is not None
    rows = pd.read_parquet(folder / "index.parquet")
    sites = pd.read_parquet(folder / "sites.parquet").set_index("site")
    return SimpleNamespace(case=case, model=case.model, atlas=atlas, rows=rows, sites=sites, folder=folder)


@cache
def dense(model: Model, site: str) -> np.ndarray:
    """The matrix [reads, writes] of a site, from the weights, in float64; with a constant 1 in front under +bias."""
    w = {name: np.asarray(model.weights[name], dtype=np.float64) for name in model.weights.names()}
    named = {"embed": "W_E", "unembed": "W_U", "pos": "W_pos"}
    biased = model.frame.bias
    if "." not in site:
        if site in named:
            matrix = w[named[site]]
            return np.vstack([w["b_U"], matrix]) if site == "unembed" and biased else matrix
        label, side = site.rsplit("_", 1)
        return w[f"{side}.{label}.W"]
    place, _, kind = site.partition(".")
    if kind.startswith("mlp"):
        role = kind.removeprefix("mlp.")
        matrix = w[f"{place}.W_{role}"]
        return np.vstack([w[f"{place}.b_{role}"], matrix]) if biased else matrix
    layer, head = place[: place.index("H")], int(place[place.index("H") + 1 :])
    attn = model.spec.blocks[int(layer[1:])].attn
    assert attn is not None
    shared = head // (attn.n_heads // attn.n_kv_heads)
    q, k, v, o = (w[f"{layer}.W_{r}"] for r in "QKVO")
    if kind == "ov":
        top = w[f"{layer}.b_V"][shared] @ o[head] + w[f"{layer}.b_O"] / attn.n_heads if biased else None
        return np.vstack([top, v[shared] @ o[head]]) if biased else v[shared] @ o[head]
    left, right = q[head], k[shared]
    if biased:
        left = np.vstack([w[f"{layer}.b_Q"][head], left])
        right = np.vstack([w[f"{layer}.b_K"][shared], right])
    return left @ right.T


def is_centred(model: Model, site: str, side: str) -> bool:
    """Folded readers behind a LayerNorm do not see 1; gauge-fixed writers do not write it."""
    frame, norm = model.frame.name, model.spec.final_norm
    layered = norm is not None and norm.kind == "layer"
    if side == "write":
        return frame == "gauge_fixed"
    return frame in ("folded", "gauge_fixed") and layered


@cache
def compared(model: Model, site: str, side: str) -> tuple[np.ndarray, tuple[str, ...], int]:
    """(unit vectors, labels, dimension of the law)."""
    w, agent = model.weights, model.spec.input("token") is None
    if side == "write":
        vectors = w["out.action.W"].T if agent else w["W_U"].T
        name = "action_out" if agent else "token_out"
    else:
        vectors, name = (w["in.state.W"], "state_in") if agent else (w["W_E"], "token_in")
    vectors = np.array(vectors, dtype=np.float64)
    centred = is_centred(model, site, side)
    if centred:
        vectors -= vectors.mean(axis=1, keepdims=True)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit, model.bases[name].labels, vectors.shape[1] - centred


SIDE_OF = {"read": 0, "query": 0, "write": 1, "key": 1}


@cache
def directions(model: Model, site: str, side: str) -> tuple[np.ndarray, np.ndarray]:
    """(σ, rows) of the dense map's singular vectors on one side, in NumPy's order and signs."""
    U, S, Vh = np.linalg.svd(dense(model, site), full_matrices=False)
    keep = max(dense(model, site).shape) * 2.0**-52 * S[0] < S
    return S[keep], (U.T, Vh)[SIDE_OF[side]][keep]


def stream_part(model: Model, site: str, side: str, rows: np.ndarray) -> np.ndarray:
    if rows.shape[1] == model.spec.d_model:
        return rows
    rest = rows[:, 1:]
    return rest / np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-8)


def of_stream(built: SimpleNamespace):
    """(site, side, its rows of the index, its vectors)."""
    for (site, side), rows in built.rows.groupby(["site", "side"], sort=False):
        yield site, side, rows, np.asarray(built.atlas.vectors[rows.index], dtype=np.float64)


def expected_sites(model: Model) -> list[str]:
    """In the order an atlas stands in."""
    spec, made = model.spec, []
    inputs = ["embed" if i.name == "token" else f"{i.name}_in" for i in spec.assembly.inputs]
    inputs += [f"{spec.assembly.time.name}_in"] if spec.assembly.time else []
    made += sorted([*inputs, *(["pos"] if spec.assembly.positions == "learned" else [])])
    for layer, block in enumerate(spec.blocks):
        if block.attn:
            made += [f"L{layer}H{h}.{kind}" for kind in ("ov", "qk") for h in range(block.attn.n_heads)]
        if block.mlp:
            made += [f"L{layer}.mlp.{role}" for role in ("in", *["gate"] * block.mlp.gated, "out")]
    outs = [f"{o.name}_out" for o in spec.outputs if o.name != "token"]
    outs += ["unembed"] if spec.output("token") and not spec.tied else []
    return [*made, *sorted(outs)]


def test_every_map_of_the_model_is_there_once_in_canonical_order(built):
    assert list(built.sites.index) == expected_sites(built.model)
    assert list(dict.fromkeys(built.rows.site)) == expected_sites(built.model)
    both = {"ov": ["read", "write"], "qk": ["query", "key"]}
    for site, rows in built.rows.groupby("site", sort=False):
        kind = site.rpartition(".")[2]
        reads = kind in ("in", "gate", "unembed") or kind.endswith("_out")
        assert list(dict.fromkeys(rows.side)) == both.get(kind, ["read"] if reads else ["write"])
        for _, one in rows.groupby("side"):
            assert list(one.dyad) == list(range(len(one)))


def test_layer_head_and_kind_say_the_site_again(built):
    for row in built.rows[["site", "layer", "head", "kind"]].drop_duplicates().itertuples():
        place, dot, kind = row.site.partition(".")
        assert row.kind == (kind if dot else row.site)
        assert (f"L{row.layer:.0f}" if dot else "") == place.partition("H")[0] * bool(dot)
        assert ("H" in place[1:] and bool(dot)) == (not np.isnan(row.head))
        assert np.isnan(row.head) or place.endswith(f"H{row.head:.0f}")


def test_gains_are_the_singular_values_of_the_dense_map_and_spectra_are_whole(built):
    for site, found in built.sites.iterrows():
        M = dense(built.model, site)
        S = np.linalg.svd(M, compute_uv=False)
        S = S[max(M.shape) * 2.0**-52 * S[0] < S]
        np.testing.assert_allclose(found.sigma, S, atol=GAIN * S[0])
        assert (found.n, found.m) == M.shape
        for _, rows in built.rows[built.rows.site == site].groupby("side"):
            np.testing.assert_allclose(rows.sigma, S[: len(rows)], atol=GAIN * S[0])


def test_vectors_span_what_the_dense_map_reads_and_writes_block_by_block(built):
    """Projectors, not vectors: signs, and turns inside a run of equal gains, are nobody's choice."""
    for site, side, rows, vectors in of_stream(built):
        S, wanted = directions(built.model, site, side)
        assert len(rows) == len(S)
        wanted = stream_part(built.model, site, side, wanted)
        affine = built.model.frame.bias and side != "write"
        start = 0
        for end in [*(np.flatnonzero(S[:-1] - S[1:] > 1e-6 * S[0]) + 1), len(S)]:
            mine, theirs = vectors[start:end], wanted[start:end]
            if end - start == 1 or not affine:
                np.testing.assert_allclose(mine.T @ mine, theirs.T @ theirs, atol=2 * HALF, err_msg=f"{site} {side}")
            start = end


def test_vectors_are_unit_and_orthogonal_up_to_half_precision(built):
    for site, side, _, vectors in of_stream(built):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=HALF)
        if not built.model.frame.bias:
            np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=2 * HALF, err_msg=site + side)


def test_the_two_sides_of_a_dyad_have_one_sign_between_them(built):
    """u M v > 0 for the stored pair: whatever sign one side has, the other has the one that makes σ positive."""
    for site, rows in built.rows.groupby("site"):
        if rows.side.nunique() != 2 or built.model.frame.bias:
            continue
        first, second = (rows[rows.side == side] for side in dict.fromkeys(rows.side))
        u, v = (np.asarray(built.atlas.vectors[one.index], dtype=np.float64) for one in (first, second))
        gains = np.einsum("rd,de,re->r", u, dense(built.model, site), v)
        S = first.sigma.to_numpy()
        np.testing.assert_allclose(gains, S, atol=4 * HALF * S[0])


def signed(vectors: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Exact rows with the stored rows' signs."""
    return exact * np.where(np.einsum("rd,rd->r", vectors, exact) < 0, -1, 1)[:, None]


def test_cosines_and_labels_are_those_of_every_vector_of_the_basis(built):
    for site, side, rows, vectors in of_stream(built):
        unit, labels, d = compared(built.model, site, side)
        S, exact = directions(built.model, site, side)
        exact = signed(vectors, stream_part(built.model, site, side, exact))
        for i, row in enumerate(rows.itertuples()):
            near = np.min(np.abs(np.delete(S, i) - S[i]), initial=np.inf) < 1e-6 * S[0]
            if near or S[i] < 1e-3 * S[0]:
                continue  # the dyad itself is not defined to the digits below
            scores = unit @ exact[i]
            k = min(5, len(unit))
            np.testing.assert_allclose(row.top_cos, np.sort(scores)[::-1][:k], atol=1e-6)
            np.testing.assert_allclose(row.bottom_cos, np.sort(scores)[:k], atol=1e-6)
            np.testing.assert_allclose(scores[list(row.top_id)], row.top_cos, atol=1e-6)
            np.testing.assert_allclose(scores[list(row.bottom_id)], row.bottom_cos, atol=1e-6)
            assert list(row.top) == [labels[t] for t in row.top_id]
            assert list(row.bottom) == [labels[t] for t in row.bottom_id]
            best = np.argmax(np.abs(scores))
            assert abs(row.cos) == pytest.approx(abs(scores[best]), abs=1e-9)
            assert row.zeta == pytest.approx(np.sqrt(d) * row.cos, rel=1e-12)
            assert scores[labels.index(row.label)] == pytest.approx(row.cos, abs=1e-9)


def beta_tail(cosine: np.ndarray, d: int) -> np.ndarray:
    """P(|cos| >= c) for a random direction of R^d."""
    return stats.beta.sf(np.minimum(np.square(cosine), 1.0), 0.5, (d - 1) / 2)


def test_p_dir_is_the_union_of_beta_tails(built):
    for site, side, rows, _ in of_stream(built):
        unit, _, d = compared(built.model, site, side)
        cos = np.minimum(np.abs(rows.cos.to_numpy()), 1.0)
        wanted = np.minimum(1.0, len(unit) * beta_tail(cos, d))
        np.testing.assert_allclose(rows.p_dir, wanted, rtol=1e-6, atol=1e-14, err_msg=f"{site} {side}")


def test_p_svd_bounds_the_union_over_the_projected_basis_from_above_and_closely(built):
    """Undefined where the head reads or writes everything, for one dimension, for MLPs and embeddings."""
    for site, side, rows, _ in of_stream(built):
        unit, _, d = compared(built.model, site, side)
        S, exact = directions(built.model, site, side)
        affine = built.model.frame.bias and side != "write"
        defined = site.endswith((".ov", ".qk")) and 1 < len(S) < d and not affine
        if not defined:
            assert rows.p_svd.isna().all(), (site, side)
            continue
        lengths = np.linalg.norm(unit @ exact.T, axis=1)
        ratio = np.minimum(np.abs(rows.cos.to_numpy())[:, None] / lengths, 1.0)
        union = np.minimum(1.0, beta_tail(ratio, len(S)).sum(axis=1))
        # Projected lengths are summed in float32: 1e-6 of a ratio moves a tail by up to (r − 1)·1e-6/(1 − ratio²).
        slack = 1e-3 * union + 1e-5
        assert (rows.p_svd >= union - slack).all(), (site, side)
        assert (rows.p_svd <= 1.1 * union + slack).all(), (site, side)
        theirs = chance.p_svd(
            np.minimum(np.abs(rows.cos.to_numpy()), lengths.max()), np.minimum(lengths, 1.0), len(S), d
        )
        np.testing.assert_allclose(rows.p_svd, theirs, rtol=0.1, atol=1e-4)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q_i = min over j with p_j >= p_i of m·p_j/rank(j), by its definition, quadratically."""
    m = len(p)
    rank = np.array([np.sum(p <= x) for x in p])
    return np.array([min(1.0, np.min((m * p / rank)[p >= x])) for x in p])


def test_q_is_benjamini_hochberg_over_the_whole_atlas(built):
    for name in ("dir", "svd"):
        p = built.rows[f"p_{name}"].to_numpy()
        defined = ~np.isnan(p)
        assert (np.isnan(built.rows[f"q_{name}"]) == ~defined).all()
        if defined.any():
            np.testing.assert_allclose(built.rows[f"q_{name}"][defined], benjamini_hochberg(p[defined]), rtol=1e-12)


def test_p_cov_is_a_rank_among_the_draws_of_the_matched_law(built):
    draws = built.case.options.draws
    steps = built.rows.p_cov * (draws + 1)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
    assert built.rows.p_cov.between(1 / (draws + 1), 1).all()
    for _, rows in built.rows.groupby("basis"):
        order = np.argsort(np.abs(rows.cos.to_numpy()))
        assert (np.diff(rows.p_cov.to_numpy()[order]) <= 1e-12).all()


def test_a_row_agrees_with_readout_of_the_same_dyad(built):
    site = next(s for s in built.sites.index if built.sites.kind[s] in ("ov", "embed"))
    told = covector.readout(built.model, site, rank=4, k=5).rows
    for side in [s for s in ("read", "write") if f"{s}_cos" in told[0]]:
        rows = built.rows[(built.rows.site == site) & (built.rows.side == side)]
        for row, dyad in zip(rows.to_dict("records"), told, strict=False):
            assert row["cos"] == pytest.approx(dyad[f"{side}_cos"], rel=1e-9)
            assert row["label"] == dyad[f"{side}_label"]
            assert row["p_dir"] == pytest.approx(dyad[f"{side}_p_dir"], rel=1e-6)
            assert list(row["top"]) == dyad[f"{side}_plus"]
            assert list(row["bottom"]) == dyad[f"{side}_minus"]
            assert row["sigma"] == pytest.approx(dyad["sigma"], rel=1e-9)
            assert row["turn"] == pytest.approx(dyad["turn"], rel=1e-6)
            assert row["noisy"] == dyad["noisy"]


def test_blocks_are_named_by_their_first_and_last_dyad(built):
    for site in built.sites.index[-6:]:
        found = covector.svd(built.model.map(site))
        for row in built.rows[built.rows.site == site].itertuples():
            block = found.block_of(row.dyad)
            assert (row.block_first, row.block_last) == (block.start, block.stop - 1)


def leading(rows: pd.DataFrame, rank: int) -> pd.DataFrame:
    return rows[rows.dyad < rank].reset_index(drop=True)


@pytest.mark.slow
@pytest.mark.parametrize("frame", ["raw", "folded+bias"])
def test_rank_keeps_the_leading_dyads_with_the_same_scores_and_all_spectra(tmp_path, frame):
    """What is said of a dyad, p_svd included, does not depend on how many are kept; q does (fewer tests)."""
    model = covector.open(toy(seed=20), frame=frame)
    every = build_atlas(model, tmp_path / "a", options=Options(k=4, draws=20, scores=False), workers=1)
    few = build_atlas(model, tmp_path / "b", options=Options(k=4, draws=20, rank=2, scores=False), workers=1)
    one, other = (
        leading(pd.read_parquet(tmp_path / "a/index.parquet"), 2),
        pd.read_parquet(tmp_path / "b/index.parquet"),
    )
    assert (other.dyad < 2).all()
    for name in ("site", "side", "dyad", "label", "block_first", "block_last"):
        assert list(one[name]) == list(other[name])
    for name in ("sigma", "cos", "p_dir", "p_svd", "p_cov", "gap"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-9, err_msg=name)
    kept = np.flatnonzero(every.column("dyad") < 2)
    np.testing.assert_allclose(every.vectors[kept].astype(float), few.vectors.astype(float), atol=HALF)
    for whole, cut in zip(every.sites, few.sites, strict=True):
        np.testing.assert_allclose(whole["sigma"], cut["sigma"], atol=1e-7 * whole["sigma"][0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_half_precision_checkpoint_has_the_atlas_of_its_widened_values(tmp_path, dtype):
    """Only what storage rounding says of a dyad (noisy, turn, its block) depends on the dtype."""
    import json

    import torch
    from safetensors.torch import save_file

    from covector.arch.family import families
    from random_checkpoints import random_tensors

    stored = {n: torch.from_numpy(a).to(getattr(torch, dtype)) for n, a in random_tensors(families()["gpt2"]).items()}
    tables = []
    for name, tensors in (("half", stored), ("wide", {n: t.double() for n, t in stored.items()})):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(families()["gpt2"].tiny()))
        atlas = build_atlas(
            tmp_path / name, tmp_path / f"{name}.atlas", options=Options(k=3, draws=20, scores=False), workers=1
        )
        assert atlas is not None
        tables.append((pd.read_parquet(tmp_path / f"{name}.atlas/index.parquet"), np.array(atlas.vectors, float)))
    (half, v), (wide, w) = tables
    assert list(half.site) == list(wide.site)
    firm = (half.gap > 1e-6) & (wide.gap > 1e-6)
    for column in ("sigma", "gap"):
        np.testing.assert_allclose(half[column], wide[column], atol=1e-9 * half.sigma.max())
    np.testing.assert_allclose(half.cos[firm], wide.cos[firm], atol=1e-7)
    np.testing.assert_allclose(v[firm], w[firm], atol=HALF)
    assert (half.label[firm] == wide.label[firm]).all()


def zeroed(*roles: str):
    weights = toy(seed=30)
    arrays = {n: np.zeros_like(a) if n.endswith(roles) else a for n, a in weights.arrays.items()}
    return type(weights)(weights.spec, arrays)


def test_maps_of_zeros_have_no_rows_and_an_empty_spectrum(tmp_path):
    atlas = build_atlas(
        zeroed("W_pos", "W_O", "W_Q", "W_in", "W_out"), tmp_path / "a", options=Options(draws=20), workers=1
    )
    assert atlas is not None
    assert set(atlas.column("site")) == {"embed", "unembed"}
    assert {s["site"]: len(s["sigma"]) for s in atlas.sites}["L0H0.ov"] == 0


def test_a_model_of_zeros_is_refused_in_words(tmp_path):
    with pytest.raises(BadRequest, match="expected weights that are not all zero"):
        build_atlas(zeroed("W_O"), tmp_path / "a", options=Options(("ov",)), workers=1)


def test_null_tokens_are_left_out_of_the_running_and_of_n(tmp_path):
    weights = toy(seed=31)
    table = weights.arrays["W_E"].copy()
    table[[0, 5]] = 0
    model = covector.open(type(weights)(weights.spec, {**weights.arrays, "W_E": table}))
    atlas = build_atlas(model, tmp_path / "a", options=Options(("ov",), k=30, draws=20, scores=False), workers=1)
    assert atlas is not None
    rows = pd.read_parquet(tmp_path / "a/index.parquet")
    read = rows[rows.side == "read"]
    assert all(len(ids) == 21 and not {0, 5} & set(ids) for ids in read.top_id)
    np.testing.assert_allclose(read.p_dir, np.minimum(1, 21 * beta_tail(read.cos, 16)), rtol=1e-6)
    assert read.p_svd.notna().all()


def test_options_outside_their_range_and_kinds_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(BadRequest, match="expected kinds among ov, qk, mlp, embed, got 'vo'"):
        Options(("vo",))
    with pytest.raises(BadRank, match="expected rank >= 1"):
        Options(rank=0)
    with pytest.raises(BadRequest, match="expected k and rotations of at least 1"):
        Options(k=0)
    with pytest.raises(BadRequest, match="has no mlp: expected kinds that it has"):
        build_atlas(toy(d_mlp=0), tmp_path / "a", options=Options(("mlp",)))
    assert Options(("qk", "ov", "qk")) == Options(("ov", "qk"))
    assert not (tmp_path / "a").exists()


def test_columns_that_are_not_there_are_refused_with_those_that_are(tmp_path):
    atlas = build_atlas("toy", tmp_path / "a", options=Options(("ov",), draws=20, scores=False), workers=1)
    assert isinstance(atlas, Atlas)
    with pytest.raises(BadRequest, match=r"expected a column of its index \(site, .*got 'cosine'"):
        atlas.column("cosine")
