"""Writes that happen wholly or not at all: write beside the target, flush to the disk, rename.

A reader of the target sees the old content or the new one, never half of one; a write that fails leaves nothing
behind. The sibling's name begins with a dot and ends in `.part`, should the machine itself die in between.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from covector.errors import BadRequest

# What a disk says when it is full: the caller's doing or their machine's, never a defect of ours.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; when the block ends well, that file becomes `path`.

    If the block raises, the new file is removed, the old one stays, and the error goes on. A link at `path` is
    replaced, not followed. Raises BadRequest if the folder is not there, the disk is full or the rename is refused.
    """
    path = Path(path)
    beside = _sibling(path, "file")
    try:
        with _explained(path, beside):
            yield beside
            assert beside.is_file(), f"the block wrote nothing to {beside}"
            _flush(beside)
            beside.replace(path)
            _flush(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def written_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder beside `path` to fill; when the block ends well, it becomes `path`.

    An empty folder at `path` is replaced; one with content only with `replace`, because it is then deleted: the
    caller makes sure that it is theirs. A folder cannot be exchanged in one step, so while one is replaced there is an
    instant without any, but none with half. Raises BadRequest as `written` does, and for content without `replace`.
    """
    path = Path(path)
    beside = _sibling(path, "folder")
    if path.exists() and not (path.is_dir() and (replace or not any(path.iterdir()))):
        found = f"a folder with {sum(1 for _ in path.iterdir())} entries" if path.is_dir() else "a file"
        raise BadRequest(f"cannot write {path}: expected no such folder or an empty one, found {found}; choose another")
    try:
        with _explained(path, beside):
            beside.mkdir()
            yield beside
            for item in beside.rglob("*"):
                _flush(item)
            _flush(beside)
            _take_place(beside, path)
            _flush(path.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _take_place(new: Path, path: Path) -> None:
    """`new` becomes `path`; what was there is put aside first, put back on failure, and deleted on success."""
    if not path.exists():
        new.rename(path)
        return
    old = _sibling(path, "folder")
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sibling(path: Path, kind: str) -> Path:
    """A name in the same folder (the same file system, so that a rename is one step) that nobody else uses."""
    if not path.name or not path.parent.is_dir():
        raise BadRequest(
            f"cannot write {path}: expected a {kind} in an existing folder, {path.parent} is none; create it first"
        )
    return path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}.part")


def _flush(path: Path) -> None:
    """Bytes of a file, or names in a folder, on the disk. Folders cannot be flushed everywhere: that is no failure."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _explained(path: Path, beside: Path) -> Iterator[None]:
    """The system's refusal to write here as BadRequest; every other error, the block's own included, goes on."""
    try:
        yield
    except OSError as error:
        ours = any(str(name).startswith(str(beside)) for name in (error.filename, error.filename2) if name)
        if not ours and error.errno not in _FULL:
            raise
        raise BadRequest(
            f"cannot write {path}: expected to write beside it, the system says '{error.strerror}'; nothing was "
            "changed: make room or choose another place"
        ) from error
