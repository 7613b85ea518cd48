"""A path's feature: the observable pulled back through its components to where the first of them reads.

Without data heads attend fully to one place, norms keep their gain and lose their scale (``ignore``), and MLPs, which
are not linear anywhere in particular, are refused. With runs every piece gets the stand-in that its policy names, at
them, and attention its pattern.

Source: `docs/theory/observables.md`, equations 1–8; theory page §1.2–1.5.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.propagation.anatomy import Component
from covector.propagation.linearised import Functional, Linearised, Policies
from covector.propagation.search import World, component, normed_functional
from covector.study.feature import Feature
from covector.study.observable import Observable
from covector.study.path import Path, Step, parse_path

DATA_FREE = Policies.all("ignore")
CONVENTION = "norms keep their gain and centring, not their scale 1/σ; heads attend fully to one place"


def propagate(
    model: Model,
    observable: Observable | str,
    path: Path | str = "",
    *,
    normed: bool = False,
    runs: Sequence[Mapping[str, np.ndarray]] = (),
    policies: Policies | None = None,
    at: np.ndarray | None = None,
    names: Sequence[Sequence[str]] = (),
) -> Feature:
    """The functional that an observable becomes at the input of a path's first component, with its constant.

    Lives in the stream before that component's norm (``L6.attn_in``; `normed`: behind it, ``L6.attn_normed``); for an
    empty path in the last stream. Without `runs`: data-free, heads through their values only. With `runs` (one or two
    captures [batch, position, …], positions `at` which the output is read, slot `names` of all positions) and
    `policies` the mean over the prompts, at the position that the first step names.
    Exact as the policies say. The constant is what biases add (of a head's values, where it reads; its share of b_O);
    with runs it is their mean over prompts under the frozen policy, and not a number under the others (differences
    between inputs do not have one).
    Raises BadRequest for an MLP, a query, a key or a position without runs, a position that no prompt has, or a first
    step without a position with them; BadSite, NotOneToken, UnknownBasis.
    """
    observable = Observable.parse(observable, model) if isinstance(observable, str) else observable
    path = parse_path(path, model.spec) if isinstance(path, str) else path
    policies = policies or (Policies.all("frozen") if runs else DATA_FREE)
    linear = Linearised(model.weights, tuple(runs), policies)
    walk = _Walk(linear, observable, model, at, names)
    for step in reversed(path.steps):
        walk.take(step, last=step is path.steps[0], normed=normed)
    return Feature(
        walk.vector(path),
        walk.constant,
        walk.hook,
        str(path),
        str(observable),
        str(policies),
        tuple(walk.norms),
        "" if runs else CONVENTION,
        {"model": model.name, "frame": str(model.frame), "files": model.meta.get("files", {})},
    )


class _Walk:
    """From the output down, one step at a time: the functional, its constant, and its length after each step."""

    def __init__(
        self,
        linear: Linearised,
        observable: Observable,
        model: Model,
        at: np.ndarray | None,
        names: Sequence[Sequence[str]],
    ) -> None:
        self.linear, self.state = linear, linear.end
        self.hook = f"L{linear.spec.n_layers - 1}.resid_post" if linear.spec.n_layers else "resid_in"
        rows = observable.vector[None]
        if linear.runs:
            if at is None or not names:
                raise BadRequest("expected the positions at which the output is read, and the names of all positions")
            self.F = linear.start(rows, observable.output, at)
            out = np.zeros_like(self.F)
            self.constant = self._left(observable, at) if linear.policies == Policies.all("frozen") else float("nan")
        else:
            out, self.F = linear.unread(rows, observable.output)
            self.constant = observable.constant(model) + self._bias(out, "final_norm")
        self.world = World(linear, self.F, names or [["end"]])
        self.norms: list[tuple[str, float]] = [("out", _length(self.F))]

    def take(self, step: Step, *, last: bool, normed: bool) -> None:
        """Go back through one component."""
        linear = self.linear
        self._to(0 if step.kind == "embed" else component(linear, step).writes)
        mask = self._mask(step)
        if step.kind == "embed":
            self._to(0)
            self.F, self.hook = self.F * mask, "resid_in"
            self.norms.append((str(step), _length(self.F)))
            return
        c = component(linear, step)
        here = linear.before(self.F, c.writes)
        self._passed(self.F, f"L{c.layer}.{c.sub.name}_after" if c.sub.after else None)
        G = linear.out(here, c)
        self._passed(here * c.sub.scale, f"L{c.layer}.{c.sub.name}_post" if c.sub.post else None)
        F = self._through(G, step, mask)
        self.hook = c.hook(f"{c.sub.name}_normed")
        if not (last and normed):
            self._passed(F, f"L{c.layer}.{c.sub.name}_norm" if c.sub.reads else None)
            F, self.hook = linear.read(F, c), c.hook(f"{c.sub.name}_in")
        self.F, self.state = F, c.reads
        self.norms.append((str(step), _length(F)))

    def vector(self, path: Path) -> np.ndarray:
        """The functional as one row: at the only position, or at the first step's; the mean over prompts."""
        if not self.linear.runs:
            return self.F[0, 0]
        if path.steps and path.steps[0].slot is None:
            raise BadRequest(f"{path}: expected a position of its first step (@NAME, @end), got none")
        return self.F.sum(axis=1).mean(axis=0)

    def _to(self, state: int) -> None:
        for s in range(self.state, state, -1):
            self.F = self.linear.before(self.F, s)
        self.state = state

    def _left(self, observable: Observable, at: np.ndarray) -> float:
        """What the functional on the last state leaves of the observable: the mean over prompts."""
        run = self.linear.runs[0]
        value = observable.of(run[f"out.{observable.output}"][np.arange(len(at)), at])
        return float(np.mean(value) - np.sum(self.F * run[self.hook]) / len(at))

    def _mask(self, step: Step) -> np.ndarray:
        """1 where the step is read. Raises BadRequest for a position that is not there."""
        if step.slot is not None and not self.linear.runs:
            raise BadRequest(f"{step}: a position is one of prompts; expected prompts, or a path without @")
        mask = self.world.mask(step.slot)[..., None]
        if not mask.any():
            names = ", ".join(dict.fromkeys(name for row in self.world.names for name in row))
            raise BadRequest(f"{step}: expected a position among {names}, got '{step.slot}'")
        return mask

    def _through(self, G: Functional, step: Step, mask: np.ndarray) -> Functional:
        linear, c = self.linear, component(self.linear, step)
        if not linear.runs and step.kind == "mlp":
            raise BadRequest(f"{step}: an MLP is linear at a working point only; expected prompts to take it from")
        if not linear.runs and step.kind != "v":
            raise BadRequest(f"{step}: a query or key matters by what it meets; expected prompts to take that from")
        F = normed_functional(linear, G, step) * mask
        if c.mlp:
            run = linear.runs[0]
            whole = np.sum(G * mask * run[c.hook("mlp_out")])
            self.constant += float(whole - np.sum(F * run[c.hook("mlp_normed")])) / len(G)
        elif step.kind == "v" and c.attn:
            b_O, b_V = linear.part(c.hook("b_O")), linear.part(c.hook("b_V"))
            # The head's share of b_O, as in the map with biases (docs/theory/maps.md).
            self.constant += 0.0 if b_O is None else float(np.sum(G @ b_O)) / c.attn.n_heads / len(G)
            v = linear.heads(G, c).v[:, :, step.head or 0] * mask
            self.constant += 0.0 if b_V is None else float(np.sum(v @ b_V[c.attn.kv_of(step.head or 0)])) / len(G)
        return F

    def _passed(self, v: Functional, norm: str | None) -> None:
        """Add what a norm's bias brings."""
        if norm is not None:
            self.constant += self._bias(v, norm)

    def _bias(self, v: Functional, norm: str) -> float:
        bias = self.linear.part(f"{norm}.bias")
        return 0.0 if bias is None else float(np.sum(v @ bias)) / len(v)


def _length(F: Functional) -> float:
    return float(np.linalg.norm(F.sum(axis=1).mean(axis=0)))


def head_features(model: Model, observable: Observable) -> tuple[list[str], Float[np.ndarray, "head d_model"]]:
    """Data-free features of an observable before the norm of every head (through its values), in model order."""
    linear = Linearised(model.weights, (), DATA_FREE)
    names: list[str] = []
    found: list[np.ndarray] = []
    for c, F in each_attention(linear, linear.unread(observable.vector[None], observable.output)[1]):
        names = [f"L{c.layer}H{h}" for h in range(F.shape[1])] + names
        found.append(F[0, :, 0])
    return names, np.concatenate(found[::-1])


def each_attention(
    linear: Linearised, G: Functional
) -> Iterator[tuple[Component, Float[np.ndarray, "batch head position d_model"]]]:
    """Functionals on the last state as those before the norm of every head, through its values; last layer first."""
    state = linear.end
    for c in reversed(linear.components):
        for s in range(state, c.writes, -1):
            G = linear.before(G, s)
        state = c.writes
        if c.attn:
            yield c, linear.read(linear.through_each_head(linear.out(linear.before(G, c.writes), c), c), c)
