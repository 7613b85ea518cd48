"""Where independent pieces of work run: threads, processes, or the workers of a Dask cluster.

Every piece runs with one BLAS thread wherever it runs, so that its bits do not depend on where that was, and so that
cores are not fought over: workers times BLAS threads would be ten times slower than either alone.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from covector.errors import BadRequest, MissingExtra, WorkerLost
from covector.linalg.lapack import at_most_threads, scipy_linalg

Task = TypeVar("Task")
Result = TypeVar("Result")

_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


@runtime_checkable
class Engine(Protocol):
    """Runs a function over tasks; results come as they are ready, each with its task."""

    @property
    def workers(self) -> int:
        """How many tasks run at a time."""
        ...

    @property
    def shares_memory(self) -> bool:
        """Whether tasks run in this process, so that models in memory can be used."""
        ...

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """(task, result) in order of completion. The first failure is raised; what has not begun is then dropped.

        At most one task more than there are workers is under way or waits to be fetched.
        """
        ...


@dataclass(frozen=True)
class Threads:
    """Threads of this process; NumPy leaves the interpreter's lock while it computes."""

    workers: int

    @property
    def shares_memory(self) -> bool:
        """Yes."""
        return True

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """See `Engine.run`."""
        with at_most_threads(1):
            yield from _in_pool(ThreadPoolExecutor(self.workers), self.workers, function, tasks)


@dataclass(frozen=True)
class Processes:
    """Fresh processes of this machine; function and tasks travel by pickle.

    A script that uses them keeps its own work under ``if __name__ == "__main__"``: each process imports it anew.
    """

    workers: int

    @property
    def shares_memory(self) -> bool:
        """No."""
        return False

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """See `Engine.run`. Raises WorkerLost when a process dies (mostly: the machine ran out of memory)."""
        scipy_linalg()  # else its BLAS, loaded meanwhile, would keep the children's one thread
        with _one_blas_thread_for_children():
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_live_and_die_with_parent)
            try:
                yield from _in_pool(pool, self.workers, function, tasks)
            except BrokenProcessPool as error:
                raise WorkerLost(
                    f"a worker process died before its work was done: expected {self.workers} to live, as when memory "
                    "runs out; ask for fewer --workers, or give a --memory"
                ) from error


class Dask:
    """The workers of a Dask cluster, at the address of its scheduler or of a client that is there already."""

    def __init__(self, address: Any) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise MissingExtra(
                "--engine dask:// needs Dask: expected the package distributed, it is missing; "
                "pip install 'covector[cluster]'"
            ) from error
        try:
            self.client = address if isinstance(address, Client) else Client(address, timeout="10s")
        except (OSError, ValueError) as error:
            raise BadRequest(
                f"--engine: expected a Dask scheduler at '{address}', nobody answers there ({error}); start one with "
                "dask scheduler, or give its address as dask://host:port"
            ) from error

    @property
    def workers(self) -> int:
        """Threads of all workers now."""
        threads: Any = self.client.nthreads()
        return max(1, sum(threads.values()))

    @property
    def shares_memory(self) -> bool:
        """No."""
        return False

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """See `Engine.run`. Raises WorkerLost when the cluster gives a task up or has no workers."""
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        if not self.client.nthreads():
            raise WorkerLost("the Dask cluster has no workers: expected one at least; start some with dask worker")
        waiting, of = iter(tasks), dict[Any, tuple[Any, Task]]()
        arriving, workers = as_completed(), 1

        def submit() -> None:
            nonlocal workers
            with contextlib.suppress(OSError):  # a scheduler that is too busy to answer: as many as before
                workers = self.workers  # some may have joined
            while len(of) <= workers and (task := next(waiting, _NONE)) is not _NONE:
                future = self.client.submit(_limited, function, task, pure=False)
                of[future.key] = (future, task)
                arriving.add(future)

        try:
            submit()
            for future in arriving:
                result = future.result()
                _, task = of.pop(future.key)
                future.release()  # the cluster may forget it
                submit()
                yield task, result
        except KilledWorker as error:
            raise WorkerLost(
                "the Dask cluster gave a part up: expected its workers to live, several died on it, as when memory "
                "runs out; give them more, or fewer threads each"
            ) from error
        finally:
            with contextlib.suppress(OSError):  # what ended the run is to be told, not this
                self.client.cancel([future for future, _ in of.values()])


def engine(text: str, workers: int | None = None) -> Engine:
    """The engine that `text` names: ``threads``, ``processes``, or ``dask://host:port``.

    `workers` defaults to the number of cores this process may use; a cluster has its own. Raises BadRequest for another
    name, for fewer than one worker or workers of a cluster, MissingExtra for Dask where it is not installed.
    """
    if workers is not None and workers < 1:
        raise BadRequest(f"expected --workers >= 1, got {workers}; leave it out for one per core")
    count = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    if text == "threads":
        return Threads(count)
    if text == "processes":
        return Processes(count)
    if text.startswith("dask://"):
        if workers is not None:
            raise BadRequest(f"expected --workers with threads or processes, got it with {text}: a cluster has its own")
        return Dask("tcp://" + text.removeprefix("dask://"))
    raise BadRequest(f"expected --engine threads, processes or dask://host:port, got '{text}'")


def _in_pool(
    pool: Executor, workers: int, function: Callable[[Task], Result], tasks: Iterable[Task]
) -> Iterator[tuple[Task, Result]]:
    """Tasks through an executor, at most one waiting per worker, so that results never pile up."""
    waiting, running = iter(tasks), dict[Future, Task]()
    patient = True
    try:
        while True:
            while len(running) <= workers:
                task = next(waiting, _NONE)
                if task is _NONE:
                    break
                running[pool.submit(function, task)] = task
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            while done:
                future = done.pop()
                yield running.pop(future), future.result()
                del future
    except (KeyboardInterrupt, GeneratorExit):
        patient = False  # whoever interrupts does not wait for what is under way
        raise
    finally:
        pool.shutdown(wait=patient, cancel_futures=True)


_NONE: Any = object()


def _limited(function: Callable[[Task], Result], task: Task) -> Result:
    """One task on a cluster's worker; the limit stays, since other tasks run beside this one."""
    at_most_threads(1)
    return function(task)


def _live_and_die_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it is gone, however it went: nobody else would end this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _one_blas_thread_for_children() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _BLAS_THREADS}
    os.environ.update(dict.fromkeys(_BLAS_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
