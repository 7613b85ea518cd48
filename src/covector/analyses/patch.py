"""What happens when activations of one prompt are put into the run of another: measured, beside the first-order guess.

Source: theory page §1.7, §4.5; `docs/theory/observables.md`, equations 16–17; identities OP-27, OP-28.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from covector.analyses.head_grid import head_grid
from covector.analyses.patch_words import check_guess, check_what
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.interval import cluster_sums, half_width
from covector.model.opened import Model
from covector.model.spec import ModelSpec
from covector.propagation.linearised import Linearised, Policies
from covector.render import Column, Grid, Table
from covector.run.clusters import clusters_of, counted, found_in_texts, pairs_told, what_counts
from covector.run.decoder import Decoder
from covector.run.integrated import changed_patterns, integrated
from covector.run.pairs import check_reading
from covector.run.points import as_inputs, captured
from covector.run.prompts import Batch, Pair, batches, canonical_slot
from covector.run.runner import Runner
from covector.run.sweep import Place, feeds, sweep
from covector.study.observable import Observable
from covector.study.path import parse_path

ROLES = {"heads": "z", "ov": "z", "qk": "z", "resid": "resid_pre", "attn": "attn_out", "mlp": "mlp_out"}
LEVEL = 0.05
ABOUT = {
    "first_order": "gradient at the clean run times the change (fit)",
    "integrated": "gradient averaged along the line from clean to new, times the change (fit)",
    "softmax": "changed attention, computed, times the gradient on it (fit)",
}


def patch(
    model: Model,
    observable: Observable | str,
    pairs: Sequence[Pair],
    *,
    what: str = "heads",
    source: str = "corrupt",
    at: str = "end",
    slots: Sequence[str] = (),
    route: Sequence[str] | None = None,
    guess: str = "plain",
    steps: int = 5,
    runner: Runner | None = None,
    dtype: str = "float64",
    seed: int = 0,
) -> Table:
    """One row per place: how far the observable falls when the clean run gets its activations there from elsewhere.

    `what`: heads (z), ov, qk (z with the other values under its own pattern, and the other way round), resid (the
    stream entering each block), attn, mlp (sublayer outputs), or q, k, v, pattern of each head. `source`: the corrupt
    prompt, zero, the mean over both prompts of all other pairs of this length, or another clean prompt (resample).
    `slots`: patch these positions alone, one row each (resid, attn, mlp: every slot by default; heads: all positions
    together). `route`: None lets everything behind the place follow; empty is path patching straight to the output, all
    later components held; heads (``L9H6``) and MLPs (``L8.mlp``) let those alone see the change.
    ``effect`` = clean − patched, mean over pairs, with a 95 % interval and sign-flip p over names (pairs of the same
    names under several templates count once), q over places;
    ``share`` of the whole clean − corrupt difference. ``first_order`` is the gradient at the clean run times the change
    (attribution patching) along the same route, not defined through receivers; ``fit``, since it saw both prompts.
    `guess` adds a better one in a column of its own. ``integrated``: the gradient averaged over `steps` Gauss–Legendre
    nodes of the straight line from the clean to the new activation of that place alone, equation 16; it tends to the
    effect as steps grow, and meta's ``error`` is the largest distance that is left. ``softmax`` (q and k): attention
    computed with the changed queries or keys, and first order behind it, equation 17.
    Measured through the reference decoder, exactly; or through `runner`, which runs every prompt from its beginning for
    every place (guesses are of the decoder all the same).
    Raises BadRequest for unknown words, no pairs, or a model without such places.
    """
    check_what(what, source)
    check_guess(guess, what, steps, through=bool(route))
    if not pairs:
        raise BadRequest("expected pairs of prompts, got none; give --template and --fill, or --prompts FILE")
    observable = Observable.parse(observable, model) if isinstance(observable, str) else observable
    by_slot = tuple(slots) or (every_slot(pairs) if what in ("resid", "attn", "mlp") else ())
    for slot in slots:
        canonical_slot(pairs, slot)  # a slot that some prompt lacks is refused before anything runs
    places = places_of(model.spec, what, by_slot)
    receivers = None if route is None else [_receiver(text, model.spec) for text in route]
    if receivers:
        places = [p for p in places if p not in receivers and any(feeds(model.spec, p, r) for r in receivers)]
    if not places:
        raise BadRequest(f"--to {', '.join(route or ())}: expected receivers behind some {what}, nothing feeds them")
    decoder = Decoder(model.weights, getattr(torch, dtype), model.device)
    check_runner(runner, places)
    check_reading(model, observable.output, pairs, at)
    found, clean, corrupt, guessed, better = [], [], [], [], []
    # Means and donors are over all prompts of a length, so these may not depend on how many run at once.
    ordered: list[Pair] = []
    for batch in batches(pairs, 32 if source in ("corrupt", "zero") else len(pairs)):
        ordered += batch.pairs
        base, other = captured(decoder, batch.clean), captured(decoder, batch.corrupt)
        seen = base if runner is None else captured(runner, batch.clean)
        beside = other if runner is None else captured(runner, batch.corrupt)
        positions, rows = batch.at(at), np.arange(len(batch.pairs))
        clean.append(observable.of(seen[f"out.{observable.output}"][rows, positions].astype(np.float64)))
        corrupt.append(observable.of(beside[f"out.{observable.output}"][rows, positions].astype(np.float64)))
        new = _new(model.spec, what, source, base, other, seed)
        put = new if runner is None else _new(model.spec, what, source, seen, beside, seed)
        masks = {slot: mask_of(batch, slot, named=not slots) for slot in by_slot}
        values = dict(sweep(runner or decoder, seen, put, places, masks, observable, positions, route=receivers,
                            inputs=as_inputs(batch.clean)))  # fmt: skip
        found.append(np.stack([clean[-1] - values[place] for place in places]))
        guessed.append(first_order(model, observable, base, new, places, masks, positions, route=receivers))
        if guess == "integrated":
            along = dict(integrated(decoder, base, new, places, masks, observable, positions, steps=steps,
                                    direct=route is not None))  # fmt: skip
            better.append(np.stack([along[place] for place in places]))
        elif guess == "softmax":
            better.append(exact_softmax(model, decoder, observable, base, new, places, masks, positions, receivers))
    effects, slopes = np.concatenate(found, axis=1), np.concatenate(guessed, axis=1)
    whole = np.concatenate(clean) - np.concatenate(corrupt)
    told = "" if route is None else " straight to the output" if not route else f" through {', '.join(route)} alone"
    guesses = {"first_order": slopes, **({guess: np.concatenate(better, axis=1)} if better else {})}
    table = _table(model, observable, places, effects, guesses, whole, what + told, source, at, seed, ordered, steps)
    return table if runner is None else measured_by(table, runner)


def measured_by(table: Table, runner: Runner) -> Table:
    """The table with another runner than the decoder named in its title and meta."""
    by = {"class": type(runner).__name__, "dtype": str(runner.dtype).removeprefix("torch.")}
    return dataclasses.replace(table, meta={**table.meta, "runner": by}, title=f"{table.title} · through transformers")


def check_runner(runner: Runner | None, places: Sequence[Place]) -> None:
    """Raise BadRequest for places that a runner only shows."""
    fixed = [] if runner is None else [place.hook for place in places if place.hook not in runner.changeable]
    if fixed:
        raise BadRequest(
            f"--runner transformers: expected a place that its modules let be replaced, {fixed[0]} is only shown; "
            "use --runner decoder"
        )


def every_slot(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Names of all positions, in the order in which they stand in the longest prompt first."""
    longest = max(pairs, key=len)
    names = [longest.slot_of(t) for t in range(len(longest))]
    return tuple(dict.fromkeys([*names, *(p.slot_of(t) for p in pairs for t in range(len(p)))]))


def mask_of(batch: Batch, slot: str, *, named: bool = True) -> Float[np.ndarray, "batch position"]:
    """1 where a position goes by this name (nowhere in a prompt that lacks it); else where the slot points, in each."""
    if named:
        return np.array([[float(pair.slot_of(t) == slot) for t in range(len(pair))] for pair in batch.pairs])
    return np.array([[float(t == pair.position(slot)) for t in range(len(pair))] for pair in batch.pairs])


def places_of(spec: ModelSpec, what: str, slots: Sequence[str] = ()) -> list[Place]:
    """Every place of a kind, layer by layer; one per slot where slots are given. BadRequest where there is none."""
    role, found = ROLES.get(what, what), list[Place]()
    for layer, block in enumerate(spec.blocks):
        attn = block.attn
        if role in ("z", "q", "pattern"):
            heads: Sequence[int | None] = range(attn.n_heads) if attn else ()
        elif role in ("k", "v"):
            heads = range(attn.n_kv_heads) if attn else ()
        else:
            has = role == "resid_pre" or (block.mlp if role == "mlp_out" else attn) is not None
            heads = (None,) if has else ()
        found += [Place(layer, role, head, slot) for head in heads for slot in (slots or (None,))]
    if not found:
        raise BadRequest(f"this model has no {what} to patch")
    return found


def _receiver(text: str, spec: ModelSpec) -> Place:
    """A component that sees a change: a head or an MLP. Raises BadRequest, BadSite."""
    step = parse_path(text, spec).steps
    if len(step) != 1 or step[0].kind not in ("v", "mlp") or step[0].dyad is not None or step[0].slot:
        raise BadRequest(f"--to: expected a head (L9H6) or an MLP (L8.mlp), got '{text}'")
    return Place(step[0].layer, "mlp_post" if step[0].kind == "mlp" else "z", step[0].head)


def _halves(
    spec: ModelSpec, base: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray], what: str
) -> dict[str, np.ndarray]:
    """z of every head with its values (ov) or its pattern (qk) from the other run, and the rest its own."""
    found = {}
    for layer, block in enumerate(spec.blocks):
        if block.attn:
            group = [block.attn.kv_of(h) for h in range(block.attn.n_heads)]
            pattern, value = (base, new) if what == "ov" else (new, base)
            A, v = pattern[f"L{layer}.pattern"], value[f"L{layer}.v"][:, :, group]
            found[f"L{layer}.z"] = np.einsum("bhts,bshk->bthk", A, v, optimize=True)
    return found


def _new(
    spec: ModelSpec, what: str, source: str, base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], seed: int
) -> Mapping[str, np.ndarray]:
    """What is put in."""
    new = _source(source, base, other, seed)
    return {**new, **_halves(spec, base, new, what)} if what in ("ov", "qk") else new


def _source(
    source: str, base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], seed: int
) -> Mapping[str, np.ndarray]:
    """Where the activations come from."""
    if source == "corrupt":
        return other
    if source == "zero":
        return {name: np.zeros_like(x) for name, x in base.items()}
    n = len(base["resid_in"])
    if n < 2:
        raise BadRequest(f"--source {source}: expected at least two pairs of one length, got one; give more names")
    if source == "mean":  # of the other pairs: a prompt's own activations are no control for it
        both = {name: x + other[name] for name, x in base.items()}
        return {name: (x.sum(axis=0) - x) / (2 * (n - 1)) for name, x in both.items()}
    turn = 1 + int(np.random.default_rng(seed).integers(n - 1))
    return {name: np.roll(x, turn, axis=0) for name, x in base.items()}


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


def _table(
    model: Model,
    observable: Observable,
    places: Sequence[Place],
    effects: Float[np.ndarray, "place n"],
    guesses: Mapping[str, Float[np.ndarray, "place n"]],
    whole: Float[np.ndarray, " n"],
    what: str,
    source: str,
    at: str,
    seed: int,
    ordered: Sequence[Pair],
    steps: int,
) -> Table:
    clusters = clusters_of(ordered)
    mean, pairs, groups = effects.mean(axis=1), effects.shape[1], len(np.unique(clusters))
    error = half_width(effects, clusters)
    p = sign_flips(cluster_sums(effects, clusters), seed)
    total = float(whole.mean())
    names = [str(place) for place in places]
    order = np.argsort(-np.abs(mean), kind="stable")
    q = chance.bh(p)
    columns = [
        Column("place", names, about="what was replaced; @ at which positions"),
        Column("effect", mean, observable.unit, 3, "clean − patched, mean over pairs"),
        Column("low", mean - error, observable.unit, 3, "lower end of a 95 % interval over names"),
        Column("high", mean + error, observable.unit, 3, "upper end"),
        Column("share", mean / total if total else np.full(len(mean), np.nan), "", 3, "effect over clean − corrupt"),
        *[Column(name, values.mean(axis=1), observable.unit, 3, ABOUT[name]) for name, values in guesses.items()],
        Column("p", p, about="sign flips over names: the effect has no sign"),
        Column("q", q, about="Benjamini–Hochberg over places"),
    ]
    told, best_guess = list(guesses.items())[-1]
    slope, r2 = line(best_guess.mean(axis=1), mean)
    fit: dict[str, object] = {"guess": told, "slope": slope, "r2": r2}
    named = ""
    if told == "integrated":
        fit |= {"steps": steps, "error": float(np.abs(best_guess - effects).max())}
        named = f" · integrated, {steps} steps, error at most {fit['error']:.2g}"
    best = int(order[0])
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "patch", "observable": str(observable), "what": what, "source": source, "at": at,
                           "pairs": pairs, "seed": seed, "kind": "measurement; first_order: fit", "total": total,
                           "first_order": fit, "names": groups, "counted": what_counts(ordered),
                           "null": "sign flips over names"},
        title=f"{model.name} · {observable} · {what} from {source} · {pairs_told(ordered)} · "
        f"clean − corrupt {total:.3f}{named}",
        says=f"Replacing {names[best]} moves {observable} most, by {mean[best]:+.3f} of {total:.3f} {observable.unit}"
        f"{_tested(q, groups)}.",
        not_says="Effects of single places do not add up (observe paths gives shares that do), and say nothing of "
        "prompts "
        f"unlike these{_few(ordered)}{_fit(told, slope, r2)}{'; ' + observable.warning if observable.warning else ''}.",
        next=f"covector observe shares {model.words} {observable.typed} with the same prompts",
        picture=_picture(places, mean, observable.unit),
        key=("place",),
    ).take(order)  # fmt: skip


def _fit(guess: str, slope: float, r2: float) -> str:
    """How well a guess that saw the same prompts does, which is no prediction; nothing where there is none."""
    return f"; {guess} is a fit to these prompts (slope {slope:.2f}, r² {r2:.2f})" if np.isfinite(slope) else ""


def _tested(q: Float[np.ndarray, " place"], groups: int) -> str:
    """How many places have an effect; nothing was tested where all pairs are one piece of evidence."""
    if groups == 1:
        return ""
    return (
        f"; {int(np.sum(q < LEVEL))} of {len(q)} places have an effect beyond sign flips at a false-discovery rate of "
        f"{LEVEL:.0%}"
    )


def _few(pairs: Sequence[Pair]) -> str:
    """A caution where so few names leave no room for a small p, and where they come from if the texts told them."""
    n = len(np.unique(clusters_of(pairs)))
    told = "" if n > 1 or len(pairs) == 1 else ", all linked by names that they share"
    if n == 1:
        few = (
            f"; nothing was tested: {pairs_told(pairs)} ha{'s' if len(pairs) == 1 else 've'} no interval and no p{told}"
        )
    else:
        few = f"; with {counted(pairs)} no p is below {2.0 ** (1 - n):.2g}" if n <= 7 else ""
    if not few or len(pairs) == 1 or not found_in_texts(pairs):
        return few
    return f"{few}; names are the words in which texts differ (give 'names' in the file for others)"


def sign_flips(effects: Float[np.ndarray, "place n"], seed: int, draws: int = 2000) -> Float[np.ndarray, " place"]:
    """Two-sided p of each mean under random signs of the pairs (all 2ⁿ of them where n ≤ 10); NaN for one pair."""
    n = effects.shape[1]
    if n < 2:
        return np.full(len(effects), np.nan)
    if n <= 10:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        null = np.abs(signs @ effects.T)
        return np.mean(null >= np.abs(effects.sum(axis=1)) * (1 - 1e-12), axis=0)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (draws, n))
    null = np.abs(signs @ effects.T)
    return (1 + np.sum(null >= np.abs(effects.sum(axis=1)) * (1 - 1e-12), axis=0)) / (1 + draws)


def line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Slope through the origin of y on x, and squared correlation; NaN where x does not vary."""
    if not np.any(x) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    return float(x @ y / (x @ x)), float(np.corrcoef(x, y)[0, 1] ** 2)


def _picture(places: Sequence[Place], mean: Float[np.ndarray, " place"], unit: str) -> Callable[[Table], Grid] | None:
    """Layers × heads, or layers × slots; None where both vary."""
    if places[0].head is not None and places[0].slot is None:
        names = [f"L{p.layer}H{p.head}" for p in places]
        return lambda _: head_grid(names, mean, value_name="clean − patched", unit=unit)
    if places[0].head is not None:
        return None
    layers, slots = sorted({p.layer for p in places}), list(dict.fromkeys(p.slot or "all" for p in places))
    cells = np.full((len(layers), len(slots)), np.nan)
    for place, value in zip(places, mean, strict=True):
        cells[layers.index(place.layer), slots.index(place.slot or "all")] = value
    return lambda _: Grid(cells, [f"L{i}" for i in layers], slots, value_name="clean − patched", unit=unit,
                              row_name="layer", column_name="position")  # fmt: skip
