"""Engines: every task once, whatever the order; one BLAS thread inside; failures come out and stop the rest."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scipy.linalg  # noqa: F401  (its BLAS is loaded before anything is limited, as in covector itself)
from threadpoolctl import threadpool_info, threadpool_limits

from covector.engine import Dask, Processes, Threads, engine
from covector.errors import BadRequest, MissingExtra, WorkerLost


@pytest.fixture(scope="module")
def cluster() -> Iterator[Dask]:
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp"
        )
        client = distributed.Client(cluster)
        yield Dask(client)
        client.close()
        cluster.close()


@pytest.fixture(params=["threads", "processes", "dask"])
def each(request: pytest.FixtureRequest) -> Any:
    if request.param == "dask":
        return request.getfixturevalue("cluster")
    return {"threads": Threads(2), "processes": Processes(2)}[request.param]


def square(n: int) -> int:
    time.sleep(0.01 * (7 * n % 3))
    return n * n


def sixth_fails(n: int) -> int:
    if n == 6:
        raise BadRequest("six is not to be had")
    time.sleep(0.01)
    return n


def blas_threads(_: int) -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def dies(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore")
def test_every_task_comes_back_once_with_its_own_result(each):
    found = list(each.run(square, range(12)))
    assert sorted(found) == [(n, n * n) for n in range(12)]


@pytest.mark.filterwarnings("ignore")
def test_no_tasks_give_no_results(each):
    assert list(each.run(square, [])) == []


@pytest.mark.filterwarnings("ignore")
def test_a_failure_comes_out_as_it_is_and_what_has_not_begun_is_dropped(each):
    begun = []

    def told() -> Iterator[int]:
        for n in range(100):
            begun.append(n)
            yield n

    with pytest.raises(BadRequest, match="six is not to be had"):
        list(each.run(sixth_fails, told()))
    assert len(begun) < 100  # a cluster may be late to tell


@pytest.mark.filterwarnings("ignore")
def test_blas_has_one_thread_inside_a_task(each, monkeypatch):
    """However many it has outside, and whatever the environment says."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    with threadpool_limits(2, user_api="blas"):
        for _, threads in each.run(blas_threads, range(3)):
            assert threads == {1}


@pytest.mark.filterwarnings("ignore")
def test_results_do_not_pile_up_while_nobody_fetches_them(each):
    """Tasks are taken one by one: never more than workers + 1 beyond those that were fetched."""
    taken = []

    def told() -> Iterator[int]:
        for n in range(20):
            taken.append(n)
            yield n

    for fetched, _ in enumerate(each.run(square, told())):
        assert len(taken) <= fetched + 1 + each.workers + 1
        time.sleep(0.005)
    assert taken == list(range(20))


@pytest.mark.filterwarnings("ignore")
def test_workers_that_join_a_cluster_are_given_work(cluster):
    taken, most = [], 0
    local = cluster.client.cluster

    def told() -> Iterator[int]:
        for n in range(20):
            taken.append(n)
            yield n

    try:
        for fetched, _ in enumerate(cluster.run(square, told())):
            most = max(most, len(taken) - fetched)
            if fetched == 2:
                assert most == 4  # this one, two at work, one waiting
                local.scale(4)
                cluster.client.wait_for_workers(4, timeout=30)
        assert most == 6
    finally:
        local.scale(2)


def test_a_scheduler_too_busy_to_say_who_works_loses_nothing(cluster, monkeypatch):
    ask, asked = cluster.client.nthreads, iter(range(1_000))

    def busy(*_):
        if next(asked) in (2, 3, 5):
            raise TimeoutError("no answer in 30 s")
        return ask()

    monkeypatch.setattr(cluster.client, "nthreads", busy)
    assert dict(cluster.run(square, range(12))) == {n: n * n for n in range(12)}
    assert next(asked) > 6


def test_tasks_of_threads_run_at_the_same_time():
    """Two tasks that wait for each other end."""
    meeting = threading.Barrier(2, timeout=20)
    assert len(list(Threads(2).run(lambda _: meeting.wait(), range(2)))) == 2


def test_a_failure_waits_for_threads_that_are_under_way():
    """Who catches the error must not find them still writing."""
    ended = []

    def slow(n: int) -> None:
        if n == 0:
            raise BadRequest("no")
        time.sleep(0.2)
        ended.append(n)

    with pytest.raises(BadRequest):
        list(Threads(2).run(slow, range(2)))
    assert ended in ([1], [])
    time.sleep(0.3)
    assert ended in ([1], [])


def test_blas_threads_are_given_back_afterwards():
    before = [pool["num_threads"] for pool in threadpool_info()]
    list(Threads(1).run(square, range(2)))
    assert [pool["num_threads"] for pool in threadpool_info()][: len(before)] == before
    held = dict(os.environ)
    list(Processes(1).run(square, range(1)))
    assert dict(os.environ) == held


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_process_that_dies_is_told_in_words():
    with pytest.raises(WorkerLost, match=r"a worker process died before its work was done.*fewer --workers"):
        list(Processes(1).run(dies, range(2)))


ORPHAN = """
import sys, time
sys.path.insert(0, {tests!r})
from covector.engine import Processes
from engine_tasks import told_and_asleep
if __name__ == "__main__":
    for _ in Processes(1).run(told_and_asleep, [sys.argv[1]]):
        pass
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_processes_end_with_their_parent_even_if_it_was_killed(tmp_path):
    (tmp_path / "engine_tasks.py").write_text(
        "import os, time\n"
        "def told_and_asleep(path):\n"
        "    open(path + '.new', 'w').write(str(os.getpid())); os.rename(path + '.new', path); time.sleep(600)\n"
    )
    (tmp_path / "main.py").write_text(ORPHAN.format(tests=str(tmp_path)))
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, str(tmp_path / "main.py"), str(told)])
    _until(told.exists)
    child = int(told.read_text())
    parent.kill()
    parent.wait()
    _until(lambda: not _lives(child))


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(happens: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_engines_are_named():
    assert engine("threads", 3) == Threads(3)
    assert engine("processes", 1) == Processes(1)
    assert engine("threads").workers >= 1
    assert Threads(1).shares_memory
    assert not Processes(1).shares_memory


def test_other_names_and_no_workers_are_refused():
    with pytest.raises(BadRequest, match=r"expected --engine threads, processes or dask://host:port, got 'gpu'"):
        engine("gpu")
    with pytest.raises(BadRequest, match=r"expected --workers >= 1, got 0"):
        engine("threads", 0)
    with pytest.raises(BadRequest, match=r"expected --workers with threads or processes, got it with dask://nobody:1"):
        engine("dask://nobody:1", 2)


def test_dask_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtra, match=r"pip install 'covector\[cluster\]'"):
        engine("dask://127.0.0.1:1")


@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_that_does_not_answer_is_told(monkeypatch):
    import distributed

    def nobody(*_: Any, **__: Any) -> None:
        raise OSError("Timed out trying to connect")

    monkeypatch.setattr(distributed.Client, "__init__", nobody)
    with pytest.raises(BadRequest, match=r"expected a Dask scheduler at 'tcp://127.0.0.1:1', nobody answers"):
        engine("dask://127.0.0.1:1")


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_without_workers_is_told(cluster, monkeypatch):
    monkeypatch.setattr(cluster.client, "nthreads", dict)
    with pytest.raises(WorkerLost, match="the Dask cluster has no workers"):
        list(cluster.run(square, [1]))
