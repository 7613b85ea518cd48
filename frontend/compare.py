"""Put a fresh build of the page into the package, stamped with its sources, and say whether it was what lay there.

    python frontend/compare.py BUILT

`make frontend` runs it after the build. Exit code 0: the committed files are what the sources give; 1: they were not,
and are now.
"""

import json
import shutil
import sys
from pathlib import Path

from covector.web.assets import MANIFEST, source_digest

FRONTEND = Path(__file__).resolve().parent
STATIC = FRONTEND.parent / "src" / "covector" / "web" / "static"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} if folder.is_dir() else {}


def main() -> int:
    """Compare, replace, report."""
    built = Path(sys.argv[1])
    stamp = {"sources": source_digest(FRONTEND), "node": "built with the versions of package-lock.json"}
    (built / MANIFEST).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    before, after = contents(STATIC), contents(built)
    if before == after:
        print("the page's files are what frontend/ gives")
        return 0
    shutil.rmtree(STATIC, ignore_errors=True)
    shutil.copytree(built, STATIC)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    print(f"the page's files were not what frontend/ gives; replaced: {', '.join(changed)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
