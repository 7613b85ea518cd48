"""The largest entries of every row, by way of groups: no row is sorted, and few entries are looked at twice.

Each row is cut into strided groups; those with the largest maxima hold a valid set of largest entries (an element
elsewhere that beats the last of them would give its group a larger maximum). Selection by groups follows Chern et al.
2022, here with whole groups kept, hence exact.
"""

import numpy as np

# Strided groups per row: 1024 of about 49 tokens for GPT-2; gathering a few of them then costs less than one pass.
GROUPS = 1024


def largest_in_groups(screened: np.ndarray, wanted: int, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and values of the `wanted` largest ``sign · screened`` per row, falling; none left out beats the last one."""
    rows, n = screened.shape
    size = n // GROUPS
    if size < 2 or wanted * 4 > GROUPS:
        return _largest(screened if sign > 0 else -screened, np.broadcast_to(np.arange(n), screened.shape), wanted)
    grouped = screened[:, : size * GROUPS].reshape(rows, size, GROUPS)
    maxima = grouped.max(axis=1) if sign > 0 else -grouped.min(axis=1)
    groups = np.argpartition(maxima, GROUPS - wanted, axis=1)[:, GROUPS - wanted :]
    ids = np.empty((rows, wanted * size + n - size * GROUPS), np.int64)
    ids[:, : wanted * size] = (groups[:, None, :] + GROUPS * np.arange(size)[:, None]).reshape(rows, -1)
    ids[:, wanted * size :] = np.arange(size * GROUPS, n)
    values = screened.reshape(-1).take(ids + n * np.arange(rows)[:, None])
    return _largest(values if sign > 0 else -values, ids, wanted)


def _largest(values: np.ndarray, ids: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    n = values.shape[1]
    if wanted < n:
        chosen = np.argpartition(values, n - wanted, axis=1)[:, n - wanted :]
        values, ids = np.take_along_axis(values, chosen, axis=1), np.take_along_axis(ids, chosen, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1)
