"""Pictures of an experiment with an agent: who still lives, the edit among its controls, achieved against asked."""

import numpy as np

from covector.analyses.rollout import Experiment
from covector.analyses.rollout_arms import CLEAN, KINDS
from covector.linalg.trials.survival import kaplan_meier
from covector.render import Curve, Scatter


def survival(x: Experiment) -> Curve:
    """Share of episodes that have not failed, step by step (Kaplan–Meier); the band is the clean agent's interval.

    Where no episode ends in a failure but some are successes: the share that has not succeeded yet.
    """
    names = [CLEAN, *(arm.name for arm in x.arms)]
    fails = any(x.failed(name).any() for name in names) or x.agent.success is None
    ends = {name: (x.times(name), x.failed(name)) if fails else _to_success(x, name) for name in names}
    last = max(float(times.max()) for times, _ in ends.values())
    steps = np.unique(np.round(np.linspace(0, last, 400)))
    curves = [kaplan_meier(*ends[name]) for name in names]
    clean = curves[0]
    places = np.searchsorted(clean.time, steps, side="right") - 1
    low, high = (np.where(places >= 0, ends[places.clip(0)], 1.0) if len(ends) else np.ones(len(steps))
                 for ends in (clean.low, clean.high))  # fmt: skip
    return Curve(
        steps, np.array([c.at(steps) for c in curves]), names, "step of the episode",
        "share that has not failed" if fails else "share that has not succeeded yet",
        "", "", band=(low, high), band_name="95 % of clean",
    )  # fmt: skip


def _to_success(x: Experiment, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Times to success and whether it came; an episode without it is censored at its length."""
    return x.lengths(arm), np.array([bool(e.success) for e in x.of(arm)])


def effects_among_controls(x: Experiment) -> Scatter:
    """Change of return against share of changed actions: every control a point, the edits with their names."""
    n, points = x.options.control_episodes, []
    clean = x.returns(CLEAN, count=n)
    for name in [*x.controls, *(arm.name for arm in x.arms)]:
        kind = KINDS[name.split("/")[-2]].replace("random", "random change") if name in x.controls else "edit"
        effect = float((x.returns(name, count=n) - clean).mean())
        points.append((x.diverged[name][0], effect, name if kind == "edit" else "", kind))
    random = np.array([p[1] for p in points if p[3] == "random change"])
    band = (float(np.quantile(random, 0.025)), float(np.quantile(random, 0.975))) if len(random) else None
    shares, changes, labels, kinds = zip(*points, strict=True)
    return Scatter(
        np.array(shares), np.array(changes), "share of clean moments with another action",
        f"change of return on {n} seeds", "", "", labels, kinds, band=band, band_name="95 % of random changes",
    )  # fmt: skip


def calibrated(x: Experiment) -> Curve:
    """Mean return over the return asked for, one curve per arm; obedience is the diagonal curve."""
    targets = np.array(sorted(x.targets))
    names = [CLEAN, *(arm.name for arm in x.arms)]
    ys = [[float(x.returns(name, t).mean()) for t in targets] for name in names]
    return Curve(targets, np.array([*ys, targets]), [*names, "as asked"], "return asked for", "mean return", "", "")
