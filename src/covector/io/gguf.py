"""Control vectors as llama.cpp reads them: a GGUF file with one direction per layer.

``direction.N`` is added to what leaves block N (counted from 0), at every token; a direction 0 is refused there. So a
vector for the stream that enters block 9 is ``direction.8``, and one for the first two blocks' input has no place.
The layer, the hook and the operation are written beside it in words.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest, MissingExtra
from covector.io.atomic import written


def direction_layer(layer: int, role: str) -> int:
    """The N of ``direction.N`` for a place in the stream.

    Raises BadRequest for a place that the format has no name for.
    """
    n = {"resid_pre": layer - 1, "resid_post": layer}.get(role)
    if n is None or n < 1:
        raise BadRequest(
            f"a control vector is added to what leaves block 1 or a later one: L{layer}.{role} is not that place; "
            "steer at L2.resid_pre or later"
        )
    return n


def write_control_vector(
    path: Path,
    vector: Float[np.ndarray, " d_model"],
    *,
    layer: int,
    role: str,
    n_layers: int,
    architecture: str,
    about: Mapping[str, str],
) -> Path:
    """Write one vector (float32) for one place. Returns the path.

    `about` goes into the metadata under ``covector.``. Raises MissingExtra without the gguf package, BadRequest for a
    place that the format has no name for.
    """
    n = direction_layer(layer, role)
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise MissingExtra(
            f"--gguf writes with the gguf package: expected it, {error.name} is missing; pip install 'covector[gguf]'"
        ) from error
    with written(path) as beside:
        writer = GGUFWriter(str(beside), "controlvector")
        writer.add_string("controlvector.model_hint", architecture)
        writer.add_uint32("controlvector.layer_count", n_layers)
        for key, value in about.items():
            writer.add_string(f"covector.{key}", value)
        writer.add_tensor(f"direction.{n}", np.ascontiguousarray(vector, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path
