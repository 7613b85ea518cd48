"""An edit against its random controls: does it do more than a random edit of the same size, and how much more?

Controls are drawn at random and have fewer episodes: the first n_c of the edit's n seeds. Two answers. The rank on
those n_c seeds, where edit and controls carry the same noise: exact. And how far the edit's effect lies from the
controls' in units of the spread of their *true* effects, noise of episodes taken out: a model.

Source: `docs/theory/rollouts.md`, equations 12–18; Weerahandi, JASA 88 (1993), for the interval.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.clustered import Share, clustered_share
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.matched import two_sided_p
from covector.linalg.trials.resample import DRAWS, LEVEL, ROUNDING, in_range

Arm = Float[np.ndarray, " n"]
Controls = Float[np.ndarray, "control m"]


@dataclass(frozen=True, eq=False)
class Ranked:
    """An edit among its controls on the seeds that all of them ran.

    `edit` and `controls` are mean differences from the clean arm there. `p_low`: as low as the edit, `p_high`: as high,
    `p`: as far from the clean arm on either side. `as_low` and `as_high` are the shares of controls, with intervals.
    """

    seeds: int
    edit: float
    controls: Float[np.ndarray, " control"]
    p_low: float
    p_high: float
    p: float
    as_low: Share
    as_high: Share


def rank_among(clean: Arm, edit: Arm, controls: Controls, level: float = LEVEL) -> Ranked:
    """Rank of the edit among its controls (equation 12). `clean` and `edit` have n seeds, each control the first m ≤ n.

    The three p are exact if the edit is one more draw of what makes controls, at least 1/(controls + 1), ties counted;
    each answers one question chosen beforehand. The shares' intervals (Clopper–Pearson) are about all controls that
    could be drawn, measured on these seeds, for this measured edit; they cover at the level or above. Raises BadRequest
    for no controls, more seeds than the edit has, values that are not finite.
    """
    m = _check(clean, edit, controls, least=(1, 1))
    here = float(np.mean(edit[:m] - clean[:m]))
    effects = (controls - clean[:m]).mean(axis=1)
    slack = ROUNDING * float(max(np.abs(clean).max(), np.abs(edit).max(), np.abs(controls).max()))
    low, high = effects <= here + slack, effects >= here - slack
    alone, number = np.arange(len(effects)), len(effects) + 1
    return Ranked(
        m, here, effects,
        (1 + int(low.sum())) / number, (1 + int(high.sum())) / number, two_sided_p(here, effects),
        clustered_share(low, alone, level), clustered_share(high, alone, level),
    )  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """True effects of controls: `mean` and standard deviation `sd` over all controls that could be drawn.

    `variance` is the unbiased estimate before the floor at 0 (it may be negative). `noise` is the variance that m
    episodes leave on a control's place among the others, `noise_df` how well that is known (degrees of freedom);
    `between` = variance + noise is what the measured effects show.
    """

    controls: int
    seeds: int
    mean: float
    sd: float
    variance: float
    noise: float
    noise_df: float
    between: float


def spread_of_controls(clean: Arm, controls: Controls) -> Spread:
    """Spread of the controls' true effects by moments (equations 13–15); `clean` holds at least the controls' seeds.

    Unbiased before the floor whatever the covariance of arms that share their seeds, if seeds are independent: what all
    controls share (the clean arm, the seed) cancels, and what is subtracted is the interaction of control and seed, not
    the larger variance of an effect. Raises BadRequest for fewer than two controls or two seeds.
    """
    m = _check(clean, clean, controls, least=(2, 2))
    C = len(controls)
    between = float(controls.mean(axis=1).var(ddof=1))
    own = controls - controls.mean(axis=0)
    own -= own.mean(axis=1, keepdims=True)
    each = np.sum(own**2, axis=0) / (C - 1)
    interaction = float(each.sum()) / (m - 1)
    # The variance of a mean square, from its parts seed by seed: heavy tails and correlated controls count.
    uncertain = m * float(each.var(ddof=1)) / (m - 1) ** 2
    most = float((C - 1) * (m - 1))
    df = most if uncertain <= 0 else float(np.clip(2 * interaction**2 / uncertain, 1.0, most))
    variance = between - interaction / m
    mean = float(np.mean(controls - clean[:m]))
    return Spread(C, m, mean, float(np.sqrt(max(variance, 0.0))), variance, interaction / m, df, between)


@dataclass(frozen=True)
class Distance:
    """How far an edit's true effect lies from the controls' mean: `difference` with its ends, and in `spreads`.

    `spreads` = difference / sd of the controls' true effects, with its ends; they are infinite where the controls may
    all do the same. `edit` is the effect on all n seeds.
    """

    edit: float
    difference: float
    difference_low: float
    difference_high: float
    spreads: float
    low: float
    high: float
    controls: Spread


def distance_from_controls(
    clean: Arm, edit: Arm, controls: Controls, *, draws: int = DRAWS, seed: Seed = 0, level: float = LEVEL
) -> Distance:
    """The edit (measured on all its seeds) from the controls' mean, in spreads of true control effects.

    A model, not a test: true effects of controls are normal, seeds independent (equations 16–18); the interval is
    Weerahandi's, from `draws` draws of what the data leave open. With few controls it is wide: 20 controls know their
    spread to about ± 30 %. Raises BadRequest as `spread_of_controls`.
    """
    in_range(draws, level)
    m = _check(clean, edit, controls, least=(2, 2))
    n, found = len(edit), spread_of_controls(clean, controls)
    effect = edit - clean
    difference = float(effect.mean()) - found.mean
    # One seed's part in the difference: it has both arms on the first m seeds, the edit's alone on the others.
    common = controls.mean(axis=0) - clean[:m]
    parts = m * float(np.var(effect[:m] / n - common / m, ddof=1))
    parts += (n - m) * float(np.var(effect, ddof=1)) / n**2
    rng, C = generator(seed, "distance from controls"), found.controls
    open_variance = found.between * (C - 1) / rng.chisquare(C - 1, draws)
    open_variance -= found.noise * found.noise_df / rng.chisquare(found.noise_df, draws)
    sd = np.sqrt(np.maximum(open_variance, 0.0))
    moved = difference - rng.standard_t(m - 1, draws) * np.sqrt(parts) - rng.standard_normal(draws) * sd / np.sqrt(C)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(moved, tails)
    spread_low, spread_high = np.quantile(_in_spreads(moved, sd), tails, method="nearest")
    spreads = float(_in_spreads(np.array([difference]), np.array([found.sd]))[0])
    return Distance(
        float(effect.mean()), difference, float(low), float(high), spreads, float(spread_low), float(spread_high), found
    )


def _in_spreads(moved: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """moved/sd; infinite with the sign of `moved` where sd is 0, and 0 where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(moved == 0, 0.0, moved / sd)


def _check(clean: np.ndarray, edit: np.ndarray, controls: np.ndarray, least: tuple[int, int]) -> int:
    """The number of seeds that the controls ran."""
    number, m = controls.shape
    if number < least[0] or m < least[1] or m > min(len(clean), len(edit)) or len(clean) < len(edit):
        raise BadRequest(
            f"expected at least {least[0]} controls on {least[1]} or more of the seeds of the clean arm and the edit, "
            f"came {number} on {m}, clean {len(clean)}, edit {len(edit)}"
        )
    if not all(np.all(np.isfinite(arm)) for arm in (clean, edit, controls)):
        raise BadRequest("expected finite values; leave a seed that was not finished out of every arm")
    return m
