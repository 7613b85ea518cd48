"""The line that says how far long work has come: from its first moment, with the time left at the pace so far."""

import io
import sys
import time

import pytest

from covector.cli import progress as module
from covector.cli.progress import PATIENCE, Progress


class Screen(io.StringIO):
    """Standard error that is a terminal, or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def told(monkeypatch: pytest.MonkeyPatch, terminal: bool, quiet: bool = False, resumed: float = 0.0) -> list[str]:
    """What is said of work of four parts, each a quarter of what was left and 600 s long."""
    screen, clock = Screen(terminal), iter(range(0, 100_000, 600))
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    with Progress(quiet) as progress:
        progress(0, 4, resumed, "")
        for done in range(1, 5):
            progress(done, 4, resumed + (1 - resumed) * done / 4, f"L{done}.ov")
    return [line for line in screen.getvalue().replace("\r\033[K", "\n").split("\n") if line]


def test_a_terminal_shows_the_line_before_the_first_part_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, terminal=True) == [
        "0/4 parts · 0% · …",
        "1/4 parts · 25% · 30:00 left · L1.ov",
        "2/4 parts · 50% · 20:00 left · L2.ov",
        "3/4 parts · 75% · 10:00 left · L3.ov",
        "4/4 parts · 100% · L4.ov",
    ]


def test_what_was_there_before_is_no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half was there: the second half is what takes 40 minutes."""
    assert told(monkeypatch, terminal=True, resumed=0.5)[1] == "1/4 parts · 62% · 30:00 left · L1.ov"


def test_between_parts_the_time_left_goes_on_and_before_the_first_the_time_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", Screen(terminal=True))
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.0)
    with Progress() as progress:
        progress(0, 4, 0.0, "")
        assert progress.line(75.0) == "0/4 parts · 0% · 1:15 so far · …"
        monkeypatch.setattr(module.time, "monotonic", lambda: 100.0)
        progress(1, 4, 0.25, "L0.ov")
        assert progress.line(100.0) == "1/4 parts · 25% · 5:00 left · L0.ov"
        assert progress.line(160.0) == "1/4 parts · 25% · 4:00 left · L0.ov"
        assert progress.line(900.0) == "1/4 parts · 25% · 0:00 left · L0.ov"


def test_the_line_is_written_between_parts_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(module, "TICK", 0.01)
    with Progress() as progress:
        progress(0, 4, 0.0, "")
        deadline = time.monotonic() + 30
        while screen.getvalue().count("0/4 parts") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    written = screen.getvalue()
    assert written.endswith("\r\033[K")
    time.sleep(0.05)
    assert screen.getvalue() == written


def test_elsewhere_a_line_now_and_then_and_nothing_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PATIENCE < 600
    assert told(monkeypatch, terminal=False)[-1] == "4/4 parts · 100% · L4.ov"
    assert told(monkeypatch, terminal=True, quiet=True) == []
