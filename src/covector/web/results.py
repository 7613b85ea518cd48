"""What commands write with ``--out``, read for the page: tables with their pictures, and films.

A folder may come from somebody else, so links are not followed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from covector.errors import BadTable
from covector.render import Table
from covector.render.picture_data import picture_from
from covector.web.bundle import table_data

PICTURE = ".picture.json"
FILMS = {".gif": "image/gif", ".mp4": "video/mp4"}


def tables_in(folder: Path) -> Iterator[Path]:
    """The files that may be tables, in order of their names."""
    yield from (p for p in sorted(folder.glob("*.json")) if not p.name.endswith(PICTURE) and _is_own(p))


def result_of(path: Path) -> dict[str, Any]:
    """One table as the page takes it, with the picture that lies beside it. Raises BadTable for what is none."""
    told, drawn = table_data(Table.load(path)), path.with_suffix(PICTURE)
    return {**told, "picture": _picture(drawn)} if _is_own(drawn) else told


def films_of(folder: Path) -> list[Path]:
    """The films that lie in a folder."""
    return sorted(p for p in folder.iterdir() if p.suffix in FILMS and _is_own(p)) if folder.is_dir() else []


class BadPicture(BadTable):
    """The values beside a table are no picture."""


def _picture(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        picture_from(data)  # refuses what is none
    except (BadTable, ValueError) as error:
        raise BadPicture(f"{path}: expected the values of a picture; make the result again") from error
    return data


def _is_own(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
