"""A layout.toml opens a home-made transformer: its words, its keys, its refusals, and models others compute too."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from stand_ins import MODELS, PLANTED, SHAPES, Tensors, layout, noise, with_words
from torch import nn

from covector.arch import declared_keys
from covector.arch.declared import declared
from covector.arch.declared_names import READY
from covector.arch.words import cut, parse
from covector.errors import BadLayout, CheckpointMismatch, CovectorError
from covector.io.tensors import ArrayTensors
from covector.model.spec import MLP, Attention
from covector.run.decoder import Decoder

DOCS = Path(__file__).parents[2] / "docs" / "layouts.md"
SIZES = {"head": 2, "kv_head": 2, "d_model": 6, "d_head": 3, "d_mlp": 5}
# float64 sums of a few hundred products of order 1: some 100 units of 2⁻⁵².
ROUNDING = 1e-13
CLOCK = "modadd59-clock"


def opened(text: str, tensors: Tensors):
    return declared(text, ArrayTensors(tensors), "layout.toml")


def outputs(text: str, tensors: Tensors, inputs: dict[str, np.ndarray], name: str) -> np.ndarray:
    weights, _ = opened(text, tensors)
    return Decoder(weights).run({k: torch.tensor(v) for k, v in inputs.items()}).outputs[name].numpy()


# Words


def test_a_transposed_matrix_is_read_by_its_axes():
    stored = np.arange(30.0).reshape(5, 6)
    assert np.array_equal(cut(parse("W_in: d_mlp d_model"), "W_in", stored, SIZES), stored.T)


def test_the_role_may_be_left_out_where_the_tensor_carries_it():
    assert parse("head d_model d_head", default_role="W_Q").roles == ("W_Q",)


def test_a_composed_axis_is_split_slowest_part_first():
    stored = np.arange(36.0).reshape(6, 6)
    W_O = cut(parse("d_model (W_O: head d_head)"), "W_O", stored, SIZES)
    assert np.array_equal(W_O[1], stored[:, 3:6].T)


def test_heads_may_be_the_fast_part_of_a_composed_axis():
    stored = np.arange(36.0).reshape(6, 6)
    W_O = cut(parse("(W_O: d_head head) d_model"), "W_O", stored, SIZES)
    assert np.array_equal(W_O[1], stored[1::2])


@pytest.mark.parametrize(
    ("words", "rows_of_key_head_1"),
    [
        ("([W_Q W_K W_V] head d_head) d_model", slice(6 + 3, 6 + 6)),
        ("(head [W_Q W_K W_V] d_head) d_model", slice(9 + 3, 9 + 6)),
        ("(W_Q: head d_head | W_K: kv_head d_head | W_V: kv_head d_head) d_model", slice(6 + 3, 6 + 6)),
    ],
)
def test_stacked_tensors_are_picked_from_their_place(words, rows_of_key_head_1):
    stored = np.arange(108.0).reshape(18, 6)
    assert np.array_equal(cut(parse(words), "W_K", stored, SIZES)[1], stored[rows_of_key_head_1].T)


def test_parts_laid_one_after_the_other_may_differ_in_size():
    words = "(W_Q: head d_head | W_K: kv_head d_head | W_V: kv_head d_head) d_model"
    stored = np.arange(72.0).reshape(12, 6)
    W_V = cut(parse(words), "W_V", stored, SIZES | {"kv_head": 1})
    assert np.array_equal(W_V, stored[9:].T[None])


def test_one_tensor_may_play_two_roles():
    assert parse("attn_norm.gain+mlp_norm.gain: d_model").roles == ("attn_norm.gain", "mlp_norm.gain")


def test_an_axis_of_size_one_disappears():
    stored = np.arange(6.0).reshape(1, 6)
    assert np.array_equal(cut(parse("b_O: _ d_model"), "b_O", stored, SIZES), stored[0])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("W_X: d_model", "layout 'W_X: d_model': expected a canonical tensor"),
        ("W_Q: head d_model", "W_Q has axes head d_model d_head, the words give head d_model"),
        ("(W_Q: head d_head d_model", "expected 'an axis', got 'the end'"),
        ("W_Q: head & d_head", "expected an axis name, got '&'"),
        ("([W_Q W_Q] head d_head) d_model", "a role appears twice"),
        ("d_model d_mlp", "expected a role such as 'W_Q:', none came; write 'W_Q: d_model d_mlp'"),
    ],
)
def test_words_that_are_not_a_layout_are_refused(words, text):
    with pytest.raises(BadLayout, match=re.escape(text)):
        parse(words)


# Models that somebody else computes too


@pytest.mark.parametrize("model", MODELS)
def test_a_declaration_computes_what_the_original_code_computes(model):
    forward, make_inputs, name = MODELS[model]
    tensors, inputs = noise(model), make_inputs(np.random.default_rng(1))
    expected = forward(tensors, inputs)
    assert np.abs(outputs(layout(model), tensors, inputs, name) - expected).max() < ROUNDING


@pytest.mark.parametrize(
    ("model", "mistake", "words", "caught"), PLANTED, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_mistake_in_the_words_is_caught_by_the_shapes_or_by_the_outputs(model, mistake, words, caught):
    forward, make_inputs, name = MODELS[model]
    tensors, inputs = noise(model), make_inputs(np.random.default_rng(1))
    wrong = with_words(layout(model), words)
    if caught == "refused":
        with pytest.raises(CheckpointMismatch, match="correct the words or the sizes"):
            opened(wrong, tensors)
    else:
        assert np.abs(outputs(wrong, tensors, inputs, name) - forward(tensors, inputs)).max() > 1e-3, mistake


@pytest.mark.parametrize("model", MODELS)
def test_every_stored_tensor_has_a_place(model):
    weights, _ = opened(layout(model), noise(model))
    stored = {p.replace("{i}", str(i)) for p in SHAPES[model] for i in range(SHAPES[model]["blocks"])} - {"blocks"}
    assert {place.tensor for place in weights.places.values()} == stored


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_torch_encoder_is_computed_as_torch_computes_it(norm_first, activation, causal, bias):
    encoder = torch_encoder(norm_first, activation, bias, final_norm=norm_first)
    weights, _ = declared(torch_layout(norm_first, activation, causal), state(encoder), "layout.toml")
    x = torch.randn(3, 7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64) if causal else None
    with torch.no_grad():
        expected = encoder(x, mask=mask, is_causal=causal)
    assert (Decoder(weights).run(resid_in=x).resid_final - expected).abs().max() < 1e-10


def torch_encoder(norm_first: bool, activation: str, bias: bool, final_norm: bool) -> nn.TransformerEncoder:
    """Two layers with noise everywhere: gains, biases and projections that no default could stand for."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        12, 3, 20, 0.0, activation, batch_first=True, norm_first=norm_first, bias=bias, dtype=torch.float64
    )
    norm = nn.LayerNorm(12, bias=bias, dtype=torch.float64) if final_norm else None
    encoder = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False).eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.normal_(std=0.5)
    return encoder


def torch_layout(norm_first: bool, activation: str, causal: bool) -> str:
    return f"""
        [anatomy]
        norm = "layer"
        placement = "{"pre" if norm_first else "post"}"
        causal = {str(causal).lower()}
        activation = "{activation}"
        n_heads = 3
        n_ctx = 7
        [tensors]
        use = "torch_encoder"
        """


def state(module: nn.Module) -> ArrayTensors:
    return ArrayTensors({name: value.numpy() for name, value in module.state_dict().items()})


# Anatomies

PLAIN = {
    "emb": (7, 6),
    "b0.wq": (2, 6, 3),
    "b0.wk": (1, 6, 3),
    "b0.wv": (1, 6, 3),
    "b0.wo": (6, 6),
    "b1.win": (6, 5),
    "b1.wout": (5, 6),
}
UNEVEN = """
    name = "uneven"
    [anatomy]
    norm = "none"
    causal = true
    activation = "silu"
    tied = true
    n_ctx = 9
    attention = [true, false]
    mlp = [false, true]
    [tensors]
    emb = "W_E: token d_model"
    "b{i}.wq" = "W_Q: head d_model d_head"
    "b{i}.wk" = "W_K: kv_head d_model d_head"
    "b{i}.wv" = "W_V: kv_head d_model d_head"
    "b{i}.wo" = "(W_O: head d_head) d_model"
    "b{i}.win" = "W_in: d_model d_mlp"
    "b{i}.wout" = "W_out: d_mlp d_model"
    """


def random(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def test_blocks_may_lack_an_mlp_or_attention_and_heads_may_be_grouped():
    spec = opened(UNEVEN, random(PLAIN))[0].spec
    assert [type(sub.part) for block in spec.blocks for sub in block.sublayers] == [Attention, MLP]
    assert (spec.n_heads, spec.n_kv_heads, spec.d_head, spec.d_mlp, spec.tied) == (2, 1, 3, 5, True)


def test_a_block_without_attention_adds_its_mlp_alone():
    tensors = random(PLAIN)
    weights, _ = opened(UNEVEN, tensors)
    run = Decoder(weights).run(torch.tensor([[1, 4]]), capture=["L1.resid_pre", "L1.resid_post"])
    before, after = (run.cache[f"L1.resid_{at}"].numpy() for at in ("pre", "post"))
    hidden = before @ tensors["b1.win"]
    expected = before + hidden / (1 + np.exp(-hidden)) @ tensors["b1.wout"]
    assert np.abs(after - expected).max() < ROUNDING


def test_an_input_and_an_output_of_one_name_may_differ_in_size():
    untied = UNEVEN.replace("tied = true", "") + 'head = "W_U: token d_model"'
    weights, _ = opened(untied, random(PLAIN | {"head": (6, 6)}))
    assert (weights["W_E"].shape, weights["W_U"].shape) == ((7, 6), (6, 6))


def test_rotary_scales_and_caps_reach_the_anatomy():
    text = UNEVEN.replace("tied = true", "tied = true\nscore_scale = 0.5\nsoftcap = 30\nwindow = [4, 4]\nmlp_scale = 2")
    text += "[rotary]\ninterleaved = true\ndim = 2\ntheta = 500"
    spec = opened(text, random(PLAIN))[0].spec
    attn, mlp = spec.blocks[0].attn, spec.blocks[1].sublayers[0]
    assert (attn.scale, attn.softcap, attn.window, mlp.scale) == (0.5, 30, 4, 2)
    assert (attn.rotary.interleaved, attn.rotary.dim, attn.rotary.theta) == (True, 2, 500)


def test_scores_are_divided_by_the_root_of_d_head_unless_said_otherwise():
    assert opened(UNEVEN, random(PLAIN))[0].spec.attention.scale == pytest.approx(3**-0.5)


@pytest.mark.parametrize(
    ("placement", "roles"),
    [
        ("pre", {"mlp_norm"}),
        ("post", {"mlp_after"}),
        ("output", {"mlp_post"}),
        ("sandwich", {"mlp_norm", "mlp_post"}),
    ],
)
def test_a_norm_hangs_where_placement_says(placement, roles):
    gains = "".join(f'"b{{i}}.{role}" = "{role}.gain: d_model"\n' for role in roles)
    text = f"""
        [anatomy]
        norm = "rms"
        placement = "{placement}"
        eps = 1e-6
        activation = "relu"
        n_ctx = 4
        final_norm = false
        [tensors]
        "b{{i}}.win" = "W_in: d_model d_mlp"
        "b{{i}}.wout" = "W_out: d_mlp d_model"
        {gains}"""
    shapes = {"b0.win": (6, 5), "b0.wout": (5, 6)} | {f"b0.{role}": (6,) for role in roles}
    assert set(opened(text, random(shapes))[0].spec.norms()) == {f"L0.{role}" for role in roles}


def test_the_bias_of_a_gated_mlp_stands_where_it_is_said_to_stand():
    text = """
        [anatomy]
        norm = "none"
        activation = "relu"
        n_ctx = 4
        bias_after_gate = AFTER
        [tensors]
        use = "transformer_lens"
        """
    t = random(
        {f"blocks.0.mlp.{k}": s for k, s in {"W_gate": (6, 5), "W_in": (6, 5), "b_in": (5,), "W_out": (5, 6)}.items()}
    )
    x = np.random.default_rng(2).normal(size=(1, 3, 6))
    gate, pre, b_in = np.maximum(x @ t["blocks.0.mlp.W_gate"], 0), x @ t["blocks.0.mlp.W_in"], t["blocks.0.mlp.b_in"]
    for after, hidden in (("true", gate * pre + b_in), ("false", gate * (pre + b_in))):
        weights, _ = opened(text.replace("AFTER", after), t)
        got = Decoder(weights).run(resid_in=torch.tensor(x)).resid_final.numpy()
        assert np.abs(got - (x + hidden @ t["blocks.0.mlp.W_out"])).max() < ROUNDING


def test_grouped_transformer_lens_heads_are_found_under_their_underscored_names():
    text = """
        [anatomy]
        norm = "layer"
        placement = "pre"
        final_norm = false
        causal = true
        n_ctx = 4
        [tensors]
        use = "transformer_lens"
        """
    shapes = {"W_Q": (4, 6, 3), "_W_K": (2, 6, 3), "_W_V": (2, 6, 3), "W_O": (4, 3, 6)}
    weights, _ = opened(text, random({f"blocks.0.attn.{name}": shape for name, shape in shapes.items()}))
    assert (weights.spec.n_heads, weights.spec.n_kv_heads, weights.spec.n_layers) == (4, 2, 1)


def test_labels_name_the_rows_of_each_basis():
    _, labels = opened(layout("dt-minigrid-memory"), noise("dt-minigrid-memory"))
    # index = 49·channel + 7·x + y; channel 5 is the key, 17 the first door state
    assert labels["state_in"][5 * 49 + 7 * 3 + 2] == "key x3 y2"
    assert labels["state_in"][17 * 49] == "open x0 y0"
    assert labels["action_in"] == (*labels["action_out"], "padding")
    assert set(labels) == {"state_in", "action_in", "action_out"}


def test_nothing_but_headers_is_read_to_open():
    class Headers(ArrayTensors):
        def read(self, name: str) -> np.ndarray:
            raise AssertionError(f"{name} was read")

    weights, _ = declared(layout("modadd59-clock"), Headers(noise("modadd59-clock")), "layout.toml")
    assert weights.spec.d_model == 128


@pytest.mark.parametrize(
    "line", ['"blocks.{i}.attn.mask" = "-"', 'ignore = "*.mask"', 'ignore = ["x", "blocks.?.attn.*sk"]']
)
def test_a_tensor_that_holds_no_weight_is_left_out_by_name(line):
    buffers = {"blocks.0.attn.mask": np.ones((2, 2))}
    weights, _ = opened(layout(CLOCK).replace("[tensors]", f"[tensors]\n{line}"), noise(CLOCK) | buffers)
    assert "blocks.0.attn.mask" not in {place.tensor for place in weights.places.values()}


# Refusals


@pytest.mark.parametrize(
    ("old", "new", "error", "text"),
    [
        ("causal =", "casual =", BadLayout, "unknown key 'casual' in [anatomy]; known: norm, "),
        ("causal =", "casual =", BadLayout, ". Did you mean 'causal'?"),
        ("[anatomy]", "[anatomie]", BadLayout, "unknown key 'anatomie' in the top of the file"),
        (
            "[tensors]",
            '[tensors]\nprefx = "a."',
            BadLayout,
            "unknown key 'prefx' in [tensors] (no tensor's name either)",
        ),
        ("[tensors]", '[tensors]\nuse = "jax"', BadLayout, "use takes transformer_lens, torch_encoder; got 'jax'"),
        ("[tensors]", '[tensors]\nprefix = "m."', BadLayout, "there is no use; remove it"),
        ("[tensors]", "[tensors]\nwte = 3", BadLayout, "'wte' takes a layout in words such as"),
        ("causal = false", 'causal = "no"', BadLayout, "[anatomy] causal takes true | false, or a list with one entry"),
        ("causal = false", "causal = [true, false]", BadLayout, "expected one value, or 1 (one per block), got 2"),
        ("causal = false", "", BadLayout, "expected causal under [anatomy], it is absent; write true if"),
        ('activation = "relu"', "", BadLayout, "expected activation under [anatomy], it is absent"),
        ('activation = "relu"', 'activation = "rleu"', BadLayout, "activation 'rleu' is not implemented; supported: "),
        ('norm = "none"', "", BadLayout, 'expected norm under [anatomy], it is absent; write norm = "none", '),
        (
            'norm = "none"',
            'norm = "none"\neps = 1e-5',
            BadLayout,
            'eps speaks of a norm, norm = "none" says there is none',
        ),
        ('norm = "none"', 'norm = "layer"', BadLayout, "expected placement under [anatomy], it is absent"),
        ('norm = "none"', 'norm = "rms"\nplacement = "pre"', BadLayout, "an RMSNorm has no usual eps"),
        ('norm = "none"', 'norm = "layer"\nplacement = "pre"', BadLayout, "have no gains, so it cannot be seen"),
        ('norm = "none"', 'norm = "none"\nbias_after_gate = true', BadLayout, "speaks of a gate, no block has one"),
        (
            "[inputs.token]",
            "[inputs.state]",
            BadLayout,
            "[inputs.state] expects a stored tensor with the role in.state.W",
        ),
        ("[outputs.token]", "[outputs.tokens]", BadLayout, "Did you mean 'token'?"),
        ("[tensors]", '[assembly]\norder = ["a"]\n[tensors]', BadLayout, "names the input 'a', no tensor holds it"),
        ("[tensors]", "[assembly]\norder = []\n[tensors]", BadLayout, "expected the input 'token' once in [assembly]"),
        ("[tensors]", "[rotary]\ndim = 4\n[tensors]", BadLayout, "expected interleaved under [rotary], it is absent"),
        ('"embed.W_E" = "d_model token"', "", BadLayout, "[inputs.token] expects a stored tensor with the role W_E"),
        ("blocks.{i}.attn.W_Q", "blocks.0.attn.W_Q", BadLayout, "write {i} where the block's number stands"),
        ('"pos_embed.W_pos"', '"pos{i}.W_pos"', BadLayout, "exists once in a model, not in block {i}"),
        (
            "d_mlp d_model",
            "d_mlp d_modl",
            BadLayout,
            "[tensors] 'blocks.{i}.mlp.W_in': layout 'd_mlp d_modl': W_in has",
        ),
        ("[anatomy]", "[anatomy", BadLayout, "layout.toml: expected TOML, got "),
    ],
)
def test_a_layout_that_says_something_unclear_is_refused_in_one_line(old, new, error, text):
    refused(layout(CLOCK).replace(old, new, 1), noise(CLOCK), error, text)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (
            "head d_head d_model",
            "head d_model d_head",
            "has shape (4, 32, 128), the words 'head d_model d_head' read its",
        ),
        ('"d_mlp"', '"d_mlp d_model"', "the words"),
        ("[tensors]", '[tensors]\n"blocks.{i}.mlp.W_up" = "W_gate: d_mlp d_model"', "'blocks.0.mlp.W_up'"),
        (
            "embed.W_E",
            "embedding.W_E",
            "expected tensor 'embedding.W_E' (d_model token), it is missing; the file has embed.W_E",
        ),
        ('"unembed.W_U" = "d_model token"', '[outputs.x]\nat = "token"', "[outputs.token]"),
        ('"blocks.{i}.mlp.b_out" = "d_model"', "", "nothing reads blocks.0.mlp.b_out"),
        ('norm = "none"', 'norm = "none"\nd_model = 64', "expected d_model = 64 ([anatomy] d_model), got 128"),
        ('norm = "none"', 'norm = "none"\nn_heads = 8', "expected head = 8 ([anatomy] n_heads)"),
        (
            'norm = "none"',
            'norm = "none"\nn_layers = 2',
            "expected tensors of blocks 0–1, the declared names fit those of 0",
        ),
        ('norm = "none"', 'norm = "none"\nn_ctx = 3', "n_ctx = 3, the table of positions has 2 places"),
        (
            'norm = "none"',
            'norm = "none"\nmlp = false',
            "holds L0.W_in, the anatomy has no place for it; check mlp = true",
        ),
        ('"relu"', '"relu"\nn_ctx = 2\n[assembly]\npositions = "none"', "holds W_pos, the anatomy has no place for it"),
        (
            'labels = "numbers"',
            'labels = ["a", "b"]',
            "[inputs.token] labels: expected 59 (the rows of its tensor), got 2",
        ),
        ("{i}", "x{i}", "is missing; the file has blocks.0.attn"),
    ],
)
def test_a_layout_that_the_tensors_contradict_is_refused_in_one_line(old, new, text):
    refused(layout(CLOCK).replace(old, new, 1), noise(CLOCK), CovectorError, text)


def test_heads_that_no_shape_tells_are_asked_for():
    text = layout("dt-cartpole").replace("n_heads = 2", "")
    refused(text, noise("dt-cartpole"), CheckpointMismatch, "expected the size of head in block 0, neither a key nor")


def test_an_empty_tensor_is_refused():
    tensors = noise(CLOCK) | {"embed.W_E": np.zeros((128, 0))}
    refused(layout(CLOCK), tensors, CheckpointMismatch, "'embed.W_E' has shape (128, 0), it is empty")


def test_a_lost_gain_is_refused():
    tensors = noise("dt-minigrid-memory")
    del tensors["transformer.blocks.1.ln2.w"]
    refused(
        layout("dt-minigrid-memory"),
        tensors,
        CheckpointMismatch,
        "expected mlp_norm.gain in every block, the file has it for 0 and not for 1; is the checkpoint complete?",
    )


def test_a_gated_mlp_with_a_bias_must_say_where_the_bias_stands():
    text = layout("dt-minigrid-memory").replace("bias_after_gate", "# ")
    refused(text, noise("dt-minigrid-memory"), BadLayout, "expected bias_after_gate under [anatomy], it is absent")


def test_norms_that_the_layout_denies_are_refused():
    text = re.sub(r'norm = "layer"\nplacement = "pre"\neps = 1e-5', 'norm = "none"', layout("dt-minigrid-memory"))
    refused(
        text, noise("dt-minigrid-memory"), CheckpointMismatch, "'transformer.ln_final.w' holds final_norm.gain, the"
    )


def test_an_input_must_say_what_it_is():
    text = layout("dt-cartpole").replace('kind = "linear"', "", 1)
    refused(text, noise("dt-cartpole"), BadLayout, "expected kind under [inputs.state], it is absent")


def test_a_layout_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadLayout, match="expected a readable layout file"):
        declared(tmp_path / "layout.toml", ArrayTensors({}), "layout.toml")


def refused(text: str, tensors: Tensors, error: type[CovectorError], expected: str) -> None:
    with pytest.raises(error, match=re.escape(expected)) as caught:
        opened(text, tensors)
    assert "\n" not in str(caught.value)


# The page


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(python|toml)\n(.*?)```", DOCS.read_text(), re.DOTALL)
    save, toml, read = (code for _, code in blocks[:3])
    exec(save, {})
    Path("layout.toml").write_text(toml)
    exec(read, {})
    said = re.findall(r"print\(.*?\)  # (\(.*?\))", read)
    assert [re.sub(r": .*", "", line) for line in said] == capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("table", ["ANATOMY", "ROTARY", "ASSEMBLY", "INPUT", "OUTPUT", "TENSORS", "CHECK"])
def test_the_page_names_every_key(table):
    page = DOCS.read_text()
    assert [key for key in getattr(declared_keys, table) if f"`{key}`" not in page] == []


def test_the_page_names_every_ready_declaration():
    assert [name for name in READY if f"| `{name}` |" not in DOCS.read_text()] == []
