"""Pictures of an edit's effect: dose–response over the band of its controls, and the controls one by one."""

import numpy as np

from covector.analyses.edit_controls import OUTPUT
from covector.analyses.edit_measures import CONTROLS, Effects
from covector.linalg.interval import half_width
from covector.render import Curve, Scatter


def dose_response(effects: Effects) -> Curve:
    """The first observable of the headline group over the dose: measured with its interval, first order, parts."""
    setup, m = effects.setup, effects.parts[0]
    group = setup.headline
    x = np.concatenate([[0.0], setup.doses])

    def curve(values: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], values])

    each = np.array([setup.interval(setup.of_group(m.effects[i, 0], group)) for i in range(len(setup.doses))])
    slopes = m.slopes[0].sum(axis=1)
    slope = slopes[0] - slopes[1] if group == "gap" else slopes[0]
    names = [m.part.name, "first order (fit)"]
    ys = [curve(each[:, 0]), x * slope]
    shades: list[float | None] = [None, None]
    if np.isfinite(each[:, 1:]).all():
        names += ["95 % interval, lower", "95 % interval, upper"]
        ys += [curve(each[:, 1]), curve(each[:, 2])]
        shades += [0.0, 0.0]
    for k, other in enumerate(effects.parts[1:], 1):
        names.append(other.part.name)
        ys.append(curve(setup.mean(setup.of_group(other.effects[:, 0], group))))
        shades.append(0.3 + 0.7 * k / len(effects.parts))
    null = setup.mean(setup.of_group(m.controls[OUTPUT][:, :, 0], group))
    band = curve(np.quantile(np.abs(null), 0.95, axis=0))
    return Curve(
        x, np.stack(ys), names, "dose", f"change of {setup.observables[0]}", "share of the edit", "logits",
        band=(-band, band), band_name="95 % of random changes, equal output", shades=shades,
    )  # fmt: skip


def kl_response(effects: Effects) -> Curve:
    """KL on neutral text over the dose: the edit and its parts, with their 95 % intervals over windows."""
    setup, text = effects.setup, effects.setup.neutral
    assert text is not None
    x, ys, names, shades = np.concatenate([[0.0], setup.doses]), [], [], []
    for k, m in enumerate(effects.parts):
        assert m.side is not None
        mean = m.side.kl.mean(axis=1)
        error = np.array([float(half_width(kl - kl.mean(), text.window)) for kl in m.side.kl])
        if k == 0 and np.isfinite(error).all():
            names += ["95 % interval, lower", "95 % interval, upper"]
            ys += [np.append(0.0, mean - error), np.append(0.0, mean + error)]
            shades += [0.0, 0.0]
        names.append(m.part.name)
        ys.append(np.append(0.0, mean))
        shades.append(None if k == 0 else 0.3 + 0.7 * k / len(effects.parts))
    y_name = f"KL per token, {len(text):,} tokens of text"
    return Curve(x, np.stack(ys), names, "dose", y_name, "share of the edit", "nats", shades=shades)


def against(effects: Effects) -> Scatter:
    """The edit and every control at dose 1: effect on the first observable over √KL on neutral text.

    Both grow alike with the dose, so that a line through 0 is one change at all doses. Without a text the effects of
    each kind stand in their order.
    """
    setup, m = effects.setup, effects.parts[0]
    last = int(np.flatnonzero(setup.doses == 1)[0])
    mean, low, high = setup.interval(setup.of_group(m.effects[last, 0], setup.headline))
    x = [0.5 if m.side is None else float(np.sqrt(m.side.kl[last].mean()))]
    y, names = [mean], [f"the edit, {m.part.name}"]
    for kind in (kind for kind in CONTROLS if len(m.controls[kind])):
        values = setup.mean(setup.of_group(m.controls[kind][:, last if kind == OUTPUT else 0, 0], setup.headline))
        if m.side is None:
            values = np.sort(values)
            x += ((np.arange(len(values)) + 0.5) / len(values)).tolist()
        else:
            x += np.sqrt(m.control_kl[kind][:, -1]).tolist()
        y += values.tolist()
        names += [kind] * len(values)
    null = setup.mean(setup.of_group(m.controls[OUTPUT][:, last, 0], setup.headline))
    band = float(np.quantile(np.abs(null), 0.95))
    axis = ("share of its kind with a smaller effect", "") if m.side is None else ("√KL on neutral text", "√nat")
    return Scatter(
        np.array(x), np.array(y), axis[0], f"change of {setup.observables[0]}", axis[1], "logits", groups=names,
        interval=(np.array([low, *y[1:]]), np.array([high, *y[1:]])), band=(-band, band),
        band_name="95 % of random changes, equal output",
    )  # fmt: skip
