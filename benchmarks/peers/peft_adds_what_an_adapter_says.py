"""Claim: an edit saved as an adapter and loaded by PEFT gives the logits of the edited checkpoint.

`covector.save_adapter` writes an edit as a LoRA adapter, `covector.save_edited` as a checkpoint. Both are loaded by the
programs they are for, PEFT and transformers, and run on the same tokens, before and after PEFT merges the adapter:
a GPT-2 (Conv1D, q, k and v in one matrix) and a small Llama with grouped heads (Linear), several edits each, both
sides. Everything is float32.

Exits with 1 when logits differ by more than 1e-5 of what the edit moves them by. Needs ``pip install peft`` in the
environment of benchmarks/README.md.
"""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import covector
from covector.demo import DEMO_LM

LIMIT = 1e-5
LLAMA = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=False,
)  # fmt: skip
EDITS = {
    "gpt2": (
        "L2H3.ov:0*0",
        "L2H3.ov:0,1*0; L3.mlp.out:5*2; L1H0.qk:0*0.5; L1H2.ov:1*0@read",
        "L0.mlp.in:0,3*0.5 then L0.mlp.in:0*0",
    ),
    "llama": ("L1H3.ov:0*0; L0.mlp.out:2*0.3; L0H1.qk:0*2", "L1K1.v:0*0; L0.mlp.in:1*0; L0.mlp.gate:0*0"),
}


def worst(ref: Path, edit: str, folder: Path) -> float:
    """Largest difference of logits, as a share of the largest change that the edit makes."""
    folder.mkdir()
    covector.save_adapter(ref, edit, folder / "adapter")
    covector.save_edited(ref, edit, folder / "edited")
    ids = torch.randint(1, 200, (3, 12), generator=torch.Generator().manual_seed(0))
    base = AutoModelForCausalLM.from_pretrained(ref, dtype=torch.float32).eval()
    edited = AutoModelForCausalLM.from_pretrained(folder / "edited", dtype=torch.float32).eval()
    with torch.no_grad():
        plain, wanted = base(ids).logits.clone(), edited(ids).logits
        adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
        beside = adapted(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    moved = (wanted - plain).abs().max()
    return float(max((got - wanted).abs().max() for got in (beside, merged)) / moved)


def main() -> int:
    """Every edit of both models; 1 when one is off."""
    print(f"peft {version('peft')}, transformers {version('transformers')}, torch {version('torch')}")
    failed = False
    with tempfile.TemporaryDirectory() as name:
        torch.manual_seed(0)
        LlamaForCausalLM(LLAMA).save_pretrained(Path(name) / "llama")
        refs = {"gpt2": Path(DEMO_LM), "llama": Path(name) / "llama"}
        for kind, edits in EDITS.items():
            for i, edit in enumerate(edits):
                found = worst(refs[kind], edit, Path(name) / f"{kind}{i}")
                failed |= found > LIMIT
                print(f"{kind:6} {found:.1e} of the change  {edit}")
    print("failed" if failed else f"all within {LIMIT:g}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
