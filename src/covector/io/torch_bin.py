"""The door to `.bin` files: PyTorch's own loader in the mode that executes nothing.

A `.bin` file is a pickle, and a pickle is a program. `torch.load(weights_only=True)` runs only the handful of
instructions that build tensors and refuses everything else; that refusal becomes UnsafeCheckpoint here. torch is slow
to import and optional, so it is imported inside the one function that needs it.
"""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covector.errors import CheckpointMismatch, CorruptCheckpoint, CovectorError, MissingExtra, UnsafeCheckpoint
from covector.io.safetensors_file import refuse_lfs_pointer, shown

_SAFE_SINCE = (2, 6)  # before it, weights_only could be made to run code (CVE-2025-32434)
_CONVERT = "convert it with safetensors where it is trusted, or use the revision that has safetensors"


def load_state_dict(path: str | Path) -> Mapping[str, Any]:
    """The tensors of a `.bin` file by name, as torch tensors on the CPU.

    Zip files (torch 1.6 and later) are mapped, so a tensor costs memory when it is looked at; the older format is
    read whole. Raises UnsafeCheckpoint if the file would have to run code, CorruptCheckpoint if it is damaged or no
    such file, CheckpointMismatch if it holds something else than named tensors, MissingExtra without torch.
    """
    path = Path(path)
    try:
        import torch  # optional and slow to import: this is the only place in io that needs it
    except ImportError as error:
        raise MissingExtra(
            f"cannot read {path}: expected torch for a .bin checkpoint, and it is not installed; "
            "pip install 'covector[run]', or use a checkpoint with safetensors"
        ) from error
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < _SAFE_SINCE:
        raise UnsafeCheckpoint(
            f"cannot read {path}: expected torch 2.6 or later, whose loader runs no code, found {torch.__version__}; "
            "upgrade torch, or use a checkpoint with safetensors"
        )
    try:
        with path.open("rb") as file:
            refuse_lfs_pointer(path, file.read(64))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on pickle protocols and old storages, of no use to our caller
            # Only the zip format can be mapped; torch answers a mapped read of the older one with an error.
            found = torch.load(path, weights_only=True, mmap=zipfile.is_zipfile(path), map_location="cpu")
    except CovectorError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file: all of them mean the same to the caller
        raise _explained(path, error) from error
    return _named_tensors(path, found, torch.Tensor)


def _explained(path: Path, error: Exception) -> CovectorError:
    """The loader's error in our words: the file wants to run code, or it is damaged."""
    text = str(error)
    if code := _code_wanted(text):
        return UnsafeCheckpoint(
            f"cannot read {path}: expected tensors alone, but reading it would run code stored in it ({code}); "
            f"{_CONVERT}"
        )
    detail = re.search(r"WeightsUnpickler error: ([^\n]+)", text)
    reason = (detail[1] if detail else text.strip().split("\n")[0])[:120] or type(error).__name__
    return CorruptCheckpoint(
        f"cannot read {path}: expected a PyTorch checkpoint, found a file that torch cannot load ({reason}); "
        "fetch it again or convert it"
    )


def _code_wanted(text: str) -> str | None:
    """What the file wanted to run, from the loader's text; None if the text is about something else."""
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"global '{found[1]}'"
    if found := re.search(r"Trying to (?:call|instantiate|load)[^\n]*", text):
        return found[0]
    return "a TorchScript archive" if "TorchScript" in text else None


def _named_tensors(path: Path, found: Any, tensor: type) -> Mapping[str, Any]:
    """The loaded object, if it is a flat mapping of names to tensors."""
    if not isinstance(found, Mapping):
        raise CheckpointMismatch(
            f"cannot read {path}: expected named tensors, found one {type(found).__name__}; save a state dict instead"
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, tensor):
            raise CheckpointMismatch(
                f"cannot read {path}: expected named tensors, found {shown(str(name))} to be a {type(value).__name__}; "
                "if the weights lie inside it, save that part alone as safetensors"
            )
    return found
