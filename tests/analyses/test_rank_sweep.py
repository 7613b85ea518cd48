"""Places of fewer dyads, run: what a sweep says is what a model with those weights does."""

import numpy as np
import pytest

import covector
from covector.errors import BadRequest, FrameUnavailable
from covector.linalg.rank_reduction import rescaling, truncation
from covector.linalg.svd import svd
from covector.model.address import Site
from covector.model.opened import Model
from covector.model.reduction import replaced, side_of
from covector.model.weights import ArrayWeights
from random_checkpoints import random_model

torch = pytest.importorskip("torch")
TEXT = " ".join(["Once upon a time there was a little girl who lived in a house near the river."] * 12)


def with_arrays(model: Model, arrays: dict[str, np.ndarray]) -> Model:
    weights = ArrayWeights(model.stored.spec, {n: arrays.get(n, model.stored[n]) for n in model.stored.names()})
    return Model("changed", weights, weights, labels=model.labels, vocabulary=model.vocabulary)


@pytest.fixture(scope="module")
def model() -> Model:
    return covector.open("demo-lm")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
@pytest.mark.parametrize(
    "at", ["L1H1.ov", "L1H1.qk", "L1H1.o", "L1K0.v", "L1.mlp.in", "L1.mlp.out", "embed", "unembed"]
)
def test_the_new_arrays_give_the_truncated_map_and_leave_other_heads_alone(family, at):
    model = random_model(family)
    site, m = model.site(at), model.map(at)
    found = svd(m)
    k = found.rank // 2
    arrays = replaced(model.weights, site, found, truncation(found, k))
    other = with_arrays(model, arrays)
    np.testing.assert_allclose(other.map(at).dense(), (found.U[:, :k] * found.S[:k]) @ found.Vh[:k], atol=1e-11)
    attn = model.spec.blocks[1].attn
    assert attn is not None
    for head in (h for h in range(attn.n_heads) if at in ("L1H1.ov", "L1H1.qk") and h != 1):
        for kind in ("ov", "qk"):
            sibling = str(Site(1, head, kind))
            np.testing.assert_array_equal(other.map(sibling).dense(), model.map(sibling).dense())


@pytest.mark.parametrize("at", ["embed", "unembed"])
def test_a_tied_embedding_is_untied(model, at):
    m = model.map(at)
    arrays = replaced(model.weights, model.site(at), svd(m), truncation(svd(m), 3))
    kept = {"embed": "W_U", "unembed": "W_E"}[at]
    assert set(arrays) == {"W_E", "W_U"}
    np.testing.assert_array_equal(arrays[kept], model.weights[kept])
    assert np.linalg.matrix_rank(arrays["W_E" if kept == "W_U" else "W_U"], tol=1e-6) == 3


def test_several_heads_of_a_layer_are_rewritten_one_after_the_other(model):
    made: dict[str, np.ndarray] = {}
    for site in model.sites("L2H*.ov"):
        found = svd(model.map(site))
        made = replaced(model.weights, site, found, truncation(found, 5), made)
    other = with_arrays(model, made)
    for head in range(model.spec.n_heads):
        assert np.linalg.matrix_rank(other.map(f"L2H{head}.ov").dense(), tol=1e-6) == 5


def losses(model: Model, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and the loss of each window, by the reference decoder on the whole weights."""
    from covector.run.decoder import Decoder

    with torch.no_grad():
        log_p = Decoder(model.weights).run(torch.from_numpy(ids)).logits.log_softmax(-1).numpy()
    rows, columns = np.indices(ids[:, 1:].shape)
    return log_p, -log_p[rows, columns, ids[:, 1:]].mean(axis=1)


@pytest.mark.parametrize("at", ["L2.mlp.in", "L1H2.ov", "L3H0.qk"])
def test_kl_and_loss_are_those_of_a_model_with_the_truncated_weights(model, at):
    from covector.run.reduction import first_tokens

    table = covector.rank_sweep(model, at, keep=[2], text=TEXT)
    found = svd(model.map(at))
    other = with_arrays(model, replaced(model.weights, model.site(at), found, truncation(found, 2)))
    ids = np.concatenate(first_tokens(model, TEXT))
    (plain, before), (changed, after) = losses(model, ids), losses(other, ids)
    assert table["kl"][0] == pytest.approx(np.mean(np.sum(np.exp(plain) * (plain - changed), -1)), rel=1e-6)
    assert table["loss"][0] == pytest.approx(np.mean(after - before), rel=1e-6, abs=1e-12)
    assert table.meta["loss"] == pytest.approx(np.mean(before), rel=1e-9)


def test_nothing_is_changed_where_every_dyad_is_kept(model):
    table = covector.rank_sweep(model, "L2.mlp.in", keep=[128], text=TEXT)
    assert table["change"][0] < 1e-12
    assert table["kl"][0] < 1e-12
    assert np.isnan(table["kl_place"][0])


def test_no_dyad_at_all_is_the_head_zeroed(model):
    W = np.array(model.stored["L2.W_O"], dtype=np.float64)
    W[1] = 0
    table = covector.rank_sweep(model, "L2H1.ov", keep=[0], text=TEXT)
    from covector.run.reduction import first_tokens

    ids = np.concatenate(first_tokens(model, TEXT))
    (plain, _), (changed, _) = losses(model, ids), losses(with_arrays(model, {"L2.W_O": W}), ids)
    assert table["kl"][0] == pytest.approx(np.mean(np.sum(np.exp(plain) * (plain - changed), -1)), rel=1e-6)
    assert table["change"][0] == pytest.approx(1.0, rel=1e-12)


def test_shares_are_counted_as_laser_counts_them_and_rows_stand_in_order(model):
    table = covector.rank_sweep(model, "L1H2.ov", share=[0.5, 0.1, 0.0], text=TEXT)
    assert list(table["kept"]) == [0, 3, 16]
    assert np.all(np.diff(table["change"]) < 0)


def test_a_renormalised_common_factor_changes_nothing_and_a_plain_one_does(model):
    factors = [1.5] * svd(model.map("L1H2.ov")).rank
    same = covector.rank_sweep(model, "L1H2.ov", rescale=factors, renormalise=True, text=TEXT)
    assert same["change"][0] < 1e-12
    more = covector.rank_sweep(model, "L1H2.ov", rescale=factors, text=TEXT)
    assert more["change"][0] == pytest.approx(0.5, rel=1e-9)
    core = rescaling(svd(model.map("L1H2.ov")), np.array(factors))
    arrays = replaced(model.weights, model.site("L1H2.ov"), svd(model.map("L1H2.ov")), core)
    np.testing.assert_allclose(arrays["L1.W_O"][2], 1.5 * model.stored["L1.W_O"][2].astype(float), atol=1e-5)


def test_the_effect_on_a_task_is_that_of_the_changed_model(model):
    from covector.run.decoder import Decoder

    she = covector.Observable.parse("' she' - ' he'", model)
    pairs = covector.fill_template(
        model, "Yesterday [NAME] was happy because", {"NAME": (["Mary", "Lisa"], ["John", "Mark"])}
    )
    table = covector.rank_sweep(model, "L2H3.ov", keep=[0], text=TEXT, observable=she, pairs=pairs)
    found = svd(model.map("L2H3.ov"))
    other = with_arrays(model, replaced(model.weights, model.site("L2H3.ov"), found, truncation(found, 0)))
    values = []
    for one in (model, other):
        sides = []
        for name in ("clean", "corrupt"):
            ids = torch.tensor([getattr(p, name) for p in pairs])
            with torch.no_grad():
                logits = Decoder(one.weights).run(ids).logits[:, -1].numpy()
            sides.append(she.of(logits))
        values.append(np.mean(sides[0] - sides[1]))
    assert table["effect"][0] == pytest.approx(values[1] - values[0], rel=1e-9)
    assert table.meta["unchanged"] == pytest.approx(values[0], rel=1e-9)


def test_the_same_seed_gives_the_same_controls(model):
    one, two = (covector.rank_sweep(model, "L1H2.ov", keep=[4], text=TEXT, seed=s) for s in (0, 0))
    assert one.to_json() == two.to_json()
    assert one["of"][0] == 21
    assert 1 <= one["kl_place"][0] <= 21


def test_what_makes_no_sense_is_refused(model):
    with pytest.raises(BadRequest, match="up to 32"):
        covector.rank_sweep(model, "L1H2.ov", keep=[33], text=TEXT)
    with pytest.raises(BadRequest, match="at least 20"):
        covector.rank_sweep(model, "L1H2.ov", draws=3, text=TEXT)
    with pytest.raises(BadRequest, match="got both"):
        covector.rank_sweep(model, "L1H2.ov", keep=[1], rescale=[2.0], text=TEXT)
    with pytest.raises(BadRequest, match="needs prompts"):
        covector.rank_sweep(model, "L1H2.ov", text=TEXT, observable=covector.Observable.parse("' she'", model))
    with pytest.raises(FrameUnavailable, match="frame raw"):
        covector.rank_sweep(model.framed("folded"), "L1H2.ov", text=TEXT)
    assert side_of(model.site("L1H2.qk")) == "read"
