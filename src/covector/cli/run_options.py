"""Checks on the options that say where and how precisely a model runs."""

from covector.errors import BadRequest


def check_run_options(device: str, dtype: str) -> None:
    """Raise BadRequest for a device or precision that cannot be had."""
    if device != "cpu":
        raise BadRequest(f"--device: expected cpu, got '{device}'; weight analyses run on the CPU in float64")
    if dtype not in ("float64", "float32"):
        raise BadRequest(f"--dtype: expected float64 or float32, got '{dtype}'")
