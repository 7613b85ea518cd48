"""covector reads a transformer's weights: what each direction reads and writes, and how likely that is by chance.

    model = covector.open("demo-lm")
    covector.readout(model, "L2H1").show()

Names are loaded when they are first used, so that ``import covector`` and ``covector --help`` are quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from covector.analyses.compare import compare as compare
    from covector.analyses.compose import compose as compose
    from covector.analyses.heads import heads as heads
    from covector.analyses.inspect import inspect as inspect
    from covector.analyses.joint_unit import joint_units as joint_units
    from covector.analyses.locate import locate as locate
    from covector.analyses.readout import readout as readout
    from covector.analyses.relation import relation as relation
    from covector.analyses.spectrum import spectrum as spectrum
    from covector.analyses.studies import studies as studies
    from covector.atlases import fired as fired
    from covector.atlases import open_atlas as open_atlas
    from covector.atlases import trace as trace
    from covector.building import build_atlas as build_atlas
    from covector.errors import CovectorError as CovectorError
    from covector.io.atlas import Atlas as Atlas
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
    "Atlas": "covector.io.atlas",
    "Basis": "covector.model.bases",
    "CovectorError": "covector.errors",
    "Model": "covector.model.opened",
    "ModelSpec": "covector.model.spec",
    "Table": "covector.render",
    "build_atlas": "covector.building",
    "compare": "covector.analyses.compare",
    "compose": "covector.analyses.compose",
    "fired": "covector.atlases",
    "heads": "covector.analyses.heads",
    "inspect": "covector.analyses.inspect",
    "joint_units": "covector.analyses.joint_unit",
    "locate": "covector.analyses.locate",
    "open": "covector.workbench",
    "open_atlas": "covector.atlases",
    "readout": "covector.analyses.readout",
    "relation": "covector.analyses.relation",
    "spectrum": "covector.analyses.spectrum",
    "studies": "covector.analyses.studies",
    "svd": "covector.linalg.svd",
    "trace": "covector.atlases",
}

__all__ = [
    "SVD",
    "Atlas",
    "Basis",
    "CovectorError",
    "Model",
    "ModelSpec",
    "Table",
    "build_atlas",
    "compare",
    "compose",
    "fired",
    "heads",
    "inspect",
    "joint_units",
    "locate",
    "open",
    "open_atlas",
    "readout",
    "relation",
    "spectrum",
    "studies",
    "svd",
    "trace",
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
