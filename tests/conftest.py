"""What every test shares: shapes and types checked at run time, real models where they are, identities as marks."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

install_import_hook("covector", "beartype.beartype")

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("COVECTOR_SHARED", ROOT.parent / "shared"))
_ABSENT = "real models are absent (COVECTOR_SHARED)"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real trained models and texts; the test is skipped, and counted, where it is absent."""
    if not (SHARED / "models").is_dir():
        pytest.skip(_ABSENT)
    return SHARED


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests open no socket to the outside: loopback is all they reach."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    connect = socket.socket.connect

    def inside(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1", "localhost")):
            raise OSError(f"a test tried to reach {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", inside)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests the absence of real models has skipped."""
    skipped = terminalreporter.stats.get("skipped", [])
    absent = [r for r in skipped if _ABSENT in str(r.longrepr)]
    if absent:
        terminalreporter.write_line(f"{len(absent)} tests skipped: {_ABSENT}")
