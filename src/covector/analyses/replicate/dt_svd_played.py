"""Claims of the decision-transformer post that roll-outs answer: its edits against their pieces and random changes.

Source: F14 and §0.4 of the theory page; `docs/replicate-dt-svd.md`, `docs/theory/rollouts.md`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from covector.analyses.replicate.dt_svd_claim import ALPHA, FAILS, HOLDS, NAN, SILENT, Claim, at, short, verdict
from covector.analyses.replicate.dt_svd_edits import (
    ADDED,
    ALL,
    FIRST,
    ONES,
    OTHER,
    RANDOM,
    REMOVED,
    THIRD,
    blocks_of,
    makeup,
    pieces,
    published_edits,
    site_of,
)
from covector.analyses.replicate.dt_svd_parts import ACTIONS, K, Looked, Part, V, looked
from covector.analyses.rollout import Experiment, Options
from covector.analyses.rollout_arms import CLEAN, CONTROL, apart
from covector.axes import Float
from covector.linalg import chance
from covector.linalg.trials.controls import rank_among
from covector.linalg.trials.paired import Paired, paired_difference
from covector.linalg.trials.ranks import rank_correlation_interval
from covector.model.opened import Model
from covector.model.overlay import Change
from covector.run.decoder import Decoder
from covector.run.edit_runs import decoder_of
from covector.run.edited import laid_over
from covector.run.one_thread import one_thread
from covector.run.replay import Moments, moments, values
from covector.study.edit import Edit

# Moments of clean episodes over which actions are compared, and dyads of each matrix that are edited there.
COMPARED, DYADS = 128, 16
# An agent fails when it succeeds less than so often as unchanged.
HALF = 0.5
Play = Callable[[Mapping[str, Edit], Options, str], Experiment]


@dataclass(frozen=True, eq=False)
class Played:
    """What was played: the post's edits with controls, their pieces without, on the same seeds."""

    seen: Looked
    block: int
    edits: Experiment
    parts: Experiment

    @cached_property
    def decoder(self) -> Decoder:
        """The agent as it runs."""
        return decoder_of(self.seen.model, self.edits.options.dtype)

    @cached_property
    def moments(self) -> Moments:
        """Some moments of clean episodes."""
        return moments(self.edits.agent, self.seen.model.spec, self.edits.recorded, COMPARED)

    @cached_property
    def clean(self) -> Float[np.ndarray, "moment action"]:
        """Action outputs there."""
        return values(self.decoder, self.moments)

    def after(self, change: Change) -> Float[np.ndarray, "moment action"]:
        """Action outputs there under a change of weights."""
        return values(laid_over(self.decoder, change), self.moments)

    def of(self, arm: str) -> Experiment:
        """The experiment that an arm is of."""
        return self.edits if any(a.name == arm for a in self.edits.arms) else self.parts

    def returns(self, arm: str) -> Float[np.ndarray, " n"]:
        """Returns of an arm by seed."""
        return self.of(arm).returns(arm)

    def against(self, arm: str, other: str = CLEAN) -> Paired:
        """An arm less another on the same seeds."""
        found = self.returns(arm) - (self.edits.returns(CLEAN) if other == CLEAN else self.returns(other))
        return paired_difference(found, seed=self.edits.options.seed)

    def success(self, arm: str) -> float:
        """Share of successes; NaN without a rule."""
        found = self.of(arm).successes(arm)
        return NAN if found is None else float(found.mean())

    def fails(self, arm: str) -> bool:
        """Whether it succeeds less than half as often as unchanged."""
        return self.success(arm) < HALF * self.success(CLEAN)

    @cached_property
    def dyads(self) -> int:
        """How many dyads of every K and V are edited along clean episodes: as many as the smallest of them has."""
        return min(DYADS, *(len(part.rows) for part in self.seen.parts((K, V))))

    @cached_property
    def moved(self) -> dict[tuple[str, int, int], float]:
        """How far the post's edit of each of the first dyads of every K and V moves the actions of clean episodes."""
        found, model = {}, self.seen.model
        with one_thread():
            for matrix in (K, V):
                for block in blocks_of(model):
                    for dyad in range(self.dyads):
                        change = Edit.replace_direction(site_of(matrix, block), dyad).change(model)
                        found[matrix, block, dyad] = apart(self.edits.agent, self.clean, self.after(change))[1]
        return found


def options_of(episodes: int = 100, controls: int = 20, control_episodes: int | None = None, seed: int = 0) -> Options:
    """How much is played by default: five minutes of two cores on the bundled agent. Raises BadRequest."""
    found = Options(episodes, controls, min(20, episodes) if control_episodes is None else control_episodes, seed=seed)
    found.check()
    return found


def played_claims(
    model: Model | Looked, play: Play, *, block: int | None = None, options: Options | None = None,
    draws: int = 1000, seed: int = 0,
) -> list[Claim]:  # fmt: skip
    """A4 and B1–B12 of an opened model. `play` plays arms: `covector.rollouts.experiment` with its agent bound.

    `block`: the block that is edited (default: where K has its largest cosine with an action). `options`: episodes and
    controls of the post's edits; their pieces are played without controls. Raises what `experiment` raises, and
    BadRequest for a block that is not there.
    """
    seen = model if isinstance(model, Looked) else looked(model, draws, seed)
    chosen = seen.loudest if block is None else block
    kept = options or options_of(seed=seed)
    edits = play(published_edits(seen.model, chosen), kept, "edits")
    alone = Options(kept.episodes, 0, kept.control_episodes, kept.targets, kept.first_seed, kept.seed, kept.dtype)
    parts = play(pieces(seen.model, chosen, kept.seed), alone, "pieces")
    x = Played(seen, chosen, edits, parts)
    return [commonest(x), *published(x), anywhere(x), sooner(x), *compositions(x), *vectors(x), places(x), predicts(x)]


def commonest(x: Played) -> Claim:
    """A4: the first direction of K against the mean of the actions that the unchanged agent takes."""
    agent, basis = x.edits.agent, x.seen.model.bases[ACTIONS]
    taken = [a for e in x.edits.of(CLEAN) for a in e.actions]
    table, names = basis.vectors.astype(np.float64), basis.labels
    if agent.discrete:
        shares = np.bincount(np.array(taken, dtype=int), minlength=len(table))[: len(table)] / len(taken)
    else:
        shares = np.mean(np.array(taken, dtype=np.float64), axis=0)
    mean = shares @ table
    parts = x.seen.parts((K,))
    cosines = [np.abs(part.rows @ mean) / np.linalg.norm(mean) for part in parts]
    where = int(np.argmax([c[FIRST] for c in cosines]))
    own = float(cosines[where][FIRST])
    p = float(1 - (1 - chance.tail(own, table.shape[1])) ** len(parts))
    level = float(chance.threshold(table.shape[1], len(parts)))
    rank = 1 + int(np.sum(cosines[where] > own))
    units = basis.unit().astype(np.float64)
    nearest = names[int(np.abs(units @ parts[where].rows[FIRST]).argmax())]
    common = names[int(np.abs(shares).argmax())]
    others = ", ".join(f"{p.site}:0 {short(float(np.abs(p.rows[FIRST] @ mean) / np.linalg.norm(mean)))}"
                       for p in x.seen.parts((V,)))  # fmt: skip
    words = f"commonest {common} ({shares.max():.0%})" if agent.discrete else f"largest mean {common}"
    return Claim(
        "A4", "|cos| of K's first with the mean action", own, level, p,
        verdict(p < ALPHA and (nearest == common or not agent.discrete)),
        f"{parts[where].site}:0, {_th(rank)} of its {len(cosines[where])} directions by that; nearest action "
        f"{nearest}, {words}; of V {others}",
    )  # fmt: skip


def _th(n: int) -> str:
    return f"{n}{'th' if 10 < n % 100 < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"


def published(x: Played) -> list[Claim]:
    """B1–B4: the post's four edits."""
    return [_fails(x, "B1", f"K{FIRST}"), _fails(x, "B2", f"K{THIRD}"), _less(x, "B3", FIRST), _less(x, "B4", THIRD)]


def _fails(x: Played, key: str, arm: str) -> Claim:
    change = x.against(arm)
    if np.isnan(x.success(CLEAN)):
        decided = SILENT
    else:
        decided = verdict(x.fails(arm) and float(change.p) < ALPHA)
    return Claim(key, "change of the return", float(change.mean), _controls(x, arm), float(change.p), decided,
                 _told(x, arm), float(change.low), float(change.high))  # fmt: skip


def _less(x: Played, key: str, index: int) -> Claim:
    """V's edit against K's: much less is at most half of it; not decided where neither does harm."""
    own, other = x.against(f"V{index}"), x.against(f"K{index}")
    harm, most = -float(own.mean), -float(other.mean)
    between = x.against(f"V{index}", f"K{index}")
    if float(other.p) >= ALPHA or most <= 0:
        harms = harm > 0 and float(own.p) < ALPHA
        decided = FAILS if harms else SILENT
        why = f"K{index} does no harm here" + (", V does; " if harms else f" that V{index} could have less of; ")
    else:
        decided, why = verdict(harm <= HALF * most and float(between.p) < ALPHA), ""
    return Claim(key, "change of the return", float(own.mean), _controls(x, f"V{index}"), float(own.p), decided,
                 f"{why}{_told(x, f'V{index}')}; less K{index} {short(float(between.mean))} ({at(float(between.p))})",
                 float(own.low), float(own.high))  # fmt: skip


def _controls(x: Played, arm: str) -> float:
    """Mean change of the return under random changes of equal output; NaN without controls."""
    found = x.edits.control_effects(arm)
    return float(found.mean()) if found.size else NAN


def _told(x: Played, arm: str) -> str:
    """An arm in words: site, success, the share of other actions, its rank among random changes."""
    other, kl = x.of(arm).diverged[arm]
    site = next(str(a.part.resolved.laid[0].site) for a in x.of(arm).arms if a.name == arm)
    parts = [f"{site}:{arm[1]}" if arm[1:].isdigit() else arm]
    before, after = x.success(CLEAN), x.success(arm)
    if before == before:
        parts.append(f"success {before:.0%} → {after:.0%}")
    parts.append(f"{other:.0%} other actions (KL {kl:.2g})" if x.edits.agent.discrete else f"{other:.0%} moved")
    random = x.edits.names(arm, CONTROL)
    if random:
        n = x.edits.options.control_episodes
        played = np.array([x.edits.returns(name, count=n) for name in random])
        ranked = rank_among(x.edits.returns(CLEAN), x.returns(arm), played)
        harm = round(ranked.as_low.value * len(random))
        parts.append(f"{harm} of {len(random)} random changes harm as much (rank {at(ranked.p_low)})")
    return ", ".join(parts)


def anywhere(x: Played) -> Claim:
    """B5: the worst of the edits of K, whichever block, or all at once; Holm over them."""
    arms = [a.name for e in (x.edits, x.parts) for a in e.arms if _whole(a.name, "K")]
    found = {arm: x.against(arm) for arm in arms}
    adjusted = dict(zip(arms, chance.holm(np.array([float(f.p) for f in found.values()])).tolist(), strict=True))
    worst = min(arms, key=lambda arm: float(found[arm].mean))
    change = found[worst]
    if np.isnan(x.success(CLEAN)):
        decided = verdict(float(change.mean) < 0 and adjusted[worst] < ALPHA)
    else:
        decided = verdict(x.fails(worst) and adjusted[worst] < ALPHA)
    told = ", ".join(f"{_named(x, arm)} {short(float(found[arm].mean))}" for arm in arms)
    return Claim("B5", "worst change of the return", float(change.mean), 0.0, float(adjusted[worst]), decided,
                 f"{_told(x, worst)}; {told}", float(change.low), float(change.high))  # fmt: skip


def _whole(arm: str, matrix: str) -> bool:
    """Whether an arm is the post's edit as it is, of some block or of all."""
    head, _, tail = arm.partition(" ")
    return head[0] == matrix and head[1:].isdigit() and (not tail or tail == ALL or tail.startswith("L"))


def _named(x: Played, arm: str) -> str:
    """``K0 L2`` for arms of the edited block, whose names do not tell it."""
    return arm if " " in arm else f"{arm} L{x.block}"


def sooner(x: Played) -> Claim:
    """B6: every edit of K less the same of V, mean over the pairs, by seed."""
    arms = [a.name for e in (x.edits, x.parts) for a in e.arms if _whole(a.name, "K")]
    gaps = np.array([x.returns(arm) - x.returns(arm.replace("K", "V", 1)) for arm in arms])
    found = paired_difference(gaps.mean(axis=0), seed=x.edits.options.seed)
    told = ", ".join(f"{_named(x, arm)} {short(float(g.mean()))}" for arm, g in zip(arms, gaps, strict=True))
    return Claim("B6", "return under K less under V", float(found.mean), 0.0, float(found.p),
                 verdict(float(found.mean) < 0 and float(found.p) < ALPHA),
                 f"by edit: {told}", float(found.low), float(found.high))  # fmt: skip


def compositions(x: Played) -> list[Claim]:
    """B7 and B8: the whole edit against the removal that is in it."""
    return [_composition(x, "B7", "K"), _composition(x, "B8", "V")]


def _composition(x: Played, key: str, matrix: str) -> Claim:
    """Holds if the addition is what moves: it moves actions more than the removal, and the whole is not the removal."""
    arm = f"{matrix}{FIRST}"
    found = x.against(arm, f"{arm} {REMOVED}")
    kl = {name: x.parts.diverged[f"{arm} {name}"][1] for name in (REMOVED, ADDED)}
    removal = x.after(next(a.part.change for a in x.parts.arms if a.name == f"{arm} {REMOVED}"))
    whole = x.after(next(a.part.change for a in x.edits.arms if a.name == arm))
    between = apart(x.edits.agent, removal, whole)[1]
    shares = makeup(x.seen.model, matrix, x.block)
    return Claim(
        key, "return, whole edit less removal", float(found.mean), 0.0, float(found.p),
        verdict(kl[ADDED] > kl[REMOVED] and float(found.p) < ALPHA),
        f"‖ΔM‖² is {shares[0]:.1%} removal, {shares[1]:.1%} addition; actions move by {kl[REMOVED]:.2g} under the "
        f"removal alone, {kl[ADDED]:.2g} under the addition alone; from removal to whole edit {between:.2g}",
        float(found.low), float(found.high),
    )  # fmt: skip


def vectors(x: Played) -> list[Claim]:
    """B9 and B10: against a random vector of the same length, and the unit vector along 1."""
    return [_vector(x, "B9", "K"), _vector(x, "B10", "V")]


def _vector(x: Played, key: str, matrix: str) -> Claim:
    arm = f"{matrix}{FIRST}"
    found, unit = x.against(arm, f"{arm} {RANDOM}"), x.against(f"{arm} {ONES}")
    moved = {name: x.of(name).diverged[name][1] for name in (arm, f"{arm} {RANDOM}", f"{arm} {ONES}")}
    return Claim(
        key, "return, 1/d less a random vector", float(found.mean), 0.0, float(found.p),
        verdict(float(found.p) < ALPHA),
        f"actions move by {moved[arm]:.2g} with 1/d, {moved[f'{arm} {RANDOM}']:.2g} with a random vector as long, "
        f"{moved[f'{arm} {ONES}']:.2g} with a unit vector along 1, which changes the return by "
        f"{short(float(unit.mean))} ({at(float(unit.p))})", float(found.low), float(found.high),
    )  # fmt: skip


def places(x: Played) -> Claim:
    """B11: how far the edits of first and third move the actions, among those of all dyads looked at."""
    moved = np.array([x.moved["K", x.block, i] for i in range(x.dyads)])
    own = (moved[FIRST] + moved[THIRD]) / 2
    pairs = np.array([(moved[i] + moved[j]) / 2 for i in range(x.dyads) for j in range(i)])
    p = float(np.mean(pairs >= own))
    other = x.against(f"K {OTHER}")
    named = next(a.part.edit for a in x.parts.arms if a.name == f"K {OTHER}")
    top = int(moved.argmax())
    ranks = " and ".join(_th(1 + int(np.sum(moved > moved[i]))) for i in (FIRST, THIRD))
    return Claim(
        "B11", "how far they move the actions, mean", float(own), float(np.median(pairs)), p, verdict(p < ALPHA),
        f"among the {len(pairs)} pairs of K's first {x.dyads} dyads; ranks {ranks}, most {top} "
        f"({moved[top]:.2g}); return under {named} {short(float(other.mean))} ({at(float(other.p))})",
    )  # fmt: skip


def predicts(x: Played) -> Claim:
    """B12: rank correlation of |cos| with an action and what the edit does to the actions, within matrices."""
    parts, labels = x.seen.parts((K, V)), x.seen.labels(ACTIONS)
    keys = [(part.kind, part.block, dyad) for part in parts for dyad in range(x.dyads)]
    effect = np.array([x.moved[key] for key in keys])
    strata = np.repeat(np.arange(len(parts)), x.dyads)
    score, then = (_scores(parts, labels.units, x.dyads, defect) for defect in (False, True))
    seed = x.edits.options.seed
    assert score is not None, "corrected rows are always there"
    own = rank_correlation_interval(score, effect, strata=strata, seed=seed)
    old = None if then is None else rank_correlation_interval(then, effect, strata=strata, seed=seed)
    return Claim(
        "B12", "rank correlation", own.value, 0.0, own.p, verdict(own.value > 0 and own.p < ALPHA),
        f"{len(effect)} dyads of {len(parts)} matrices; effect: how far 1/d in its place moves the actions; "
        "p within matrices", own.low, own.high, defect=old.value if old else NAN, defect_p=old.p if old else NAN,
        as_published=SILENT if old is None else HOLDS if old.value > 0 and old.p < ALPHA else FAILS,
    )  # fmt: skip


def _scores(parts: Sequence[Part], units: np.ndarray, dyads: int, defect: bool) -> Float[np.ndarray, " n"] | None:
    rows = [part.defect if defect else part.rows for part in parts]
    if any(r is None for r in rows):
        return None
    return np.concatenate([np.abs(r[:dyads] @ units.T).max(axis=1) for r in rows if r is not None])
