"""Where covector keeps what it has made and can make again: ``COVECTOR_CACHE``, else the user's cache folder."""

import hashlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder; not made here."""
    named = os.environ.get("COVECTOR_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "covector"


def atlas_folder(ref: str) -> Path:
    """Where the atlas of a model is kept that was never given a folder: one per name, or real path of a folder."""
    real = str(Path(ref).expanduser().resolve()) if Path(ref).expanduser().is_dir() else ref
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(ref).name or ref)
    return cache_folder() / "atlases" / f"{name}-{hashlib.sha256(real.encode()).hexdigest()[:12]}.atlas"
