"""The examples run as a newcomer runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_an_example_runs_and_ends_well(script: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 10


@pytest.mark.slow
def test_the_newcomer_sees_ten_steps_and_the_same_svd(tmp_path: Path) -> None:
    script = ROOT / "examples" / "newcomer.py"
    out = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    steps = out.splitlines()
    assert [line.split(".")[0].strip() for line in steps] == [str(n) for n in range(1, 11)]
    assert "in frame raw: " in steps[7]
    assert "dyads agree to" in steps[7]
    assert steps[9].endswith("the same True")
