"""Claims of the decision-transformer post that weights alone answer.

Source: §0, §3.5 and F13 of the theory page; `docs/replicate-dt-svd.md`.
"""

import numpy as np

from covector.analyses.locate import locate
from covector.analyses.replicate.dt_svd_claim import ALPHA, NAN, SILENT, Claim, at, short, silent, verdict
from covector.analyses.replicate.dt_svd_defects import SHOWN_TIMES, scrambled, sign_patterns
from covector.analyses.replicate.dt_svd_parts import ACTIONS, OV, K, Labels, Looked, V
from covector.linalg import chance

# Of signs that another LAPACK might have given.
PATTERNS = 200
# What the post prints for the return, and where: 128 dimensions, K, V and OV of three blocks.
PRINTED, WIDTH, MATRICES = 0.24, 128, 9


def weight_claims(seen: Looked) -> list[Claim]:
    """A1–A3, C1–C6, D1 and D2 in this order."""
    return [*actions(seen), *states(seen), *returns(seen), *times(seen), display(seen), larger(seen)]


def actions(seen: Looked) -> list[Claim]:
    """A1–A3: where the actions are."""
    labels = seen.labels(ACTIONS)
    read, written, heads = (seen.parts((kind,)) for kind in (K, V, OV))
    k, v, o = (seen.best(labels, parts) for parts in (read, written, heads))
    k_then, v_then, o_then = (seen.best(labels, parts, defect=True) for parts in (read, written, heads))
    assert k, "looked() asks for an MLP"
    assert v, "which has both matrices"
    assert k_then, "K is never refused"
    first = Claim(
        "A1", "largest cosine", k.cos, k.level, k.p, verdict(k.p < ALPHA), f"{k}", defect=k_then.cos,
        defect_p=k_then.p, as_published=verdict(k_then.p < ALPHA),
    )  # fmt: skip
    below, below_then = v.cos - k.cos, v_then.cos - k_then.cos if v_then else NAN
    stopped = "the post's code would stop here: W_out has fewer rows than columns"
    lower = seen.null(labels, [*read, *written])
    lower = lower[:, : len(read)].max(axis=1) - lower[:, len(read) :].max(axis=1)
    second = Claim(
        "A2", "V's largest cosine less K's", below, -float(np.quantile(lower, 1 - ALPHA)), _p(-below, lower),
        verdict(_p(-below, lower) < ALPHA),
        f"V {v} ({at(v.p)}), K {k}; " + (f"{_signs(seen, labels)}; as published {v_then}" if v_then else stopped),
        defect=below_then, defect_p=_p(-below_then, lower) if v_then else NAN,
        as_published=verdict(_p(-below_then, lower) < ALPHA) if v_then else SILENT,
    )  # fmt: skip
    others, others_then = [b for b in (v, o) if b], [b for b in (v_then, o_then) if b]
    ahead, ahead_then = k.cos - max(b.cos for b in others), k_then.cos - max((b.cos for b in others_then), default=0.0)
    null = seen.null(labels, read).max(axis=1) - seen.null(labels, [*read, *written, *heads])[:, len(read) :].max(
        axis=1
    )
    third = Claim(
        "A3", "K's largest cosine less the others'", ahead, float(np.quantile(null, 1 - ALPHA)), _p(ahead, null),
        verdict(_p(ahead, null) < ALPHA), f"K {k}, V {v}" + (f", OV {o}" if o else "") + f"; {_by_gain(seen)}",
        defect=ahead_then, defect_p=_p(ahead_then, null), as_published=verdict(_p(ahead_then, null) < ALPHA),
    )  # fmt: skip
    return [first, second, third]


def _p(value: float, null: np.ndarray) -> float:
    return float(chance.monte_carlo_p(value, null).value)


def _signs(seen: Looked, labels: Labels) -> str:
    """How the defect's largest cosine would come out with other signs of the dyads."""
    rows = [part.defect for part in seen.parts((V,)) if part.defect is not None]
    values = np.max([
        [np.abs(other @ labels.units.T).max() for other in sign_patterns(r, draws=PATTERNS, seed=(seen.seed, i))]
        for i, r in enumerate(rows)
    ], axis=0)  # fmt: skip
    low, high = np.quantile(values, [0.025, 0.975])
    return f"rows of V give {short(float(low))} to {short(float(high))}, by the signs that LAPACK chose"


def _by_gain(seen: Looked) -> str:
    table = locate(seen.model, "action_out", sites="L*H*.ov,L*.mlp.in,L*.mlp.out", draws=200, seed=seen.seed)
    top = table.rows[0]
    return f"by gain {top['site']} {top['side']} (z {top['z']:.1f})"


def states(seen: Looked) -> list[Claim]:
    """C1 and C2: does the first block read the state."""
    found = []
    for key, kind in (("C1", K), ("C2", OV)):
        labels, parts = _labels(seen, "state_in"), seen.parts((kind,), (0,), inputs=True)
        if isinstance(labels, str) or not parts:
            found.append(silent(key, labels if isinstance(labels, str) else f"the first block has no {kind}"))
            continue
        own, then = seen.best(labels, parts), seen.best(labels, parts, defect=True)
        assert own, "labels and parts are there"
        assert then, "K and OV are never refused"
        side = "; the post's code took the written side" if kind == OV else ""
        left = f"; {labels.left_out} untrained labels left out" if labels.left_out else ""
        found.append(Claim(
            key, "largest cosine", own.cos, own.level, own.p, verdict(own.p < ALPHA), f"{own}{side}{left}",
            defect=then.cos, defect_p=then.p, as_published=verdict(then.p < ALPHA),
        ))  # fmt: skip
    return found


def _labels(seen: Looked, name: str) -> Labels | str:
    """Trained labels, or why there are none."""
    if name not in seen.model.bases:
        return f"the agent has no {name}"
    labels = seen.labels(name)
    return labels if labels.names else f"all labels of {name} look untrained"


def returns(seen: Looked) -> list[Claim]:
    """C3 and C4: the return, and whether .24 is much."""
    labels = _labels(seen, "return_in")
    if isinstance(labels, str):
        return [silent("C3", labels), printed(seen)]
    parts = seen.parts(inputs=True)
    own, then = seen.best(labels, parts), seen.best(labels, parts, defect=True)
    assert own is not None, "there are parts"
    second = seen.parts((V,), range(1, min(seen.blocks, 3)))
    if not second:
        there = f"the agent has one block; here the return is strongest at {own} ({at(own.p)})"
        return [silent("C3", there), printed(seen)]
    v, v_then = seen.best(labels, second), seen.best(labels, second, defect=True)
    assert v is not None, "there are parts"
    family = seen.null(labels, parts).max(axis=1)
    p, level = _p(v.cos, family), float(np.quantile(family, 1 - ALPHA))
    holds = own.part.kind == V and own.part.block > 0 and p < ALPHA
    p_then = _p(v_then.cos, family) if v_then else NAN
    held_then = v_then is not None and then is not None and then.cos <= v_then.cos and p_then < ALPHA
    strongest = f"strongest is {own} ({at(own.p)})" if own.part.site != v.part.site else f"and so is {own.part.site}"
    return [
        Claim("C3", "V's largest cosine", v.cos, level, p, verdict(holds),
              f"{v}; {strongest}; second counted from 0 or 1; p over all {len(parts)} matrices",
              defect=v_then.cos if v_then else NAN, defect_p=p_then, as_published=verdict(held_then)),
        printed(seen),
    ]  # fmt: skip


def printed(seen: Looked) -> Claim:
    """C4: the printed number by itself, in the printed width."""
    unit = np.eye(1, WIDTH)
    null = np.stack([
        chance.null_max_of_frame(unit, WIDTH, draws=max(seen.draws, 2000), seed=(seen.seed, i)) for i in range(MATRICES)
    ], axis=1)  # fmt: skip
    single, third = float(chance.tail(PRINTED, WIDTH)), float(chance.tail(PRINTED / SHOWN_TIMES, WIDTH))
    one, all_of_them = _p(PRINTED, null[:, 0]), _p(PRINTED, null.max(axis=1))
    why = (
        f"of one pair {at(single)}; but it is the largest of {WIDTH} singular vectors ({at(one)}, mean "
        f"{short(float(null[:, 0].mean()))}) and of {MATRICES} matrices ({at(all_of_them)}, mean "
        f"{short(float(null.max(axis=1).mean()))}); if shown three times too large, one pair has {at(third)}"
    )
    return Claim("C4", "printed cosine", PRINTED, float(np.quantile(null.max(axis=1), 1 - ALPHA)), all_of_them,
                 verdict(all_of_them < ALPHA), why, defect=PRINTED, defect_p=single,
                 as_published=verdict(single < ALPHA))  # fmt: skip


def times(seen: Looked) -> list[Claim]:
    """C5 and C6: the timesteps. The table itself stands in the null, so its smoothness does."""
    time = seen.model.spec.assembly.time
    labels = "the agent has no table of timesteps" if time is None else _labels(seen, f"{time.name}_in")
    if not isinstance(labels, str) and len(labels.names) < 2:
        labels = f"only {len(labels.names)} timestep looks trained"
    if isinstance(labels, str):
        return [silent("C5", labels), silent("C6", labels)]
    first = seen.parts((V,), (0,))
    own, then = seen.best(labels, first), seen.best(labels, first, defect=True)
    left = f"; {labels.left_out} untrained steps left out" if labels.left_out else ""
    reacts = silent("C5", "the first block has no MLP") if own is None else Claim(
        "C5", "largest cosine", own.cos, own.level, own.p, verdict(own.p < ALPHA), f"{own}{left}",
        defect=then.cos if then else NAN, defect_p=then.p if then else NAN,
        as_published=verdict(then.p < ALPHA) if then else SILENT,
    )  # fmt: skip
    table = locate(seen.model, labels.name, concept=labels.names, sites="L*H*.ov,L*.mlp.in,L*.mlp.out",
                   draws=min(seen.draws, 1000), seed=seen.seed)  # fmt: skip
    beyond = int(np.sum(np.asarray(table["familywise"]) < ALPHA))
    top = table.rows[0]
    structure = Claim(
        "C6", "places with more gain than chance", float(beyond), NAN, float(np.nanmin(table["familywise"])),
        verdict(beyond == 0),
        f"of {len(table)}; most at {top['site']} {top['side']} (gain {top['gain']:.2f}×, chance "
        f"{top['gain_level']:.2f}){left}",
    )  # fmt: skip
    return [reacts, structure]


def display(seen: Looked) -> Claim:
    """D1: before 2023-01-19 the code showed three times the cosine."""
    found = seen.best(seen.labels(ACTIONS), seen.parts())
    largest = found.cos if found else NAN
    return Claim(
        "D1", "largest cosine with an action", largest, NAN, NAN, SILENT,
        f"code of before 2023-01-19 showed 3·cos (here up to {short(SHOWN_TIMES * largest)}); the figures do not tell "
        "their build, values above 1 would",
        defect=SHOWN_TIMES * largest,
    )  # fmt: skip


def larger(seen: Looked) -> Claim:
    """D2: what was done to GPT-J's matrices, done to K of this agent."""
    labels, parts = seen.labels(ACTIONS), seen.parts((K,))
    own = seen.best(labels, parts)
    assert own, "looked() asks for an MLP"
    rows = [scrambled(seen.model.stored[f"L{part.block}.W_in"]) for part in parts]
    mixed = max(float(np.abs(r @ labels.units.T).max()) for r in rows)
    p = _p(mixed, seen.null(labels, parts).max(axis=1))
    return Claim(
        "D2", "largest cosine of K", own.cos, own.level, own.p, SILENT,
        f"one width cannot tell, and the code reshaped GPT-J's matrices where it had to transpose them: done to K "
        f"here, {short(own.cos)} becomes {short(mixed)} ({at(p)}); cosines by chance fall as 1/√d, compare √d·cos",
        defect=mixed, defect_p=p,
    )  # fmt: skip
