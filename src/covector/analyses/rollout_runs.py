"""The episodes of an experiment: planned, run by an engine, kept in a journal, gone on with where they stopped.

Source: theory page F14.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from covector.analyses.rollout_arms import Task
from covector.engine import Engine
from covector.errors import EnvironmentFailed
from covector.run.episodes import Episode

# Episodes of one task: a few batches' worth, so that little is lost when work is interrupted.
CHUNK = 50
Progress = Callable[[int, int, float, str], None]
Key = tuple[str, float, int]


@runtime_checkable
class Log(Protocol):
    """Where finished episodes are kept: `covector.io.journal.Journal`."""

    lines: list[dict[str, Any]]

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines."""
        ...


@dataclass(frozen=True)
class Failure:
    """A task in which something broke down: what was said, how many episodes that cost, and those that ended."""

    task: Task
    reason: str
    count: int
    episodes: Sequence[Episode] = ()


def chunks(arm: str, change: Any, target: float, seeds: Sequence[int]) -> list[Task]:
    """The episodes of an arm as tasks."""
    return [Task(arm, change, target, tuple(seeds[i : i + CHUNK])) for i in range(0, len(seeds), CHUNK)]


def run_tasks(
    tasks: Sequence[Task],
    engine: Engine,
    work: Callable[[Task], list[Episode] | Failure],
    log: Log | None,
    progress: Progress | None,
) -> dict[Key, Episode]:
    """Every episode by (arm, target, seed). Tasks whose episodes are all in the log are not run again.

    Raises EnvironmentFailed, with what the first failure said, after all other episodes are played and kept.
    """
    kept = {_key(line): _episode(line) for line in (log.lines if log else [])}
    waiting = [t for t in tasks if any((t.arm, t.target, s) not in kept for s in t.seeds)]
    total = sum(len(t.seeds) for t in tasks)
    done = total - sum(len(t.seeds) for t in waiting)
    if progress:
        progress(0, len(tasks), done / max(total, 1), "")
    failures = []
    for count, (task, found) in enumerate(engine.run(work, waiting), len(tasks) - len(waiting) + 1):
        if isinstance(found, Failure):
            failures.append(found)
        ended = found.episodes if isinstance(found, Failure) else found
        if log:
            log.add([_line(task.arm, e) for e in ended])
        kept |= {(task.arm, task.target, e.seed): e for e in ended}
        done += len(task.seeds)
        if progress:
            progress(count, len(tasks), done / total, task.arm)
    if failures:
        first, count = failures[0], sum(f.count for f in failures)
        others = f"; {count - 1:,} more episodes broke down" if count > 1 else ""
        whole = "are kept in the journal" if log else "were played; --out DIR keeps them"
        raise EnvironmentFailed(f"arm '{first.task.arm}': {first.reason}{others}; {len(kept):,} others {whole}")
    return kept


def _key(line: Mapping[str, Any]) -> Key:
    return str(line["arm"]), float(line["target"]), int(line["seed"])


def _line(arm: str, e: Episode) -> dict[str, Any]:
    return {
        "arm": arm, "target": e.target, "seed": e.seed, "return": e.total, "length": e.length,
        "terminated": e.terminated, "success": e.success, "actions": list(e.actions),
    }  # fmt: skip


def _episode(line: Mapping[str, Any]) -> Episode:
    return Episode(
        int(line["seed"]), float(line["target"]), float(line["return"]), int(line["length"]), bool(line["terminated"]),
        line["success"], tuple(tuple(a) if isinstance(a, list) else a for a in line["actions"]),
    )  # fmt: skip
