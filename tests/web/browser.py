"""A browser for tests: the system's Chromium, driven by Playwright.

The test is skipped, and counted, where one of the two is absent; with ``COVECTOR_NEEDS_CHROMIUM=1`` it fails there.
``COVECTOR_CHROMIUM`` names the program.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str:
    """The path of a Chromium."""
    named = os.environ.get("COVECTOR_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    return found or absent("Chromium is absent (COVECTOR_CHROMIUM)")


def absent(why: str) -> str:
    """Skip the test, or fail where a browser was asked for."""
    if os.environ.get("COVECTOR_NEEDS_CHROMIUM") == "1":
        pytest.fail(f"{why}, and COVECTOR_NEEDS_CHROMIUM=1")
    pytest.skip(why)


@dataclass
class Watched:
    """A page, and everything that it complained of: console errors and warnings, exceptions, foreign requests."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    def quiet(self) -> None:
        """Fail where the page complained of anything."""
        assert self.complaints == []


# The browser of the module whose tests run, and what drives it: one for all its tests, each in a context of its own.
_running: list[Any] = []


def _browser() -> Any:
    path = chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("playwright is absent")
        raise
    if not _running:
        playwright = sync_playwright().start()
        _running.extend((playwright, playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])))
    return _running[1]


def close() -> None:
    """End the browser of this module, if one was started."""
    if _running:
        playwright, browser = _running
        _running.clear()
        browser.close()
        playwright.stop()


@contextmanager
def opened(*, dark: bool = False, width: int = 1400, offline: bool = False) -> Iterator[Watched]:
    """A fresh page of its own context; nothing of it is left."""
    made = _browser().new_context(
        viewport={"width": width, "height": 950}, color_scheme="dark" if dark else "light", offline=offline
    )
    try:
        watched = Watched(made.new_page())
        say = watched.complaints.append
        watched.page.on("console", lambda m: say(m.text) if m.type in ("error", "warning") else None)
        watched.page.on("pageerror", lambda error: say(str(error)))
        watched.page.on("request", lambda r: None if _is_own(r.url) else say(f"asked for {r.url}"))
        yield watched
    finally:
        made.close()


def _is_own(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:"))
