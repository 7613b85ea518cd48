"""Long work beside the page: in order, watched, ended when asked, and never the end of the server."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.render import Column, Curve, Table
from covector.render.picture_data import picture_data
from covector.web import jobs as module
from covector.web.jobs import Job, Jobs
from covector.web.results import films_of, result_of, tables_in

# A stand-in for the process that runs commands: the first word says what it does, the second is given to it.
WORKER = """
import json, os, subprocess, sys, time
for line in sys.stdin:
    what, *more = json.loads(line)["arguments"]
    code, said = 0, ""
    if what == "say":
        print("covector: 1 of 4, 3 s left", file=sys.stderr, flush=True)
        while not os.path.exists(more[0]):
            time.sleep(0.01)
    elif what == "sleep":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(more[0], "w").write(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    elif what == "crash":
        print("the last words", file=sys.stderr, flush=True)
        os._exit(3)
    elif what == "write":
        open(more[0], "w").write(more[1])
    elif what == "refuse":
        code, said = 2, "covector: expected something else"
    elif what == "pid":
        open(more[0], "w").write(str(os.getpid()))
    print(json.dumps({"code": code, "said": said}), flush=True)
"""
PATIENCE = 20.0


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    """Jobs whose process is the stand-in."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    made = Jobs((str(script),))
    yield made
    made.close()


def until(happens: Callable[[], object], what: str) -> None:
    """Wait until it happens; fail after `PATIENCE` seconds."""
    end = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < end, f"expected {what} within {PATIENCE} s"
        time.sleep(0.01)


def ask(jobs: Jobs, *words: str) -> Job:
    return jobs.ask(
        "question", "covector …", "covector.…", lambda folder: [w.replace("{folder}", str(folder)) for w in words]
    )


def ended(job: Job) -> bool:
    return job.state in ("done", "failed", "cancelled")


def is_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that nobody has waited for has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # before the file was opened, or after
        return True


def test_jobs_run_one_after_another_in_the_order_they_were_asked_for(jobs: Jobs, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first, second = ask(jobs, "say", str(gate)), ask(jobs, "pid", "{folder}/p")
    until(lambda: first.state == "running", "the first to run")
    time.sleep(0.1)
    assert second.state == "queued"
    gate.touch()
    until(lambda: ended(second), "both to end")
    assert (first.state, second.state) == ("done", "done")


def test_progress_is_the_last_line_that_the_command_says_without_our_name(jobs: Jobs, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = ask(jobs, "say", str(gate))
    until(lambda: job.progress, "progress")
    assert job.told()["progress"] == "1 of 4, 3 s left"
    gate.touch()
    until(lambda: ended(job), "the end")
    assert job.told()["progress"] == ""


def test_two_commands_share_one_process_so_that_imports_are_paid_once(jobs: Jobs, tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    asked = [ask(jobs, "pid", str(p)) for p in places]
    until(lambda: all(map(ended, asked)), "the end")
    assert places[0].read_text() == places[1].read_text()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_cancel_ends_the_process_with_what_it_started_and_the_next_job_runs(jobs: Jobs, tmp_path: Path) -> None:
    told = tmp_path / "pids"
    job, after = ask(jobs, "sleep", str(told)), ask(jobs, "pid", "{folder}/p")
    until(lambda: told.exists() and len(told.read_text().split()) == 2, "its process")
    pids = [int(p) for p in told.read_text().split()]
    assert jobs.cancel(job.id).state == "cancelled"
    until(lambda: all(map(is_gone, pids)), "the process and its child to be gone")
    until(lambda: ended(after), "the next job")
    assert (job.state, after.state, job.error) == ("cancelled", "done", "")


def test_a_job_that_waits_can_be_cancelled_and_never_runs(jobs: Jobs, tmp_path: Path) -> None:
    gate, never = tmp_path / "gate", tmp_path / "never"
    first, second, third = ask(jobs, "say", str(gate)), ask(jobs, "pid", str(never)), ask(jobs, "pid", "{folder}/p")
    jobs.cancel(second.id)
    gate.touch()
    until(lambda: ended(third), "the end")
    assert (first.state, second.state, never.exists()) == ("done", "cancelled", False)


def test_cancelling_what_has_ended_changes_nothing(jobs: Jobs) -> None:
    job = ask(jobs, "pid", "{folder}/p")
    until(lambda: ended(job), "the end")
    assert jobs.cancel(job.id).state == "done"


def test_a_process_that_crashes_is_told_with_its_last_words_and_the_next_job_has_a_new_one(jobs: Jobs) -> None:
    crashed, after = ask(jobs, "crash"), ask(jobs, "pid", "{folder}/p")
    until(lambda: ended(after), "the end")
    assert crashed.state == "failed"
    assert "ended (3)" in crashed.error
    assert after.state == "done"


def test_a_refused_command_fails_with_the_one_line_that_it_said(jobs: Jobs) -> None:
    job = ask(jobs, "refuse")
    until(lambda: ended(job), "the end")
    assert (job.state, job.error, job.results) == ("failed", "expected something else", [])


@pytest.mark.parametrize("text", ["no JSON", "[1, 2]", '{"meta": {}, "rows": 3}', ""])
def test_a_result_that_cannot_be_read_fails_its_job_and_not_the_next(jobs: Jobs, text: str) -> None:
    bad, after = ask(jobs, "write", "{folder}/bad.json", text), ask(jobs, "pid", "{folder}/p")
    until(lambda: ended(after), "the end")
    assert bad.state == "failed"
    assert bad.error.startswith("the result cannot be read")
    assert after.state == "done"


def test_results_come_with_the_values_of_their_pictures(tmp_path: Path) -> None:
    table = Table([Column("x", np.array([1.0, 2.0]), "m", 1, "a length")], {"analysis": "small"}, title="Small")
    table.save(tmp_path / "small.json")
    drawn = picture_data(Curve(np.array([0.0, 1.0]), np.array([[1.0, np.nan]]), ["a"], "x", "y", "", ""))
    (tmp_path / "small.picture.json").write_text(json.dumps(drawn))
    (found,) = map(result_of, tables_in(tmp_path))
    assert found["title"] == "Small"
    assert found["columns"][0]["values"] == [1.0, 2.0]
    assert found["picture"] == drawn


def test_a_picture_of_no_known_kind_is_no_result(tmp_path: Path) -> None:
    Table([Column("x", np.array([1.0]))], {"analysis": "small"}).save(tmp_path / "small.json")
    (tmp_path / "small.picture.json").write_text('{"kind": "script", "x": "alert(1)"}')
    with pytest.raises(Exception, match="expected the values of a picture"):
        list(map(result_of, tables_in(tmp_path)))


def test_films_are_those_of_the_folder_by_number(tmp_path: Path) -> None:
    for name in ("b.gif", "a.mp4", "c.txt", "d.html"):
        (tmp_path / name).touch()
    assert [p.name for p in films_of(tmp_path)] == ["a.mp4", "b.gif"]
    assert films_of(tmp_path / "none") == []


def test_a_refused_form_leaves_no_job_and_no_folder(jobs: Jobs) -> None:
    seen: list[Path] = []

    def refused(folder: Path) -> list[str]:
        seen.append(folder)
        raise BadRequest("expected a value")

    with pytest.raises(BadRequest, match="expected a value"):
        jobs.ask("question", "", "", refused)
    assert not seen[0].exists()
    with pytest.raises(BadRequest, match="is none"):
        jobs.job(1)


def test_more_jobs_than_may_wait_are_refused(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    for _ in range(2):
        ask(jobs, "say", str(tmp_path / "gate"))
    with pytest.raises(BadRequest, match="at most 2"):
        ask(jobs, "say", str(tmp_path / "gate"))
    (tmp_path / "gate").touch()


def test_old_jobs_are_forgotten_with_their_folders(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 2)
    asked = []
    for _ in range(4):
        asked.append(ask(jobs, "pid", "{folder}/p"))
        until(lambda: ended(asked[-1]), "the end")
    assert [job.folder.exists() for job in asked] == [False, False, True, True]
    with pytest.raises(BadRequest, match="1 is none"):
        jobs.job(asked[0].id)


def test_closing_removes_every_folder_and_ends_the_process(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    made, told = Jobs((str(script),)), tmp_path / "pids"
    job = ask(made, "sleep", str(told))
    until(lambda: told.exists() and len(told.read_text().split()) == 2, "its process")
    made.close()
    assert not job.folder.exists()
    assert not job.folder.parent.exists()
    if Path("/proc").is_dir():
        until(lambda: all(is_gone(int(p)) for p in told.read_text().split()), "the processes to be gone")
