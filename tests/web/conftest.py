"""What tests of the explorer share: an atlas of the bundled model, and a server with its page."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import close

import covector
from covector.atlas.plan import Options

# Null draws of the test atlas: its p values are rough, and nothing here depends on them.
DRAWS = 500


@pytest.fixture(scope="session")
def demo_atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole atlas of demo-lm, judged."""
    folder = tmp_path_factory.mktemp("explorer") / "demo.atlas"
    covector.build_atlas("demo-lm", folder, options=Options(draws=DRAWS))
    return folder


@pytest.fixture(scope="session")
def agent_atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole atlas of demo-dt."""
    folder = tmp_path_factory.mktemp("explorer") / "agent.atlas"
    covector.build_atlas("demo-dt", folder, options=Options(draws=DRAWS))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_browser() -> Iterator[None]:
    """One browser for the tests of a module; it ends with them, since other tests run event loops of their own."""
    yield
    close()


@pytest.fixture(scope="module")
def served() -> Iterator[Callable[..., str]]:
    """Starts `covector view` with these words and gives its address; ends every server with Ctrl-C."""
    running: list[subprocess.Popen[str]] = []

    def start(*words: str | Path, cache: Path | None = None) -> str:
        more = {} if cache is None else {"COVECTOR_CACHE": str(cache)}
        process = subprocess.Popen(
            [sys.executable, "-m", "covector", "view", *map(str, words), "--no-open"],
            stderr=subprocess.PIPE, text=True, env={**os.environ, **more, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        running.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/\S+/", line)
        assert found, line + process.stderr.read()
        return found[0]

    yield start
    for process in running:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) in (0, 130)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        process.stderr.close()
