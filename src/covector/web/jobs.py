"""Long work that the page started: one command at a time in a process of its own, watched, and ended when asked.

The process stays for the next command, so that slow imports are paid once; a command that is cancelled takes the
process with it. Results are what the command wrote with ``--out``.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from covector.errors import BadRequest
from covector.web.results import films_of, result_of, tables_in

State = Literal["queued", "running", "done", "failed", "cancelled"]
WORKER = ("-m", "covector.cli.worker")
# Jobs kept for the page to come back to; their folders go with them.
MOST_KEPT, MOST_WAITING = 50, 20


@dataclass(eq=False)
class Job:
    """One command, from when it was asked for until it is forgotten."""

    id: int
    question: str
    arguments: list[str]
    command: str
    python: str
    folder: Path
    state: State = "queued"
    progress: str = ""
    error: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether it is still to end."""
        return self.state in ("queued", "running")

    def told(self, whole: bool = True) -> dict[str, Any]:
        """What the page is told."""
        brief = {n: getattr(self, n) for n in ("id", "question", "command", "python", "state", "progress", "error")}
        return {**brief, "results": self.results, "films": len(films_of(self.folder))} if whole else brief


class Jobs:
    """Runs jobs in order. Threads: one that runs them, and the server's, which ask and cancel."""

    def __init__(self, worker: Sequence[str] = WORKER) -> None:
        self._worker_words = worker
        self._all: dict[int, Job] = {}
        self._root = Path(tempfile.mkdtemp(prefix="covector-jobs-"))
        self._lock = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._closed, self._next = False, 1
        self._current: Job | None = None
        self._thread = threading.Thread(target=self._loop, daemon=True, name="covector jobs")
        self._thread.start()

    def warm(self) -> None:
        """Start the process, so that its imports are done when the first command comes."""
        with self._lock:
            self._ready()

    def ask(self, question: str, command: str, python: str, arguments: Callable[[Path], list[str]]) -> Job:
        """Put a command in the queue. Raises BadRequest where too many wait."""
        with self._lock:
            waiting = sum(j.runs for j in self._all.values())
            if waiting >= MOST_WAITING:
                raise BadRequest(f"expected at most {MOST_WAITING} questions at a time, {waiting} wait; cancel one")
            number, self._next = self._next, self._next + 1
            folder = self._root / str(number)
            folder.mkdir()
            try:
                words = [*arguments(folder)]
            except BaseException:
                shutil.rmtree(folder)
                raise
            job = Job(number, question, words, command, python, folder)
            self._all[job.id] = job
            self._forget()
            self._lock.notify_all()
            return job

    def job(self, number: int) -> Job:
        """The job of that number. Raises BadRequest."""
        with self._lock:
            if number not in self._all:
                raise BadRequest(f"expected a job of this run, {number} is none")
            return self._all[number]

    def unfinished(self) -> list[Job]:
        """Jobs that wait or run, in order."""
        with self._lock:
            return [j for j in self._all.values() if j.runs]

    def cancel(self, number: int) -> Job:
        """End a job that waits or runs; one that has ended stays as it is."""
        job = self.job(number)
        with self._lock:
            was, job.state = job.state, "cancelled" if job.runs else job.state
            if was == "running" and self._process is not None:
                _end(self._process)
                self._process = None  # also where its answer has come already: the next job gets a fresh one
        return job

    def close(self) -> None:
        """End the process and forget every job."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                _end(self._process)
            self._lock.notify_all()
        self._thread.join(timeout=5)
        if self._process is not None:
            _tidy(self._process)
        shutil.rmtree(self._root, ignore_errors=True)

    def _forget(self) -> None:
        ended = [j for j in self._all.values() if j.state in ("done", "failed", "cancelled")]
        for job in ended[: max(len(self._all) - MOST_KEPT, 0)]:
            shutil.rmtree(job.folder, ignore_errors=True)
            del self._all[job.id]

    def _ready(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            if self._process is not None:
                _tidy(self._process)
            self._process = subprocess.Popen(
                [sys.executable, *self._worker_words],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, encoding="utf-8", start_new_session=True,
            )  # fmt: skip
            threading.Thread(target=self._watch, args=(self._process,), daemon=True).start()
        return self._process

    def _watch(self, process: "subprocess.Popen[str]") -> None:
        """Keep the last line that the running command says."""
        assert process.stderr is not None
        with process.stderr as said:
            for line in said:
                job = self._current
                if job is not None and line.strip():
                    job.progress = _said(line)

    def _loop(self) -> None:
        while True:
            with self._lock:
                while not self._closed and not any(j.state == "queued" for j in self._all.values()):
                    self._lock.wait()
                if self._closed:
                    return
                job = next(j for j in self._all.values() if j.state == "queued")
                job.state = "running"
                self._current, process = job, self._ready()
            self._finish(job, *_run(process, job))
            self._current = None
            if job.state == "cancelled":
                _tidy(process)

    def _finish(self, job: Job, code: int, said: str) -> None:
        results, error = [], said
        if code == 0:
            try:
                results = [result_of(path) for path in tables_in(job.folder)]
            except Exception as wrong:  # a result that cannot be read must not end the thread that runs jobs
                code, error = 1, f"the result cannot be read: {wrong}"
        with self._lock:
            if job.state == "cancelled":
                return
            job.results = results
            job.state = "done" if code == 0 else "failed"
            job.error = "" if code == 0 else error
            job.progress = ""


def _run(process: "subprocess.Popen[str]", job: Job) -> tuple[int, str]:
    """The exit code of the command and its last line; 1 where the process ended with it."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps({"arguments": job.arguments}) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except (BrokenPipeError, ValueError):
        answer = ""
    if not answer:
        code = process.wait()
        _tidy(process)
        return 1, f"the process that ran it ended ({code}); {job.progress or 'it said nothing'}"
    try:
        told = json.loads(answer)
        return int(told["code"]), _said(told["said"])
    except (ValueError, TypeError, KeyError):
        return 1, f"the process that runs commands answered what is no answer: {answer[:80].strip()}"


def _end(process: "subprocess.Popen[str]") -> None:
    """End a process with everything it started: those that play episodes would wait for it for ever."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _tidy(process: "subprocess.Popen[str]") -> None:
    """Wait for a process that has ended, and close what led to it; who reads its last words closes those."""
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was still to be written
                pipe.close()


def _said(line: str) -> str:
    return line.strip().removeprefix("covector: ")[:500]
