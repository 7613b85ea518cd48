"""What adding a vector to one token's stream does to a task: predicted beside measured, dose by dose, with controls.

Source: theory page §4.6; `docs/theory/steering.md`, equations 1–6; identities OP-26, OP-29.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from covector.analyses.steer_experiment import Setup, set_up, sign
from covector.analyses.steer_setup import GRID, path_slope
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.streams import generator
from covector.linalg.steering import clustered_interval, first_miss, random_vectors
from covector.model.opened import Model
from covector.propagation.saturation import saturation
from covector.render import Column, Curve, Table
from covector.run.clusters import counted, no_interval
from covector.run.prompts import Pair
from covector.run.steered import Arm, drift
from covector.run.text import text_ids
from covector.study.observable import Observable

# Neutral text: windows, their length, and random vectors whose KL is taken (a run each).
WINDOWS, LENGTH, KL_DRAWS = 4, 48, 2


def steer(
    model: Model,
    observables: Sequence[Observable | str],
    pairs: Sequence[Pair],
    *,
    draws: int = 40,
    seed: int = 0,
    text: str | None = None,
    **options: Any,
) -> Table:
    """One row per vector, dose and observable: how the observable changes on held-out prompts, beside the prediction.

    The vector: a `feature`, the data-free feature of a `path`, or the closed form for `wants` (an amount per
    observable, to first order on the training prompts or, with `path`, through that path). It is added to the stream
    at `place` (``L9.resid_pre``) on `token` (a slot; ``auto``: what the path's head fetches most, the start token and
    the position read left out). `scales`: predicted logits of the first observable (`unit` logits; with wants
    multiples of them), fractions of the mean ‖x[token]‖ (stream, and where no scales are given), or multiples of the
    feature; positive ones raise the first observable. `whiten`: closed form
    with the covariance of `text`. `held`: share of names held out.
    Beside the whole effect: what goes straight through the stream alone, and the rest without it. Controls of equal
    length: `draws` random vectors, as many of the stream's covariance, the mean difference between the sides, the
    gradient. ``kl``: nats per token on `text` with the vector at one position of each window.
    Predictions come from training prompts (``prediction``; ``fit`` where there is one name only). Measured through the
    reference decoder in float64. Raises BadRequest, BadSite, NotOneToken.
    """
    setup = set_up(model, observables, pairs, seed=seed, text=text, **options)
    return table_of(setup, draws=draws, seed=seed, text=text)


def table_of(setup: Setup, *, draws: int = 40, seed: int = 0, text: str | None = None) -> Table:
    """The table of `steer` for an experiment that is set up. Raises BadRequest for no draws."""
    if draws < 1:
        raise BadRequest(f"--draws: expected at least one random vector, got {draws}")
    deltas = setup.doses[:, None] * setup.vector.unit
    effects = {"vector": setup.measured(deltas), **_arms(setup, deltas)}
    controls = _controls(setup, draws, seed)
    sizes = np.linalg.norm(deltas, axis=1) * np.sign(setup.doses * sign(setup.slopes[0]))
    random = {name: _per_dose(setup, rows, sizes) for name, rows in controls.items()}
    kl = _drifts(setup, text, deltas, controls, sizes)
    miss = _misses(setup)
    rows = list(_rows(setup, effects, random, controls, sizes, kl))
    return _table(setup, rows, effects, random, miss, draws, seed)


def _arms(setup: Setup, deltas: np.ndarray) -> dict[str, np.ndarray]:
    """The direct path alone and everything but it, where the steered token is read and anything goes straight there."""
    elsewhere = not any(np.any(p.mask[np.arange(len(p.at)), p.at]) for p in setup.held)
    if elsewhere or any(sub.after for block in setup.model.spec.blocks for sub in block.sublayers):
        return {}
    arms: dict[str, Arm] = {"straight through alone": "direct", "without straight through": "indirect"}
    return {name: setup.measured(deltas, arm) for name, arm in arms.items()}


def _controls(setup: Setup, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Unit vectors [k, d] by name."""
    d = setup.model.spec.d_model
    found = {
        "random": random_vectors(draws, 1.0, generator(seed, "steer random"), d=d),
        "random, covariance": random_vectors(draws, 1.0, generator(seed, "steer covariance"), setup.covariance),
    }
    sides = np.concatenate([p.sides for p in setup.train])
    if np.any(sides):
        x = np.concatenate([p.rows(setup.spot) for p in setup.train])
        difference = x[sides > 0].mean(axis=0) - x[sides < 0].mean(axis=0)
        if np.any(difference):
            found["mean difference"] = difference[None] / np.linalg.norm(difference)
    g = setup.gradient[:1]
    return found | {"gradient": g / np.linalg.norm(g)} if np.any(g) else found


def _per_dose(setup: Setup, units: np.ndarray, sizes: np.ndarray) -> Float[np.ndarray, "observable dose k n"]:
    """Every control at every dose's length."""
    deltas = (sizes[:, None, None] * units[None]).reshape(-1, units.shape[1])
    measured = setup.measured(deltas)
    return measured.reshape(len(setup.observables), len(sizes), len(units), -1)


def _drifts(
    setup: Setup, text: str | None, deltas: np.ndarray, controls: Mapping[str, np.ndarray], sizes: np.ndarray
) -> dict[str, Float[np.ndarray, " dose"]]:
    """KL on neutral text per vector and dose; nothing without a text, or for an output that is not tokens."""
    if text is None or setup.model.spec.output("token") is None:
        return {}
    ids = text_ids(setup.model, text)
    length = min(LENGTH, setup.model.spec.n_ctx, len(ids))
    n = min(WINDOWS, len(ids) // length)
    tokens, position = ids[: n * length].reshape(n, length), max(1, length // 4)
    found = {"vector": drift(setup.decoder, tokens, setup.spot, deltas, position)}
    for name, units in controls.items():
        some = units[:KL_DRAWS]
        each = drift(
            setup.decoder, tokens, setup.spot, (sizes[:, None, None] * some).reshape(-1, some.shape[1]), position
        )
        found[name] = each.reshape(len(sizes), -1).mean(axis=1)
    return found


def _misses(setup: Setup) -> dict[str, Any]:
    """Per sign: the curve on held-out prompts, and where the prediction of the first observable is off by 20 %."""
    step = GRID * setup.stream / np.linalg.norm(setup.vector.unit)
    found: dict[str, Any] = {}
    for way, word in ((1.0, "+"), (-1.0, "-")):
        doses = way * sign(setup.slopes[0]) * step
        effects = setup.measured(doses[:, None] * setup.vector.unit)[0].mean(axis=1)
        dose = first_miss(doses, effects, setup.slopes[0])
        found[word] = {
            "predicted": setup.slopes[0] * doses,
            "effects": effects,
            "logits": dose * setup.slopes[0],
            "stream": abs(dose) * float(np.linalg.norm(setup.vector.unit)) / setup.stream,
        }
    return found


def _rows(
    setup: Setup,
    effects: Mapping[str, np.ndarray],
    random: Mapping[str, np.ndarray],
    controls: Mapping[str, np.ndarray],
    sizes: np.ndarray,
    kl: Mapping[str, np.ndarray],
) -> Iterator[dict[str, Any]]:
    for j, o in enumerate(setup.observables):
        for name, values in effects.items():
            for i, dose in enumerate(setup.doses):
                predicted = dose * setup.slopes[j] if name == "vector" else float("nan")
                row = _row(setup, name, o, i, values[j, i], predicted)
                if name == "vector":
                    null = [np.abs(random[k][j, i].mean(axis=1)) for k in ("random", "random, covariance")]
                    p = [(1 + np.sum(n >= abs(row["effect"]))) / (1 + len(n)) for n in null]
                    row |= {"p": p[0], "p_cov": p[1], "kl": kl["vector"][i] if kl else float("nan")}
                yield row
        for name, values in random.items():
            for i in range(len(setup.doses)):
                yield _control(setup, name, o, i, values[j, i], sizes[i] * (setup.gradient[j] @ controls[name][0]), kl)


def _control(
    setup: Setup,
    name: str,
    o: Observable,
    i: int,
    values: Float[np.ndarray, "k n"],
    predicted: float,
    kl: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """A row of a control; of random vectors the mean and the middle 95 % over draws."""
    nats = kl[name][i] if kl else float("nan")
    if not name.startswith("random"):
        return _row(setup, name, o, i, values[0], float(predicted)) | {"kl": nats}
    means = values.mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    row = _row(setup, name, o, i, values.mean(axis=0), float("nan"))
    return row | {"effect": float(means.mean()), "low": float(low), "high": float(high), "kl": nats}


def _row(
    setup: Setup, name: str, o: Observable, i: int, values: Float[np.ndarray, " n"], predicted: float
) -> dict[str, Any]:
    mean, low, high = clustered_interval(values, setup.clusters)
    size = float(np.linalg.norm(setup.vector.unit)) * abs(setup.doses[i]) / setup.stream
    predicted = 0.0 if abs(predicted) < 1e-9 * size * setup.stream else predicted  # wished to stay, up to rounding
    right = (
        float(np.mean(np.sign(values) == np.sign(predicted))) if np.isfinite(predicted) and predicted else float("nan")
    )
    return {"vector": name, "observable": str(o), "dose": float(setup.doses[i]), "size": size, "predicted": predicted,
            "effect": mean, "low": low, "high": high, "right": right, "p": float("nan"), "p_cov": float("nan"),
            "kl": float("nan")}  # fmt: skip


def _table(
    setup: Setup,
    rows: list[dict[str, Any]],
    effects: Mapping[str, np.ndarray],
    random: Mapping[str, np.ndarray],
    miss: dict[str, Any],
    draws: int,
    seed: int,
) -> Table:
    def of(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype=np.float64)

    columns = [
        Column("vector", [row["vector"] for row in rows], about="what is added; controls have the same length"),
        Column("observable", [row["observable"] for row in rows], about="what is measured"),
        Column("dose", of("dose"), "×", about="multiples of the unit vector"),
        Column("size", of("size"), "‖x‖", 3, "length added over the stream's mean length at the token"),
        Column("predicted", of("predicted"), "logits", 3, "first order, from training prompts"),
        Column("effect", of("effect"), "logits", 3, "steered − unsteered, mean over held-out prompts"),
        Column("low", of("low"), "logits", 3, "95 % interval over names; of random vectors: over draws"),
        Column("high", of("high"), "logits", 3, "upper end"),
        Column("right", of("right"), "", 2, "share of prompts that move the predicted way"),
        Column("p", of("p"), about="share of random vectors of equal length that move it as far"),
        Column("p_cov", of("p_cov"), about="the same among vectors with the stream's covariance"),
        Column("kl", of("kl"), "nats", 4, "KL from unsteered, per token, on neutral text"),
    ]
    return Table(columns, _meta(setup, miss, draws, seed), *_words(setup, effects, random, miss),
                 picture=lambda _: _picture(miss), key=("vector", "observable", "dose"))  # fmt: skip


def _meta(setup: Setup, miss: dict[str, Any], draws: int, seed: int) -> dict[str, Any]:
    path, v = setup.vector.path, setup.vector
    through = path_slope(setup.model, setup.train, setup.observables[0], path, v.unit) if path else float("nan")
    bounds = [_reach(setup, o) for o in setup.observables]
    return setup.model.meta | {
        "analysis": "steer", "observables": [str(o) for o in setup.observables], "operation": "add",
        "hook": setup.spot.hook, "layer": setup.spot.layer, "token": setup.token, "vector": v.about,
        "unit_length": float(np.linalg.norm(v.unit)),
        "times_feature": _finite(v.times), "stream_length": setup.stream,
        "slopes": setup.slopes.tolist(),
        "path_fraction": _finite(through / setup.slopes[0] if setup.slopes[0] else np.nan),
        "saturation": [{"constant": _finite(c), "reach": _finite(r)} for c, r in bounds],
        "off_by_20_percent": {k: {n: _finite(m[n]) for n in ("logits", "stream")} for k, m in miss.items()},
        "train_prompts": sum(len(p.mask) for p in setup.train),
        "held_prompts": sum(len(p.mask) for p in setup.held),
        "kind": "prediction" if setup.disjoint else "fit", "draws": draws, "seed": seed, "shrinkage": setup.shrink,
        "null": "random vectors of equal length, isotropic and with the stream's covariance",
    }  # fmt: skip


def _reach(setup: Setup, observable: Observable) -> tuple[float, float]:
    """Its saturation, where the vector is added in front of the norm that bounds it."""
    spec = setup.model.spec
    behind = spec.final_norm is None and setup.spot.hook == f"L{spec.n_layers - 1}.resid_post"
    return (float("nan"), float("inf")) if behind else saturation(setup.model, observable)


def _finite(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def _words(
    setup: Setup, effects: Mapping[str, np.ndarray], random: Mapping[str, np.ndarray], miss: dict[str, Any]
) -> tuple[str, str, str, str]:
    o, model = setup.observables[0], setup.model
    i = int(np.argmax(np.abs(setup.doses)))
    effect, predicted = float(effects["vector"][0, i].mean()), float(setup.doses[i] * setup.slopes[0])
    null = float(np.quantile(np.abs(random["random"][0, i].mean(axis=1)), 0.95))
    tested = [p for t in setup.held for p in t.batch.pairs]
    names, alone = counted(tested), no_interval(tested)
    title = (
        f"{model.name} · {setup.vector.about} · {setup.where} · "
        f"{sum(len(p.mask) for p in setup.held)} {'held-out ' if setup.disjoint else ''}prompts, {names}"
    )
    off = " and ".join(_off(word, m) for word, m in miss.items())
    says = (
        f"At {abs(setup.doses[i]) * np.linalg.norm(setup.vector.unit) / setup.stream:.2f} of the stream's length "
        f"{o} moves by {effect:+.3f} logits, predicted {predicted:+.3f}; of random vectors 95% stay within "
        f"{null:.3f}. The prediction is off by 20% {off}.{_direct(effects, i)}"
    )
    constant, reach = _reach(setup, o)
    bound = (
        f"; no steering takes {o} further than {reach:.1f} from {constant:.1f} (OP-26)" if np.isfinite(reach) else ""
    )
    kind = "" if setup.disjoint else f"; prediction and measurement used the same prompts ({names}): a fit"
    not_says = f"It says nothing of other tokens, templates or larger doses{bound}{kind}{alone}{_warned(o)}."
    return title, says, not_says, f"covector steer {model.words} {o.typed} with the same vector and prompts --split"


def _off(word: str, m: Mapping[str, Any]) -> str:
    side = "upwards" if word == "+" else "downwards"
    if not np.isfinite(m["logits"]):
        return f"nowhere {side} up to {GRID[-1]:g} stream lengths"
    if m["stream"] <= GRID[0] * 1.001:
        return f"from the smallest dose {side}"
    return f"from {m['logits']:+.2f} predicted logits {side} ({m['stream']:.2f} stream lengths)"


def _direct(effects: Mapping[str, np.ndarray], i: int) -> str:
    name = "straight through alone"
    if name not in effects:
        return " The token read is another one: nothing of it goes straight through the stream."
    return f" Straight through the stream alone it would be {float(effects[name][0, i].mean()):+.3f}."


def _warned(observable: Observable) -> str:
    return f"; {observable.warning}" if observable.warning else ""


def _picture(miss: dict[str, Any]) -> Curve:
    x = np.concatenate([miss["-"]["predicted"][::-1], miss["+"]["predicted"]])
    y = np.concatenate([miss["-"]["effects"][::-1], miss["+"]["effects"]])
    return Curve(x, np.stack([y, x]), ["measured", "predicted"], "predicted change", "change", "logits", "logits")
