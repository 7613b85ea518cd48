"""Each kind of published number, measured: one short function per kind, from a bench and the number's arguments."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy import optimize

from covector.analyses.replicate.obprop_bench import Bench, NotAsked, cosine, fit
from covector.analyses.replicate.obprop_tasks import own_names, steps_of, tasks
from covector.linalg.standins import pull_norm
from covector.linalg.svd import svd
from covector.model.address import Site
from covector.propagation.linearised import Linearised, Policies
from covector.propagation.search import World, component, functional
from covector.study.path import Path, Step

Args = Mapping[str, Any]


def head_of(text: str) -> tuple[int, int]:
    """(12, 3) of L12H3."""
    layer, head = text[1:].split("H")
    return int(layer), int(head)


def logit(b: Bench, a: Args) -> float:
    """The observable at the end of one prompt."""
    return float(b.observable(a["task"]).of(b.prompt_run(a["prompt"], a["bos"])))


def readout_cos(b: Bench, a: Args) -> float:
    """Cosine of two read-outs."""
    return cosine(*(b.u(t) for t in a["tasks"]))


def raw_norm(b: Bench, a: Args) -> float:
    """Length of the feature without norms."""
    return float(np.linalg.norm(b.raw(a["task"], head_of(a["head"]))))


def norm(b: Bench, a: Args) -> float:
    """√d‖P(γ₁ ⊙ W_V W_O P(γ_f ⊙ u))‖ √d/‖Px_f‖; with B2 γ_f behind the head and no centring."""
    layer, h = head_of(a["head"])
    x = b.first(a["task"])[0][f"L{b.model.spec.n_layers - 1}.resid_post"][0, -1].astype(np.float64)
    d = len(x)
    if "B2" in b.defects:
        gains = b.need(f"L{layer}.attn_norm.gain") * b.need("final_norm.gain")
        return float(d * np.linalg.norm(gains * b.raw(a["task"], (layer, h))) / np.linalg.norm(x))
    f = b.through(b.normed(b.u(a["task"]), "final_norm"), (layer, h))
    return float(d * np.linalg.norm(b.normed(f, f"L{layer}.attn_norm")) / np.linalg.norm(x - x.mean()))


def raw_cos(b: Bench, a: Args) -> float:
    """Cosine of both tasks' features without norms."""
    return cosine(*(b.raw(t, head_of(a["head"])) for t in ("subj", "obj")))


def raw_coupling(b: Bench, a: Args) -> float:
    """y₁·y₂/‖y₁‖² without norms."""
    y1, y2 = (b.raw(t, head_of(a["head"])) for t in ("subj", "obj"))
    return float(y1 @ y2 / (y1 @ y1))


def coupling(b: Bench, a: Args) -> float:
    """With norms at the first prompts: both scales, the final one and that at the name, are part of it."""
    layer, h = head_of(a["head"])
    features = [_with_scales(b, t, layer, h) for t in ("subj", "obj")]
    return cosine(*features) if a["stat"] == "cos" else float(features[0] @ features[1] / (features[0] @ features[0]))


def even_r2(b: Bench, a: Args) -> float:
    """What a regression would explain for inputs even in all directions: the cosine's square."""
    return coupling(b, {"stat": "cos", **a}) ** 2


def _with_scales(b: Bench, task: str, layer: int, h: int) -> np.ndarray:
    run, pair = b.first(task)[0], b.first_pair(task)
    last = run[f"L{b.model.spec.n_layers - 1}.resid_post"][0, -1].astype(np.float64)
    hook = f"L{layer}.{'mlp_in' if 'B1' in b.defects else 'attn_in'}"
    here = run[hook][0, pair.slots["NAME"]].astype(np.float64)
    f = b.through(b.normed(b.u(task), "final_norm"), (layer, h))
    return b.normed(f, f"L{layer}.attn_norm") / (last.std() * here.std())


def slope_names(b: Bench, a: Args) -> float:
    """Regression of obj's feature on subj's, read at all tokens but the first of both tasks' first templates."""
    layer, h = head_of(a["head"])
    hook = f"L{layer}.{'mlp' if 'B1' in b.defects else 'attn'}_normed"
    rows = []
    for task in ("subj", "obj"):
        pairs = b.pairs(task, (0,))
        for prompts in ([p.clean for p in pairs], [p.corrupt for p in pairs]):
            rows += [run[hook][:, 1:].reshape(-1, run[hook].shape[-1]) for run, _ in b.run(prompts, [hook])]
    x = np.concatenate(rows).astype(np.float64)
    return fit(*(x @ b.raw(t, (layer, h)) for t in ("subj", "obj")))[a["stat"]]


def slope_text(b: Bench, a: Args) -> float:
    """The same along a text; B3 reads at layer 6."""
    layer, h = head_of(a["head"])
    x = b.text_rows(f"L{6 if 'B3' in b.defects else layer}.{'mlp' if 'B1' in b.defects else 'attn'}_normed")
    return fit(*(x @ b.raw(t, (layer, h)) for t in ("subj", "obj")))[a["stat"]]


def attribution(b: Bench, a: Args) -> float:
    """Direct path patching: clean − (the final stream with this head's output of the corrupt prompt), read again."""
    seed = a["set"] == "seed"
    if not seed and len(b.names) < 30:
        raise NotAsked("needs --names FILE with more names (published on 100 + 100)")
    layer, h = head_of(a["head"])
    return float(attributions(b, a["task"], seed)[layer][h])


def attributions(b: Bench, task: str, seed: bool) -> dict[int, np.ndarray]:
    """Mean attribution of every head, by layer: one run per prompt answers for all heads."""
    return b._once(("attribution", task, seed), lambda: _attributions(b, task, seed))


def _attributions(b: Bench, task: str, seed: bool) -> dict[int, np.ndarray]:
    templates, names = ((0,), own_names() if seed else b.names)
    pairs = [p for i in (templates if seed else (0, 1, 2)) for p in b.pairs(task, (i,), names)]
    layers = [i for i, block in enumerate(b.model.spec.blocks) if block.attn]
    last = f"L{b.model.spec.n_layers - 1}.resid_post"
    hooks = [*(f"L{i}.z" for i in layers), last]
    found: dict[int, list[np.ndarray]] = {i: [] for i in layers}
    decoder, observable = b.decoder, b.observable(task)
    for pair in pairs:
        runs = [next(b.run([side], hooks)) for side in (pair.clean, pair.corrupt)]
        (clean, y), (corrupt, _) = runs
        value = float(observable.of(y[0].astype(np.float64)))
        streams = []
        for i in layers:
            change = (corrupt[f"L{i}.z"] - clean[f"L{i}.z"])[0, -1]
            streams.append(clean[last][0, -1] + np.einsum("hk,hkd->hd", change, b.model.weights[f"L{i}.W_O"]))
        with torch.no_grad():
            stream = torch.from_numpy(np.concatenate(streams))[:, None]
            out = decoder.run(resid_in=stream, first=b.model.spec.n_layers).logits[:, 0].cpu().numpy()
        effects = value - observable.of(out.astype(np.float64))
        for i, some in zip(layers, np.split(effects, len(layers)), strict=True):
            found[i].append(some)
    return {i: np.mean(some, axis=0) for i, some in found.items()}


def path(b: Bench, a: Args) -> float:
    """Exact share of a path in the difference of the first pair, patterns held as in the clean prompt."""
    world, length = _world(b, a["task"])
    steps = [
        Step("mlp" if head is None else "v", layer, head, None, str(length - 1 if at is None else at))
        for layer, head, at in steps_of(a["path"])
    ]
    if any(int(s.slot or 0) >= length for s in steps):
        raise NotAsked(f"a position beyond the {length} tokens of this prompt")
    F = functional(world, Path(tuple(reversed(steps))))
    c = component(world.model, steps[-1])
    return float(np.sum(F * world.model.change(c.hook(f"{c.sub.name}_in"))))


def _world(b: Bench, task: str) -> tuple[World, int]:
    runs = tuple({k: v.astype(np.float64) for k, v in run.items()} for run in b.first(task))
    linear = Linearised(b.model.weights, runs, Policies("secant", "secant", "frozen", "secant"))
    length = runs[0]["resid_in"].shape[1]
    start = linear.start(b.observable(task).vector[None], "token", np.array([length - 1]))
    return World(linear, start, [[str(t) for t in range(length)]]), length


def path_cos(b: Bench, a: Args) -> float:
    """Cosine of the features of two paths."""
    return cosine(b.path_feature(*a["first"]), b.path_feature(*a["second"]))


def path_text(b: Bench, a: Args) -> float:
    """Regression of the second path's unit feature on the first's, along a text."""
    x = b.text_rows(f"L6.{'mlp' if 'B1' in b.defects else 'attn'}_in")
    return fit(*(x @ _unit(b.path_feature(*a[k])) for k in ("first", "second")))[a["stat"]]


def output_fit(b: Bench, a: Args) -> float:
    """Regression of the task's output on its unit feature at the name; B4 reads before the MLP of layer 1."""
    layer = int(a["read"])
    hook = "L1.mlp_in" if "B4" in b.defects and b.model.spec.n_layers > 1 else f"L{layer}.attn_in"
    x, y = b.streams(a["task"], hook, templates=(0, 1, 2))
    return fit(x @ _unit(b.path_feature(a["task"], a["path"])), y)[a["stat"]]


def probe(b: Bench, a: Args) -> float:
    """A linear probe or a mean difference at the name, layer 6, trained on the first template, tested on the others."""
    x, y = b.streams("subj", "L6.attn_in", templates=(0,))
    held, told = b.streams("subj", "L6.attn_in", templates=(1, 2))
    n = len(x) // 2
    direction = x[:n].mean(axis=0) - x[n:].mean(axis=0)
    if a["stat"] != "mean":
        direction = np.linalg.lstsq(x - x.mean(axis=0), y - y.mean(), rcond=None)[0]
    if a["stat"] == "cos":
        return cosine(direction, b.path_feature("subj", "13.11@5<=9.1@3<=6.6@3"))
    return fit(held @ direction, told)["r2"]


def best_cos(b: Bench, a: Args) -> float:
    """The largest cosine of two tasks' raw features over all heads."""
    spec = b.model.spec
    return max(
        cosine(*(b.raw(t, (i, h)) for t in a["tasks"]))
        for i, block in enumerate(spec.blocks) if block.attn for h in range(block.attn.n_heads)
    )  # fmt: skip


def couple_at(b: Bench, a: Args) -> float:
    """Coupling of two tasks' raw features at a head."""
    y1, y2 = (b.raw(a[k], head_of(a["head"])) for k in ("first", "second"))
    return float(y1 @ y2 / (y1 @ y1))


def svd_cos(b: Bench, a: Args) -> float:
    """|cos| of the raw feature with what a dyad of the head reads."""
    layer, h = head_of(a["head"])
    found = b._once(("svd", layer, h), lambda: svd(b.model.map(Site(layer, h, "ov"))))
    if a["dyad"] >= found.U.shape[1]:
        raise NotAsked(f"this head has {found.U.shape[1]} dyads")
    return abs(cosine(b.raw(a["task"], (layer, h)), found.U[:, a["dyad"]]))


# The final norm's tangent plane -------------------------------------------------------------------------------------


def _normed_value(b: Bench, x: np.ndarray, task: str = "subj") -> np.ndarray:
    """u · LN_f(x)."""
    norm_of = b.model.spec.final_norm
    assert norm_of is not None
    c = x - x.mean(axis=-1, keepdims=True)
    y = c / np.sqrt(np.mean(c * c, axis=-1, keepdims=True) + norm_of.eps) * b.need("final_norm.gain")
    bias = b.part("final_norm.bias")
    return np.asarray((y if bias is None else y + bias) @ b.u(task))


def _boundary(b: Bench, template: int) -> tuple[float, np.ndarray, np.ndarray]:
    """(t, point, feature): the root between mean male and mean female, and the exact functional there."""
    x, n, _ = b.finals("subj", template)
    female, male = x[: n[0]].mean(axis=0), x[n[0] :].mean(axis=0)

    def value(t: float) -> float:
        return float(_normed_value(b, (1 - t) * male + t * female))

    if value(0.0) * value(1.0) >= 0:
        raise NotAsked("no sign change between the means of both sides")
    found: Any = optimize.brentq(value, 0.0, 1.0, xtol=1e-12)
    t = float(found)
    point = (1 - t) * male + t * female
    norm_of = b.model.spec.final_norm
    assert norm_of is not None
    return t, point, pull_norm(b.u("subj"), "exact", (point,), centre=norm_of.kind == "layer",
                               gain=b.part("final_norm.gain"), eps=norm_of.eps)  # fmt: skip


def root(b: Bench, a: Args) -> float:
    """Where on the segment."""
    return _boundary(b, a["template"])[0]


def final_norm(b: Bench, a: Args) -> float:
    """Length of the feature there."""
    return float(np.linalg.norm(_boundary(b, a["template"])[2]))


def final_cos(b: Bench, a: Args) -> float:
    """Cosine of two templates' features."""
    return cosine(*(_boundary(b, a[k])[2] for k in ("first", "second")))


def final_head_norm(b: Bench, a: Args) -> float:
    """Length of the head's feature from it, without its own norm."""
    return float(np.linalg.norm(b.through(_boundary(b, a["template"])[2], head_of(a["head"]))))


def final_ratio(b: Bench, a: Args) -> float:
    """Coupling of the head's features from two templates."""
    y1, y2 = (b.through(_boundary(b, a[k])[2], (17, 14)) for k in ("first", "second"))
    return float(y1 @ y2 / (y1 @ y1))


def plane_error(b: Bench, a: Args) -> float:
    """Mean |u·LN(x) − tangent plane| over the prompts of a template."""
    _, point, feature = _boundary(b, a["fit"])
    x = b.finals("subj", a["test"])[0]
    return float(np.mean(np.abs(_normed_value(b, x) - (x - point) @ feature)))


def jacobian_cos(b: Bench, a: Args) -> float:
    """Cosine of a path's feature with no norms at all and with their exact derivatives at the first prompt."""
    run = b.first(a["task"])[0]
    plain, exact = b.u(a["task"]), b.u(a["task"])
    last = run[f"L{b.model.spec.n_layers - 1}.resid_post"][0, -1].astype(np.float64)
    exact = _exact(b, exact, "final_norm", last)
    for layer, head, at in steps_of(a["path"]):
        assert head is not None
        sub = "mlp" if "B1" in b.defects else "attn"
        x = run[f"L{layer}.{sub}_in"][0, at or 0].astype(np.float64)
        plain = b.through(plain, (layer, head))
        exact = _exact(b, b.through(exact, (layer, head)), f"L{layer}.{sub}_norm", x)
    return cosine(plain, exact)


def _exact(b: Bench, f: np.ndarray, name: str, x: np.ndarray) -> np.ndarray:
    spec = b.model.spec.norms()[name]
    return pull_norm(f, "exact", (x,), centre=spec.kind == "layer", gain=b.part(f"{name}.gain"), eps=spec.eps)


def gain_variance(b: Bench, _: Args) -> float:
    """Mean variance of all norms' gains."""
    return float(np.mean([b.need(f"{name}.gain").var() for name in b.model.spec.norms()]))


def gain_entry(b: Bench, a: Args) -> float:
    """An entry of γ √d."""
    gain = b.need(f"L{a['layer']}.attn_norm.gain")
    return float(gain[a["entry"]] * np.sqrt(len(gain)))


def steer(b: Bench, a: Args) -> float:
    """Mean change of an observable when scale × the head's feature is added to its layer's stream at a token.

    The feature has the scales of both norms at the first prompt. Names are the ten and ten published ones.
    """
    layer, h = head_of(a["head"])
    f = a["scale"] * _with_scales(b, a["task"], layer, h) if a["task"] in tasks()["templates"] else (
        a["scale"] * b.normed(b.through(b.normed(b.u(a["task"]), "final_norm"), (layer, h)), f"L{layer}.attn_norm")
        / _scales(b, a["template"], layer)
    )  # fmt: skip
    pairs, observable = b.pairs(a["template"], (0,), own_names()), b.observable(a["measured"])
    if a["token"] >= len(pairs[0]):
        raise NotAsked(f"token {a['token']} is beyond the {len(pairs[0])} of this prompt")
    prompts = np.array([p.clean for p in pairs] + [p.corrupt for p in pairs])

    def add(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, a["token"]] += torch.from_numpy(f).to(x)
        return x

    with torch.no_grad():
        ids = torch.from_numpy(prompts)
        plain = b.decoder.run(ids).logits[:, -1].cpu().numpy()
        steered = b.decoder.run(ids, intervene={f"L{layer}.resid_pre": add}).logits[:, -1].cpu().numpy()
    return float(np.mean(observable.of(steered.astype(np.float64)) - observable.of(plain.astype(np.float64))))


def _scales(b: Bench, task: str, layer: int) -> float:
    run, pair = b.first(task)[0], b.first_pair(task)
    return float(run[f"L{b.model.spec.n_layers - 1}.resid_post"][0, -1].std()
                 * run[f"L{layer}.attn_in"][0, pair.slots["NAME"]].std())  # fmt: skip


def _unit(f: np.ndarray) -> np.ndarray:
    return f / np.linalg.norm(f)


KINDS: Mapping[str, Callable[[Bench, Args], float]] = {
    f.__name__: f
    for f in (
        logit, readout_cos, raw_norm, norm, raw_cos, even_r2, raw_coupling, coupling, slope_names, slope_text,
        attribution, path, path_cos, path_text, output_fit, probe, best_cos, couple_at, svd_cos, root, final_norm,
        final_cos, final_head_norm, final_ratio, plane_error, jacobian_cos, gain_variance, gain_entry, steer,
    )
}  # fmt: skip
