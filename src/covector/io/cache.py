"""Where covector keeps what it has made and can make again: ``COVECTOR_CACHE``, else the user's cache folder."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder; not made here."""
    named = os.environ.get("COVECTOR_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "covector"
