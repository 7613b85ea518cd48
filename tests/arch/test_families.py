"""Every family against transformers: its tensors, its defaults, its function, and what it refuses."""

import importlib
import re
from functools import cache

import numpy as np
import pytest
import torch
import transformers

from covector.arch import gemma3
from covector.arch.adapter import adapt
from covector.arch.config import Config
from covector.arch.family import families, family_of
from covector.arch.words import declared_shape, parse
from covector.errors import CheckpointMismatch, UnsupportedConfig, UnsupportedFamily
from covector.io.tensors import ArrayTensors
from covector.model.weights import axis_sizes
from covector.run.decoder import Decoder

FAMILIES = families()
# Those that transformers can judge.
NAMES = sorted(name for name, family in FAMILIES.items() if family.hf_class)
LENGTH = 12
# Switches that a tiny config leaves alone (null is what an absent key means, but for windows and soft-caps).
VARIANTS = [
    ("gpt2", {"scale_attn_weights": False, "layer_norm_epsilon": 0.1}),
    ("gpt_neo", {"intermediate_size": None, "activation_function": "relu", "layer_norm_epsilon": 0.1}),
    ("gptj", {"n_inner": None, "tie_word_embeddings": True, "layer_norm_epsilon": 0.1}),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False, "layer_norm_eps": 0.1}),
    ("gpt_neox", {"rope_parameters": None, "rotary_pct": 0.75, "rotary_emb_base": 77, "tie_word_embeddings": True}),
    ("opt", {"do_layer_norm_before": False}),
    ("opt", {"_remove_final_layer_norm": True, "enable_bias": False, "tie_word_embeddings": False}),
    ("opt", {"layer_norm_elementwise_affine": False}),
    ("mistral", {"sliding_window": None, "head_dim": None, "tie_word_embeddings": True, "rms_norm_eps": 0.1}),
    ("qwen2", {"use_sliding_window": False, "tie_word_embeddings": False, "rms_norm_eps": 0.1}),
    ("qwen3", {"layer_types": None, "max_window_layers": 1, "attention_bias": False, "rms_norm_eps": 0.1}),
    ("gemma2", {"attention_bias": True, "tie_word_embeddings": False, "rms_norm_eps": 0.1}),
    ("gemma3", {"attention_bias": False, "final_logit_softcapping": None, "rms_norm_eps": 0.1}),
    ("phi", {"qk_layernorm": False, "tie_word_embeddings": True, "layer_norm_eps": 0.1}),
    ("phi3", {"sliding_window": None, "tie_word_embeddings": True, "rms_norm_eps": 0.1}),
    ("bert", {"is_decoder": True, "tie_word_embeddings": False, "layer_norm_eps": 0.1, "hidden_act": "relu"}),
    ("decision_transformer", {"action_tanh": False, "n_inner": None, "layer_norm_epsilon": 0.1}),
]
REFUSED = [
    ("gpt2", {"add_cross_attention": True}, "'add_cross_attention' = True changes the function"),
    ("gpt_neo", {"attention_layers": ["global", "strided", "local"]}, "expected 'attention_layers' to say global"),
    ("gpt_neo", {"num_layers": 4}, "for each of 4 blocks"),
    ("gptj", {"scale_attn_weights": False}, "'scale_attn_weights' = False changes the function"),
    ("gptj", {"rotary": False}, "'rotary' = False changes the function"),
    ("gpt_neox", {"rope_parameters": {"rope_type": "yarn"}}, "rotary scaling 'yarn' changes the function"),
    ("opt", {"word_embed_proj_dim": 10}, "'word_embed_proj_dim' = 10 changes the function"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, "rotary scaling 'dynamic' changes the function"),
    ("mistral", {"layer_types": ["full_attention"] * 2}, "'layer_types' = ['full_attention', 'full"),
    ("qwen2", {"use_mrope": True}, "'use_mrope' = True changes the function"),
    ("qwen2", {"layer_types": ["linear_attention"] * 2}, "got linear_attention, linear_attention; other kinds are not"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": False}, "expected a 'sliding_window'"),
    ("qwen3", {"rope_parameters": {"rope_type": "yarn"}}, "rotary scaling 'yarn' changes the function"),
    ("gemma2", {"use_bidirectional_attention": True}, "'use_bidirectional_attention' = True changes the function"),
    ("gemma3", {"use_bidirectional_attention": True}, "'use_bidirectional_attention' = True changes the function"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping' = 50.0 changes the function"),
    ("gemma3", {"text_config": {"final_logit_softcapping": 9.0}}, "'final_logit_softcapping' = 9.0 changes"),
    ("phi", {"rope_parameters": {"rope_type": "dynamic"}}, "rotary scaling 'dynamic' changes the function"),
    ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "rotary scaling 'longrope' changes the function"),
    ("phi3", {"rope_parameters": None, "rope_scaling": {"type": "su"}}, "rotary scaling 'su' changes the function"),
    ("bert", {"position_embedding_type": "relative_key"}, "'position_embedding_type' = 'relative_key' changes"),
    ("bert", {"add_cross_attention": True}, "'add_cross_attention' = True changes the function"),
    ("decision_transformer", {"add_cross_attention": True}, "'add_cross_attention' = True changes the function"),
]  # fmt: skip
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
# The same rotary in the spelling before transformers 5 and in the one since.
SPELLINGS = [
    ("llama", {"rope_theta": 500.0}, {"rope_type": "default", "rope_theta": 500.0}),
    ("llama", {"rope_theta": 9.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
     {"rope_type": "linear", "rope_theta": 9.0, "factor": 2.0}),
    ("llama", {"rope_theta": 9.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
     {"rope_type": "llama3", "rope_theta": 9.0, **LLAMA3}),
    ("mistral", {"rope_theta": 500.0}, {"rope_type": "default", "rope_theta": 500.0}),
    ("qwen2", {"rope_theta": 500.0}, {"rope_type": "default", "rope_theta": 500.0}),
    ("qwen3", {"rope_theta": 500.0}, {"rope_type": "default", "rope_theta": 500.0}),
    ("gemma2", {"rope_theta": 500.0}, {"rope_type": "default", "rope_theta": 500.0}),
    ("gemma3",
     {"rope_theta": 500.0, "rope_local_base_freq": 9.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
     {"full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 8.0},
      "sliding_attention": {"rope_type": "default", "rope_theta": 9.0}}),
    ("phi", {"rope_theta": 500.0, "partial_rotary_factor": 0.25},
     {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}),
    ("phi3", {"rope_theta": 500.0, "partial_rotary_factor": 0.25},
     {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}),
    ("gpt_neox", {"rotary_emb_base": 500.0, "rotary_pct": 0.75},
     {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.75}),
]  # fmt: skip

# Without these the kinds of blocks and their number do not fit each other.
LISTS = {"attention_types", "use_sliding_window"}


def tiny(name, **changes):
    return dict(FAMILIES[name].tiny()) | changes


def anatomy(given):
    return family_of(given["model_type"], "here").spec(Config(given))


def anatomy_or_refusal(given):
    try:
        return anatomy(given)
    except UnsupportedConfig as refused:
        return str(refused)


def hf_config(given):
    return transformers.AutoConfig.for_model(
        given["model_type"], **{k: v for k, v in given.items() if k != "model_type"}
    )


def hf_model(given):
    """A transformers model with random parameters of a size at which every part counts, in float64."""
    family = family_of(given["model_type"], "here")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, family.hf_class)._from_config(hf_config(given), attn_implementation="eager")
        for name, value in model.double().eval().named_parameters():
            around = 1.0 if "norm" in name.lower() and name.endswith("weight") and "gemma" not in family.name else 0.0
            value.data = around + 0.4 * torch.randn_like(value)
    return model


@cache
def tiny_model(name):
    return hf_model(tiny(name))


def adapted(given, model):
    family, config = family_of(given["model_type"], "here"), Config(given)
    source = ArrayTensors({k: v.numpy() for k, v in model.state_dict().items()}, where="here")
    spec = family.spec(config)
    return adapt(spec, family.tensors(config), source, prefixes=family.prefixes, ignored=family.ignored)


def declared_checkpoint(given, rename=lambda name: name):
    """Random arrays of the shapes that a family declares, every optional one included."""
    family, config = family_of(given["model_type"], "here"), Config(given)
    spec, rng = family.spec(config), np.random.default_rng(0)
    arrays = {}
    for pattern, words in family.tensors(config).items():
        for layer in range(spec.n_layers) if "{i}" in pattern else (None,):
            layout = parse(words)
            sizes = axis_sizes(spec, layer) | {"position": spec.n_ctx + spec.assembly.position_offset}
            name = rename(pattern.split(" | ")[0].replace("{i}", str(layer)))
            if name and not layout.ignored:
                arrays[name] = rng.standard_normal(declared_shape(layout, sizes)).astype(np.float32)
    return arrays


# -- the folder of families


def test_families_are_found_by_listing_the_folder_and_named_after_their_file():
    assert {"gpt2", "llama", "mistral", "gemma3", "bert", "decision_transformer"} <= set(NAMES)
    for name in FAMILIES:
        assert importlib.import_module(f"covector.arch.{name}").FAMILY is FAMILIES[name]


def test_a_model_type_that_no_family_reads_is_refused_with_the_list():
    text = "here: expected a supported model_type, got 'mamba'; supported: bert, decision_transformer, gemma2, gemma3,"
    with pytest.raises(UnsupportedFamily, match=re.escape(text)):
        family_of("mamba", "here")


# -- tensors


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_used_or_ignored_by_name_and_every_parameter_counted_once(name):
    weights = adapted(tiny(name), tiny_model(name))
    copies = {}
    for canonical, place in weights.places.items():
        shared = 1 + place.layout.words.split(":")[0].count("+")
        copies[canonical] = weights[canonical].size / shared
    if weights.spec.tied:
        copies.pop("W_U", None)
    # The token embedding inside a decision transformer is a parameter that nothing reads.
    unread = weights.spec.d_model if name == "decision_transformer" else 0
    assert sum(copies.values()) + unread == sum(p.numel() for p in tiny_model(name).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_tiny_models_are_small_and_their_windows_shorter_than_the_prompts(name):
    spec = anatomy(tiny(name))
    assert sum(p.numel() for p in tiny_model(name).parameters()) < 20_000
    assert spec.n_layers <= 3
    assert all(b.attn.window is None or b.attn.window < LENGTH for b in spec.blocks)


@pytest.mark.parametrize("name", [n for n in NAMES if FAMILIES[n].prefixes])
def test_a_checkpoint_of_the_bare_model_leaves_out_the_prefix(name):
    family, given = FAMILIES[name], tiny(name)
    config = Config(given)
    spec, tensors = family.spec(config), family.tensors(config)
    whole = declared_checkpoint(given, lambda n: None if n == "embed_out.weight" else n)
    if spec.tied:
        whole = {n: a for n, a in whole.items() if "lm_head.weight" not in n and "predictions.decoder" not in n}
    for prefix in ("", *family.prefixes):
        source = ArrayTensors({prefix + n: a for n, a in whole.items()}, where="here")
        assert adapt(spec, tensors, source, prefixes=family.prefixes).place("L0.W_Q").tensor.startswith(prefix)


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt_neo", "h.1.attn.attention.masked_bias"),
        ("gptj", "transformer.h.1.attn.embed_positions"),
        ("gpt_neox", "gpt_neox.layers.1.attention.rotary_emb.inv_freq"),
        ("opt", "decoder.version"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("mistral", "layers.0.self_attn.rotary_emb.inv_freq"),
        ("bert", "bert.pooler.dense.weight"),
        ("bert", "cls.seq_relationship.bias"),
        ("gemma3", "vision_tower.vision_model.post_layernorm.bias"),
        ("decision_transformer", "encoder.h.0.attn.bias"),
    ],
)
def test_masks_tables_and_other_heads_are_ignored_by_name(name, mask):
    assert any(re.fullmatch(pattern, mask) for pattern in FAMILIES[name].ignored)
    assert not any(
        re.fullmatch(pattern, mask + ".lora_A") for pattern in FAMILIES[name].ignored if "vision" not in pattern
    )


def test_the_unembedding_of_pythia_goes_by_its_old_name_or_its_new():
    given = tiny("gpt_neox")
    family, config = FAMILIES["gpt_neox"], Config(given)
    spec, tensors = family.spec(config), family.tensors(config)
    for gone, kept in (("embed_out.weight", "lm_head.weight"), ("lm_head.weight", "embed_out.weight")):
        arrays = declared_checkpoint(given, lambda n, gone=gone: None if n == gone else n)
        assert adapt(spec, tensors, ArrayTensors(arrays)).place("W_U").tensor == kept


def test_norms_of_the_first_bert_checkpoints_are_called_gamma_and_beta():
    given = tiny("bert")
    family, config = FAMILIES["bert"], Config(given)
    modern = declared_checkpoint(given, lambda n: None if "predictions.decoder" in n else n)
    first = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): a
             for n, a in modern.items()}  # fmt: skip
    found = [adapt(family.spec(config), family.tensors(config), ArrayTensors(a)) for a in (modern, first)]
    assert found[1].place("out.token.norm.gain").tensor == "cls.predictions.transform.LayerNorm.gamma"
    assert set(found[0].names()) == set(found[1].names())
    assert all(np.array_equal(found[0][n], found[1][n]) for n in found[0].names())


@pytest.mark.parametrize("lead", ["language_model.model.", "model.language_model."], ids=["old names", "new names"])
def test_the_language_model_of_a_multimodal_gemma3_is_read_and_its_images_are_not(lead):
    text = tiny("gemma3", final_logit_softcapping=None)
    given = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}, "mm_tokens_per_image": 4}
    config = Config(given)
    spec, tensors = gemma3.spec(config), gemma3.tensors(config)
    assert spec == anatomy(text)
    assert config.unknown() == ()
    arrays = declared_checkpoint(text, lambda n: None if "lm_head" in n else lead + n)
    image = lead.startswith("model.") * "model." + "vision_tower.patch.weight"
    weights = adapt(
        spec, tensors, ArrayTensors(arrays | {image: np.zeros(2)}),
        prefixes=gemma3.FAMILY.prefixes, ignored=gemma3.FAMILY.ignored,
    )  # fmt: skip
    assert weights.ignored == (image,)
    assert weights.place("final_norm.gain").tensor == lead + "norm.weight"


def test_an_unknown_key_of_a_multimodal_text_section_is_reported():
    config = Config({"model_type": "gemma3", "text_config": tiny("gemma3", final_logit_softcapping=None, sparkle=2)})
    gemma3.spec(config), gemma3.tensors(config)
    assert config.unknown() == ("sparkle",)


# -- configs


@pytest.mark.parametrize("name", NAMES)
def test_absent_keys_mean_what_they_mean_to_transformers(name):
    assert anatomy(tiny(name)) == anatomy(hf_config(tiny(name)).to_dict())


@pytest.mark.parametrize("name", NAMES)
def test_leaving_out_a_key_means_what_it_means_to_transformers_or_is_refused(name):
    for key in set(tiny(name)) - {"model_type"}:
        less = {k: v for k, v in tiny(name).items() if k != key}
        ours = anatomy_or_refusal(less)
        refused = f"expected the key '{key}', it is absent" in str(ours) or (isinstance(ours, str) and key in LISTS)
        assert refused or ours == anatomy(hf_config(less).to_dict()), key


@pytest.mark.parametrize("name", NAMES)
def test_a_config_leaves_no_key_unjudged(name):
    for given in (tiny(name), hf_config(tiny(name)).to_dict()):
        config = Config(given)
        FAMILIES[name].spec(config), FAMILIES[name].tensors(config)
        assert config.unknown() == ()


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_key_is_reported(name):
    config = Config(tiny(name, sparkle=2))
    FAMILIES[name].spec(config), FAMILIES[name].tensors(config)
    assert config.unknown() == ("sparkle",)


@pytest.mark.parametrize(("name", "change", "text"), REFUSED, ids=[f"{n} {next(iter(c))}" for n, c, _ in REFUSED])
def test_a_key_that_changes_the_function_is_refused_by_name(name, change, text):
    with pytest.raises(UnsupportedConfig, match=re.escape(text)):
        anatomy(tiny(name, **change))


@pytest.mark.parametrize("name", NAMES)
def test_quantised_checkpoints_are_refused_by_name(name):
    with pytest.raises(UnsupportedConfig, match=r"'quantization_config' = .* changes the function"):
        anatomy(tiny(name, quantization_config={"bits": 4}))


def test_every_family_refuses_something_by_name():
    assert {name for name, _, _ in REFUSED} == set(NAMES)


@pytest.mark.parametrize(("name", "old", "new"), SPELLINGS, ids=[f"{n} {len(o)}" for n, o, _ in SPELLINGS])
def test_rotary_parameters_mean_the_same_in_both_spellings(name, old, new):
    before, after = tiny(name, rope_parameters=None, **old), tiny(name, rope_parameters=new)
    assert anatomy(before) == anatomy(after) == anatomy(hf_config(before).to_dict())


def test_null_switches_a_window_or_a_softcap_off_and_absence_means_the_default():
    assert anatomy(tiny("mistral", sliding_window=None)).attention.window is None
    assert anatomy({k: v for k, v in tiny("mistral").items() if k != "sliding_window"}).attention.window == 4096
    off = anatomy(tiny("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None))
    assert (off.attention.softcap, off.outputs[0].softcap) == (None, None)
    absent = anatomy({k: v for k, v in tiny("gemma2").items() if "softcapping" not in k})
    assert (absent.attention.softcap, absent.outputs[0].softcap) == (50.0, 30.0)


# -- function


def prompt(spec):
    """Inputs for the decoder, and the same under the names that transformers gives them."""
    rng = np.random.default_rng(1)
    if spec.assembly.mode == "tokens":
        ids = {"token": torch.tensor(rng.integers(2, spec.n_vocab, (1, LENGTH)))}
        ids |= {i.name: torch.tensor(rng.integers(0, i.n, (1, LENGTH))) for i in spec.assembly.inputs[1:]}
        return ids, {{"token": "input_ids", "type": "token_type_ids"}[k]: v for k, v in ids.items()}
    inputs = {i.name: torch.tensor(rng.standard_normal((1, 4, i.n))) for i in spec.assembly.inputs}
    inputs["timestep"] = torch.arange(3, 7)[None]
    given = {"return": "returns_to_go", "state": "states", "action": "actions", "timestep": "timesteps"}
    return inputs, {given[k]: v for k, v in inputs.items()}


def rows_of(run, spec):
    """Outputs at the rows where they are meant to be read."""
    names = [i.name for i in spec.assembly.inputs]
    every = {o: slice(names.index(o.at), None, len(names)) if o.at else slice(None) for o in spec.outputs}
    return {o.name: run.outputs[o.name][:, rows] for o, rows in every.items()}


@pytest.mark.parametrize(
    ("name", "change"),
    [*((n, {}) for n in NAMES), *VARIANTS],
    ids=[*NAMES, *(f"{n} {' '.join(c)}" for n, c in VARIANTS)],
)
def test_the_decoder_computes_what_transformers_computes(name, change):
    given = tiny(name, **change)
    model = hf_model(given) if change else tiny_model(name)
    weights = adapted(given, model)
    inputs, theirs = prompt(weights.spec)
    ours = rows_of(Decoder(weights).run(inputs), weights.spec)
    with torch.no_grad():
        out = model(**theirs)
    for label, value in ours.items():
        want = out.logits if label == "token" else out[f"{label}_preds"]
        # transformers normalises, turns and softmaxes in float32 whatever the model's dtype: 100 roundings of it.
        torch.testing.assert_close(value, want, rtol=0, atol=float(100 * 2**-23 * want.abs().max()))


def test_a_bert_without_the_gains_of_a_norm_is_refused_by_name():
    given = tiny("bert")
    family, config = FAMILIES["bert"], Config(given)
    arrays = declared_checkpoint(given, lambda n: None if n.endswith("0.output.LayerNorm.weight") else n)
    with pytest.raises(CheckpointMismatch, match=r"expected tensor '.*layer\.0\.output\.LayerNorm\.weight'"):
        adapt(family.spec(config), family.tensors(config), ArrayTensors(arrays))
