"""Dyads against contrasts of actions: how much of each a softmax can see, and which contrast it is nearest to.

Source: Q3 of the theory page; `docs/theory/location.md`, equations 19–21.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from covector.analyses.agent_map import LEVEL, Directions, directions, kind
from covector.analyses.agent_untrained import said
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.contrasts import Contrast, contrast, contrast_frame, named_contrasts
from covector.linalg.location import hyperplane
from covector.model.circuits import site_tensors
from covector.model.opened import Model
from covector.render import Column, Grid, Table

# Outputs beyond which named contrasts are many and no name is read (a vocabulary).
MOST_OUTPUTS = 32
# Actions that a dyad's coefficients name, largest first.
NAMED = 4
# Places in the picture's rows at the most.
DRAWN = 60
# Letters of all names together up to which cells spell them out.
SPELT = 16


def action_contrasts(
    model: Model,
    basis: str = "action_out",
    *,
    sites: str = "*",
    side: str = "both",
    dyads: int = 8,
    contrasts: Sequence[str] | str = (),
    frame: str | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Table:
    """One row per dyad, largest share in the contrasts first.

    `energy` is the share of the direction in span{a_i − a_j} of the outputs of `basis`, whose null is Beta((a−1)/2, ·)
    exactly (`p`, `q` over all dyads of the request); `ignored` the share in span{a_i} that softmax does not see.
    `contrast` is the named contrast with the largest |cosine| (one or two actions against one or two, one against the
    rest, and those of `contrasts`, as ``left + right - forward``); its `p_contrast` repeats the choice among all of
    them for `draws` random directions, or is their exact union bound where that is smaller. `actions`: cosines with
    the output vectors, largest first.

    Raises UnknownBasis, BadSite, BadRank, FrameUnavailable; BadRequest for continuous actions, whose common shift is
    not ignored, for more than 32 outputs, and for a contrast that is none.
    """
    view = model if frame is None or frame == str(model.frame) else model.framed(frame)
    asked = (contrasts,) if isinstance(contrasts, str) else tuple(contrasts)
    world = _world(view, basis, asked)
    found = directions(view, sites, side, dyads)
    spaces = {c: world.seen(c) for c in {f.place.centred for f in found}}
    nulls = {c: chance.null_maxima(s.units, draws=draws, seed=(seed, int(c))) for c, s in spaces.items()}
    columns = _columns(found, world, spaces, nulls)
    used = dict.fromkeys((*(t for f in found for t in site_tensors(f.place.site)), *view.bases[basis].tensors))
    meta = {
        "analysis": "action_contrasts",
        "policy": "none: weights only",
        "basis": basis,
        "outputs": list(world.names),
        "contrasts": [c.name for c in world.contrasts],
        "seen_dimensions": sorted({len(s.frame) for s in spaces.values()}),
        "sites": sites,
        "side": side,
        "dyads": dyads,
        "draws": draws,
        "seed": seed,
        "null": "Haar direction; the best of the named contrasts again in every draw",
    }
    table = Table(columns, view.meta | meta | {"tensors": view.origins(*used)}, key=("site", "side", "dyad"))
    return replace(
        table,
        title=f"{view.name} · {len(table)} dyads against contrasts of {basis} ({len(world.names)}; "
        f"{len(world.contrasts)} of them named) · frame {view.frame}",
        says=_says(table),
        not_says="; ".join(["It does not say that the model uses these directions (nothing was run)",
                            "what is written is seen through the final norm, if there is one",
                            *said(view, [basis])]) + ".",
        next=f"covector locate {view.words} {basis} --by dyads{view.framing}",
        picture=energies,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Space:
    """The outputs as one kind of side sees them: units of actions and of contrasts, frames of what is spanned."""

    actions: Float[np.ndarray, "n d"]
    units: Float[np.ndarray, "k d"]
    frame: Float[np.ndarray, "r d"]
    whole: Float[np.ndarray, "s d"]


@dataclass(frozen=True, eq=False)
class _World:
    model: Model
    basis: str
    names: tuple[str, ...]
    contrasts: tuple[Contrast, ...]

    def seen(self, centred: bool) -> _Space:
        bases = self.model.bases
        vectors = (bases.centred(self.basis) if centred else bases[self.basis]).vectors.astype(np.float64)
        vectors = hyperplane(vectors) if centred else vectors
        rows = np.stack([c.weights(len(vectors)) for c in self.contrasts]) @ vectors
        _, values, spanning = np.linalg.svd(vectors, full_matrices=False)
        whole = spanning[values > values[0] * 1e-10]
        return _Space(_units(vectors), _units(rows), contrast_frame(vectors), whole)


def _world(model: Model, basis: str, asked: tuple[str, ...]) -> _World:
    """The outputs and their contrasts. Raises BadRequest where softmax is not what reads them."""
    found = model.bases[basis]
    out = model.spec.output(basis.rpartition("_")[0]) if basis.endswith("_out") else None
    if out is None or found.metric is not None:
        raise BadRequest(f"contrasts are of the outputs that a softmax reads (action_out), got '{basis}'")
    if out.activation is not None:
        raise BadRequest(
            f"{basis}: contrasts are of discrete actions; these go through {out.activation}, each by itself, so that a "
            "common shift counts; use --by dyads"
        )
    if not found.usable.all() or not 2 <= len(found) <= MOST_OUTPUTS:
        raise BadRequest(f"{basis}: expected 2 to {MOST_OUTPUTS} outputs with a direction each, got {len(found)}")
    names = tuple(found.labels)
    made = dict.fromkeys((*named_contrasts(names), *(contrast(text, names) for text in asked)))
    return _World(model, basis, names, tuple(made))


def _units(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _columns(
    found: list[Directions], world: _World, spaces: dict[bool, _Space], nulls: dict[bool, np.ndarray]
) -> list[Column]:
    parts = []
    for f in found:
        space, null = spaces[f.place.centred], nulls[f.place.centred]
        seen = np.sum((f.rows @ space.frame.T) ** 2, axis=1)
        whole = np.sum((f.rows @ space.whole.T) ** 2, axis=1)
        cosines = f.rows @ space.units.T
        best = np.abs(cosines).argmax(axis=1)
        cos = np.take_along_axis(cosines, best[:, None], axis=1)[:, 0]
        actions = f.rows @ space.actions.T
        k, d = len(space.frame), f.d
        union = np.minimum(1.0, len(space.units) * np.asarray(chance.tail(cos, d)))
        parts.append({
            "site": [str(f.place.site)] * len(cos), "side": [f.place.side] * len(cos),
            "dyad": np.arange(len(cos)), "sigma": f.S,
            "energy": seen, "energy_level": np.full(len(cos), float(chance.threshold(d, 1, LEVEL, k)) ** 2),
            "p": np.asarray(chance.tail(np.sqrt(seen), d, k)), "ignored": np.maximum(whole - seen, 0.0),
            "contrast": [_signed(world.contrasts[i].name, c) for i, c in zip(best, cos, strict=True)],
            "cos": np.abs(cos), "cos_level": np.full(len(cos), float(np.quantile(null, 1 - LEVEL))),
            "p_contrast": np.asarray(chance.monte_carlo_p(np.abs(cos), null, at_most=union).value),
            "actions": [_coefficients(world.names, row) for row in actions],
        })  # fmt: skip
    joined = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    energy, p = np.asarray(joined["energy"]), np.asarray(joined["p"])
    order = np.lexsort((-energy, p))
    q = chance.bh(p)
    about = {
        "energy": "share of the direction in the differences of the actions: what softmax can see",
        "energy_level": "share that a random direction stays below with 95 %",
        "p": "chance that a random direction has as much there: Beta, exact",
        "ignored": "share along the actions that is common to all: softmax does not see it",
        "contrast": "the named contrast with the largest |cosine|; of the + pole",
        "cos": "that cosine", "cos_level": "what the best named contrast of a random direction stays below with 95 %",
        "p_contrast": "chance that any named contrast comes as near to a random direction",
        "actions": "cosines with the actions' own vectors, largest first",
    }  # fmt: skip
    made = [_column(name, values, order, about.get(name, "")) for name, values in joined.items()]
    at = [c.name for c in made].index("p") + 1
    return [*made[:at], Column("q", q[order], about="Benjamini–Hochberg over all dyads of the request"), *made[at:]]


def _column(name: str, values: np.ndarray | list[str], order: np.ndarray, about: str) -> Column:
    if isinstance(values, list):
        return Column(name, [values[i] for i in order.tolist()], about=about)
    taken = values[order]
    if name == "cos":
        return Column(name, taken, "cos", 3, about, chance="cos_level")
    chance_of = "energy_level" if name == "energy" else None
    digits = 3 if name in ("energy", "energy_level", "ignored", "cos_level") else None
    return Column(name, taken, digits=digits, about=about, chance=chance_of)


def _joined(parts: list) -> np.ndarray | list[str]:
    return [v for part in parts for v in part] if isinstance(parts[0], list) else np.concatenate(parts)


def _signed(name: str, cos: float) -> str:
    """The contrast as the + pole has it."""
    plus, _, minus = name.partition(" against ")
    return name if cos >= 0 else f"{minus} against {plus}"


def _coefficients(names: tuple[str, ...], cosines: np.ndarray) -> str:
    """``forward −.75 left +.41 right +.32``."""
    order = np.argsort(-np.abs(cosines), kind="stable")[:NAMED]
    return " ".join(f"{names[i]} {'−' if cosines[i] < 0 else '+'}{_short(float(abs(cosines[i])))}" for i in order)


def _short(value: float) -> str:
    text = f"{value:.2f}"
    return text[1:] if text.startswith("0") else text


def _says(table: Table) -> str:
    beyond = int(np.sum(table.column("q").numbers <= LEVEL))
    head = f"{beyond} of {len(table)} dyads have more in the contrasts of actions than chance gives (rate {LEVEL:.0%})"
    if not beyond:
        return f"{head}."
    named = [r for r in table.head(beyond).rows if r["p_contrast"] <= LEVEL]
    told = [f"{r['site']}:{r['dyad']} {_verb(r['side'])} {r['contrast']} (cos {r['cos']:.2f})" for r in named[:3]]
    kinds = sorted({f"{kind(r['site'])} {r['side']}" for r in table.head(beyond).rows})
    return f"{head}, in {', '.join(kinds)}. " + (f"{'; '.join(told)}." if told else "None is near a named contrast.")


def _verb(side: str) -> str:
    return {"write": "writes", "read": "reads", "query": "asks for", "key": "is found by"}[side]


def energies(table: Table) -> Grid:
    """Places × dyads: the share in the contrasts of actions, and the nearest contrast in the cell, in first letters."""
    rows = table.rows
    found = list(dict.fromkeys((r["site"], r["side"]) for r in rows))
    # The strongest places, where all would not fit; then in the order of the model.
    found = sorted(found[:DRAWN], key=_depth)
    dyads = max(r["dyad"] for r in rows) + 1
    short = _first_letters(table.meta["outputs"])
    values, texts = np.full((len(found), dyads), np.nan), [[""] * dyads for _ in found]
    for r in rows:
        if (r["site"], r["side"]) in found:
            i = found.index((r["site"], r["side"]))
            values[i, r["dyad"]] = r["energy"]
            texts[i][r["dyad"]] = _in_letters(r["contrast"], short) if r["p_contrast"] <= LEVEL else ""
    return Grid(
        values, [f"{site} {side}" for site, side in found], [str(i) for i in range(dyads)], texts,
        value_name="share in contrasts", centre=None, chance=float(max(table["energy_level"])), row_name="place",
        column_name="dyad; in the cells the nearest contrast, * the rest",
    )  # fmt: skip


def _depth(place: tuple[str, str]) -> tuple[list[int], tuple[str, str]]:
    """Layers from first to last, not as text (L10 before L2)."""
    return [int(number) for number in re.findall(r"\d+", place[0])], place


def _first_letters(names: Sequence[str]) -> dict[str, str]:
    """Every name by its fewest first letters that no other begins with, three at least where there is room."""
    if sum(map(len, names)) <= SPELT:
        return {name: name for name in names}
    made = {}
    for name in names:
        size = next((k for k in range(2, len(name)) if sum(n.startswith(name[:k]) for n in names) == 1), len(name))
        made[name] = name[:size]
    return made


def _in_letters(name: str, short: dict[str, str]) -> str:
    sides = name.split(" against ")
    return " | ".join(
        "*" if side == "the rest" else "+".join(short.get(word, word) for word in side.split(" or ")) for side in sides
    )
