"""SciPy's linear algebra for whoever needs it, and a limit on BLAS threads that holds for it as well.

Importing `scipy.linalg` takes a quarter of a second, as long as reading a head of a model takes, and a head that its
Grams decompose needs nothing of it. It comes with a BLAS of its own: what limits threads must find it loaded.
"""

from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController, threadpool_limits


@cache
def scipy_linalg() -> ModuleType:
    """The module `scipy.linalg`, imported when it is first asked for."""
    import scipy.linalg

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
