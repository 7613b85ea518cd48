"""Where a model runs: the devices that can be named, and those that are refused because they are not there."""

import re

import torch

from covector.errors import BadRequest

_SPELLING = re.compile(r"cpu|mps|cuda(:\d+)?")


def placed(device: str | torch.device, dtype: torch.dtype | str = torch.float64) -> torch.device:
    """The device of that name: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises BadRequest for another spelling, for one that this machine or this torch does not have, and for float64 on
    mps, which has none.
    """
    name = str(device)
    if not _SPELLING.fullmatch(name):
        raise BadRequest(f"--device: expected cpu, cuda, cuda:N or mps, got '{name}'")
    if name.startswith("cuda"):
        _check_cuda(name)
    if name == "mps" and not torch.backends.mps.is_available():
        raise BadRequest(f"--device mps: expected a device that torch {torch.__version__} finds here, it finds none; "
                         "use --device cpu")  # fmt: skip
    if name == "mps" and dtype in (torch.float64, "float64"):
        raise BadRequest(
            "--device mps: expected float32, mps has no float64; give --dtype float32 where the command takes it, or "
            "use --device cpu"
        )
    return torch.device(name)


def _check_cuda(name: str) -> None:
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there:
        raise BadRequest(
            f"--device {name}: expected a CUDA device, torch {torch.__version__} finds none here; use --device cpu, or "
            "install a torch built for CUDA"
        )
    if int(name.partition(":")[2] or 0) >= there:
        known = "cuda:0" if there == 1 else f"cuda:0 to cuda:{there - 1}"
        raise BadRequest(f"--device {name}: expected {known}, this machine has no more; choose one of these")
