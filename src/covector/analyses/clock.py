"""How far long work has come: what is called to tell it, and a count of what has been run."""

from collections.abc import Callable

# (done, of, share of the work, what is done now): how `covector.cli.progress.Progress` is called.
Tell = Callable[[int, int, float, str], None]


class Clock:
    """Counts parts of a piece of work and tells. Parts that are not equally long are weighed: `work` is all of it."""

    def __init__(self, parts: int, tell: Tell | None, *, work: float | int | None = None, doing: str = "") -> None:
        self.parts, self.tell = max(parts, 1), tell
        self.work = max(float(parts if work is None else work), 1.0)
        self.done, self.spent, self.doing = 0, 0.0, doing
        self._say()

    def __call__(self, doing: str, parts: int = 1, work: float | int | None = None) -> None:
        """`parts` more are done, which were `work` of the whole (as many as the parts)."""
        self.done, self.spent, self.doing = self.done + parts, self.spent + (parts if work is None else work), doing
        self._say()

    def tick(self, work: int) -> None:
        """One more part of what is being done, which was `work` of the whole."""
        self(self.doing, 1, work)

    def spend(self, work: float | int) -> None:
        """So much more of the part under way."""
        self(self.doing, 0, work)

    def begin(self, doing: str) -> None:
        """Say what comes now."""
        self(doing, 0, 0.0)

    def _say(self) -> None:
        if self.tell:
            self.tell(min(self.done, self.parts), self.parts, min(self.spent / self.work, 1.0), self.doing)
