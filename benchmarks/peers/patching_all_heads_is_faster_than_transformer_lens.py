"""Claim: patching every head on a batch of prompts costs less than half of what TransformerLens' own sweep costs.

A GPT-2 checkpoint of 6 layers, 8 heads, d_model 256, 2,000 tokens with random weights, saved as a local folder that
both open; 8 pairs of prompts of 16 tokens; z of each head at all positions from the other prompt, the difference of two
logits at the last token read off for every prompt. One process, one thread each, float32, processor time, the two
taking turns:

* TransformerLens: ``TransformerBridge.boot_transformers(folder)`` and ``patching.get_act_patch_attn_head_out_all_pos``
  with ``reduce="none"``, `run_with_cache` of the two batches included; its progress bar is switched off. Once as it
  boots, once more after ``enable_compatibility_mode()``, which is what its own tutorials use: the faster one counts;
* covector: `run.sweep` on the reference decoder, capture of the two batches included. The prefix below the patched
  layer is read from the clean run, the heads of one layer run as one batch, and logits are computed at the token that
  is read alone (TransformerLens computes them at every token: a larger vocabulary would widen the gap).

Also printed: `covector.patch`, which works out the gradient's guess, intervals and p as well, and covector in float64.
Both programs' values are held against each other and against covector in float64. Exits with 1 when the median ratio of
the pairs is below 2, or when the two differ by more than 1e-5 of the spread over heads. Set up and run as
benchmarks/README.md says.
"""

import logging
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import tokenizers
import torch
from threadpoolctl import threadpool_limits
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

import covector
from covector.analyses.patch_places import places_of
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.prompts import Pair
from covector.run.sweep import sweep
from covector.study.observable import Observable

LAYERS, HEADS, D_MODEL, VOCABULARY, PAIRS, LENGTH, ROUNDS = 6, 8, 256, 2000, 8, 16, 9
ONE, OTHER = 3, 5
AT_LEAST, EQUAL = 2.0, 1e-5


def checkpoint(folder: Path) -> None:
    """A random GPT-2 in float32, with a tokenizer of one word per token."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=LAYERS, n_head=HEADS, n_embd=D_MODEL, vocab_size=VOCABULARY, n_positions=64)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # of a size at which heads have effects
            gain = 1.0 if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0
            parameter.copy_(gain + 0.08 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    words = tokenizers.models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0")
    words = tokenizers.Tokenizer(words)
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"unk_token": "t0", "bos_token": "t1", "eos_token": "t2", "pad_token": "t0"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def ours(model: Model, dtype: torch.dtype, clean: np.ndarray, corrupt: np.ndarray) -> Callable[[], np.ndarray]:
    """The sweep, as [layer, head, pair]: the difference of two logits of each patched prompt."""
    decoder, places = Decoder(model.weights, dtype), places_of(model.spec, "heads")
    observable, at = Observable({f"t{ONE}": 1, f"t{OTHER}": -1}, model), np.full(PAIRS, LENGTH - 1)

    def run() -> np.ndarray:
        base, other = captured(decoder, clean), captured(decoder, corrupt)
        values = dict(sweep(decoder, base, other, places, {}, observable, at))
        return np.stack([values[place] for place in places]).reshape(LAYERS, HEADS, PAIRS)

    return run


def theirs(bridge: TransformerBridge, clean: np.ndarray, corrupt: np.ndarray) -> Callable[[], np.ndarray]:
    """The same by TransformerLens; its "corrupted" run is the one that is patched, so our clean one."""
    base, other = torch.from_numpy(clean), torch.from_numpy(corrupt)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, ONE] - logits[:, -1, OTHER]

    def run() -> np.ndarray:
        with torch.no_grad():
            bridge.run_with_cache(base)  # as whoever patches looks at both runs first; covector's capture does too
            _, cache = bridge.run_with_cache(other)
            found = patching.get_act_patch_attn_head_out_all_pos(bridge, base, cache, metric, reduce="none")
        return found.values.numpy()

    return run


def whole(model: Model, clean: np.ndarray, corrupt: np.ndarray) -> Callable[[], np.ndarray]:
    """The analysis that users call, with everything that it says."""
    slots = {"end": LENGTH - 1}
    pairs = [Pair(tuple(map(int, a)), tuple(map(int, b)), slots, ("", "")) for a, b in zip(clean, corrupt, strict=True)]

    def run() -> np.ndarray:
        return np.asarray(covector.patch(model, f"'t{ONE}' - 't{OTHER}'", pairs, dtype="float32")["effect"])

    return run


def main() -> int:
    clean, corrupt = np.random.default_rng(0).integers(0, VOCABULARY, (2, PAIRS, LENGTH))
    with tempfile.TemporaryDirectory() as name:
        checkpoint(Path(name))
        model = covector.open(name)
        as_booted = TransformerBridge.boot_transformers(name, device="cpu").eval()
        compatible = TransformerBridge.boot_transformers(name, device="cpu").eval()
        compatible.enable_compatibility_mode(disable_warnings=True)
        contestants = {
            "covector": ours(model, torch.float32, clean, corrupt),
            "TransformerLens": theirs(as_booted, clean, corrupt),
            "TransformerLens, compatible": theirs(compatible, clean, corrupt),
            "covector.patch": whole(model, clean, corrupt),
            "covector, float64": ours(model, torch.float64, clean, corrupt),
        }
        found = {told: run() for told, run in contestants.items()}  # warm: imports, caches, weights
        seconds: dict[str, list[float]] = {told: [] for told in contestants}
        for _ in range(ROUNDS):
            for told, run in contestants.items():
                start = process_time()
                run()
                seconds[told].append(process_time() - start)
    exact = found["covector, float64"]
    span = float(np.ptp(exact, axis=(0, 1)).max())
    apart = {told: float(np.abs(found[told] - exact).max()) / span for told in list(contestants)[:3]}
    peers = [told for told in contestants if told.startswith("Trans")]
    fastest = min(peers, key=lambda told: median(seconds[told]))
    ratios = [b / a for a, b in zip(seconds["covector"], seconds[fastest], strict=True)]
    print(
        f"{platform.machine()}, 1 thread, processor time, {ROUNDS} rounds; {LAYERS * HEADS} heads x {PAIRS} prompts of "
        f"{LENGTH} tokens, d_model {D_MODEL}, float32; transformer-lens {version('transformer-lens')}, "
        f"torch {torch.__version__}"
    )
    for told, values in seconds.items():
        error = f"; off by {apart[told]:.0e} of the spread over heads" if told in apart else ""
        print(f"  {told:28s} {1e3 * median(values):7.1f} ms (min {1e3 * min(values):.1f}){error}")
    print(
        f"  {fastest} over covector: {median(ratios):.2f} (pairs {min(ratios):.2f} to {max(ratios):.2f}; "
        f"claimed: at least {AT_LEAST})"
    )
    return int(median(ratios) < AT_LEAST or max(apart.values()) > EQUAL)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()
    patching.tqdm = lambda rows: rows  # its progress bar would be timed
    torch.set_num_threads(1)
    with threadpool_limits(1):
        sys.exit(main())
