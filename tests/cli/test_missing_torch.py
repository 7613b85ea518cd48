"""Without torch, commands that run a model say what to install; those that read weights work."""

import subprocess
import sys

BLOCK = "import sys; sys.modules['torch'] = None; from covector.cli.main import run; sys.exit(run(sys.argv[1:]))"
TASK = "' she' - ' he'"


def without_torch(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCK, *words], capture_output=True, text=True)


def test_a_command_that_runs_a_model_says_what_to_install() -> None:
    done = without_torch("observe", "paths", "demo-lm", TASK, "--template", "[N] is", "--fill", "N=Mary:John")
    assert done.returncode == 2
    assert "expected torch, torch is missing; pip install 'covector[run]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_norms_are_read_from_weights_alone() -> None:
    done = without_torch("observe", "norms", "demo-lm", TASK)
    assert done.returncode == 0, done.stderr
    assert "L2H3" in done.stdout
