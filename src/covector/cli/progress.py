"""How far long work has come, on standard error: one line, rewritten in a terminal; now and then a line elsewhere."""

import sys
import time

# Seconds between lines where standard error is no terminal.
PATIENCE = 30.0


class Progress:
    """Called with what is done; says how much is left at the pace so far."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self.terminal = quiet, sys.stderr.isatty()
        self.begun: tuple[float, float] | None = None
        self.last = time.monotonic()

    def __call__(self, done: int, of: int, share: float, name: str) -> None:
        """`done` of `of` pieces, `share` of the work (0 to 1), the piece that came last; first call: what is there."""
        now = time.monotonic()
        if self.begun is None:
            self.begun = (now, share)
        if self.quiet:
            return
        text = f"{done}/{of} parts · {share:.0%} · {self._left(now, share)}{name or '…'}"
        if self.terminal:
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()
        elif now - self.last >= PATIENCE:
            self.last = now
            sys.stderr.write(text + "\n")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _left(self, now: float, share: float) -> str:
        start, had = self.begun or (now, share)
        if share - had < 0.01 or share >= 1:
            return ""
        seconds = int((now - start) / (share - had) * (1 - share))
        hours, minutes = seconds // 3600, seconds // 60 % 60
        told = f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"
        return f"{told} left · "

    def close(self) -> None:
        """Clear the line."""
        if self.terminal and not self.quiet:
            sys.stderr.write("\r\033[K")
