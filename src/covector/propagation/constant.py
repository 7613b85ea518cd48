"""What biases bring: the held model applied to nothing, forward.

With scales, patterns, gates and slopes held as in one run (``frozen``) a model is an affine map of the stream that
enters it. Its linear part is read backwards (`Linearised.adjoint`); this is the other part, made from the biases alone
and not from the value that both sum to, so that the sum can fail.

Source: `docs/theory/observables.md`, equations 2, 4, 7, 15.
"""

import numpy as np

from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.standins import slope
from covector.model.activations import activation, derivative
from covector.model.spec import MLP, Norm, Output, output_bias, output_weight
from covector.propagation.anatomy import Component
from covector.propagation.linearised import Linearised, Policies


def constant(
    linear: Linearised, rows: Float[np.ndarray, "#batch n"], output: str, at: Int[np.ndarray, " batch"], *, whole: bool
) -> Float[np.ndarray, " batch"]:
    """The weighted output of the held model at a stream of zeros, read at one position per prompt.

    `whole`: through all components: biases of norms, values, MLPs (with held slopes, and φ(0)) and outputs. Otherwise
    components write nothing: what is left are biases of the norms behind them and of the output.
    Exact to rounding, float64. Raises BadRequest for policies other than frozen.
    """
    if linear.policies != Policies.all("frozen"):
        raise BadRequest(f"expected the frozen policy, got {linear.policies}; only a held model has a constant")
    states = [np.zeros_like(linear.runs[0]["resid_in"])]
    for s in range(1, linear.end + 1):
        here = [c for c in linear.components if c.writes == s]
        x = states[s - 1] + sum(_added(linear, states[c.reads], c, whole) for c in here)
        c, after = here[0], here[0].sub.after
        if after:
            point = linear.runs[0][c.hook(f"{c.sub.name}_in")] + linear.runs[0][c.hook(f"{c.sub.name}_added")]
            x = _normed(linear, x, after, f"L{c.layer}.{c.sub.name}_after", point)
        states.append(x)
    batch, out = np.arange(len(at)), linear.spec.output(output)
    assert out is not None, output
    last = f"L{linear.spec.n_layers - 1}.resid_post" if linear.spec.n_layers else "resid_in"
    x = _normed(linear, states[-1], linear.spec.final_norm, "final_norm", linear.runs[0][last])
    return np.sum(_output(linear, x[batch, at], out, linear.runs[0]["final_normed"][batch, at]) * rows, axis=-1)


def _normed(linear: Linearised, x: np.ndarray, norm: Norm | None, name: str, point: np.ndarray) -> np.ndarray:
    """A norm with the scale that it has at `point`."""
    if norm is None:
        return x
    x, point = (v - v.mean(axis=-1, keepdims=True) if norm.kind == "layer" else v for v in (x, point))
    x = x / np.sqrt(np.mean(point * point, axis=-1, keepdims=True) + norm.eps)
    gain, bias = linear.part(f"{name}.gain"), linear.part(f"{name}.bias")
    x = x if gain is None else x * gain
    return x if bias is None else x + bias


def _added(linear: Linearised, x: np.ndarray, c: Component, whole: bool) -> np.ndarray:
    """What a component adds to the stream."""
    run, name, out = linear.runs[0], c.sub.name, np.zeros_like(x)
    if whole:
        x = _normed(linear, x, c.sub.reads, f"L{c.layer}.{name}_norm", run[c.hook(f"{name}_in")])
        out = _mlp(linear, x, c) if c.mlp else _attention(linear, x, c)
    return c.sub.scale * _normed(linear, out, c.sub.post, f"L{c.layer}.{name}_post", run[c.hook(f"{name}_out")])


def _attention(linear: Linearised, x: np.ndarray, c: Component) -> np.ndarray:
    """Heads with their patterns held."""
    attn = c.attn
    assert attn is not None
    v = np.einsum("bsd,hdk->bshk", x, linear.need(c.hook("W_V")))
    b_V, b_O = linear.part(c.hook("b_V")), linear.part(c.hook("b_O"))
    v = (v if b_V is None else v + b_V)[:, :, [attn.kv_of(h) for h in range(attn.n_heads)]]
    z = np.einsum("bhts,bshk->bthk", linear.runs[0][c.hook("pattern")], v)
    out = np.einsum("bthk,hkd->btd", z, linear.need(c.hook("W_O")))
    return out if b_O is None else out + b_O


def _mlp(linear: Linearised, x: np.ndarray, c: Component) -> np.ndarray:
    """An MLP with its gate, or the slope of its activation, held."""
    mlp, run = c.sub.part, linear.runs[0]
    assert isinstance(mlp, MLP)
    b_in, b_out = linear.part(c.hook("b_in")), linear.part(c.hook("b_out"))
    pre = x @ linear.need(c.hook("W_in"))
    pre = pre if b_in is None or mlp.bias_after_gate else pre + b_in
    post = (
        activation(mlp.activation)(run[c.hook("gate")]) * pre
        if mlp.gated
        else _held(mlp.activation, pre, run[c.hook("mlp_pre")])
    )
    post = post + b_in if mlp.bias_after_gate and b_in is not None else post
    out = post @ linear.need(c.hook("W_out"))
    return out if b_out is None else out + b_out


def _held(name: str, x: np.ndarray, point: np.ndarray) -> np.ndarray:
    """An activation with its slope held: m·x + φ(0), which is φ at the point."""
    function = activation(name)
    return slope("frozen", (point,), function, derivative(name)) * x + function(np.zeros_like(point))


def _output(linear: Linearised, x: np.ndarray, out: Output, point: np.ndarray) -> Float[np.ndarray, "batch n"]:
    """An output with its transform's scale and slopes held at the final stream `point`."""
    lead = f"out.{out.name}"
    if out.transform:
        W, b = linear.need(f"{lead}.transform.W"), linear.part(f"{lead}.transform.b")
        b = np.zeros(W.shape[1]) if b is None else b
        x, point = _held(out.transform, x @ W + b, point @ W + b), activation(out.transform)(point @ W + b)
    x, point = (
        _normed(linear, x, out.transform_norm, f"{lead}.norm", point),
        linear.forward_norm(point, out.transform_norm, f"{lead}.norm"),
    )
    W, b = linear.need(output_weight(out.name)), linear.part(output_bias(out.name))
    b = np.zeros(W.shape[1]) if b is None else b
    x, point = out.scale * (x @ W + b), out.scale * (point @ W + b)
    if out.softcap:
        cap = out.softcap
        held = slope("frozen", (point,), lambda a: cap * np.tanh(a / cap), lambda a: 1 - np.tanh(a / cap) ** 2)
        x, point = held * x, cap * np.tanh(point / cap)
    return _held(out.activation, x, point) if out.activation else x
