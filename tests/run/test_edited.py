"""An edit in the weights, as doses in the weights, and as hooks are one function, on both runners."""

import numpy as np
import pytest
import torch

from covector.errors import BadRequest
from covector.linalg.svd import svd
from covector.model.opened import Model
from covector.model.overlay import Overlay
from covector.run.decoder import Decoder
from covector.run.edited import dosed, first_block, hooked, laid_over, slopes
from covector.run.random_inputs import random_inputs
from covector.study.edit import Edit
from random_checkpoints import random_model

EDITS = (
    "L1H1.ov:0*.3", "L1H1.qk:0*2", "L1K0.v:0*0", "L1K0.k:1*0", "L1.mlp.in:2*.5", "L0.mlp.out:1*0; L1H0.ov:0*2",
)  # fmt: skip
# Logits of order 1 to 10 in float64, through three blocks.
SAME = 1e-10


def logits(decoder: Decoder, **how: object) -> torch.Tensor:
    inputs = random_inputs(decoder.spec, length=3 * len(decoder.spec.assembly.inputs), batch=2)
    return torch.cat([v.flatten() for v in decoder.run(inputs, **how).outputs.values()])  # type: ignore[arg-type]


@pytest.mark.identity("SV-13")
@pytest.mark.parametrize("text", EDITS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gptj", "gemma2", "phi", "decision_transformer"])
def test_weights_doses_and_hooks_agree(family: str, text: str) -> None:
    model = random_model(family)
    decoder, edit = Decoder(model.weights), Edit.parse(text)
    change = edit.change(model)
    want = logits(Decoder(model.edited(edit).weights))
    assert (want - logits(decoder)).abs().max() > 1e-4
    assert (logits(laid_over(decoder, change)) - want).abs().max() < SAME
    assert (logits(dosed(decoder, [change], torch.ones(1, dtype=torch.float64))) - want).abs().max() < SAME
    assert (logits(decoder, intervene=hooked(model.spec, change)) - want).abs().max() < SAME


@pytest.mark.parametrize("text", ["L1H1.ov:0*.3@read", "L1.mlp.in:2*.5", "L1H1.qk:0*.5", "L1.mlp.out:0*0"])
@pytest.mark.parametrize("frame", ["folded", "gauge_fixed", "tl_default"])
def test_an_edit_in_a_frame_is_the_framed_models_edit(frame: str, text: str) -> None:
    """Run as stored and as framed, the edited model is one function (up to a shift of all logits in centred frames)."""
    framed = random_model("gpt2").framed(frame)
    edited = framed.edited(Edit.parse(text))
    tokens = random_inputs(framed.spec, length=6, batch=2)
    one, other = (torch.log_softmax(Decoder(w).run(tokens).logits, -1) for w in (edited.stored, edited.weights))
    assert (one - other).abs().max() < SAME


@pytest.mark.identity("SV-13")
def test_sides_differ_by_the_value_bias_alone() -> None:
    """W_O' and W_V' give one OV; the write side also takes b_V W_O: a (b_V W_O)(Σ ε vvᵀ) per head, a = 1 (rows of the
    pattern sum to one)."""
    model = random_model("gpt2")
    d = svd(model.map("L2H1.ov"))
    epsilon = -0.6
    tokens = random_inputs(model.spec, length=5, batch=2)
    write, read = (
        Decoder(model.edited(Edit.dyads("L2H1.ov", {0: epsilon}, side)).weights).run(tokens, capture=["L2.attn_out"])
        for side in ("write", "read")
    )
    bias = model.weights["L2.b_V"][1] @ model.weights["L2.W_O"][1]
    want = epsilon * (bias @ d.Vh[0]) * d.Vh[0]
    found = (write.cache["L2.attn_out"] - read.cache["L2.attn_out"]).numpy()
    np.testing.assert_allclose(found, np.broadcast_to(want, found.shape), atol=1e-12)
    assert np.abs(want).max() > 1e-3


@pytest.mark.identity("SV-15")
def test_all_dyads_removed_is_the_head_ablated_up_to_its_bias() -> None:
    model = random_model("gpt2")
    decoder = Decoder(model.weights)
    rank = svd(model.map("L1H2.ov")).rank
    change = Edit.parse(f"L1H2.ov:0-{rank - 1}*0").change(model)

    def without(z: torch.Tensor) -> torch.Tensor:
        made = z.clone()
        made[:, :, 2] = 0
        return made

    found, want = logits(laid_over(decoder, change)), logits(decoder, intervene={"L1.z": without})
    assert (found - want).abs().max() < SAME  # the write side takes the value bias along
    other = Edit.dyads("L1H2.ov", dict.fromkeys(range(rank), -1.0), "read").change(model)
    assert (logits(laid_over(decoder, other)) - want).abs().max() > 1e-3


def test_doses_can_be_differentiated() -> None:
    """∂logits/∂dose against central differences, for two pieces in one tensor and one in another."""
    model = random_model("gpt2")
    decoder = Decoder(model.weights)
    pieces = [Edit.parse(t).change(model) for t in ("L1H1.ov:0*0", "L1H0.ov:1*0", "L2.mlp.out:0*0")]
    weights = torch.randn(logits(decoder).shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def at(doses: torch.Tensor) -> torch.Tensor:
        return weights @ logits(dosed(decoder, pieces, doses))

    doses = torch.tensor([0.2, -0.3, 0.5], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(at(doses), doses)
    at_zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (slow,) = torch.autograd.grad(at(at_zero), at_zero)
    (quick,) = slopes(decoder, lambda d: (weights @ logits(d))[None], pieces)
    np.testing.assert_allclose(quick, slow.numpy(), rtol=1e-10)
    step = 1e-5
    for k in range(3):
        moved = torch.zeros(3, dtype=torch.float64)
        moved[k] = step
        slope = (at(doses.detach() + moved) - at(doses.detach() - moved)) / (2 * step)
        assert found[k].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-7)


def test_where_a_run_begins_to_differ() -> None:
    model = random_model("gpt2")
    for text, block in (("L1H1.ov:0*0; L2.mlp.in:0*0", 1), ("embed:0*0", 0), ("unembed:0*0", 3)):
        assert first_block(model.spec, Edit.parse(text).change(model)) == block
    change = Edit.parse("L2H1.ov:0*0; L2.mlp.in:0*0").change(model)
    decoder, tokens = Decoder(model.weights), random_inputs(model.spec, length=5, batch=2)
    stream = decoder.run(tokens, capture=["L2.resid_pre"]).cache["L2.resid_pre"]
    late = laid_over(decoder, change).run(resid_in=stream, first=first_block(model.spec, change)).logits
    assert torch.equal(late, laid_over(decoder, change).run(tokens).logits)


def test_hooks_refuse_what_no_hook_shows() -> None:
    model = random_model("gpt2")
    with pytest.raises(BadRequest, match="edit of W_E: expected a matrix of a block"):
        hooked(model.spec, Edit.parse("embed:0*0").change(model))


def edited_runner(model: Model, text: str) -> dict[str, np.ndarray]:
    return Overlay(model.stored, Edit.parse(text).change(model)).changed()


@pytest.mark.identity("SV-14")
@pytest.mark.parametrize("text", ["L1H1.ov:0*0", "L1.mlp.in:0*2; L1H0.qk:0*0", "embed:0*0", "unembed:1*0"])
def test_a_transformers_model_is_edited_and_restored_bit_by_bit(text: str) -> None:
    """In the context it computes what the edited decoder computes; afterwards, also after an exception, the bytes are
    those of before."""
    from covector.arch.family import families
    from covector.run.hf_load import tiny_judge
    from covector.run.hf_runner import HFRunner

    judge, weights = tiny_judge(families()["gpt2"])
    model = Model("tiny", weights, weights)
    tokens = random_inputs(model.spec, length=6, batch=2)["token"]
    want = Decoder(model.edited(Edit.parse(text)).weights).run(tokens).logits
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    runner, changes = HFRunner(judge, weights), edited_runner(model, text)
    with runner.edited(changes) as edited:
        assert (edited.run(tokens).logits - want).abs().max() < 1e-9
    with pytest.raises(ZeroDivisionError), runner.edited(changes):
        raise ZeroDivisionError
    assert all(torch.equal(value, judge.state_dict()[name]) for name, value in before.items())
    assert judge.lm_head.weight is judge.transformer.wte.weight
