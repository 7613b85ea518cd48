"""A steering vector as a file that another program adds: what is written, and what differs there."""

from pathlib import Path

import numpy as np

from covector.analyses.steer_experiment import Setup
from covector.io.gguf import write_control_vector
from covector.model.opened import Model
from covector.propagation.entry import spot_of
from covector.render import Table


def export(setup: Setup, path: Path) -> Path:
    """Write the largest dose as a GGUF control vector, operation, hook and layer in its metadata.

    The program that reads it adds it at every token, here it was measured on one: that is written too.
    Raises BadRequest for a place that the format has no name for, MissingExtra without the gguf package.
    """
    spot, model = setup.spot, setup.model
    dose = float(setup.doses[int(np.argmax(np.abs(setup.doses)))])
    about = {
        "operation": "add", "hook": spot.hook, "layer": str(spot.layer), "measured_token": setup.token,
        "applied_to": "every token (measured on one)", "model": model.name, "frame": str(model.frame),
        "observable": str(setup.observables[0]), "vector": setup.vector.about,
        "predicted_logits": f"{dose * float(setup.slopes[0]):.6g}",
        "length_over_stream": f"{abs(dose) * float(np.linalg.norm(setup.vector.unit)) / setup.stream:.6g}",
    }  # fmt: skip
    vector = dose * setup.vector.unit
    return write_control_vector(path, vector, layer=spot.layer, role=spot.role, n_layers=model.spec.n_layers,
                                architecture=model.spec.family, about=about)  # fmt: skip


def export_table(model: Model, table: Table, path: Path) -> Path:
    """Write the closed form of a `debias` table; as `export`."""
    meta = table.meta
    spot = spot_of(str(meta["hook"]), model.spec)
    about = {
        "operation": "add", "hook": spot.hook, "layer": str(spot.layer), "measured_token": str(meta["token"]),
        "applied_to": "every token (measured on one)", "model": model.name, "frame": str(model.frame),
        "vector": "debias, closed form", "bias": " ; ".join(meta["bias"]), "keep": " ; ".join(meta["keep"]),
    }  # fmt: skip
    return write_control_vector(path, np.array(meta["vector"]), layer=spot.layer, role=spot.role,
                                n_layers=model.spec.n_layers, architecture=model.spec.family, about=about)  # fmt: skip
