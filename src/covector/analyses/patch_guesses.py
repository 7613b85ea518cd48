"""What a patch is guessed to do without it being run: first order, and attention computed exactly.

Source: theory page §1.7, §4.5; `docs/theory/observables.md`, equation 17.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from covector.axes import Float
from covector.model.opened import Model
from covector.model.spec import ModelSpec
from covector.propagation.linearised import Linearised, Policies
from covector.run.decoder import Decoder
from covector.run.integrated import changed_patterns
from covector.run.sweep import Place
from covector.study.observable import Observable


def first_order(
    model: Model,
    observable: Observable,
    base: Mapping[str, np.ndarray],
    new: Mapping[str, np.ndarray],
    places: Sequence[Place],
    masks: Mapping[str, Float[np.ndarray, "batch position"]],
    at: np.ndarray,
    *,
    route: Sequence[Place] | None = None,
) -> Float[np.ndarray, "place batch"]:
    """Gradient of the observable at the base run, times the change at each place, clean − patched (exact policy).

    Along all routes, or straight to the output where `route` is empty; NaN through receivers.
    """
    if route:
        return np.full((len(places), len(at)), np.nan)
    wide = {name: x.astype(np.float64) for name, x in base.items()}
    linear = Linearised(model.weights, (wide,), Policies.all("exact"))
    start = linear.start(observable.vector[None], observable.output, at)
    on_state = linear.adjoint(start) if route is None else linear.straight(start)
    gradients: dict[str, np.ndarray] = {}
    for c in linear.components:
        if c.hook("resid_pre") not in gradients:
            gradients[c.hook("resid_pre")] = on_state[c.reads]
        G = linear.out(linear.before(on_state[c.writes], c.writes), c)
        gradients[c.hook(f"{c.sub.name}_out")] = G
        if c.attn:
            Gz = linear.on_z(G, c)
            pulled = linear.of_z(Gz, c)
            group = [c.attn.kv_of(h) for h in range(c.attn.n_heads)]
            gradients |= {c.hook("z"): Gz, c.hook("q"): pulled.q, c.hook("pattern"): linear.on_pattern(Gz, c)}
            gradients |= {c.hook(k): _by_group(pulled.of(k), group) for k in "kv"}
    return np.stack([_change(gradients, base, new, p, masks) for p in places])


def exact_softmax(
    model: Model,
    decoder: Decoder,
    observable: Observable,
    base: Mapping[str, np.ndarray],
    new: Mapping[str, np.ndarray],
    places: Sequence[Place],
    masks: Mapping[str, Float[np.ndarray, "batch position"]],
    at: np.ndarray,
    route: Sequence[Place] | None = None,
) -> Float[np.ndarray, "place batch"]:
    """Clean − patched for places of role q or k: gradient on the pattern times its change, which is exact (eq. 17)."""
    found = np.zeros((len(places), len(at)))
    for slot in dict.fromkeys(place.slot for place in places):
        rows = [i for i, place in enumerate(places) if place.slot == slot]
        patterns = changed_patterns(decoder, base, new, places[rows[0]].role, masks[slot] if slot else None)
        moved = [(i, Place(places[i].layer, "pattern", h)) for i in rows for h in _readers(model.spec, places[i])]
        parts = first_order(model, observable, base, patterns, [p for _, p in moved], {}, at, route=route)
        np.add.at(found, [i for i, _ in moved], parts)
    return found


def _readers(spec: ModelSpec, place: Place) -> list[int]:
    """The query heads whose attention a query or key head moves."""
    attn = spec.blocks[place.layer].attn
    assert attn is not None
    return [h for h in range(attn.n_heads) if (attn.kv_of(h) if place.role == "k" else h) == place.head]


def _by_group(x: np.ndarray, group: Sequence[int]) -> np.ndarray:
    out = np.zeros((*x.shape[:2], max(group) + 1, x.shape[3]))
    for head, kv in enumerate(group):
        out[:, :, kv] += x[:, :, head]
    return out


def _change(
    gradients: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray],
    new: Mapping[str, np.ndarray],
    place: Place,
    masks: Mapping[str, np.ndarray],
) -> Float[np.ndarray, " batch"]:
    heads, positions = place.axes
    values = gradients[place.hook] * (base[place.hook].astype(np.float64) - new[place.hook])
    if heads is not None and place.head is not None:
        values = np.take(values, [place.head], axis=heads)
    if place.slot:
        shape = [1] * values.ndim
        shape[0], shape[positions] = masks[place.slot].shape
        values = values * masks[place.slot].reshape(shape)
    return values.reshape(len(values), -1).sum(axis=1)
