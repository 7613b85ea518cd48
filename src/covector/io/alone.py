"""One writer at a time in a folder: a lock that ends with the process that holds it, however it ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from covector.errors import BadRequest

try:
    import fcntl
except ImportError:  # not POSIX: nobody is kept out there
    fcntl = None


@contextlib.contextmanager
def alone(folder: Path, option: str = "--out") -> Iterator[None]:
    """Hold the folder, which must be there; other processes (and threads) that ask are refused meanwhile.

    The lock is on the open folder itself: no file is left, and a killed process holds nothing. Where the file system
    has no such locks nobody is kept out. Raises BadRequest where the folder is held.
    """
    if fcntl is None:
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadRequest(
                f"{option} {folder}: expected to be alone there, another covector is writing to it; let it end (or end "
                "it: what is finished is kept), or choose another folder"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(held)
