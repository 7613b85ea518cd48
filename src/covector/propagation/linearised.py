"""A model made linear at given runs, read backwards: what a functional on a later stream is on an earlier one.

Each nonlinear piece is replaced by the stand-in that its policy names, at the activations of one run (``exact``,
``frozen``) or between two (``secant``). A functional is an array [batch, position, d_model] over the rows of a state;
its value on a change of the stream is the sum over positions of products. With ``secant`` everywhere, attention
included, the value of the pulled-back functional on the difference of two inputs is the difference of the outputs to
rounding.

Source: `docs/theory/observables.md`, equations 1–12; theory page §4.1.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.linalg.standins import POINTS, Points, Policy, middle, pull_norm, pull_softmax, slope
from covector.model.activations import activation, derivative
from covector.model.rotary import turn
from covector.model.spec import MLP, Attention, ModelSpec, Norm, Output, output_bias, output_weight
from covector.model.weights import Weights
from covector.propagation.anatomy import Component, components, last_state

# Last parts of the hooks that stand-ins are made from; capture these of a run.
CAPTURED = frozenset({
    "resid_in", "attn_in", "attn_normed", "attn_added", "attn_out", "q", "k", "v", "q_turned", "k_turned", "scores",
    "pattern", "z", "mlp_in", "mlp_normed", "mlp_added", "mlp_out", "mlp_pre", "gate", "resid_post", "final_normed",
})  # fmt: skip
Functional = Float[np.ndarray, "batch position d_model"]
OfHeads = Float[np.ndarray, "batch position head d_head"]


@dataclass(frozen=True)
class Policies:
    """Which stand-in each kind of nonlinear piece gets; see `covector.linalg.standins`."""

    norms: Policy
    activations: Policy
    attention: Policy
    outputs: Policy

    @classmethod
    def all(cls, policy: Policy) -> "Policies":
        """The same everywhere."""
        return cls(policy, policy, policy, policy)

    def __str__(self) -> str:
        """One word, or each kind with its own."""
        values = dataclasses.asdict(self)
        return self.norms if len(set(values.values())) == 1 else ", ".join(f"{k} {v}" for k, v in values.items())


@dataclass(frozen=True)
class HeadPull:
    """A functional on an attention's output as functionals on its values, queries and keys, per query head.

    Each is [batch, position, head, d_head], on what the hooks ``v``, ``q``, ``k`` show (before norm and turn).
    """

    v: OfHeads
    q: OfHeads
    k: OfHeads

    def of(self, kind: str) -> OfHeads:
        """The one that an edge of this type (v, q, k) passes through."""
        return {"v": self.v, "q": self.q, "k": self.k}[kind]


@dataclass(frozen=True)
class Linearised:
    """A model with stand-ins at `runs`: captured activations [batch, position, …] by hook; one run, or plus and minus.

    Runs hold no padding: batches are of equal length. Raises BadRequest where a policy lacks its runs.
    """

    weights: Weights
    runs: tuple[Mapping[str, np.ndarray], ...]
    policies: Policies
    _parts: dict[str, np.ndarray | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Every policy finds its points."""
        for what, policy in dataclasses.asdict(self.policies).items():
            if POINTS[policy] > len(self.runs):
                raise BadRequest(f"{what}: policy '{policy}' expects {POINTS[policy]} run(s), got {len(self.runs)}")

    @property
    def spec(self) -> ModelSpec:
        """The model's anatomy."""
        return self.weights.spec

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """Every sublayer, in the order in which they write."""
        return components(self.spec)

    @cached_property
    def end(self) -> int:
        """The last state."""
        return last_state(self.spec)

    def part(self, name: str) -> np.ndarray | None:
        """A canonical tensor in float64, or None where there is none."""
        if name not in self._parts:
            if name == "W_U" and name not in self.weights and self.spec.tied:
                self._parts[name] = self.weights["W_E"].astype(np.float64).T
            else:
                held = name in self.weights
                self._parts[name] = self.weights[name].astype(np.float64) if held else None
        return self._parts[name]

    def need(self, name: str) -> np.ndarray:
        """A canonical tensor that the anatomy cannot do without."""
        value = self.part(name)
        assert value is not None, name
        return value

    def at(self, policy: Policy, hook: str, *more: str) -> Points:
        """The working points of a policy: what passed a hook (plus others), in each run that it needs."""
        return tuple(sum((run[h] for h in more), run[hook]) for run in self.runs[: POINTS[policy]])

    def change(self, hook: str) -> np.ndarray:
        """What passed a hook in the first run, less what passed in the second; the first alone where there is one."""
        values = [run[hook] for run in self.runs]
        return values[0] - values[1] if len(values) > 1 else values[0]

    def norm(self, v: np.ndarray, norm: Norm | None, name: str, points: Points) -> np.ndarray:
        """A functional on a norm's output as one on its input."""
        if norm is None:
            return v
        gain, centre = self.part(f"{name}.gain"), norm.kind == "layer"
        return pull_norm(v, self.policies.norms, points, centre=centre, gain=gain, eps=norm.eps)

    def start(self, rows: Float[np.ndarray, "#batch n"], output: str, at: Int[np.ndarray, " batch"]) -> Functional:
        """Weights on the labels of an output, read at one position per prompt, as a functional on the last state."""
        out = self.spec.output(output)
        assert out is not None, output
        final = self.runs[0]["final_normed"]
        batch = np.arange(len(final))
        read = [run["final_normed"][batch, at] for run in self.runs]
        G = np.zeros(final.shape)
        G[batch, at] = self._read_out(np.broadcast_to(rows, (len(batch), rows.shape[1])), out, read)
        last = f"L{self.spec.n_layers - 1}.resid_post" if self.spec.n_layers else "resid_in"
        return self.norm(G, self.spec.final_norm, "final_norm", self.at(self.policies.norms, last))

    def unread(self, rows: Float[np.ndarray, "batch n"], output: str) -> tuple[Functional, Functional]:
        """Without runs: the functional on the final stream, and on the last state, at one position."""
        out = self.spec.output(output)
        assert out is not None, output
        G = self._read_out(rows, out, [])[:, None]
        return G, self.norm(G, self.spec.final_norm, "final_norm", ())

    def _read_out(self, rows: np.ndarray, out: Output, read: list[np.ndarray]) -> np.ndarray:
        """Weights on an output's labels as functionals on the final stream at the positions read."""
        lead, policy = f"out.{out.name}", self.policies.outputs
        x = list(read)
        pre: list[np.ndarray] = []
        if out.transform:
            W, b = self.need(f"{lead}.transform.W"), self.part(f"{lead}.transform.b")
            pre = [r @ W if b is None else r @ W + b for r in x]
            x = [activation(out.transform)(a) for a in pre]
        normed = [self.forward_norm(a, out.transform_norm, f"{lead}.norm") for a in x]
        rows = self._capped(rows, out, normed)
        v = out.scale * rows @ self.need(output_weight(out.name)).T
        v = self.norm(v, out.transform_norm, f"{lead}.norm", tuple(x)[: POINTS[self.policies.norms]])
        if out.transform:
            points = tuple(pre)[: POINTS[policy]]
            v = v * slope(policy, points, activation(out.transform), derivative(out.transform))
            v = v @ self.need(f"{lead}.transform.W").T
        return v

    def _capped(self, rows: np.ndarray, out: Output, normed: list[np.ndarray]) -> np.ndarray:
        """Weights on an output behind its soft-cap and activation, as weights on what stands before them."""
        if out.softcap is None and out.activation is None:
            return rows
        policy, cap = self.policies.outputs, out.softcap
        b = self.part(output_bias(out.name))
        z = [out.scale * (x @ self.need(output_weight(out.name)) + (0.0 if b is None else b)) for x in normed]
        points = tuple(z)[: POINTS[policy]]
        capped = tuple(cap * np.tanh(p / cap) for p in points) if cap else points
        if out.activation:
            rows = rows * slope(policy, capped, activation(out.activation), derivative(out.activation))
        if cap:
            rows = rows * slope(policy, points, lambda a: cap * np.tanh(a / cap), lambda a: 1 - np.tanh(a / cap) ** 2)
        return rows

    def forward_norm(self, x: np.ndarray, norm: Norm | None, name: str) -> np.ndarray:
        """Rows normalised as the model does it, gain and bias included; x itself without a norm."""
        if norm is None:
            return x
        x = x - x.mean(axis=-1, keepdims=True) if norm.kind == "layer" else x
        x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + norm.eps)
        gain, bias = self.part(f"{name}.gain"), self.part(f"{name}.bias")
        x = x if gain is None else x * gain
        return x if bias is None else x + bias

    def before(self, G: Functional, state: int) -> Functional:
        """A functional on a state as one on the sum that makes it: the state before, plus what is added to it.

        The same array but where a norm acts on the sum (post-norm blocks).
        """
        for c in self.components:
            if c.writes == state and c.sub.after:
                points = self.at(self.policies.norms, c.hook(f"{c.sub.name}_in"), c.hook(f"{c.sub.name}_added"))
                return self.norm(G, c.sub.after, f"L{c.layer}.{c.sub.name}_after", points)
        return G

    def out(self, G: Functional, c: Component) -> Functional:
        """A functional on what a component adds, as one on its own output: through its scale and post norm."""
        points = self.at(self.policies.norms, c.hook(f"{c.sub.name}_out")) if c.sub.post else ()
        return self.norm(G * c.sub.scale, c.sub.post, f"L{c.layer}.{c.sub.name}_post", points)

    def read(self, F: np.ndarray, c: Component) -> Float[np.ndarray, "*batch d_model"]:
        """A functional on what a component reads behind its norm, as one on the state that it reads."""
        points = self.at(self.policies.norms, c.hook(f"{c.sub.name}_in")) if c.sub.reads else ()
        return self.norm(F, c.sub.reads, f"L{c.layer}.{c.sub.name}_norm", points)

    def pull(self, G: Functional, c: Component) -> Functional:
        """A functional on what a component adds, as one on the state that it reads: all of its paths together."""
        if c.mlp:
            return self.read(self.through_mlp(self.out(G, c), c), c)
        pulled = self.heads(self.out(G, c), c)
        return self.read(sum((self.through_heads(pulled.of(k), c, k) for k in "vqk"), np.zeros_like(G)), c)

    def through_mlp(self, G: Functional, c: Component) -> Functional:
        """A functional on an MLP's output as one on its normed input."""
        mlp, at, policy = c.sub.part, f"L{c.layer}.", self.policies.activations
        assert isinstance(mlp, MLP)
        act, slopes = activation(mlp.activation), derivative(mlp.activation)
        post = G @ self.need(at + "W_out").T
        if not mlp.gated:
            return (post * slope(policy, self.at(policy, at + "mlp_pre"), act, slopes)) @ self.need(at + "W_in").T
        gate, linear = self.at(policy, at + "gate"), self.at(policy, at + "mlp_pre")
        opened = middle(policy, tuple(act(g) for g in gate)) if gate else np.ones(())
        F = (post * opened) @ self.need(at + "W_in").T
        if policy in ("frozen", "ignore"):  # the gate is held
            return F
        by_gate = post * middle(policy, linear) * slope(policy, gate, act, slopes)
        return F + by_gate @ self.need(at + "W_gate").T

    def on_z(self, G: Functional, c: Component) -> OfHeads:
        """A functional on an attention's output as one on its heads' z."""
        return np.einsum("btd,hkd->bthk", G, self.need(f"L{c.layer}.W_O"), optimize=True)

    def heads(self, G: Functional, c: Component) -> HeadPull:
        """A functional on an attention's output as functionals on values, queries and keys, head by head."""
        return self.of_z(self.on_z(G, c), c)

    def of_z(self, Gz: OfHeads, c: Component) -> HeadPull:
        """The same from a functional on z (of some heads: zeros elsewhere)."""
        attn, at, policy = c.attn, f"L{c.layer}.", self.policies.attention
        assert attn is not None
        group = [attn.kv_of(h) for h in range(attn.n_heads)]
        # Without runs there is no pattern: the head attends fully to one place.
        A = middle(policy, self.at(policy, at + "pattern")) if self.runs else np.ones((1, attn.n_heads, 1, 1))
        Gv = np.einsum("bhts,bthk->bshk", A, Gz, optimize=True)
        if policy in ("frozen", "ignore"):
            return HeadPull(Gv, np.zeros_like(Gz), np.zeros_like(Gz))
        on_pattern = self.on_pattern(Gz, c)
        on_scores = self.on_scores(on_pattern, c)
        q = middle(policy, self.at(policy, at + "q_turned"))
        k = middle(policy, self.at(policy, at + "k_turned"))[:, :, group]
        Gq = np.einsum("bhts,bshk->bthk", on_scores, k, optimize=True)
        Gk = np.einsum("bhts,bthk->bshk", on_scores, q, optimize=True)
        return HeadPull(Gv, self._unturned(Gq, c, "q", None), self._unturned(Gk, c, "k", group))

    def on_pattern(self, Gz: OfHeads, c: Component) -> Float[np.ndarray, "batch head position position"]:
        """A functional on z as one on the attention weights, values held."""
        attn, policy = c.attn, self.policies.attention
        assert attn is not None
        group = [attn.kv_of(h) for h in range(attn.n_heads)]
        v = middle(policy, self.at(policy, c.hook("v")))[:, :, group]
        return np.einsum("bthk,bshk->bhts", Gz, v, optimize=True)

    def on_scores(self, g: Float[np.ndarray, "batch head position position"], c: Component) -> np.ndarray:
        """A functional on the pattern as one on q·k: through the softmax, the soft-cap and the scale."""
        attn, at, policy = c.attn, f"L{c.layer}.", self.policies.attention
        assert attn is not None
        logs = tuple(log_pattern(s, attn) for s in self.at(policy, at + "scores"))
        g = pull_softmax(g, policy, logs)
        if attn.softcap is not None:
            cap, group = attn.softcap, [attn.kv_of(h) for h in range(attn.n_heads)]
            pairs = zip(self.at(policy, at + "q_turned"), self.at(policy, at + "k_turned"), strict=True)
            raw = tuple(attn.scale * np.einsum("bthk,bshk->bhts", q, k[:, :, group], optimize=True) for q, k in pairs)
            g = g * slope(policy, raw, lambda a: cap * np.tanh(a / cap), lambda a: 1 - np.tanh(a / cap) ** 2)
        return attn.scale * g

    def _unturned(self, G: OfHeads, c: Component, role: str, group: list[int] | None) -> OfHeads:
        """Functionals on turned queries or keys as those before their turn and norm."""
        attn, at = c.attn, f"L{c.layer}."
        assert attn is not None
        G = turn(G, attn.rotary, np.arange(G.shape[1]), back=True)
        if attn.qk_norm is None:
            return G
        points = self.at(self.policies.norms, at + role)
        points = points if group is None else tuple(p[:, :, group] for p in points)
        return self.norm(G, attn.qk_norm, f"{at}{role}_norm", points)

    def through_heads(self, F: OfHeads, c: Component, kind: str) -> Functional:
        """A functional on values, queries or keys of all heads, as one on the normed input, heads summed."""
        W = self.head_weight(c, kind)
        return np.einsum("bthk,hdk->btd", F, W, optimize=True)

    def through_each_head(self, G: Functional, c: Component) -> Float[np.ndarray, "batch head position d_model"]:
        """A functional on an attention's output as one on the normed input of each head, per unit of attention."""
        return np.einsum("bthk,hdk->bhtd", self.on_z(G, c), self.head_weight(c, "v"), optimize=True)

    def head_weight(self, c: Component, kind: str) -> Float[np.ndarray, "head d_model d_head"]:
        """W_V, W_Q or W_K per query head."""
        W = self.need(f"L{c.layer}.W_{kind.upper()}")
        attn = c.attn
        assert attn is not None
        return W if kind == "q" else W[[attn.kv_of(h) for h in range(attn.n_heads)]]

    def straight(self, G: Functional) -> list[Functional]:
        """A functional on the last state as one on every state, through no component: index = state."""
        found = [G]
        for s in range(self.end, 0, -1):
            found.append(self.before(found[-1], s))
        return found[::-1]

    def adjoint(self, G: Functional, state: int | None = None) -> list[Functional]:
        """A functional on a state (default: the last) as one on every state before it, index = state; all paths."""
        state = self.end if state is None else state
        found: list[Functional] = [np.zeros_like(G) for _ in range(state)] + [G]
        for s in range(state, 0, -1):
            here = self.before(found[s], s)
            found[s - 1] = found[s - 1] + here
            for c in self.components:
                if c.writes == s:
                    found[c.reads] = found[c.reads] + self.pull(here, c)
        return found


def log_pattern(scores: Float[np.ndarray, "batch head position position"], attn: Attention) -> np.ndarray:
    """Log attention weights from scores; −inf where a query may not look."""
    seen = visible(attn, scores.shape[-1])
    z = np.where(seen, scores, -np.inf)
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))


def visible(attn: Attention, length: int) -> Bool[np.ndarray, "position position"]:
    """Which keys (columns) each query (row) may look at, without padding."""
    query, key = np.arange(length)[:, None], np.arange(length)[None, :]
    seen = np.ones((length, length), dtype=bool)
    if attn.causal:
        seen &= key <= query
    if attn.window is not None:
        seen &= query - key < attn.window
    return seen
