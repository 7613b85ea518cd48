"""The page's built files, shipped inside the package: read once, served by name from memory.

``static/build.json`` carries the digest of the sources in ``frontend/`` that they were built from; a test compares
it with the sources, without Node.
"""

import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from covector.errors import CovectorError

TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
MANIFEST = "build.json"
# What the build is made from, under frontend/; tests of the page are not.
SOURCES = (
    "index.html",
    "package.json",
    "package-lock.json",
    "svelte.config.js",
    "tsconfig.json",
    "vite.config.ts",
    "src",
)


class NoPage(CovectorError):
    """The page's built files are not there."""


def assets() -> dict[str, tuple[str, bytes]]:
    """Every built file by name: its media type and bytes. Raises NoPage where the package came without them."""
    folder = files("covector.web") / "static"
    found = {
        f.name: (TYPES[Path(f.name).suffix], f.read_bytes())
        for f in (folder.iterdir() if folder.is_dir() else ())
        if Path(f.name).suffix in TYPES
    }
    if "index.html" not in found:
        raise NoPage(
            "expected the page's files in the installed package (covector/web/static), they are missing; install "
            "covector from a wheel, or run make frontend in a checkout"
        )
    return found


def source_digest(frontend: Path) -> str:
    """sha256 over the names and contents of the page's sources, in order of their names."""
    digest = hashlib.sha256()
    for path in sorted(_sources(frontend), key=lambda p: p.relative_to(frontend).as_posix()):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{path.relative_to(frontend).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def built_from() -> str:
    """The digest of the sources that the shipped files were built from."""
    return json.loads((files("covector.web") / "static" / MANIFEST).read_text(encoding="utf-8"))["sources"]


def _sources(frontend: Path) -> Iterator[Path]:
    for name in SOURCES:
        path = frontend / name
        yield from (p for p in path.rglob("*") if p.is_file() and ".test." not in p.name) if path.is_dir() else (path,)
