"""Claim: ``frame="tl_default"`` gives the matrices that TransformerLens' default loading gives, to float32 rounding.

Tiny random checkpoints of ten families, every parameter drawn (gains around 1, biases around 0), are saved as
Hugging Face folders. TransformerLens loads and processes each; covector opens the folder in the frame. Compared per
kind of tensor, relative to its largest entry: weights, biases, embeddings, unembedding; and of every head's OV the
gains (relative to the first) and the directions (sine of the angle times the relative gap to the nearest gain, because
rounding turns close pairs into each other). The same models are opened from memory too, before and after processing,
and their logits held against TransformerLens' own forward pass.

TransformerLens 3 and 4: ``TransformerBridge`` with ``enable_compatibility_mode()``. TransformerLens 3 only:
``HookedTransformer``, converted by its own loaders, and in forms that no checkpoint family has.

Exits with 1 when anything differs by more than 1e-5. Set up and run as benchmarks/README.md says.
"""

import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import covector
from covector.arch.family import families
from covector.model.opened import Model
from covector.run.decoder import Decoder

LIMIT = 1e-5
IDS = torch.tensor([[5, 17, 3, 40, 22, 9, 31, 8, 2, 2, 60, 0]])
# Family → what is changed in its tiny config, because TransformerLens does not read it: q/k norms and grouped heads of
# Phi, which no published Phi-1 or Phi-2 has.
FAMILIES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("gpt2", "gpt_neo", "gptj", "gpt_neox", "opt")},
    "phi": {"qk_layernorm": False, "num_key_value_heads": 4},
    **{name: {} for name in ("llama", "mistral", "qwen2", "phi3")},
}
# HookedTransformer forms: what differs from a small GPT-2.
_GATED = {"gated_mlp": True, "n_key_value_heads": 2, "d_head": 6, "normalization_type": "RMS", "final_rms": True}
_ROTARY = {"positional_embedding_type": "rotary", "d_head": 6}
_LOCAL = {"use_local_attn": True, "window_size": 4, "attn_types": ["global", "local", "global"]}
_CAPS = {"attn_scores_soft_cap": 3.0, "output_logits_soft_cap": 4.0}
FORMS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {**_GATED, **_ROTARY, "act_fn": "silu"},
    "llama 3.1": {**_GATED, **_ROTARY, "act_fn": "silu", "use_NTK_by_parts_rope": True, "NTK_original_ctx_len": 16},
    "gpt-j": {**_ROTARY, "rotary_dim": 4, "rotary_adjacent_pairs": True, "parallel_attn_mlp": True},
    "gpt-neo": {**_LOCAL, "use_attn_scale": False},
    "gemma 2": {**_GATED, **_ROTARY, **_LOCAL, **_CAPS, "use_normalization_before_and_after": True, "attn_scale": 2.0},
    "gemma 3": {
        **_GATED,
        **_ROTARY,
        **_LOCAL,
        "use_normalization_before_and_after": True,
        "use_qk_norm": True,
        "rotary_base_local": 1000,
        "rotary_scaling_factor": 8.0,
    },
    "attention only": {"attn_only": True},
    "no norms": {"normalization_type": None},
    "norms without gains": {"normalization_type": "LNPre"},
    "final RMS": {"final_rms": True},
    "gate behind LayerNorm": {"gated_mlp": True, "act_fn": "relu"},
    "both directions": {"attention_dir": "bidirectional"},
    "other outputs": {"d_vocab_out": 7},
    "scores by layer": {"scale_attn_by_inverse_layer_idx": True},
}


def perturbed(model: torch.nn.Module, gains: tuple[str, ...]) -> torch.nn.Module:
    """The model with every parameter drawn anew; those whose names end in one of `gains` around 1."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if name.endswith(gains) else 0.0
            parameter.copy_(mean + 0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return model.eval()


def checkpoint(folder: Path, family: str, **changes: Any) -> Any:
    """Save a random checkpoint with a tokenizer of 61 words; the transformers model."""
    values = dict(families()[family].tiny()) | FAMILIES[family] | changes
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    gains = tuple(f"{n}.weight" for n in ("norm", "ln_1", "ln_2", "ln_f"))
    perturbed(model, gains).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(61)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "t0", "bos_token": "t1", "eos_token": "t2", "pad_token": "t3"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return model


def far(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, relative to the largest entry; 0 for two arrays of zeros."""
    return float(np.abs(a - b).max() / max(np.abs(b).max(), np.abs(a).max(), 1e-6))


def tensors(ours: Model, theirs: Model) -> dict[str, float]:
    """Largest difference per kind of tensor; what only one side has must be zeros, and gains must be gone or 1."""
    found: dict[str, float] = {}
    for name in dict.fromkeys((*ours.weights.names(), *theirs.weights.names())):
        if "norm" in name:
            neutral = float(name.endswith("gain"))
            for side in (ours, theirs):
                if name in side.weights:
                    found["norms"] = max(found.get("norms", 0.0), float(np.abs(side.weights[name] - neutral).max()))
            continue
        arrays = [np.asarray(s.weights[name], np.float64) if name in s.weights else None for s in (ours, theirs)]
        a, b = (np.zeros(1) if array is None else array for array in arrays)
        kind = name.rsplit(".", 1)[-1]
        found[kind] = max(found.get(kind, 0.0), far(a, b))
    return found


def circuits(ours: Model, theirs: Model) -> dict[str, float]:
    """OV of every head: gains relative to the first, directions as sine times relative gap."""
    gain = turn = 0.0
    for layer in range(ours.spec.n_layers):
        for head in range(ours.spec.n_heads):
            a, b = (covector.svd(m.map(f"L{layer}H{head}.ov")) for m in (ours, theirs))
            gain = max(gain, far(a.S, b.S))
            for left, right in ((a.U, b.U), (a.Vh.T, b.Vh.T)):
                sine = np.linalg.norm(left - right * np.sum(left * right, axis=0), axis=0)
                turn = max(turn, float((sine * a.gap).max()))
    return {"OV gains": gain, "OV directions": turn}


def logits(opened: Model, model: Any) -> float:
    """Difference of the reference decoder's logits (float64) from the model's own, relative to the largest."""
    with torch.no_grad():
        want = model(IDS).double()
    got = Decoder(opened.weights, dtype=torch.float64).run({"token": IDS}).outputs["token"]
    return far(got.numpy(), want.numpy())


def bridges() -> Iterator[tuple[str, dict[str, float]]]:
    """TransformerBridge: open as it is, process, open again, compare with the frame."""
    from transformer_lens.model_bridge import TransformerBridge

    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as name:
            checkpoint(Path(name), family)
            bridge = TransformerBridge.boot_transformers(name, device="cpu").eval()
            before = {"logits, raw": logits(covector.open(bridge), bridge)}
            bridge.enable_compatibility_mode()
            theirs, ours = covector.open(bridge), covector.open(name, frame="tl_default")
            after = {"logits, processed": logits(theirs, bridge)}
            yield f"bridge {family}", tensors(ours, theirs) | circuits(ours, theirs) | before | after


def conversions() -> Iterator[tuple[str, dict[str, float]]]:
    """HookedTransformer of a GPT-2 and a Llama, through its own weight conversion."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights, convert_llama_weights

    shared = {"n_layers": 3, "n_heads": 4, "d_vocab": 61, "device": "cpu", "original_architecture": ""}
    small = {"d_model": 20, "d_head": 5, "d_mlp": 36, "n_ctx": 24, "act_fn": "gelu_new"}
    large = {"d_model": 24, "d_head": 8, "d_mlp": 40, "n_ctx": 64, "act_fn": "silu", "eps": 1e-6}
    llama = {**_GATED, **_ROTARY, **large}
    no_biases = {"attention_bias": False, "mlp_bias": False}  # which the conversion of a Llama leaves out
    cases = (("gpt2", small, {}, convert_gpt2_weights), ("llama", llama, no_biases, convert_llama_weights))
    for family, form, changes, convert in cases:
        with tempfile.TemporaryDirectory() as name:
            config = HookedTransformerConfig(**(shared | form))
            state = convert(checkpoint(Path(name), family, **changes), config)
            model = HookedTransformer(config)
            model.load_and_process_state_dict(state)
            ours, theirs = covector.open(name, frame="tl_default"), covector.open(model)
            yield f"converted {family}", tensors(ours, theirs) | circuits(ours, theirs)


def forms() -> Iterator[tuple[str, dict[str, float]]]:
    """HookedTransformer in other forms: the logits of what is opened, before and after processing."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    base = {"n_layers": 3, "d_model": 20, "n_ctx": 24, "d_head": 5, "n_heads": 4, "d_mlp": 36, "d_vocab": 61}
    base |= {"act_fn": "gelu_new", "device": "cpu", "dtype": torch.float64}
    for name, form in FORMS.items():
        model = perturbed(HookedTransformer(HookedTransformerConfig(**(base | form))), (".w",))
        raw = logits(covector.open(model), model)
        # As its loader does: soft-capped logits are not centred.
        model.load_and_process_state_dict(model.state_dict(), center_unembed=model.cfg.output_logits_soft_cap <= 0)
        yield f"hooked {name}", {"logits, raw": raw, "logits, processed": logits(covector.open(model), model)}


def main() -> int:
    print(f"transformer-lens {version('transformer-lens')}, transformers {version('transformers')}, float32")
    parts = [bridges()]
    if version("transformer-lens") < "4":
        parts += [conversions(), forms()]
    worst: dict[str, float] = {}
    for part in parts:
        for name, found in part:
            largest = max(found, key=found.__getitem__)
            print(f"  {name:30s} {len(found):2d} kinds, largest difference {found[largest]:.0e} ({largest})")
            worst |= {kind: max(value, worst.get(kind, 0.0)) for kind, value in found.items()}
    print("  per kind: " + ", ".join(f"{kind} {value:.0e}" for kind, value in worst.items()))
    if len(parts) == 1:
        print("  HookedTransformer left out: TransformerLens 4 has none; benchmarks/README.md says how to run 3.9")
    print(f"largest difference {max(worst.values()):.1e} (claimed: at most {LIMIT:.0e})")
    return 0 if max(worst.values()) <= LIMIT else 1


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    sys.exit(main())
