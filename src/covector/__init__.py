"""covector reads a transformer's weights: what each direction reads and writes, and how likely that is by chance.

    model = covector.open("demo-lm")
    covector.readout(model, "L2H1").show()

Names are loaded when they are first used, so that ``import covector`` and ``covector --help`` are quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from covector.analyses.compare import compare as compare
    from covector.analyses.inspect import inspect as inspect
    from covector.analyses.readout import readout as readout
    from covector.errors import CovectorError as CovectorError
    from covector.linalg.svd import SVD as SVD
    from covector.linalg.svd import svd as svd
    from covector.model.bases import Basis as Basis
    from covector.model.opened import Model as Model
    from covector.model.spec import ModelSpec as ModelSpec
    from covector.render import Table as Table
    from covector.workbench import open as open

# Public name → the module that defines it. A test holds this table against the annotations above.
_HOMES = {
    "SVD": "covector.linalg.svd",
    "Basis": "covector.model.bases",
    "CovectorError": "covector.errors",
    "Model": "covector.model.opened",
    "ModelSpec": "covector.model.spec",
    "Table": "covector.render",
    "compare": "covector.analyses.compare",
    "inspect": "covector.analyses.inspect",
    "open": "covector.workbench",
    "readout": "covector.analyses.readout",
    "svd": "covector.linalg.svd",
}

__all__ = [
    "SVD",
    "Basis",
    "CovectorError",
    "Model",
    "ModelSpec",
    "Table",
    "compare",
    "inspect",
    "open",
    "readout",
    "svd",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name == "__version__":
        return importlib.import_module("covector.workbench").own_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'covector' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Public names, sorted."""
    return sorted([*__all__, "__version__"])
