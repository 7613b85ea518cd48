"""A direction along an agent's table of timesteps: does it follow time, more than a direction that means nothing does?

Trained tables are smooth: neighbouring steps are embedded alike, and the first principal components rise or fall with
time. So the curve of *any* direction over time is smooth, and a test that takes steps for independent finds a trend in
noise. Here the null turns the direction and leaves the table as it is: every null curve has the smoothness of this
table, its changes of length, and its gaps. (Surrogates of the table, shifted in a circle or with turned phases, would
keep smoothness only if the table were stationary, which one whose early steps are seen more often is not.)

Steps that were never reached are as training found them; they are marked and left out of every statistic.

Source: F12 of the theory page; `docs/theory/location.md`, equations 22–24.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from covector.analyses.agent_direction import Direction
from covector.analyses.agent_direction import direction as named
from covector.analyses.agent_untrained import untrained
from covector.axes import Bool, Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.location import hyperplane
from covector.model.bases import Basis
from covector.model.opened import Model
from covector.render import Column, Curve, Table

LEVEL = 0.05
# Fewer trained steps make no curve.
FEWEST = 8
COMPONENTS = 3
# Random orders of the steps behind a p of a correlation with time.
ORDERS = 2000
# Curves in one picture that can be told apart.
DRAWN = 6


@dataclass(frozen=True, eq=False)
class _Steps:
    """Unit rows of the table in the space of the direction, and which steps were trained."""

    units: Float[np.ndarray, "n d"]
    trained: Bool[np.ndarray, " n"]

    @property
    def d(self) -> int:
        return self.units.shape[1]

    @property
    def kept(self) -> Float[np.ndarray, "n d"]:
        return self.units[self.trained]


def timesteps(
    model: Model, directions: Sequence[Direction | str] | str, basis: str = "", *, draws: int = 2000, seed: int = 0
) -> Table:
    """One row per direction: how its curve over the timestep table compares with curves of random directions.

    `directions` are sides of dyads (``L0H0.ov:0``, ``L0H0.qk:0.key``), or made by `covector.analyses.agent_direction`;
    `basis` is the table (default: the model's own). All of trained steps t, with c(t) = cos(direction, e_t):

    `swing`: standard deviation of c over time, in units of √(mean over random directions of its square).
    `trend`: correlation of c with t. `peak`: largest |c|, with its `step`. Each with the level that 95 % of `draws`
    random directions stay below and its `p`; `familywise` is the chance that any of the three, at any of the
    directions given, comes out as far by chance (max-T over normal scores of the null's ranks).
    `curve`: √d·c at every step, None where untrained. In `meta`: shares of variance of the table's first principal
    components, their correlations with time, and how far the table's neighbouring steps are alike.

    Raises UnknownBasis, BadRequest for a model without a timestep table, or a table with fewer than 8 trained steps.
    """
    if not directions:
        raise BadRequest("expected a direction to follow over time, such as L0H0.qk:0; got none")
    texts = [directions] if isinstance(directions, str) else directions
    directions = [named(model, d) if isinstance(d, str) else d for d in texts]
    name = basis or _table_of(model)
    steps = {c: _steps(model, name, c) for c in {d.centred for d in directions}}
    rows = [_measured(d, steps[d.centred], draws, seed) for d in directions]
    table = Table(
        _columns(directions, rows), model.meta | _about(model, name, steps, directions, draws, seed), key=("direction",)
    )
    return replace(
        table,
        title=f"{model.name} · {len(rows)} directions over {name} ({table.meta['trained']} of {table.meta['steps']} "
        f"steps trained) · frame {model.frame} · {draws} draws",
        says=_says(table),
        not_says="It does not say that the agent uses the time there (nothing was run); "
        f"{table.meta['steps'] - table.meta['trained']} steps look untrained and are left out.",
        next=f"covector locate {model.words} {name}{model.framing}",
        picture=curves,
    )


def _table_of(model: Model) -> str:
    time = model.spec.assembly.time
    if time is None:
        raise BadRequest(f"{model.name}: expected an agent with a table of timesteps, its inputs are "
                         f"{', '.join(model.bases)}")  # fmt: skip
    return f"{time.name}_in"


def _steps(model: Model, name: str, centred: bool) -> _Steps:
    found: Basis = model.bases.centred(name) if centred else model.bases[name]
    if found.metric is not None:
        raise BadRequest(f"{name}: curves are of the table as it is, not behind whitening; drop the variant")
    # Short rows are kept: a table may grow with time, unlike a vocabulary.
    trained = _reached(found.usable & ~untrained(model, name).untouched)
    if trained.sum() < FEWEST:
        raise BadRequest(
            f"{name}: expected {FEWEST} trained steps or more, {int(trained.sum())} of {len(found)} differ from what "
            "training began with; the table says nothing about time"
        )
    units = found.unit().astype(np.float64)
    return _Steps(hyperplane(units) if centred else units, trained)


def _reached(trained: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Trained steps that have another beside or one further: training reaches steps in order, chance here and there."""
    n = len(trained)
    wide = np.pad(trained, 2)
    company = wide[:n] | wide[1 : n + 1] | wide[3 : n + 3] | wide[4 : n + 4]
    return trained & company


@dataclass(frozen=True, eq=False)
class _Row:
    """Three statistics of one curve, their nulls [draws], and the curve itself."""

    observed: Float[np.ndarray, "3"]
    null: Float[np.ndarray, "draws 3"]
    step: int
    curve: Float[np.ndarray, " n"]


def _measured(direction: Direction, steps: _Steps, draws: int, seed: int) -> _Row:
    row = hyperplane(direction.row[None])[0] if direction.centred else direction.row
    at = np.flatnonzero(steps.trained)
    # The same random directions for every direction that is asked about: their dependence is kept.
    random = chance.haar_directions(draws, steps.d, (seed, 2))
    null = _statistics(random @ steps.kept.T, at, steps.kept)
    cosines = steps.kept @ row
    curve = np.where(steps.trained, np.sqrt(steps.d) * (steps.units @ row), np.nan)
    return _Row(_statistics(cosines[None], at, steps.kept)[0], null, int(at[np.abs(cosines).argmax()]), curve)


def _statistics(curves: Float[np.ndarray, "m n"], at: np.ndarray, units: np.ndarray) -> Float[np.ndarray, "m 3"]:
    """Swing, trend and peak of each curve."""
    centred = curves - curves.mean(axis=1, keepdims=True)
    # Mean over Haar directions of the variance: the table's own variance over d, exactly.
    scale = np.sum((units - units.mean(axis=0)) ** 2) / units.shape[0] / units.shape[1]
    time = (at - at.mean()) / np.linalg.norm(at - at.mean())
    power = np.linalg.norm(centred, axis=1)
    trend = np.divide(centred @ time, power, out=np.zeros(len(curves)), where=power > 0)
    return np.stack([power / np.sqrt(len(at) * scale), trend, np.abs(curves).max(axis=1)], axis=1)


def _columns(directions: Sequence[Direction], rows: list[_Row]) -> list[Column]:
    sizes = [np.abs(r.observed) for r in rows]
    nulls = [np.abs(r.null) for r in rows]
    levels = np.stack([np.quantile(n, 1 - LEVEL, axis=0) for n in nulls])
    p = np.stack([_p(s, n) for s, n in zip(sizes, nulls, strict=True)])
    # Each statistic on the scale of its own null's ranks, so that none sets the level of the maximum alone.
    scored = [_ranked(s, n) for s, n in zip(sizes, nulls, strict=True)]
    adjusted = chance.max_t(
        np.concatenate([o for o, _ in scored]), np.concatenate([n for _, n in scored], axis=1)
    ).reshape(-1, 3)
    value = np.stack([r.observed for r in rows])
    made = [Column("direction", [d.name for d in directions])]
    about = (
        ("swing", "×", 2, "standard deviation over time, over that of random directions (root mean square)"),
        ("trend", "r", 2, "correlation of the curve with time"),
        ("peak", "cos", 3, "largest |cosine| with a step"),
    )
    for k, (name, unit, digits, words) in enumerate(about):
        made += [
            Column(name, value[:, k], unit, digits, words, chance=f"{name}_level"),
            Column(f"{name}_level", levels[:, k], digits=digits, about="what 95 % of random directions stay below"),
            Column(f"p_{name}", p[:, k], about="chance that a random direction has as much (both signs)"),
        ]
    return [
        *made,
        Column("step", np.array([r.step for r in rows]), about="the step of that peak"),
        Column("familywise", adjusted.min(axis=1),
               about="chance that any of the three is as far, at any direction given (max-T)"),
        Column("curve", [[None if np.isnan(v) else float(v) for v in r.curve] for r in rows], "sd", 1,
               "√d·cos by step, None where the step looks untrained"),
    ]  # fmt: skip


def _p(observed: np.ndarray, null: np.ndarray) -> Float[np.ndarray, " m"]:
    """Monte-Carlo p of each statistic by itself."""
    return np.array([float(chance.monte_carlo_p(o, null[:, k]).value) for k, o in enumerate(observed)])


def _ranked(observed: np.ndarray, null: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values as the share of the null below them; a p is what a maximum over different statistics compares."""
    ordered = np.sort(null, axis=0)
    places = [np.searchsorted(ordered[:, k], np.append(null[:, k], observed[k]), side="right") for k in range(3)]
    shares = np.stack(places, axis=1) / (len(null) + 1)
    beyond = observed > ordered[-1]
    # Beyond all draws a value still counts as more than the largest of them.
    return np.where(beyond, 1.0, shares[-1]), shares[:-1]


def _about(
    model: Model, name: str, steps: dict[bool, _Steps], directions: Sequence[Direction], draws: int, seed: int
) -> dict[str, object]:
    first = next(iter(steps.values()))
    at, kept = np.flatnonzero(first.trained), first.kept
    left, values, _ = np.linalg.svd(kept - kept.mean(axis=0), full_matrices=False)
    k = min(COMPONENTS, int(np.sum(values > 1e-10 * values[0])))
    beside = np.diff(at) == 1
    alike = np.sum(kept[1:][beside] * kept[:-1][beside], axis=1)
    tensors = dict.fromkeys((*(t for d in directions for t in d.tensors), *model.bases[name].tensors))
    return {
        "analysis": "timesteps", "policy": "none: weights only", "basis": name, "steps": len(first.trained),
        "trained": int(first.trained.sum()), "trained_steps": at.tolist(),
        "components": [
            {"share": float(values[i] ** 2 / np.sum(values**2)), "with_time": float(np.corrcoef(left[:, i], at)[0, 1]),
             "scores": (left[:, i] * values[i]).tolist()} for i in range(k)
        ],
        "neighbours_cos": float(alike.mean()) if len(alike) else None,
        "read_at": [d.said for d in directions], "dimension": first.d, "draws": draws, "seed": seed,
        "null": "Haar directions against the table as it is: null curves are as smooth as the table",
        "level": float(chance.threshold(min(s.d for s in steps.values()), int(first.trained.sum()), LEVEL)),
        "tensors": model.origins(*tensors),
    }  # fmt: skip


def _says(table: Table) -> str:
    first = table.meta["components"][0]
    own = (
        f"The table's first component has {first['share']:.0%} of its variance and goes with time at "
        f"|r| = {abs(first['with_time']):.2f}"
    )
    told = []
    for row in table.rows:
        if row["familywise"] <= LEVEL:
            name = min(("swing", "trend", "peak"), key=lambda n: row[f"p_{n}"])
            told.append(f"{row['direction']} (its {name} {row[name]:+.2f}, chance {row[f'{name}_level']:.2f})")
    if not told:
        return f"{own}; no direction here follows time more than a random one does (familywise {LEVEL:.0%})."
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    return f"{own}; beyond random directions (familywise {LEVEL:.0%}): {', '.join(told[:3])}{more}."


def curves(table: Table) -> Curve:
    """√d·cos over time; steps that look untrained are gaps. The band is what the best step stays within by chance."""
    rows = table.rows[:DRAWN]
    reach = float(np.sqrt(table.meta["dimension"]) * table.meta["level"])
    ys = np.array([[np.nan if v is None else v for v in row["curve"]] for row in rows], dtype=float)
    # Untrained steps at the end are most of some tables; the picture ends with the last trained one.
    last = table.meta["trained_steps"][-1] + 1
    return Curve(
        np.arange(last, dtype=float), ys[:, :last], [row["direction"] for row in rows], "timestep", "√d·cos", "", "sd",
        band=(-reach, reach), band_name="best step by chance, 95 %",
    )  # fmt: skip


def components(model: Model, basis: str = "", *, k: int = 8, draws: int = 200, seed: int = 0) -> Table:
    """The principal components of the timestep table (trained steps, unit rows, mean taken off), largest first.

    `share` of the variance with the level that the largest share of as many independent random rows stays below;
    `with_time` the correlation of its scores with the step, `p_time` from steps in random orders; `scores` by step,
    None where untrained. A share beyond chance with no correlation is structure that is not the order of time.
    Raises what `timesteps` raises.
    """
    name = basis or _table_of(model)
    steps = _steps(model, name, centred=False)
    at, (n, d) = np.flatnonzero(steps.trained), steps.kept.shape
    left, values, _ = np.linalg.svd(steps.kept - steps.kept.mean(axis=0), full_matrices=False)
    k = min(k, int(np.sum(values > 1e-10 * values[0])))
    null = np.array([_largest_share(chance.haar_directions(n, d, (seed, 3, i))) for i in range(draws)])
    orders = np.argsort(chance.haar_directions(ORDERS, n, (seed, 4)), axis=1)
    by_chance = np.abs(_correlations(left[:, :k].T, at[orders]))
    time = np.array([np.corrcoef(left[:, i], at)[0, 1] for i in range(k)])
    # A component's sign means nothing: it is turned so that its scores rise with time.
    scores = left[:, :k] * values[:k] * np.where(time < 0, -1.0, 1.0)
    laid = np.full((k, len(steps.trained)), np.nan)
    laid[:, at] = scores.T
    shares = values[:k] ** 2 / np.sum(values**2)
    p = [chance.monte_carlo_p(abs(t), c).value for t, c in zip(time, by_chance, strict=True)]
    columns = [
        Column("component", np.arange(k)),
        Column("share", shares, digits=3, about="share of the table's variance", chance="share_level"),
        Column("share_level", np.full(k, float(np.quantile(null, 1 - LEVEL))), digits=3,
               about="largest share of as many independent random rows, 95 %"),
        Column("with_time", np.abs(time), "r", 2, "correlation of its scores with the step, sign chosen to rise"),
        Column("p_time", np.array(p), about="chance that steps in a random order reach it, for this component alone"),
        Column("scores", [[None if np.isnan(v) else float(v) for v in row] for row in laid], digits=2,
               about="scores by step, None where the step looks untrained"),
    ]  # fmt: skip
    meta = {
        "analysis": "timestep_components", "policy": "none: weights only", "basis": name, "steps": len(steps.trained),
        "trained": n, "trained_steps": at.tolist(), "dimension": d, "draws": draws, "seed": seed,
        "null": "independent random rows; steps in random orders",
    }  # fmt: skip
    table = Table(
        columns, model.meta | meta | {"tensors": model.origins(*model.bases[name].tensors)}, key=("component",)
    )
    beyond = int(np.sum(shares > table["share_level"]))
    return replace(
        table,
        title=f"{model.name} · components of {name} ({n} of {len(steps.trained)} steps trained) · frame {model.frame}",
        says=f"{beyond} of {k} components have more variance than random rows give; the first has {shares[0]:.0%} and "
        f"goes with time at |r| = {abs(time[0]):.2f}.",
        not_says="It does not say that the agent uses the time; p_time is of one component, not of the best of all.",
        next=f"covector locate {model.words} {name} --curve {_first_reader(model)}{model.framing}",
        picture=component_curves,
    )


def _first_reader(model: Model) -> str:
    return "L0H0.ov:0" if model.spec.blocks and model.spec.blocks[0].attn else "L0.mlp.in:0"


def _largest_share(rows: np.ndarray) -> float:
    values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    return float(values[0] / values.sum())


def _correlations(scores: Float[np.ndarray, "k n"], times: np.ndarray) -> Float[np.ndarray, "k m"]:
    rows, columns = scores - scores.mean(axis=1, keepdims=True), times - times.mean(axis=1, keepdims=True)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ (columns / np.linalg.norm(columns, axis=1, keepdims=True)).T


def component_curves(table: Table) -> Curve:
    """Scores of the first components over time."""
    rows, last = table.rows[:COMPONENTS], table.meta["trained_steps"][-1] + 1
    ys = np.array([[np.nan if v is None else v for v in row["scores"]] for row in rows], dtype=float)[:, :last]
    names = [f"component {row['component']} ({row['share']:.0%})" for row in rows]
    return Curve(np.arange(last, dtype=float), ys, names, "timestep", "score", "", "")
