"""Intervals of a mean over few, and dependent, measurements."""

import numpy as np

from covector.axes import Float, Int

LEVEL = 0.95


def half_width(
    values: Float[np.ndarray, "*batch n"], clusters: Int[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, "*batch"]:
    """Half the 95 % interval of each mean over the last axis, by Student's t; NaN where there is one cluster.

    `clusters` numbers measurements that depend on each other (the same names under several templates): the interval is
    then made from the clusters' sums of deviations from the mean, on as many degrees of freedom as there are clusters,
    less one. Exact for normal clusters of equal size. Rows that were chosen for their size have optimistic intervals.
    """
    # Imported here: scipy.special adds 0.05 s to every start.
    from scipy.special import stdtrit

    # A larger cluster has a larger sum; only its sum of deviations says how uncertain the mean is.
    sums = cluster_sums(values - values.mean(axis=-1, keepdims=True), clusters)
    g, n = sums.shape[-1], values.shape[-1]
    if g < 2:
        return np.full(values.shape[:-1], np.nan)
    # The mean over all is Σ sums / n; its variance that of a sum of g independent terms.
    return np.asarray(stdtrit(g - 1, 0.5 + LEVEL / 2) * sums.std(axis=-1, ddof=1) * np.sqrt(g) / n)


def cluster_sums(
    values: Float[np.ndarray, "*batch n"], clusters: Int[np.ndarray, " n"] | None
) -> Float[np.ndarray, "*batch g"]:
    """Sums over the measurements of each cluster; the values themselves without clusters."""
    if clusters is None:
        return values
    names = np.unique(clusters)
    return np.stack([values[..., clusters == name].sum(axis=-1) for name in names], axis=-1)
