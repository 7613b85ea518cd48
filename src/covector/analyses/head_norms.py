"""Which heads could matter for a task: the length of its feature at every head's input, without any data.

Source: `docs/theory/observables.md`, equation 11; theory page §1.3, §1.6, §2.3.
"""

import numpy as np

from covector.analyses.each_head import each_layer, without_bias
from covector.analyses.head_grid import head_grid
from covector.analyses.propagate import DATA_FREE, each_attention
from covector.analyses.virtual_chain import chain_of
from covector.analyses.virtual_heads import Sphere
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.chance.quadratic import gain_tail
from covector.linalg.chance.streams import generator
from covector.model.opened import Model
from covector.propagation.linearised import Functional, Linearised
from covector.render import Column, Grid, Table
from covector.study.observable import Observable

LEVEL = 0.05
# Singular values below this part of a head's largest, and norms below this part of the usual, are rounding of 0.
ROUNDING = 1e-12


def head_norms(
    model: Model, observable: Observable | str, *, frame: str | None = None, draws: int = 1000, seed: int = 0
) -> Table:
    """One row per head: the length of the observable's feature at its input, largest first, beside three conventions.

    ``norm``: final and first norm applied with gain and centring, without scale; ``raw``: no norms at all;
    ``published``: √d·‖γ₁⊙…‖ without centring. ``share`` is norm² over the sum of all heads.
    Chance: the same head read by random directions of the stream as long as the observable's own: does this head read
    this task more than it reads anything? ``p`` by saddlepoint (to a few per cent of itself, however small; 0 where no
    direction gives more), so that ``q`` over hundreds of heads can tell one of them; ``chance``, ``ratio`` and
    ``p_max``, with the best head repeated in the null, by `draws` draws.
    ``p_labels``: the same for observables of as many random labels, whose lengths differ, by `draws` draws.
    Norms are exact; nothing is run, so attention, and what the stream holds, are not seen. Raises BadRequest, BadSite,
    NotOneToken, UnknownBasis.
    """
    if draws < 1:
        raise BadRequest(f"expected draws of at least 1, got {draws}; every length is shown beside random directions")
    view = without_bias(model, frame)
    observable = Observable.parse(observable, view) if isinstance(observable, str) else observable
    linear = Linearised(view.weights, (), DATA_FREE)
    out, G = linear.unread(observable.vector[None], observable.output)
    others = linear.unread(_others(observable, draws, seed), observable.output)[1]
    lengths = _norms(linear, np.concatenate([G, _directions(view, G, draws, seed), others]))
    own, null, labels = lengths[0], lengths[1 : 1 + draws], lengths[1 + draws :]
    names = [f"L{layer.layer}H{h}" for layer in each_layer(view) for h in range(len(layer.A))]
    gain = linear.part("final_norm.gain")
    raw, published = _plain(view, linear, out, False), _plain(view, linear, out if gain is None else out * gain, True)
    p = _tails(view, own, G[0, 0])
    scale = np.median(null, axis=0)
    ratio = np.divide(own, scale, out=np.zeros_like(own), where=scale > 0)
    worst = np.max(np.divide(null, scale, out=np.zeros_like(null), where=scale > 0), axis=1)
    q = chance.bh(p)
    columns = [
        Column("head", names, about="layer and query head"),
        Column("norm", own, "logits", 3, "length of the feature behind gain and centring, no scale", chance="chance"),
        Column("chance", np.quantile(null, 0.95, axis=0), "logits", 3,
               "length that a random direction as long as the observable's stays below with 95 %"),
        Column("ratio", ratio, "×", 2, "norm over its median for random directions"),
        Column("p", p, about="chance that a random direction gives a norm this large at this head (saddlepoint)"),
        Column("q", q, about="Benjamini–Hochberg over heads"),
        Column("p_max", _beyond(ratio, worst[:, None]), about="the same for the largest ratio over all heads"),
        Column("p_labels", _beyond(own, labels), about="the same for observables of as many random labels"),
        Column("share", own**2 / max(float(np.sum(own**2)), 1e-300), "", 3, "norm² over the sum of all heads"),
        Column("raw", raw, "logits", 4, "no norms at all: W_V W_O applied to W_U n"),
        Column("published", published, "logits", 4, "√d‖γ⊙…‖ without centring, 1/σ = 1"),
    ]  # fmt: skip
    foremost = names[int(np.argmax(own))]
    return Table(
        columns=columns,
        meta=view.meta | {"analysis": "head_norms", "observable": str(observable), "policy": str(DATA_FREE),
                          "seed": seed, "null": f"random directions of equal length: saddlepoint, {draws} draws"},
        title=f"{view.name} · {observable} · {len(names)} heads · frame {view.frame} · feature norms, no data",
        says=f"{foremost} can move {observable} most per unit of attention; {int(np.sum(q < LEVEL))} of "
        f"{len(names)} heads read it more than directions at random, at a false-discovery rate of {LEVEL:.0%}.",
        not_says=_not_says(observable),
        next=f'covector observe align {view.words} {observable.typed} {foremost}{view.framing}',
        picture=_picture,
        key=("head",),
    ).take(np.argsort(-own, kind="stable"))  # fmt: skip


def _beyond(own: Float[np.ndarray, " head"], null: Float[np.ndarray, "draws _"]) -> Float[np.ndarray, " head"]:
    """Monte-Carlo p, never 0."""
    return (1 + np.sum(null >= own, axis=0)) / (1 + len(null))


def _tails(view: Model, own: Float[np.ndarray, " head"], f: Float[np.ndarray, " d"]) -> Float[np.ndarray, " head"]:
    """P(norm >= own) per head for directions as long as f; 1 where all directions give the same, or f is 0."""
    chain, sphere = chain_of(view)[0], _sphere(view, len(f))
    found, size = np.ones(len(own)), float(np.linalg.norm(f))
    for head in range(len(own) if size else 0):
        S = np.linalg.svd(chain.operator((head,), centred=sphere.centred), compute_uv=False)[: sphere.free]
        S = np.where(ROUNDING * S.max() < S, S, 0.0)
        usual = size * np.linalg.norm(S) / np.sqrt(sphere.free)
        if own[head] > ROUNDING * usual:
            p = gain_tail(S, float((own[head] / usual) ** 2), sphere.free)
            found[head] = 1.0 if np.isnan(p) else p
    return found


def _directions(view: Model, G: Functional, draws: int, seed: int) -> Float[np.ndarray, "draws position d_model"]:
    """Random functionals on the last state as long as this one, without a part along 1 where the final norm centres."""
    return _sphere(view, G.shape[-1]).draw(generator(seed, "directions"), draws)[:, None] * np.linalg.norm(G)


def _sphere(view: Model, d: int) -> Sphere:
    final = view.spec.final_norm
    return Sphere(d, final is not None and final.kind == "layer")


def _not_says(observable: Observable) -> str:
    told = (
        "It does not say that a head attends where this is read (observe paths runs prompts), nor how much of it the "
        "stream holds"
    )
    return f"{told}; {observable.warning}." if observable.warning else f"{told}."


def _others(observable: Observable, draws: int, seed: int) -> Float[np.ndarray, "draws n"]:
    """Observables of as many random labels with the same weights."""
    rng = generator(seed, "labels")
    rows = np.full((draws, observable.size), observable.shift)
    for row in rows:
        row[rng.choice(observable.size, len(observable.ids), replace=False)] += observable.weights
    return rows


def _norms(linear: Linearised, G: Functional) -> Float[np.ndarray, "r head"]:
    """Length of the feature that each functional on the last state becomes at every head."""
    found = [np.linalg.norm(F[:, :, 0], axis=-1) for _, F in each_attention(linear, G)]
    return np.concatenate(found[::-1], axis=1)


def _plain(view: Model, linear: Linearised, G: Functional, gains: bool) -> Float[np.ndarray, " head"]:
    """Without centring and scale; with the first gain and √d where `gains`."""
    found, d = [], view.spec.d_model
    for layer in each_layer(view):
        F = np.einsum("hk,hdk->hd", np.einsum("d,hkd->hk", G[0, 0], layer.B), layer.A)
        gain = linear.part(f"L{layer.layer}.attn_norm.gain")
        if gains:
            F = np.sqrt(d) * (F if gain is None else F * gain)
        found.append(np.linalg.norm(F, axis=-1))
    return np.concatenate(found)


def _picture(table: Table) -> Grid:
    return head_grid(
        list(table["head"]), np.asarray(table["ratio"]), value_name="norm over random directions", centre=1.0
    )
