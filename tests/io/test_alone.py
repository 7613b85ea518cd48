"""A folder has one writer: a second is told so, and a killed one leaves nothing behind."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from covector.errors import BadRequest
from covector.io.alone import alone

HOLDER = """
import sys, time
from pathlib import Path
from covector.io.alone import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BadRequest, match="another covector is writing to it") as refused, alone(tmp_path):
        pass
    assert len(str(refused.value).splitlines()) == 1
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with alone(tmp_path):
        assert not list(tmp_path.iterdir()), "no file says that it is held"


def test_it_is_free_again_after_an_error_and_for_other_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with alone(tmp_path), alone(tmp_path / "a"):
        pass
    with pytest.raises(RuntimeError), alone(tmp_path):
        raise RuntimeError
    with alone(tmp_path), pytest.raises(BadRequest, match="--out"), alone(tmp_path):
        pass
