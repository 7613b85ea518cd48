"""What an experiment with an agent gave: by arm and by control.

Source: theory page F14; `docs/theory/rollouts.md`, equations 1–20.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from covector.analyses.rollout import Experiment
from covector.analyses.rollout_arms import CLEAN, CONTROL, DYAD, KINDS, NORMED, SHAM
from covector.analyses.rollout_picture import effects_among_controls, survival
from covector.analyses.rollout_words import said_by_arm, said_by_control
from covector.errors import BadRequest
from covector.linalg.chance import holm
from covector.linalg.matched import two_sided_p
from covector.linalg.trials.controls import distance_from_controls, rank_among
from covector.linalg.trials.paired import paired_difference, paired_shares
from covector.linalg.trials.power import detectable_difference
from covector.linalg.trials.resample import ROUNDING, mean_interval
from covector.linalg.trials.survival import paired_log_rank
from covector.render import Column, Table

NAN = float("nan")


def by_arm(x: Experiment) -> Table:
    """One row per arm (and return asked for): returns, what changed against clean on the same seeds, and controls.

    ``change`` is paired, with BCa interval and two-sided sign-flip p; ``holm`` over the edits. ``worse`` is the share
    of random changes of equal output that lower the return as much or more on the controls' seeds, ``p_random`` the
    rank of the edit among them, low side; ``p_dyads`` the same among the other dyads; ``spreads`` how many standard
    deviations of true control effects the edit lies from their mean (a model). ``other`` is the share of clean moments
    at which the arm would act otherwise, ``p_other`` its rank among the random changes. ``p_time``: log-rank of time
    to failure, labels swapped within seeds. ``finds``: the smallest paired change found with 80 % power at .05.
    Where edits could stop early ``change`` is median-unbiased and, with interval and p, corrected for the stop (by
    stages); ``plain`` is the mean; ``p_success``, ``p_time`` and the controls' ranks are of the episodes played.
    """
    rows = [r for target in x.targets for r in _arms(x, target)]
    edits = [r for r in rows if r["kind"] == "edit"]
    for name, of in (("holm", "p"), ("holm_random", "p_random")):
        tested = [r for r in edits if of in r]
        adjusted = holm(np.array([r[of] for r in tested])) if tested else []
        for row, value in zip(tested, adjusted, strict=True):
            row[name] = float(value)

    def column(name: str, unit: str = "", digits: int | None = 3, about: str = "", key: str | None = None) -> Column:
        return Column(name, np.array([r.get(key or name, NAN) for r in rows], dtype=np.float64), unit, digits, about)

    several = len(x.targets) > 1
    columns = [
        Column("arm", [r["arm"] for r in rows], about="clean: the agent as it is; sham: a change of zero"),
        *([column("asked", about="the return asked for")] if several else []),
        column("return", about="mean over episodes"),
        *([Column("decided", [_ended(x, r["arm"]) for r in rows], about="after how many episodes its change was clear"),
           Column("episodes", np.array([r["episodes"] for r in rows]))] if x.stopping else []),
        column("change", about="change of the return on the same seeds, arm − clean"
               + (": median-unbiased after stopping" if x.stopping else ": mean")),
        column("change_low", about="95 % interval of the change " + _interval(x)),
        column("change_high", about="upper end"),
        column("p", about="chance of a change as large if arm and clean were exchangeable (sign flips, two-sided)"
               + (", over all looks up to the stop" if x.stopping else "")),
        column("success", "", 2, about=f"share of episodes: {x.agent.success or 'no rule'}"),
        column("length", "steps", 1, "mean length of an episode"),
        column("other", "", 2, "share of clean moments at which it would act otherwise"),
        column("worse", "", 2, "share of random changes of equal output that lower the return as much or more"),
        column("p_random", about="rank of the edit among them, low side: (1 + as low) / (1 + controls)"),
        column("p_dyads", about="the same rank among the other dyads of the matrix, same ε"),
        column("p_norm", about="the same rank among random changes of equal ‖ΔM‖"),
        column("spreads", "sd", 1, "from the controls' mean, in sd of their true effects (a model); – without such"),
        column("holm", about="of p: Holm over the edits" + (" and targets" if several else "")),
        column("holm_random", about="of p_random: Holm over the edits"),
        column("low", about="95 % interval of the return (BCa)"),
        column("high", about="upper end"),
        column("p_success", about="McNemar, exact, on the same seeds"),
        column("p_time", about="time to failure: log-rank with labels swapped within seeds"),
        column("kl", "nats" if x.agent.discrete else "", 4,
               "KL(clean ‖ arm) of the action there; continuous actions: mean squared change"),
        column("p_other", about="share of random changes of equal output that change as many actions"),
        column("finds", about="smallest true change of the mean return found with 80 % power at .05"),
        column("score", "%", 1, "normalised: 0 a random policy, 100 an expert"),
        *([column("plain", about="mean change, too far from zero where an edit stopped early")] if x.stopping else
          [Column("episodes", np.array([r["episodes"] for r in rows]))]),
        Column("edit", [r["edit"] for r in rows], about="what is changed"),
    ]  # fmt: skip
    drop = {"score"} if x.agent.score is None else set()
    drop |= set() if x.agent.success else {"success", "p_success"}
    drop |= set() if x.options.norm_controls else {"p_norm"}
    columns = [c for c in columns if c.name not in drop]
    key = ("arm", "asked") if several else ("arm",)
    return Table(columns, x.meta, *said_by_arm(x, rows), picture=lambda _: survival(x), key=key)


def _ended(x: Experiment, arm: str) -> str:
    stop = x.stops.get(arm)
    return "–" if stop is None else f"at {stop.episodes}" if stop.decided else "not"


def _interval(x: Experiment) -> str:
    return "(stage-wise order; the standard error at the stop taken as known)" if x.stopping else "(BCa, paired)"


def _arms(x: Experiment, target: float) -> Iterator[dict[str, Any]]:
    seed = x.options.seed
    yield _row(x, CLEAN, target, "", "clean")
    if target == x.targets[0]:
        yield _row(x, SHAM, target, "ε 0 of the same matrices", "sham") | _against_clean(x, SHAM, target)
    for arm in x.arms:
        row = _row(x, arm.name, target, str(arm.part.edit), "edit") | _against_clean(x, arm.name, target)
        if target == x.targets[0]:
            row |= _among_controls(x, arm.name, seed)
        yield row


def _row(x: Experiment, arm: str, target: float, edit: str, kind: str) -> dict[str, Any]:
    returns = x.returns(arm, target)
    low, high = (float(v) for v in mean_interval(returns, seed=x.options.seed))
    ok = x.successes(arm, target)
    return {
        "arm": arm, "asked": target, "kind": kind, "edit": edit, "return": float(returns.mean()), "low": low,
        "high": high, "success": NAN if ok is None else float(ok.mean()),
        "length": float(x.lengths(arm, target).mean()), "episodes": len(returns),
        "score": x.agent.normalised_score(float(returns.mean())),
    }  # fmt: skip


def _against_clean(x: Experiment, arm: str, target: float) -> dict[str, float]:
    n = x.count(arm, CLEAN)
    changes = x.returns(arm, target, n) - x.returns(CLEAN, target, n)
    paired = paired_difference(changes, seed=x.options.seed)
    times = [(x.times(a, target, n), x.failed(a, target, n)) for a in (CLEAN, arm)]
    rank, _ = paired_log_rank(*times, seed=x.options.seed)
    row = {
        "change": float(paired.mean), "change_low": float(paired.low), "change_high": float(paired.high),
        "p": float(paired.p), "p_time": rank.p,
        "finds": detectable_difference(float(paired.sd), len(changes)) if float(paired.sd) > 0 else 0.0,
    }  # fmt: skip
    if x.stopping and arm in x.stops:
        row |= x.stopping.corrected(x.stops[arm], changes) | {"finds": NAN}
    before, after = x.successes(CLEAN, target, n), x.successes(arm, target, n)
    if before is not None and after is not None:
        row["p_success"] = paired_shares(before, after).p
    return row


def _among_controls(x: Experiment, arm: str, seed: int) -> dict[str, float]:
    other, kl = x.diverged[arm]
    row = {"other": other, "kl": kl}
    clean, own, n = x.returns(CLEAN, count=x.count(arm)), x.returns(arm), x.options.control_episodes
    random = x.names(arm, CONTROL)
    if random:
        played = np.array([x.returns(name, count=n) for name in random])
        ranked = rank_among(clean, own, played)
        row |= {"worse": ranked.as_low.value, "p_random": ranked.p_low, "p_two_sided": ranked.p,
                "worse_low": ranked.as_low.low, "worse_high": ranked.as_low.high}  # fmt: skip
        row["p_other"] = two_sided_p(other, np.array([x.diverged[name][0] for name in random]))
        if len(random) > 2:
            away = distance_from_controls(clean, own, played, seed=seed)
            # Rounding of squares, so that controls that all do the same have no spread.
            apart = away.controls.variance > ROUNDING * float(np.abs(clean).max()) ** 2
            row["spreads"] = away.spreads if apart else NAN
    for kind, column in ((DYAD, "p_dyads"), (NORMED, "p_norm")):
        names = x.names(arm, kind)
        if names:
            row[column] = rank_among(clean, own, np.array([x.returns(name, count=n) for name in names])).p_low
    return row


def by_control(x: Experiment) -> Table:
    """One row per control: its mean change of the return on its seeds, and how far it moves the actions.

    The edits themselves on the same seeds stand among them.
    """
    if not x.controls:
        raise BadRequest("--by control: expected controls, this experiment had none; leave --controls 0 out")
    n, rows = x.options.control_episodes, []
    clean = x.returns(CLEAN, count=n)
    for arm in x.arms:
        for name in (arm.name, *(n for kind in KINDS for n in x.names(arm.name, kind))):
            kind = "edit" if name == arm.name else KINDS[name.split("/")[-2]]
            effect = x.returns(name, count=n) - clean
            rows.append((arm.name, kind, name, float(effect.mean()), float(effect.std(ddof=1) / n**0.5),
                         *x.diverged[name]))  # fmt: skip
    rows.sort(key=lambda r: r[3])
    columns = [
        Column("change", np.array([r[3] for r in rows]), "", 3, f"mean change of the return on {n} seeds, − clean"),
        Column("error", np.array([r[4] for r in rows]), "", 3, "standard error over the seeds"),
        Column("other", np.array([r[5] for r in rows]), "", 2, "share of clean moments with another action"),
        Column("kl", np.array([r[6] for r in rows]), "nats" if x.agent.discrete else "", 4, "of the action there"),
        Column("kind", [r[1] for r in rows]),
        Column("of", [r[0] for r in rows], about="the edit that it is a control of"),
        Column("control", [r[2] for r in rows]),
    ]
    return Table(columns, x.meta | {"by": "control"}, *said_by_control(x),
                 picture=lambda _: effects_among_controls(x), key=("control",))  # fmt: skip
