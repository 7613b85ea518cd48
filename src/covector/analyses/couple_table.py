"""Couplings as a table: one row per head and pair of tasks, its sentences and its pictures.

Source: `docs/theory/observables.md`, equations 12 and 13.
"""

from dataclasses import asdict, dataclass

import numpy as np

from covector.analyses.couple_null import TIE
from covector.analyses.couple_readings import NORMAL_95, NOTICEABLE, Readings
from covector.analyses.head_grid import head_grid
from covector.analyses.propagate import DATA_FREE
from covector.analyses.shared import LEVEL
from covector.axes import Float
from covector.linalg import chance
from covector.linalg.agreement import Agreement, agreement
from covector.model.opened import Model
from covector.render import Column, Grid, Scatter, Table
from covector.study.observable import Observable


@dataclass(frozen=True, eq=False)
class Coupled:
    """Couplings from weights alone, [pair of tasks, head]; ``which`` are the pairs, first task and second.

    ``interval`` [pair, head, 3]: deviation, least and most of theorem 2; ``null`` [draws, pair, head] cosines.
    """

    view: Model
    tasks: tuple[Observable, ...]
    names: tuple[str, ...]
    which: tuple[tuple[int, int], ...]
    coefficient: Float[np.ndarray, "pair head"]
    back: Float[np.ndarray, "pair head"]
    cosine: Float[np.ndarray, "pair head"]
    sizes: Float[np.ndarray, "pair head 2"]
    interval: Float[np.ndarray, "pair head 3"]
    null: Float[np.ndarray, "draws pair head"]
    p: Float[np.ndarray, "pair head"]
    p_max: Float[np.ndarray, "pair head"]
    rho: Float[np.ndarray, "task task"]
    draws: int
    seed: int


@dataclass(frozen=True, eq=False)
class Data:
    """What prompts give: slopes and r² on clean and on other inputs, attributions, [pair, head]."""

    clean: Readings
    other: Readings
    slope_clean: Float[np.ndarray, "pair head"]
    r2_clean: Float[np.ndarray, "pair head"]
    slope_other: Float[np.ndarray, "pair head"]
    r2_other: Float[np.ndarray, "pair head"]
    within: Float[np.ndarray, "pair head"]
    direct: Float[np.ndarray, "task head"]
    ratio: Float[np.ndarray, "pair head"]
    pairs: int
    at: str
    token: str

    def agreements(self, weights: Float[np.ndarray, "pair head"]) -> dict[str, tuple[str, Agreement]]:
        """How well one number says another over all rows, with what it was allowed to see."""
        return {
            "coupling_slope": ("prediction", _agreed(weights, self.slope_other)),
            "data_slope": ("fit", _agreed(self.slope_clean, self.slope_other)),
            "coupling_ratio": ("accounting", _agreed(weights, self.ratio)),
        }


def _agreed(x: Float[np.ndarray, "pair head"], y: Float[np.ndarray, "pair head"]) -> Agreement:
    kept = np.isfinite(x) & np.isfinite(y)
    return agreement(x[kept], y[kept])


def couple_table(c: Coupled, data: Data | None, picture: str = "auto") -> Table:
    """The rows of a head together, heads with the longest shorter feature first."""
    heads, m = len(c.names), len(c.which)
    shorter = c.sizes.min(axis=2).max(axis=0)
    by_head = np.argsort(-shorter, kind="stable")
    order = (by_head[:, None] + heads * np.arange(m)).ravel()
    agreed = data.agreements(c.coefficient) if data else {}
    first = c.names[int(by_head[0])]
    return Table(
        columns=_columns(c, data),
        meta=_meta(c, data, agreed),
        title=_title(c, data),
        says=_says(c) + (_says_data(agreed) if data else ""),
        not_says=_not_says(data),
        next=f"covector observe align {c.view.words} {c.tasks[0].typed} {first}{c.view.framing}",
        picture=lambda _: _picture(c, data, picture, int(by_head[0])),
        key=("head",) if m == 1 else ("head", "tasks"),
    ).take(order)  # fmt: skip


def _columns(c: Coupled, data: Data | None) -> list[Column]:
    """Every column, flattened pair by pair."""
    m, one, two = len(c.which), str(c.tasks[0]), str(c.tasks[1])
    if m > 1:
        one, two = "the first task", "the second"
    spread = NORMAL_95 * c.interval[:, :, 0]
    level = np.quantile(np.abs(c.null), 1 - LEVEL, axis=0)
    pairs = np.repeat([f"{i + 1}·{j + 1}" for i, j in c.which], len(c.names)).tolist()
    tasks = [Column("tasks", pairs, about="numbers of the first and the second task of the pair")] if m > 1 else []
    given = _of_prompts(c, data, one, two) if data else {}
    back = Column("back", c.back.ravel(), "", 3, f"{one} per unit of {two}")
    found = [
        Column("p", c.p.ravel(), about="chance of such a |cos| for random read-outs as alike, in this row alone"),
        Column("q", chance.bh(c.p.ravel()), about="Benjamini–Hochberg over rows"),
        Column("p_max", c.p_max.ravel(), about="chance that the best of all rows is so far above"),
    ]
    return [
        Column("head", list(c.names) * m, about="layer and query head"),
        *tasks,
        Column("coupling", c.coefficient.ravel(), "", 3, f"{two} per unit of {one}"),
        Column("low", (c.coefficient - spread).ravel(), "", 3, "95 % of inputs of length √d that read ‖y1‖: from"),
        Column("high", (c.coefficient + spread).ravel(), "", 3, "to (theorem 2, mean ± 1.96 deviations)"),
        *given.get("slopes", ()),
        *([] if data else [back]),
        Column("cos", c.cosine.ravel(), "cos", 4, "cosine of the two features", chance="chance"),
        Column("chance", level.ravel(), "", 4,
               "|cos| that random read-outs as alike stay below with 95 % at this head"),
        Column("r2", (c.cosine**2).ravel(), "", 3, "r² of the regression for inputs spread evenly"),
        *given.get("fits", ()),
        *(reversed(found) if data else found),
        *([back] if data else []),
        Column("norm_first", c.sizes[:, :, 0].ravel(), c.tasks[0].unit, 3, f"feature length of {one}"),
        Column("norm_second", c.sizes[:, :, 1].ravel(), c.tasks[1].unit, 3, f"feature length of {two}"),
        Column("least", c.interval[:, :, 1].ravel(), "", 3, "least that theorem 2 allows for such inputs"),
        Column("most", c.interval[:, :, 2].ravel(), "", 3, "most that it allows"),
        *given.get("attributions", ()),
    ]  # fmt: skip


def _of_prompts(c: Coupled, data: Data, one: str, two: str) -> dict[str, list[Column]]:
    """The columns that prompts add, by where they stand."""
    first, second = ([pair[side] for pair in c.which] for side in (0, 1))
    return {
        "slopes": [
            Column(
                "data", data.slope_clean.ravel(), "", 3, "C_Σ, Σ of the clean inputs: the slope of regression there"
            ),
            Column("slope", data.slope_other.ravel(), "", 3, "slope measured on inputs of corrupt prompts alone"),
            Column("ratio", data.ratio.ravel(), "", 3, f"attribution of {two} over that of {one} through this head"),
        ],
        "fits": [
            Column("r2_data", data.r2_clean.ravel(), "", 3, "r² of the regression on the clean inputs"),
            Column("r2_slope", data.r2_other.ravel(), "", 3, "r² on the inputs of corrupt prompts alone"),
            Column("within", data.within.ravel(), "", 2, "share of inputs inside theorem 2's 95 %"),
        ],
        "attributions": [
            Column("direct_first", data.direct[first].ravel(), c.tasks[0].unit, 3, f"attribution of {one}"),
            Column("direct_second", data.direct[second].ravel(), c.tasks[1].unit, 3, f"attribution of {two}"),
        ],
    }


def _meta(c: Coupled, data: Data | None, agreed: dict[str, tuple[str, Agreement]]) -> dict:
    alike = [[round(float(r), 12) for r in row] for row in c.rho]
    rho = float(c.rho[0, 1])
    told = f"cosine {rho:.4f}" if len(c.which) == 1 else "the cosines of the tasks' own"
    sets = "pairs" if len(c.which) == 1 else f"sets of {len(c.tasks)}"
    meta = c.view.meta | {
        "analysis": "couple", "observables": [str(t) for t in c.tasks], "policy": str(DATA_FREE),
        "kind": "prediction", "readouts_cos": rho if len(c.which) == 1 else alike, "seed": c.seed,
        "null": f"{sets} of random read-outs with {told}, max-T, {c.draws} draws",
    }  # fmt: skip
    if data is None:
        return meta
    return meta | {
        "kind": "fit", "pairs": data.pairs, "at": data.at, "token": data.token,
        "inputs": {"clean": len(data.clean.labels), "other": len(data.other.labels)},
        "kinds": {"coupling": "prediction", "data": "fit", "ratio": "accounting"},
        "agreements": {name: {"kind": kind} | _plain(found) for name, (kind, found) in agreed.items()},
    }  # fmt: skip


def _plain(found: Agreement) -> dict:
    return {name: None if value != value else value for name, value in asdict(found).items()}


def _title(c: Coupled, data: Data | None) -> str:
    if len(c.which) == 1:
        told = f"{c.tasks[0]} against {c.tasks[1]} · {len(c.names)} heads · read-outs cos {c.rho[0, 1]:.3f}"
    else:
        told = " · ".join(f"{i + 1} {task}" for i, task in enumerate(c.tasks)) + f" · {len(c.names)} heads"
    seen = "no data" if data is None else (
        f"{data.pairs} pairs, {len(data.clean.labels)} clean and {len(data.other.labels)} other inputs"
        f"{'' if data.token == 'all' else f' at {data.token}'}"
    )  # fmt: skip
    return f"{c.view.name} · {told} · frame {c.view.frame} · {seen}"


def _says(c: Coupled) -> str:
    """In how many rows the features are more alike than their read-outs make them."""
    same, opposite = (int(np.sum((c.p_max < LEVEL) & (c.cosine * sign > 0))) for sign in (1, -1))
    if len(c.which) > 1:
        return (
            f"In {same} of {c.cosine.size} rows (a head and two tasks) both tasks read the same direction beyond what "
            f"read-outs as alike make of them, in {opposite} opposite ones, after paying for the choice among all rows "
            f"({LEVEL:.0%})."
        )
    rho = float(c.rho[0, 1])
    if abs(rho) > 1 - TIE:
        return f"The two read-outs are one (cos {rho:.0f}), so their features are one at every head, whatever it reads."
    return (
        f"At {same} of {c.cosine.size} heads the two tasks read the same direction beyond what read-outs with cosine "
        f"{rho:.2f} make of them, at {opposite} opposite ones, after paying for the choice among all heads "
        f"({LEVEL:.0%})."
    )


def _says_data(agreed: dict[str, tuple[str, Agreement]]) -> str:
    """What the numbers with prompts say of each other, typed."""
    names = {
        "coupling_slope": "couplings from weights alone say the slopes of other inputs with",
        "data_slope": "those of the clean inputs say them with",
        "coupling_ratio": "couplings say the ratios of attributions with",
    }
    told = [
        f"{names[name]} slope {found.slope:.2f}, r² {found.r2:.2f} over {found.n} rows ({kind})"
        for name, (kind, found) in agreed.items()
        if found.n > 1
    ]
    return f" Here {'; '.join(told)}." if told else ""


def _not_says(data: Data | None) -> str:
    if data is None:
        return (
            "It does not say how inputs are spread: a coefficient is the slope of a regression only for inputs even in "
            "all directions. Random read-outs are even in all directions, those of tokens are not."
        )
    return (
        "data is a fit of these prompts, whose inputs are alike; other inputs share their templates. A ratio of "
        f"attributions saw both prompts, and heads below {NOTICEABLE:.0%} of the first task's largest have none."
    )


def _picture(c: Coupled, data: Data | None, picture: str, first: int) -> Grid | Scatter:
    """The one that was asked for; without a wish readings where there are prompts, else heads."""
    if data is not None and picture == "attributions":
        return _ratios(c, data)
    if data is not None and picture != "heads":
        return _readings(c, data, first)
    if len(c.which) == 1:
        return head_grid(list(c.names), c.cosine[0], value_name="cosine of the two features")
    return _matrices(c)


def _matrices(c: Coupled) -> Grid:
    """Cosines of every pair of tasks at every head: a block of rows per pair."""
    grids = [head_grid(list(c.names), row, value_name="cosine of the two features") for row in c.cosine]
    rows = [f"{i + 1}·{j + 1} {label}" for (i, j), g in zip(c.which, grids, strict=True) for label in g.row_labels]
    return Grid(
        np.concatenate([g.values for g in grids]), rows, grids[0].column_labels,
        value_name="cosine of the two features", row_name="tasks, layer", column_name="head",
    )  # fmt: skip


def _readings(c: Coupled, data: Data, head: int) -> Scatter:
    """What the head with the longest features reads of every input, first task across and second upwards."""
    (i, j), groups = c.which[0], ["clean"] * len(data.clean.labels) + ["other"] * len(data.other.labels)
    x, y = (np.concatenate([r.values[head, task] for r in (data.clean, data.other)]) for task in (i, j))
    return Scatter(
        x, y, f"{c.tasks[i]} at {c.names[head]}", f"{c.tasks[j]} at {c.names[head]}", c.tasks[i].unit, c.tasks[j].unit,
        labels=[*data.clean.labels, *data.other.labels], groups=groups,
    )  # fmt: skip


def _ratios(c: Coupled, data: Data) -> Scatter:
    """Couplings from weights against ratios of attributions, heads that have one."""
    kept = np.isfinite(data.ratio)
    labels = [name if len(c.which) == 1 else f"{name} {i + 1}·{j + 1}" for i, j in c.which for name in c.names]
    return Scatter(
        c.coefficient[kept], data.ratio[kept], "coupling, from weights alone", "ratio of attributions", "", "",
        labels=[labels[k] for k in np.flatnonzero(kept.ravel())], diagonal=True,
    )  # fmt: skip
