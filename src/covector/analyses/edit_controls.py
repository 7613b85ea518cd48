"""What else could have been changed: random changes of the same factors, matched in size, and the other dyads.

Matched on E‖Δoutput‖² first: what the changed matrix adds to its output over the clean inputs of the target prompts.
Equal ‖ΔM‖ is another question, because real inputs read the leading dyads more, or less, than random directions.

Source: theory page F5, F14, §4.0; `docs/theory/edits.md`, equations 20 and 21.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from covector.analyses.edit_setup import Drawing, Part, framed
from covector.linalg.chance.streams import generator
from covector.linalg.matched import driven_by, mean_square, product_norm, random_factors, spectrum
from covector.linalg.svd import svd
from covector.model.address import Site
from covector.model.opened import Model
from covector.model.overlay import Change, Update
from covector.model.weights import Weights, split_name
from covector.study.edit_carry import carried, shifts_of
from covector.study.edit_operators import Operator
from covector.study.edit_resolve import Laid
from covector.study.edit_sides import LEFT
from covector.study.edit_terms import WRITE, Along, Dyads, Replace

OUTPUT, NORM, DYADS = "equal output", "equal ‖ΔM‖", "other dyads"


@dataclass(frozen=True, eq=False)
class Factor:
    """All that an edit changes of one stored matrix (of one head), and the site whose map the matrix is a factor of."""

    update: Update
    site: Site


def factors_of(part: Part) -> list[Factor]:
    """The changed matrices, each once; changes of one matrix in several steps are added up."""
    sites = {(one.target.tensor, one.target.head): one.site for one in reversed(part.resolved.laid)}
    found = []
    for tensor, head in dict.fromkeys((u.tensor, u.head) for u in part.change.updates):
        some = [u for u in part.change.updates if (u.tensor, u.head) == (tensor, head)]
        left, right = np.concatenate([u.left for u in some], axis=1), np.concatenate([u.right for u in some])
        found.append(Factor(Update(tensor, left, right, head), sites[tensor, head]))
    return found


def output_size(model: Model, update: Update, inputs: Mapping[str, np.ndarray]) -> float:
    """E‖Δoutput‖² of a change over the inputs of its matrix, what biases take included."""
    x = inputs[update.tensor]
    x = x[:, update.head] if split_name(update.tensor)[1] == "W_O" and update.head is not None else x
    constant = sum((s.values for s in shifts_of(model, update)), 0.0)
    return mean_square(driven_by(x, update.left), update.right, constant)


def map_norm(weights: Weights, factor: Factor) -> float:
    """‖ΔM‖_F of the site's stored map when its factor takes the change."""
    update, site = factor.update, factor.site
    left, right = update.left, update.right
    layer, role = split_name(update.tensor)
    attn = weights.spec.blocks[layer].attn if layer is not None else None
    if attn is not None and site.kind in ("ov", "qk"):
        head = site.head or 0
        other = {"W_O": "W_V", "W_V": "W_O", "W_Q": "W_K", "W_K": "W_Q"}[role]
        W = weights[f"L{layer}.{other}"][attn.kv_of(head) if other in ("W_V", "W_K") else head].astype(np.float64)
        if role == "W_O":
            left = W @ left
        else:
            right = right @ (W if role == "W_V" else W.T)
    return product_norm(left, right)


def random_changes(
    setup: Drawing, part: Part, inputs: Mapping[str, np.ndarray], by: str, index: int = 0
) -> list[Change]:
    """`draws` random changes of the same factors: each of the edit's rank and relative singular values there.

    `by`: OUTPUT scales every factor's change to the edit's E‖Δoutput‖², NORM to its ‖ΔM‖_F. Factors are drawn
    independently. A matrix whose edit reaches no output (or no map) is left alone. `index` tells parts apart.
    """
    model = framed(setup, part)
    made = []
    factors = factors_of(part)
    sizes = [_size(setup, model, f, inputs, by) for f in factors]
    values = [spectrum(f.update.left, f.update.right) for f in factors]
    for draw in range(setup.draws):
        rng = generator((setup.seed, index, draw), f"edit {by}")
        change = Change()
        for factor, size, s in zip(factors, sizes, values, strict=True):
            n, m = len(factor.update.left), factor.update.right.shape[1]
            left, right = random_factors(s, n, m, rng)
            drawn = Factor(Update(factor.update.tensor, left, right, factor.update.head), factor.site)
            own = _size(setup, model, drawn, inputs, by)
            share = size / own if own > 0 else 0.0
            update = Update(drawn.update.tensor, share * left, right, drawn.update.head)
            change += Change((update,), shifts_of(model, update))
        made.append(change)
    return made


def _size(setup: Drawing, model: Model, factor: Factor, inputs: Mapping[str, np.ndarray], by: str) -> float:
    if by == NORM:
        return map_norm(setup.model.stored, factor)
    return max(output_size(model, factor.update, inputs), 0.0) ** 0.5


def dyad_changes(setup: Drawing, part: Part, index: int = 0) -> list[Change]:
    """The same ε on other dyads of the same matrices: all of them for a single dyad, random sets for several.

    At most `draws`. Empty where the edit is not one of dyads or directions in one step, or there are too few others.
    """
    laid = _merged(part.resolved.laid)
    if len(part.resolved.steps) > 1 or not all(isinstance(one.term, Dyads | Along) for one in laid):
        return []
    model = framed(setup, part)
    choices = [_others(setup, model, one, index, i) for i, one in enumerate(laid)]
    count = min((len(c) for c in choices), default=0)
    return [carried(model, [(one.target, c[i]) for one, c in zip(laid, choices, strict=True)]) for i in range(count)]


def _merged(laid: Sequence[Laid]) -> list[Laid]:
    """Terms that name dyads of one side of one site as one: a control takes as many others, and never one twice."""
    found: dict[tuple[str, str, int], Laid] = {}
    for i, one in enumerate(laid):
        term = one.term
        key = (str(one.site), one.side, -1 if isinstance(term, Dyads) else i)
        own = found[key].term if key in found else None
        if isinstance(term, Dyads) and isinstance(own, Dyads):
            gains = {d: 1 + e for d, e in zip(own.indices, own.epsilon, strict=True)}
            for d, e in zip(term.indices, term.epsilon, strict=True):
                gains[d] = gains.get(d, 1.0) * (1 + e)
            one = replace(one, term=Dyads(term.site, tuple(gains), tuple(g - 1 for g in gains.values()), term.side))
        found[key] = one
    return list(found.values())


def _others(setup: Drawing, model: Model, one: Laid, index: int, place: int) -> list[Operator]:
    """Operators with the term's ε on dyads that it does not name."""
    assert isinstance(one.term, Dyads | Along)
    found = one.found or svd(model.map(one.site))
    own = one.term.indices if isinstance(one.term, Dyads) else ()
    others = np.array([i for i in range(found.rank) if i not in own])
    epsilon = np.array(one.term.epsilon)
    k = len(epsilon)
    if len(others) < k:
        return []
    rng = generator((setup.seed, index, place), "edit dyads")
    if k == 1 and len(part_terms(one)) == 1:
        sets = others[:, None] if len(others) <= setup.draws else rng.permutation(others)[: setup.draws, None]
    else:
        sets = np.array([rng.choice(others, k, replace=False) for _ in range(setup.draws)])
    vectors = found.Vh if one.side == WRITE else found.U.T
    return [Operator(vectors[s], epsilon[:, None] * vectors[s]) for s in sets]


def part_terms(one: Laid) -> tuple[int, ...]:
    """The dyads of a term, or its directions counted."""
    return one.term.indices if isinstance(one.term, Dyads) else tuple(range(len(one.operator.reads)))


@dataclass(frozen=True, eq=False)
class Piece:
    """One direction of an edit alone, for predictions: where, which dyad, its gain and ε, and its change."""

    site: str
    dyad: str
    gain: float
    epsilon: float
    change: Change


def pieces_of(setup: Drawing, part: Part) -> list[Piece]:
    """The edit direction by direction; an edit in several steps matrix by matrix. Their changes sum to its own.

    (Up to products of terms that overlap.)
    """
    if len(part.resolved.steps) > 1:
        nan, model = float("nan"), framed(setup, part)
        found = [(f.update, shifts_of(model, f.update)) for f in factors_of(part)]
        return [Piece(update.tensor, "all", nan, nan, Change((update,), shifts)) for update, shifts in found]
    model = framed(setup, part)
    return [p for one in part.resolved.laid for p in _rows(model, one)]


def _rows(model: Model, one: Laid) -> list[Piece]:
    found = []
    for i, (reads, writes) in enumerate(zip(one.operator.reads, one.operator.writes, strict=True)):
        change = carried(model, [(one.target, Operator(reads[None], writes[None]))])
        named = (one.term.index,) if isinstance(one.term, Replace) else getattr(one.term, "indices", ())
        epsilon = getattr(one.term, "epsilon", ())
        found.append(Piece(
            str(one.site) + ("@read" if one.target.hand == LEFT and one.site.kind in ("ov",) else ""),
            str(named[i]) if i < len(named) else f"direction {i}",
            one.gains[i] if i < len(one.gains) else float("nan"),
            float(epsilon[i]) if i < len(epsilon) else float("nan"),
            change,
        ))  # fmt: skip
    return found


def sources(parts: Sequence[Part]) -> list[str]:
    """Every matrix whose inputs the matching needs."""
    return list(dict.fromkeys(u.tensor for part in parts for u in part.change.updates))


def effect_sizes(setup: Drawing, part: Part, inputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """√E‖Δoutput‖² of the edit, by changed matrix (``L2.W_O``; of one head ``L2.W_O[3]``)."""
    model, found = framed(setup, part), {}
    for f in factors_of(part):
        name = f.update.tensor + ("" if f.update.head is None else f"[{f.update.head}]")
        found[name] = _size(setup, model, f, inputs, OUTPUT)
    return found
