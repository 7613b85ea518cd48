"""A checkpoint's configuration, read with bookkeeping: keys used, keys harmless, keys that change the function.

An adapter asks for keys; what it never asked for is judged afterwards. A key known to change the function that no
adapter implements is refused by name, a key on the harmless list passes, any other is reported (and refused when the
caller is strict).
"""

import re
from collections.abc import Mapping
from typing import Any

from covector.errors import UnsupportedConfig

# Keys that say how a model was trained, packaged or generates: they do not enter the function at inference.
_HARMLESS = re.compile(
    r"_.*|architectures|auto_map|model_type|transformers_version|torch_dtype|dtype|use_cache|bos_token_id|eos_token_id"
    r"|pad_token_id|sep_token_id|cls_token_id|mask_token_id|unk_token_id|decoder_start_token_id|begin_suppress_tokens"
    r"|.*dropout.*|.*pdrop.*|initializer_range|initializer_factor|task_specific_params|summary_.*|problem_type"
    r"|id2label|label2id|num_labels|finetuning_task|return_dict.*|output_.*|pruned_heads|tokenizer_class|prefix"
    r"|gradient_checkpointing|classifier_dropout|name_or_path|is_decoder|is_encoder_decoder|cross_attention_hidden_size"
    r"|pretraining_tp|reorder_and_upcast_attn|chunk_size_feed_forward|tf_legacy_loss|use_bfloat16|torchscript"
    r"|add_cross_attention|tie_encoder_decoder|max_length|min_length|do_sample|early_stopping|num_beams.*|temperature"
    r"|top_k|top_p|typical_p|repetition_penalty|length_penalty|no_repeat_ngram_size|encoder_no_repeat_ngram_size"
    r"|bad_words_ids|num_return_sequences|diversity_penalty|remove_invalid_values|exponential_decay_length_penalty"
    r"|suppress_tokens|forced_bos_token_id|forced_eos_token_id|layer_norm_epsilon_unused|attn_implementation"
    r"|unsloth_.*|rotary|gradient_checkpointing_kwargs|attention_dropout|embd_layer_norm|cache_implementation"
    r"|hidden_dropout_prob|use_mems|gpt_neox_rotary|n_ctx"
)
# Keys that are sizes, in every family's spelling.
_SIZES = re.compile(
    r"vocab_size|hidden_size|intermediate_size|head_dim|n_embd|n_layer|n_head|n_inner|n_positions|ffn_dim|d_model"
    r"|num_(hidden_)?layers|num_(attention|key_value)?_?heads|max_position_embeddings|state_dim|act_dim|max_ep_len"
)
# Keys that change the function and that no adapter here implements; a present, non-trivial value is refused by name.
_REFUSED = (
    "quantization_config",
    "compression_config",
    "sparsity_config",
    "num_experts",
    "num_local_experts",
    "relative_attention_num_buckets",
    "alibi",
    "adapters",
    "lora_rank",
)


class Config:
    """A configuration mapping that remembers which keys were asked for."""

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values, self.where = dict(values), where
        self.used: set[str] = set()
        for key in _REFUSED:
            if self.values.get(key):
                raise UnsupportedConfig(
                    f"{where}: '{key}' = {_brief(self.values[key])} changes the function and is not implemented; "
                    "expected a plain checkpoint: use the unquantised, unadapted one, or merge it first"
                )

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` when the key is absent or null; the key counts as used."""
        self.used.add(key)
        value = self.values.get(key)
        if value is not None and _SIZES.fullmatch(key):
            _check_size(key, value, self.where)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """The value; UnsupportedConfig when the key is absent."""
        value = self.get(key)
        if value is None:
            raise UnsupportedConfig(f"{self.where}: expected the key '{key}', it is absent; is this the right config?")
        return value

    def only(self, key: str, *allowed: Any, default: Any = None) -> Any:
        """The value if it is one of `allowed` (or absent); else UnsupportedConfig, by name."""
        value = self.get(key, default if default is not None else allowed[0])
        if value not in allowed:
            raise UnsupportedConfig(
                f"{self.where}: '{key}' = {_brief(value)} changes the function and is not implemented; "
                f"supported: {', '.join(map(_brief, allowed))}"
            )
        return value

    def harmless(self, pattern: str) -> None:
        """Declare keys (a regular expression) that do not enter the function in this kind of configuration."""
        self.used |= {k for k in self.values if re.fullmatch(pattern, k)}

    def unknown(self) -> tuple[str, ...]:
        """Keys that nobody used and that are not on the harmless list, sorted."""
        return tuple(sorted(k for k in self.values if k not in self.used and not _HARMLESS.fullmatch(k)))


def _check_size(key: str, value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedConfig(f"{where}: expected '{key}' to be a whole number above 0, got {_brief(value)}")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
