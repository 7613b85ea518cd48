"""SciPy's linear algebra is loaded when it is needed, and a limit on threads finds its BLAS."""

import os
import subprocess
import sys

from threadpoolctl import threadpool_info

from covector.linalg.lapack import at_most_threads, lapack

HEAD = "import sys; from covector.cli.main import run; run(['svd', 'demo-lm', 'L3H0']); print('scipy' in sys.modules)"
LIMITED = """
import numpy
from threadpoolctl import threadpool_info
from covector.linalg.lapack import at_most_threads
before = {pool["filepath"] for pool in threadpool_info()}
with at_most_threads(1):
    import scipy.linalg
    told = [(pool["filepath"] in before, pool["num_threads"]) for pool in threadpool_info()]
    print(all(n == 1 for _, n in told), sum(not was for was, _ in told))
"""

CALLERS = """
import contextlib, sys
import numpy
from threadpoolctl import threadpool_info, threadpool_limits
from covector.linalg.lapack import lapack
with threadpool_limits(1) if sys.argv[1:] else contextlib.nullcontext():
    lapack("gejsv")
    print({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"})
"""


def said(program: str, *arguments: str) -> str:
    many = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    words = [sys.executable, "-c", program, *arguments]
    found = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True, env=os.environ | many)
    return found.stdout.strip().splitlines()[-1]


def test_a_head_is_read_without_loading_scipy() -> None:
    assert said(HEAD) == "False"


def test_a_blas_that_was_not_loaded_before_is_limited_too() -> None:
    """SciPy's wheels bring a library of their own; where it shares NumPy's there is none to be added."""
    limited, added = said(LIMITED).split()
    assert limited == "True"
    assert int(added) in (0, 1)


def test_a_limit_of_the_caller_holds_for_a_blas_that_is_loaded_under_it() -> None:
    assert said(CALLERS, "limited") == "{1}"
    assert said(CALLERS) == f"{{{min(2, os.cpu_count() or 1)}}}"


def test_limits_are_taken_back() -> None:
    lapack("potrf")
    before = [pool["num_threads"] for pool in threadpool_info()]
    with at_most_threads(1):
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    assert [pool["num_threads"] for pool in threadpool_info()] == before
