"""SciPy's linear algebra for whoever needs it, and a limit on BLAS threads that holds for it as well.

Importing `scipy.linalg` takes a quarter of a second, as long as reading a head of a model takes, and a head that its
Grams decompose needs nothing of it. It comes with a BLAS of its own: what limits threads must find it loaded.
"""

from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits


@cache
def scipy_linalg() -> ModuleType:
    """The module `scipy.linalg`, imported when it is first asked for.

    Its BLAS comes to life with no more threads than those have that are here: a limit in force holds for it too.
    """
    before = ThreadpoolController().select(user_api="blas").lib_controllers
    import scipy.linalg

    known = {library.filepath for library in before}
    new = [p["filepath"] for p in threadpool_info() if p["user_api"] == "blas" and p["filepath"] not in known]
    if before and new:
        ThreadpoolController().select(filepath=new).limit(limits=max(library.num_threads for library in before))
    return scipy.linalg


@cache
def lapack(*names: str) -> tuple[Any, ...]:
    """LAPACK's functions of these names for float64."""
    return tuple(scipy_linalg().get_lapack_funcs(names, dtype=np.float64))


def at_most_threads(most: int | None) -> threadpool_limits:
    """A context in which every library works on at most so many threads, SciPy's BLAS too; None: no limit.

    It holds from the call on; whoever does not enter it keeps it.
    """
    scipy_linalg()
    return threadpool_limits(most)


@cache
def thread_pools() -> ThreadpoolController:
    """All libraries with threads, for whoever limits them often: finding them takes a hundred times as long."""
    scipy_linalg()
    return ThreadpoolController()
