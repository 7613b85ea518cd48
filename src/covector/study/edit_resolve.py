"""Edits on a model: terms with their vectors, the low-rank changes of stored matrices that they come to, their inverse.

Everything is exact in float64. An edit found in a frame is carried to the stored weights so that the framed model is
the edited framed model, biases included, or it is refused.

Source: `docs/theory/edits.md`, equations 2–7.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest, FrameUnavailable
from covector.linalg.maps import Factored, Map, frobenius
from covector.linalg.svd import SVD, svd
from covector.model.address import Site
from covector.model.bases import Basis
from covector.model.circuits import site_tensors
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.model.overlay import Change, Overlay
from covector.study.concept import concept, direction
from covector.study.edit_carry import carried
from covector.study.edit_operators import REMOVED, Operator, check_commuting, inverse_writes
from covector.study.edit_sides import Target, own_side, target
from covector.study.edit_terms import WRITE, Along, Dyads, Replace, Rewrite, Term
from covector.study.edit_text import written
from covector.study.expression import parse


@dataclass(frozen=True, eq=False)
class Laid:
    """One term at one site, with its vectors.

    ``delta`` is the change ΔM of the site's map in the edit's frame, as factors; ``gains`` are σ of the dyads that it
    names ([] otherwise) and ``size`` is ‖M‖_F. ``found`` is the site's decomposition where dyads are named.
    """

    term: Term
    site: Site
    side: str
    target: Target
    operator: Operator
    delta: Factored
    gains: tuple[float, ...]
    size: float
    found: SVD | None = None

    @property
    def norm(self) -> float:
        """‖ΔM‖_F, through thin factors."""
        return frobenius(self.delta)


@dataclass(frozen=True, eq=False)
class Resolved:
    """An edit on one model: the change of its stored tensors, and every step's terms as they were laid.

    Terms of later steps are those of the model edited so far.
    """

    change: Change
    steps: tuple[tuple[Laid, ...], ...]
    frame: Frame

    @property
    def laid(self) -> tuple[Laid, ...]:
        """All terms at all sites, in order."""
        return tuple(one for step in self.steps for one in step)


def resolve(
    steps: Sequence[Sequence[Term]], model: Model, frame: str | None = None, base: Mapping[str, str] | None = None
) -> Resolved:
    """See `Edit.resolve`."""
    _check_base(model, base or {})
    here = model if frame is None or frame == str(model.frame) else model.framed(frame)
    _check_frame(here.frame)
    change, laid = Change(), []
    for terms in steps:
        step = tuple(_lay(term, site, here) for term in terms for site in here.sites(term.site))
        check_commuting([(one.target, one.operator, str(one.site), _alone(one)) for one in step])
        made = carried(here, [(one.target, one.operator) for one in step])
        change, laid = change + made, [*laid, step]
        over = Overlay(here.stored, made)
        here = dataclasses.replace(here, stored=over, weights=over).framed(here.frame)
    return Resolved(change, tuple(laid), here.frame)


def _alone(one: Laid) -> str:
    return written(((dataclasses.replace(one.term, site=str(one.site)),),))


def _check_frame(frame: Frame) -> None:
    if not frame.preserving:
        raise FrameUnavailable(
            f"frame '{frame}' is a published view, not the model's function: nothing can be edited in it; use raw"
        )
    if frame.bias:
        raise FrameUnavailable(
            f"frame '{frame}' has directions with a bias in front, which are not directions of the stream; "
            f"use {frame.name}"
        )


def _check_base(model: Model, base: Mapping[str, str]) -> None:
    for name, digest in base.items():
        if name not in model.stored:
            raise BadRequest(f"edit of another model: expected the tensor {name}, {model.name} has none")
        came = model.stored.origin(name)[1]
        if came != digest:
            raise BadRequest(
                f"edit of another model: {name} was {digest[:12]} where the edit was made, in {model.name} it is "
                f"{came[:12]}; open that checkpoint, or drop 'base' from the edit if these dyads are meant as well"
            )


def _lay(term: Term, site: Site, model: Model) -> Laid:
    side = term.side or own_side(site)
    at = target(model.stored.spec, site, side)
    m = model.map(site)
    # For a QK map the written side is the key's: its rows are what the key reads.
    found = svd(m) if isinstance(term, Dyads | Replace) else None
    gains: tuple[float, ...] = ()
    if isinstance(term, Dyads):
        rows = _vectors(found, site, term.indices, side)
        gains = tuple(float(found.S[i]) for i in term.indices) if found else ()
        operator = Operator(rows, np.array(term.epsilon)[:, None] * rows)
    elif isinstance(term, Along):
        rows = _along(term, site, side, model, m.shape[1 if side == WRITE else 0])
        operator = Operator(rows, np.array(term.epsilon)[:, None] * rows)
    elif isinstance(term, Replace):
        rows = _vectors(found, site, (term.index,), side)
        gains = (float(found.S[term.index]),) if found else ()
        operator = Operator(rows, _replacement(term, site, rows.shape[1]) - rows)
    else:
        operator = Operator(term.reads, term.writes)
    width = m.shape[1 if side == WRITE else 0]
    if operator.reads.shape[1] != width:
        raise BadRequest(f"edit of {site}: expected vectors of width {width}, got {operator.reads.shape[1]}")
    delta = _delta(m, operator, side)
    size = float(np.sqrt(np.sum(found.S**2))) if found is not None else frobenius(m)
    return Laid(term, site, side, at, operator, delta, gains, size, found)


def _delta(m: Map, operator: Operator, side: str) -> Factored:
    """ΔM = (M readsᵀ) writes on the side that writes, writesᵀ (reads M) on the side that reads."""
    if side == WRITE:
        return Factored(m.T.apply(operator.reads).T, operator.writes, m.reads, m.writes, m.stored)
    return Factored(operator.writes.T.copy(), m.apply(operator.reads), m.reads, m.writes, m.stored)


def _vectors(found: SVD | None, site: Site, indices: Sequence[int], side: str) -> Float[np.ndarray, "k m"]:
    assert found is not None
    if max(indices) >= found.rank:
        raise BadRequest(
            f"edit of {site}: expected a dyad 0–{found.rank - 1} (numerical rank {found.rank}), got {max(indices)}"
        )
    return found.Vh[list(indices)] if side == WRITE else found.U[:, list(indices)].T


def _along(term: Along, site: Site, side: str, model: Model, width: int) -> Float[np.ndarray, "k m"]:
    if term.rows is not None:
        return term.rows
    basis = _basis(side, model)
    if width != model.spec.d_model or basis is None:
        raise BadRequest(f"edit of {site}: expected a side in the stream for a concept in words, this one is not")
    return direction(concept(parse(term.said), model, basis).weights, basis)[None]


def _basis(side: str, model: Model) -> Basis | None:
    """What a concept in words is looked up in: outputs where a map writes, inputs where it reads."""
    sources = model.spec.outputs if side == WRITE else model.spec.assembly.inputs
    return model.bases[f"{sources[0].name}_{'out' if side == WRITE else 'in'}"] if sources else None


def meant(laid: Laid, model: Model) -> str:
    """How a typed concept became one direction, where its words do not show it: ``(' good' ' friend')``; else empty.

    A word that is not a token stands for the mean of its tokens, a bare one for its variants.
    """
    basis = _basis(laid.side, model)
    if not isinstance(laid.term, Along) or laid.term.rows is not None or basis is None:
        return ""
    expression = parse(laid.term.said)
    found = concept(expression, model, basis)
    return found.words if len(found.weights) > len(expression.terms) else ""


def _replacement(term: Replace, site: Site, width: int) -> Float[np.ndarray, "1 m"]:
    if term.row is None:
        return np.full((1, width), 1.0 / width if term.said == "ones/d" else width**-0.5)
    if term.row.shape != (width,):
        raise BadRequest(f"edit of {site}: expected a vector of width {width}, got {term.row.shape}")
    return term.row[None]


def fixed(resolved: Resolved) -> tuple[tuple[Term, ...], ...]:
    """The terms with concepts and constants written out as vectors, a pattern of sites as one term each."""
    made = []
    for step in resolved.steps:
        terms: list[Term] = []
        for one in step:
            term = dataclasses.replace(one.term, site=str(one.site), side=one.side)
            if isinstance(term, Along):
                term = dataclasses.replace(term, rows=one.operator.reads)
            elif isinstance(term, Replace):
                term = dataclasses.replace(term, row=(one.operator.reads + one.operator.writes)[0])
            terms.append(term)
        made.append(tuple(terms))
    return tuple(made)


def hashes(resolved: Resolved, model: Model) -> dict[str, str]:
    """sha256 of the stored bytes of every tensor that the edited sites are made of, by canonical name."""
    names = {name for one in resolved.laid for name in site_tensors(one.site)}
    return {name: model.stored.origin(name)[1] for name in sorted(names)}


def inverted(resolved: Resolved) -> tuple[tuple[Term, ...], ...]:
    """The steps that undo an edit, last first. Raises BadRequest where a direction was removed."""
    made = []
    for step in reversed(resolved.steps):
        terms: list[Term] = []
        for one in step:
            site = str(one.site)
            epsilon = getattr(one.term, "epsilon", None)
            words = f"the inverse of {_alone(one)}"
            if epsilon is not None and min(abs(1 + e) for e in epsilon) >= REMOVED:
                undone = tuple(-e / (1 + e) for e in epsilon)
                terms.append(Along(site, undone, one.operator.reads, words, one.side))
            else:
                terms.append(
                    Rewrite(site, one.operator.reads, inverse_writes(one.operator, _alone(one)), words, one.side)
                )
        made.append(tuple(terms))
    return tuple(made)
