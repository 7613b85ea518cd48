"""One place of a change in detail: the dyads of ΔM as `readout` shows them, or what became of the old dyads.

Source: §2 F16 of the theory page; `docs/theory/changes.md`, equations 3–9; SV-28, SV-29.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from covector.analyses.diff import BELOW, FEWEST_DRAWS, diff_stream, diff_words, held
from covector.analyses.diff_measures import Changed, at_site
from covector.analyses.readout import readout
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.agreement import agreement
from covector.linalg.change import (
    angles,
    bands,
    first_order_shifts,
    is_zero,
    leading,
    matched,
    nearest,
    rank_above_noise,
    relative_change,
)
from covector.linalg.change_null import RandomChanges
from covector.linalg.lapack import at_most_threads
from covector.linalg.maps import frobenius
from covector.linalg.svd import SVD, svd
from covector.model.change import ChangeModel, both
from covector.render import Column, Scatter, Table


def diff_directions(model: ChangeModel, address: str, *, rank: int = 10, k: int = 15, seed: int = 0) -> Table:
    """The dyads of the change at a place, with their labels and chance levels; see `covector.analyses.readout`.

    At most `rank`, and only those whose gain is above twice the expected rounding of storage (one at least).
    p_dir asks whether a direction of the change is nearer to a label than a random one; that the old map's own read
    or write space is near labels already is what `diff` takes into account.
    Raises BadSite, BadRank, BadRequest where nothing changed.
    """
    site = model.site(address)
    view = held(model)
    found = at_site(view, site)
    old, new = both(model)
    if is_zero(found.change):
        raise BadRequest(f"{site}: expected a place that changed, {old.name} and {new.name} are the same there, number "
                         "by number; covector diff without a place lists what changed")  # fmt: skip
    size, clear = relative_change(found.change, found.base), rank_above_noise(found.delta)
    table = readout(view, str(site), rank=min(rank, max(clear, 1)), k=k, seed=seed)
    return dataclasses.replace(
        table,
        meta={**table.meta, "analysis": "diff_directions", "change": size, "rank_above_noise": clear},
        says=f"The change is {size:.3g} of ‖M‖, {clear} of its dyads above the rounding of storage. {table.says}",
        next=diff_words(model, str(site)) + " --components",
    )


@dataclass(frozen=True, eq=False)
class _Null:
    """Per random change: likeness of each leading new dyad with its nearest old one, share inside, largest angle."""

    nearest: np.ndarray
    inside: np.ndarray
    turn: np.ndarray


def diff_components(
    model: ChangeModel,
    address: str,
    *,
    top: int = 8,
    below: float = BELOW,
    draws: int = FEWEST_DRAWS,
    seed: int = 0,
) -> Table:
    """What became of the dyads of a place: each of the leading `top` new dyads with its old partner.

    Partners are chosen so that the total of |u·u'||v·v'| over the leading new dyads and all old ones is largest. Beside
    the shift of each gain stands its first-order prediction uᵢᵀΔM vᵢ from the old partner, exact to second order where
    the gain is alone (SV-29). `nearest` is the likeness with the most similar old dyad, partner or not; p says how many
    of `draws` random changes of equal norm and rank leave the new dyad of that index as little.
    Raises BadSite, BadRequest where nothing changed or options are out of range.
    """
    if top < 1 or not 0 < below < 1 or draws < FEWEST_DRAWS:
        raise BadRequest(f"expected top >= 1, 0 < below < 1, draws >= {FEWEST_DRAWS}, got {top}, {below:g}, {draws}")
    site = model.site(address)
    found = at_site(held(model), site)
    old, new = both(model)
    if is_zero(found.change):
        raise BadRequest(f"{site}: expected a place that changed, {old.name} and {new.name} are the same there")
    after = svd(found.other, top, stream_only=found.tables)
    with at_most_threads(1):  # thin factors are slower on two threads than on one
        null = _null(found, top, draws, diff_stream(model, site, seed))
    shares = bands(found.old, found.change, top)
    columns = _columns(found, after, top, below, null)
    return Table(
        columns=columns,
        meta=model.meta
        | {
            "analysis": "diff_components",
            "site": str(site),
            "top": top,
            "below": below,
            "draws": draws,
            "seed": seed,
            "null": "random change of equal norm and equal rank",
            "policy": "none: weights only",
            "bands": {"order": ["leading", "others", "outside"], "shares": shares.tolist()},
            "inside_level": float(np.quantile(null.inside, 0.95)),
            "turn_level": float(np.quantile(null.turn, 0.95)),
        },
        title=f"{old.name} → {new.name} {site} · what became of its dyads · frame {model.frame} · ‖ΔM‖ = "
        f"{relative_change(found.change, found.base):.3g} ‖M‖ · intruders below {below:g}",
        says=_says(found, columns, shares, null, top),
        not_says="It does not say what the change does to outputs. A pair of near gains turns into each other under "
        "any change: p compares with random changes, which turn them too.",
        next=diff_words(model, str(site)),
        picture=_shifts,
        key=("new",),
    )


def _null(found: Changed, top: int, draws: int, seed: tuple[int, ...]) -> _Null:
    random = RandomChanges(found.other, found.base, frobenius(found.change), seed)
    near, inside, turn = [], [], []
    for i in range(draws):
        change, new = random.draw(i)
        after = leading(new, top, found.tables)
        one = np.full(top, np.nan)
        likeness = nearest(found.old, after, top)
        one[: len(likeness)] = likeness
        near.append(one)
        inside.append(bands(found.old, change, top)[0, 0])
        turn.append(max((float(a[0]) for a in angles(found.old, after, top).values()), default=0.0))
    return _Null(np.array(near), np.array(inside), np.array(turn))


def _columns(found: Changed, after: SVD, top: int, below: float, null: _Null) -> list[Column]:
    pairs, old = matched(found.old, after, top), found.old
    n = len(pairs.partner)
    has = pairs.partner >= 0
    at = np.where(has, pairs.partner, 0)
    before = np.where(has, old.S[at], np.nan)
    predicted = np.where(has, first_order_shifts(old, found.change)[at], np.nan) if _two_sided(old) else _no(n)
    turned = angles(old, after, top)
    made = [
        Column("new", np.arange(n), about="index of the new dyad, largest gain first"),
        Column("old", np.where(has, pairs.partner, -1), about="its partner among the old dyads (−1: none)"),
        Column("sigma", after.S[:n], about="its gain"),
        Column("shift", after.S[:n] - before, about="less its partner's gain"),
        Column("predicted", predicted, about="uᵢᵀ ΔM vᵢ of the partner: the shift to first order"),
    ]
    for name, values, d in (("read", pairs.read, found.base.shape[0]), ("write", pairs.write, found.base.shape[1])):
        level = float(chance.threshold(d, max(old.rank, 1)))
        made.append(Column(f"{name}_cos", values, "cos", 3, f"|cos| with what its partner {name}s", chance=level))
    likeness = np.array([_reach(null.nearest[:, i], pairs.nearest[i]) for i in range(n)])
    made += [
        Column("nearest", pairs.nearest, "", 3, "|u·u'||v·v'| with the most similar old dyad", chance="nearest_level"),
        Column("p", likeness, digits=3, about="share of random changes that leave as little (+1)"),
        Column("q", chance.bh(likeness) if n else likeness, digits=3, about="Benjamini–Hochberg over these dyads"),
        Column("intruder", pairs.intruders(below), about=f"1 where no old dyad resembles it by {below:g}"),
    ]
    for name in ("read", "write"):
        values = _no(n)
        some = turned.get(name, np.zeros(0))[:n]
        values[: len(some)] = some
        made.append(Column(f"{name}_angle", values, "°", 1, "principal angles of the leading subspaces, largest first"))
    level = np.nanquantile(null.nearest[:, :n], 0.05, axis=0)
    made.append(Column("nearest_level", level, "", 3, "5 % of random changes leave less"))
    return made


def _two_sided(found: SVD) -> bool:
    return bool(found.U.shape[1]) and bool(len(found.Vh))


def _no(n: int) -> np.ndarray:
    return np.full(n, np.nan)


def _reach(null: np.ndarray, value: float) -> float:
    """Share of random changes whose likeness is at most this, the change itself counted."""
    return float((1 + np.count_nonzero(null <= value)) / (1 + len(null)))


def _says(found: Changed, columns: list[Column], shares: np.ndarray, null: _Null, top: int) -> str:
    table = {column.name: column.numbers for column in columns}
    intruders = int(table["intruder"].sum())
    fit = agreement(table["predicted"], table["shift"]) if np.isfinite(table["predicted"]).all() else None
    told = f"; first order says the shifts with {fit}" if fit is not None and len(table["new"]) > 2 else ""
    inside = ""
    if _two_sided(found.old):
        level = float(np.quantile(null.inside, 0.95))
        inside = (
            f" {shares[0, 0]:.1%} of ‖ΔM‖² lies between the old leading {top} on both sides (95 % of random changes "
            f"stay below {level:.1%}); {shares[2].sum():.1%} reads and {shares[:, 2].sum():.1%} writes where the old "
            "map has no dyad."
        )
    lost = int(np.count_nonzero(table["q"] < 0.05))
    return (
        f"{intruders} of the leading {len(table['new'])} new dyads are intruders, {lost} resemble the old ones less "
        f"than after random changes (q < .05){told}.{inside}"
    )


def _shifts(table: Table) -> Scatter:
    """Shift of each gain against its first-order prediction."""
    return Scatter(
        x=np.array(table["predicted"], dtype=np.float64),
        y=np.array(table["shift"], dtype=np.float64),
        x_name="predicted to first order",
        y_name="shift of the gain",
        x_unit="",
        y_unit="",
        labels=[f"{old}→{new}" for old, new in zip(table["old"], table["new"], strict=True)],
    )
