"""Episodes in batches: after each an edit whose change is decided stops, and all looks together keep one error rate.

An edit is decided when the sign flips of its paired changes of the return are rarer than the look allows. The edits
share alpha (Bonferroni), each spends its part over the looks (O'Brien and Fleming's kind). What is told afterwards is
corrected for the stop.

Source: theory page F14; `docs/theory/rollouts.md`, equations 21–24.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import ndtri

from covector.analyses.rollout_arms import CLEAN, SHAM, Task
from covector.analyses.rollout_runs import CHUNK, Key, Progress, chunks
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.trials.resample import ROUNDING
from covector.linalg.trials.sequential import Looks, in_own_errors, looks, p_at_look, stopped
from covector.model.overlay import Change
from covector.run.episodes import Episode

ALPHA = 0.05


@dataclass(frozen=True)
class Stop:
    """Where an edit ended: at which look (from 0), after how many episodes, with which p there, decided or not."""

    look: int
    episodes: int
    p: float
    decided: bool


@dataclass(frozen=True, eq=False)
class Stopping:
    """Looks after `ends` episodes, and what each edit may spend at them: `alpha` is shared by `edits` of them."""

    ends: tuple[int, ...]
    plan: Looks
    alpha: float
    edits: int

    @property
    def words(self) -> str:
        """The looks and the error rate, for the header."""
        each = f" ({100 * self.alpha / self.edits:.3g} % for each edit)" if self.edits > 1 else ""
        return (
            f"looks after {', '.join(map(str, self.ends))} episodes: an edit stops when its change of the return is "
            f"decided; error rate {self.alpha:.0%} over all looks{' and edits' * (self.edits > 1)}{each}"
        )

    def most(self, arms: int) -> int:
        """How many tasks so many arms are, if none stops."""
        return arms * sum(-(-(end - begin) // CHUNK) for begin, end in pairwise((0, *self.ends)))

    def look(self, changes: Float[np.ndarray, " n"], seed: int) -> Stop:
        """The look at the paired changes so far."""
        at = self.ends.index(len(changes))
        nominal = float(self.plan.nominal[at])
        p = p_at_look(changes, nominal, seed=seed) if np.any(changes) else 1.0
        return Stop(at, len(changes), p, p <= nominal)

    def corrected(self, stop: Stop, changes: Float[np.ndarray, " n"]) -> dict[str, float]:
        """What the changes say now that stopping depended on them: median-unbiased, with interval and p.

        The interval takes the standard error at the stop as known; p is that of the look's sign flips, by stages.
        """
        mean, n = float(changes.mean()), len(changes)
        error = float(changes.std(ddof=1)) / n**0.5
        z = float(np.sign(mean)) * -float(ndtri(max(stop.p, 1e-300) / 2))
        row = {"p": stopped(z, 1.0, self.plan, stop.look).p, "plain": mean}
        if error <= ROUNDING * abs(mean):
            return row | {"change": mean, "change_low": mean, "change_high": mean}
        own = in_own_errors(self.plan, np.array(self.ends, dtype=np.float64))
        found = stopped(mean, error, own, stop.look)
        return row | {"change": found.middle, "change_low": found.low, "change_high": found.high}


def stopping(episodes: int, number: int, edits: int, least: int) -> Stopping:
    """`number` looks at equal parts of the episodes, none before the `least` that controls need.

    Raises BadRequest where fewer than two are left, or nothing is edited.
    """
    if not edits:
        raise BadRequest("--stop: expected an --arm, whose change is decided early or late; leave --stop out")
    if not 2 <= number <= min(episodes, 100):
        raise BadRequest(f"--looks: expected 2 to {min(episodes, 100)} (the --episodes, at most 100), got {number}")
    ends = tuple(end for k in range(1, number + 1) if (end := episodes * k // number) >= max(least, 2))
    if len(ends) < 2:
        raise BadRequest(
            f"--stop: expected looks before the last of {episodes} episodes, none of {number} is left after the "
            f"{least} that controls play; give more --episodes or fewer --control-episodes"
        )
    return Stopping(ends, looks(np.array(ends) / episodes, ALPHA / edits), ALPHA, edits)


@dataclass(frozen=True, eq=False)
class Played:
    """Episodes by (arm, target, seed), how many each arm has, and where each edit ended."""

    episodes: Mapping[Key, Episode]
    counts: Mapping[str, int]
    stops: Mapping[str, Stop]


def until_decided(
    rule: Stopping,
    edits: Mapping[str, Change],
    sham: Change,
    controls: Sequence[Task],
    target: float,
    seeds: Sequence[int],
    run: Callable[[Sequence[Task]], Mapping[Key, Episode]],
    seed: int,
) -> Played:
    """Play clean, sham and the edits look by look, the controls with the first, until each edit is decided.

    Clean and sham go on as long as an edit does. What is played next depends on earlier episodes alone, so the same
    request plays the same episodes, interrupted or not.
    """
    found: dict[Key, Episode] = {}
    counts, stops, open_, begin = dict[str, int](), dict[str, Stop](), list(edits), 0
    for end in rule.ends:
        here = seeds[begin:end]
        changes = {CLEAN: Change(), **{name: edits[name] for name in open_}, SHAM: sham}
        tasks = [t for name, change in changes.items() for t in chunks(name, change, target, here)]
        found |= run([*tasks, *(controls if not begin else ())])
        counts |= dict.fromkeys(changes, end)
        clean = _returns(found, CLEAN, target, seeds[:end])
        for name in list(open_):
            stops[name] = rule.look(_returns(found, name, target, seeds[:end]) - clean, seed)
            if stops[name].decided:
                open_.remove(name)
        begin = end
        if not open_:
            break
    return Played(found, counts, stops)


def _returns(found: Mapping[Key, Episode], arm: str, target: float, seeds: Sequence[int]) -> Float[np.ndarray, " n"]:
    return np.array([found[arm, target, s].total for s in seeds])


@dataclass(eq=False)
class Batches:
    """Progress of several batches as that of one piece of work; `most` tasks and `episodes` if nothing stops."""

    tell: Progress | None
    most: int
    episodes: int
    done: int = 0
    tasks: int = 0

    def of(self, batch: Sequence[Task]) -> Progress | None:
        """The progress of the next batch."""
        tell, size = self.tell, sum(len(t.seeds) for t in batch)
        before, tasks = self.done, self.tasks
        self.done, self.tasks = self.done + size, self.tasks + len(batch)
        if tell is None:
            return None

        def told(count: int, _: int, share: float, name: str) -> None:
            tell(tasks + count, self.most, (before + share * size) / self.episodes, name)

        return told


def said_of_stops(rule: Stopping, stops: Mapping[str, Stop]) -> str:
    """A sentence on where the edits stopped."""
    decided = {name: stop for name, stop in stops.items() if stop.decided}
    parts = [f"'{name}' was decided after {stop.episodes} episodes" for name, stop in list(decided.items())[:5]]
    if len(decided) > 5:
        parts.append(f"{len(decided) - 5} more")
    left = len(stops) - len(decided)
    if left:
        parts.append(f"{left} of {len(stops)} edits undecided after {rule.ends[-1]}")
    return f" Stopping ({rule.alpha:.0%} over all looks{' and edits' * (rule.edits > 1)}): {', '.join(parts)}."


def record(rule: Stopping, stops: Mapping[str, Stop]) -> dict[str, Any]:
    """For the meta of results."""
    return {
        "looks": list(rule.ends), "alpha": rule.alpha, "alpha_of_each_edit": rule.alpha / rule.edits,
        "spending": "o'brien-fleming (Lan and DeMets)", "bounds": rule.plan.bound.tolist(),
        "stopped": {name: {"episodes": s.episodes, "decided": s.decided, "p_at_look": s.p}
                    for name, s in stops.items()},
    }  # fmt: skip
