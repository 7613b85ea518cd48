"""Bootstrap samples that serve many columns at once, and the BCa interval of any statistic of them.

Source: Efron, "Better bootstrap confidence intervals", JASA 82 (1987); `docs/theory/rollouts.md`, equations 4–5.
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import ndtr, ndtri

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.streams import Seed, generator

DRAWS = 10_000
LEVEL = 0.95
# Draws made together: 300 episodes are 2.4 MB.
BLOCK = 1000
# Sums of the same terms in another order differ by less than this share of their size.
ROUNDING = 1e-12


def in_range(draws: int, level: float) -> None:
    """Refuse a number of draws or a level that means nothing."""
    if draws < 1 or not 0 < level < 1:
        raise BadRequest(f"expected draws >= 1 and a level in (0, 1), got draws {draws} and level {level:g}")


def counts(n: int, *, draws: int, seed: Seed) -> Iterator[Float[np.ndarray, "draws n"]]:
    """How often each of n units is drawn in a sample of n with replacement, in blocks of draws; rows sum to n.

    The same seed gives the same samples to every statistic, so that two of them can be compared draw by draw.
    """
    for block, first in enumerate(range(0, draws, BLOCK)):
        size = min(BLOCK, draws - first)
        # A whole block is drawn and cut: the first draws do not depend on how many are asked for.
        drawn = generator(seed, "trials bootstrap", block).integers(n, size=(BLOCK, n))[:size]
        flat = np.bincount((drawn + n * np.arange(size)[:, None]).ravel(), minlength=size * n)
        yield flat.reshape(size, n).astype(np.float64)


def bca(
    boot: Float[np.ndarray, "*batch draws"],
    observed: Float[np.ndarray, "*batch"],
    influence: Float[np.ndarray, "*batch n"],
    level: float = LEVEL,
) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """Both ends of the bias-corrected and accelerated interval (equation 5); second order accurate, not exact.

    `boot` is the statistic in bootstrap samples (NaN, where a sample does not define it, is left out); `influence`
    what each unit does to it, up to a common factor: value − mean for a mean, mean of the jackknife − jackknife value
    in general. Where all samples agree the interval is a point; where all lie on one side of `observed` the bias is
    taken as that of half a draw on the other. NaN without a finite draw.
    """
    shape = boot.shape[:-1]
    ordered = np.sort(boot.reshape(-1, boot.shape[-1]), axis=-1)
    influence = influence.reshape(len(ordered), -1)
    observed = np.broadcast_to(observed, shape).reshape(-1)
    kept = np.sum(~np.isnan(ordered), axis=-1)
    size = np.abs(ordered - observed[..., None])
    slack = ROUNDING * np.max(size, axis=-1, initial=0.0, where=~np.isnan(size))[:, None]
    below = np.sum(ordered < observed[..., None] - slack, axis=-1)
    tied = np.sum(size <= slack, axis=-1)
    draws = np.maximum(kept, 1)
    z0 = ndtri(np.clip((below + tied / 2) / draws, 0.5 / draws, 1 - 0.5 / draws))
    square = np.sum(influence**2, axis=-1)
    cube = np.sum(influence**3, axis=-1)
    a = np.divide(cube, 6 * square**1.5, out=np.zeros_like(square), where=square > 0)
    ends = [_quantile(ordered, kept, _adjusted(z0, a, share)) for share in ((1 - level) / 2, (1 + level) / 2)]
    low, high = (end.reshape(shape) for end in ends)
    return low, high


def _adjusted(z0: np.ndarray, a: np.ndarray, share: float) -> np.ndarray:
    moved = z0 + ndtri(share)
    room = 1 - a * moved
    # |a| ≤ 1/6: room is positive at usual levels; at extreme ones the end is that of all draws.
    return np.where(room > 0, ndtr(z0 + moved / np.where(room > 0, room, 1.0)), (moved > 0).astype(np.float64))


def _quantile(ordered: np.ndarray, kept: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Linear between order statistics, a share of its own for each row; NaN last and left out."""
    place = share * np.maximum(kept - 1, 0)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, np.maximum(kept - 1, 0))
    first, second = (np.take_along_axis(ordered, at[..., None], axis=-1)[..., 0] for at in (low, high))
    return first + (place - low) * (second - first)


def mean_interval(
    values: Float[np.ndarray, "*batch n"], *, draws: int = DRAWS, seed: Seed = 0, level: float = LEVEL
) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """BCa interval of each mean over the last axis; every row is resampled by the same draws.

    Values that are all alike have an interval of no width: the sample says nothing of others. Cost: draws·n·batch
    multiplications. Raises BadRequest for no values, values that are not finite, draws < 1 or a level outside (0, 1).
    """
    in_range(draws, level)
    finite(values)
    mean = np.asarray(values.mean(axis=-1))
    centred = values - mean[..., None]
    n = values.shape[-1]
    boot = np.concatenate([centred @ c.T for c in counts(n, draws=draws, seed=seed)], axis=-1) / n
    low, high = bca(boot, np.zeros_like(mean), centred, level)
    return np.asarray(mean + low), np.asarray(mean + high)


def finite(values: np.ndarray) -> None:
    """Refuse no values, or some that are not finite."""
    if values.shape[-1] < 1 or not np.all(np.isfinite(values)):
        raise BadRequest(
            f"expected at least one value in each arm, all finite, got shape {values.shape}; leave a seed that was "
            "not finished out of every arm"
        )
