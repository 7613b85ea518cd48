"""How far long work has come, on standard error: one line, rewritten in a terminal; now and then a line elsewhere."""

import sys
import threading
import time
from dataclasses import dataclass

# Seconds between lines: in a terminal, where the line is rewritten, and elsewhere.
TICK, PATIENCE = 1.0, 30.0


@dataclass(frozen=True)
class _Told:
    """What was told last, and when."""

    done: int
    of: int
    share: float
    name: str
    at: float


class Progress:
    """Called with what is done; says how much is left at the pace so far, between calls too: parts can take minutes."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self.terminal = quiet, sys.stderr.isatty()
        self.begun: tuple[float, float] | None = None
        self.last = time.monotonic()
        self._told: _Told | None = None
        self._lock, self._closed = threading.Lock(), threading.Event()

    def __call__(self, done: int, of: int, share: float, name: str) -> None:
        """`done` of `of` pieces, `share` of the work (0 to 1), the piece that came last; first call: what is there."""
        now = time.monotonic()
        first = self.begun is None
        self.begun = self.begun or (now, share)
        if self.quiet:
            return
        self._told = _Told(done, of, share, name, now)
        self._write(now)
        if first:
            threading.Thread(target=self._tick, daemon=True).start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tick(self) -> None:
        while not self._closed.wait(TICK if self.terminal else PATIENCE):
            self._write(time.monotonic())

    def _write(self, now: float) -> None:
        """The line as it is now: rewritten in a terminal, elsewhere where the last one is old enough."""
        with self._lock:
            if self._told is None or self._closed.is_set() or not (self.terminal or now - self.last >= PATIENCE):
                return
            self.last, text = now, self.line(now)
            sys.stderr.write(f"\r\033[K{text}" if self.terminal else f"{text}\n")
            sys.stderr.flush()

    def line(self, now: float) -> str:
        """``3/15 parts · 20% · 0:41 left · L0.ov``; before there is a pace, for how long it has been at work."""
        if self._told is None or self.begun is None:
            return ""
        told, (start, had) = self._told, self.begun
        parts = [f"{told.done}/{told.of} parts", f"{told.share:.0%}"]
        gained = told.share - had
        if told.share < 1 and gained >= 0.01:
            left = (told.at - start) / gained * (1 - told.share) - (now - told.at)
            parts.append(f"{_clock(max(left, 0.0))} left")
        elif told.share < 1 and now - start >= TICK:
            parts.append(f"{_clock(now - start)} so far")
        return " · ".join([*parts, told.name or "…"])

    def close(self) -> None:
        """Clear the line."""
        with self._lock:
            self._closed.set()
            if self.terminal and not self.quiet:
                sys.stderr.write("\r\033[K")


def _clock(seconds: float) -> str:
    hours, minutes, rest = int(seconds) // 3600, int(seconds) // 60 % 60, int(seconds) % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
