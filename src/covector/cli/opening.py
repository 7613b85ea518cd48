"""What a command's first argument opens: a model, or the model of an atlas."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from covector.model.opened import Model


def opened(ref: str, layout: Path | None = None, *, frame: str = "raw", strict: bool = False) -> "Model":
    """The model that `ref` names; of an atlas folder the model that it was built from, in the atlas' frame.

    Raises what `covector.workbench.open` and `covector.atlases.model_of` raise: the checkpoint is gone, or is another.
    """
    folder = Path(ref).expanduser()
    if (folder / "manifest.json").is_file():
        from covector.atlases import model_of, open_atlas

        model = model_of(open_atlas(folder))
        return model if frame in ("raw", str(model.frame)) else model.framed(frame)
    from covector.workbench import open as open_model

    return open_model(ref, layout, frame=frame, strict=strict)
