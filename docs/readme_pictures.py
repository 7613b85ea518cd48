"""The pictures of the README: the explorer's page on the bundled model, as a browser draws it, light and dark.

    python docs/readme_pictures.py [FOLDER]

Needs Chromium and Playwright (the extra dev); writes docs/pictures/*.png, each at most 200 KB. `make pictures` runs it.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import covector

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
MOST_BYTES = 200_000
WIDTH = 1180
# Name, address, height, and what has to be there before it is taken.
SHOTS = (
    ("model", "#/glance", 580, "main svg"),
    ("place", "#/site?site=L3H0.ov&dyad=1", 820, "aside article"),
    ("directions", "#/directions?row={best}", 900, "main tbody tr"),
)


@contextmanager
def served(atlas: Path) -> Iterator[str]:
    """The address of a page that shows the atlas."""
    words = [sys.executable, "-m", "covector", "view", atlas.name, "--no-open"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=atlas.parent)
    try:
        assert process.stderr is not None
        found = re.search(r"http://\S+", process.stderr.readline())
        assert found, "covector view printed no address"
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def taken(page: Page, address: str, ready: str, height: int) -> bytes:
    """One view as a PNG of few colours, which is a third of its size."""
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector(ready)
    page.wait_for_timeout(800)
    out = io.BytesIO()
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def strongest(atlas: covector.Atlas | None) -> int:
    """The row of the direction of an OV map that lies nearest to a label."""
    assert atlas is not None
    given = atlas.columns("kind", "zeta")
    return int(np.argmax(np.abs(given["zeta"]) * (given["kind"] == "ov")))


def main() -> None:
    """Build the atlas, serve it, take every view twice."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    browser = os.environ.get("COVECTOR_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        sys.exit("expected Chromium, none is installed; name it by COVECTOR_CHROMIUM")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        atlas = Path(place) / "demo.atlas"
        best = strongest(covector.build_atlas("demo-lm", atlas))
        running = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        with served(atlas) as address:
            for scheme in ("light", "dark"):
                page = running.new_context(color_scheme=scheme, device_scale_factor=1.5).new_page()
                for name, view, height, ready in SHOTS:
                    picture = taken(page, address + view.format(best=best), ready, height)
                    assert len(picture) <= MOST_BYTES, f"{name} {scheme}: {len(picture)} bytes"
                    (folder / f"{name}-{scheme}.png").write_bytes(picture)
                    print(f"{folder / name}-{scheme}.png: {len(picture) / 1000:.0f} KB")
        running.close()


if __name__ == "__main__":
    main()
