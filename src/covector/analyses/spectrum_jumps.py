"""Which layer or head is out of line: robust z scores of places of one kind, their maxima repeated in the null.

Compared are log σ₁ and log ‖M‖_F over all places of a kind and shape, and, where layers have several heads, the
layers' medians of log σ₁. With six layers or more these are also compared less their robust line over depth: growth by
the same factor from layer to layer then hides no jump, and is none. Levels and p values are over all comparisons of the
request at once (Bonferroni over comparisons, the maximum within each).

Source: `docs/theory/spectra.md`, equations 12 and 13.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from covector.analyses.site_spectra import SiteSpectrum
from covector.axes import Float
from covector.linalg.chance.estimate import monte_carlo_p
from covector.linalg.chance.outliers import (
    FEWEST_FOR_TREND,
    Law,
    largest_layer_z_null,
    largest_z_null,
    robust_z,
    without_trend,
)
from covector.model.address import Site
from covector.render import Column

# Draws of each maximum: 4000 give the level of a request with 13 comparisons (0.4 %) sixteen draws beyond it.
DRAWS = 4000

What = Literal["z", "z_norm", "z_layer", "z_trend"]
# Logarithms of gains that differ by less do so by rounding.
ROUNDING = 1e-10
OF_LAYERS = ("z_layer", "z_trend")


@dataclass(frozen=True, eq=False)
class Group:
    """Places whose maps have one kind and shape; `places` are their rows in the result."""

    kind: str
    shape: tuple[int, int]
    inner: int | None
    records: tuple[SiteSpectrum, ...]
    places: tuple[int, ...]

    @property
    def key(self) -> tuple[int, int, int | None]:
        """What the null depends on: a map and its transpose have the same."""
        return min(self.shape), max(self.shape), self.inner

    @property
    def name(self) -> str:
        """The kind as a sentence has it."""
        return f"mlp.{self.kind}" if any(r.site.in_mlp for r in self.records) else self.kind

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have such a place, rising."""
        return tuple(sorted({r.site.layer for r in self.records if r.site.layer is not None}))

    @property
    def heads(self) -> tuple[int, ...]:
        """How many of them each layer has that are not zero, layers that have any; the null is of these."""
        alive = np.array([r.S.size > 0 for r in self.records])
        return tuple(count for values in self.of_layer(alive) if (count := int(values.sum())))

    def of_layer(self, values: np.ndarray) -> list[np.ndarray]:
        """Values, one per place, cut by layer."""
        at = np.array([-1 if r.site.layer is None else r.site.layer for r in self.records])
        return [values[at == layer] for layer in self.layers]


@dataclass(frozen=True, eq=False)
class Jump:
    """One comparison: the scores of its places, and the one that is farthest out of line.

    `level` is what the largest |z| of the request stays below with 95 % (here), `p` the chance of the largest, both
    over all comparisons of the request. `site` is None for a layer; `words` say it in a sentence.
    """

    what: What
    group: Group
    scores: Float[np.ndarray, " n"]
    ps: Float[np.ndarray, " n"]
    level: float
    site: Site | None
    z: float
    p: float
    words: str
    short: str


def grouped(records: Sequence[SiteSpectrum]) -> list[Group]:
    """Places by kind and shape, in order of first appearance."""
    found: dict[tuple[str, tuple[int, int], int | None], list[int]] = {}
    for i, r in enumerate(records):
        found.setdefault((r.site.kind, r.shape, r.inner), []).append(i)
    return [Group(*key, tuple(records[i] for i in places), tuple(places)) for key, places in found.items()]


def jumps(groups: Sequence[Group], level: float, seed: int) -> list[Jump]:
    """Every comparison that can be made (of four or more places, half of them different), with its familywise level."""
    asked: list[tuple[What, Group, np.ndarray]] = [(what, g, x) for g in groups for what, x in _quantities(g)]
    made = [comparison for comparison in asked if np.isfinite(robust_z(comparison[2], noise=ROUNDING)).any()]
    return [_jump(what, g, x, len(made), level, seed) for what, g, x in made]


def z_columns(n: int, found: Sequence[Jump]) -> list[Column]:
    """Scores, levels and p values as columns; NaN for places that nothing can be compared with."""
    about = {
        "z": "log σ₁ against places of its kind, in robust standard deviations",
        "z_norm": "log of the Frobenius norm, likewise",
        "z_layer": "the layer's median log σ₁ against other layers', likewise",
        "z_trend": "the same less the layers' robust line over depth",
    }
    made: list[Column] = []
    for what, text in about.items():
        z, levels, p = (np.full(n, np.nan) for _ in range(3))
        for jump in (j for j in found if j.what == what):
            at = list(jump.group.places)
            z[at], p[at] = _spread(jump, jump.scores), _spread(jump, jump.ps)
            levels[at] = jump.level
        made += [
            Column(what, z, "sd", 1, text, chance=f"{what}_level"),
            Column(f"{what}_level", levels, "sd", 1, "the largest |z| of the request stays below with 95 %"),
            Column(f"p_{what}", p, about="chance that any place of the request is so far out of line"),
        ]
    return made


def _quantities(group: Group) -> list[tuple[What, np.ndarray]]:
    with np.errstate(divide="ignore"):  # a map of zeros has no logarithm, and takes no part
        largest = np.log([r.S[0] if r.S.size else 0.0 for r in group.records])
        norms = np.log([np.linalg.norm(r.S) for r in group.records])
    made: list[tuple[What, np.ndarray]] = [("z", largest), ("z_norm", norms)]
    medians = np.array([_middle(values) for values in group.of_layer(largest)])
    if max(group.heads, default=0) > 1:
        made.append(("z_layer", medians))
    if len(medians) >= FEWEST_FOR_TREND and np.isfinite(medians).all():
        made.append(("z_trend", without_trend(medians, group.layers)))
    return made


def _jump(what: What, group: Group, x: np.ndarray, tests: int, level: float, seed: int) -> Jump:
    scores = robust_z(x, noise=ROUNDING)
    null = _null(what, group.heads, group.layers, seed)
    ps = np.minimum(1.0, tests * np.asarray(monte_carlo_p(np.abs(scores), null).value))
    bound = float(np.quantile(null, 1 - level / tests))
    top = int(np.nanargmax(np.abs(scores)))
    site = None if what in OF_LAYERS else group.records[top].site
    z, times = float(scores[top]), f"{np.exp(x[top] - _middle(x)):.3g} times"
    place = f"layer {group.layers[top]}, {group.name}" if site is None else str(site)
    counted = int(np.isfinite(x).sum())
    maps = f"the median of {counted} {group.name} maps" + (" that are not zero" if counted < len(x) else "")
    usual = {
        "z": f"σ₁ is {times} {maps}",
        "z_norm": f"the norm is {times} {maps}",
        "z_layer": f"the median σ₁ is {times} the median of {counted} layers",
        "z_trend": f"σ₁ is {times} the trend over {len(x)} layers",
    }[what]
    alone = _first_dyad_alone(group, top, bound) if what == "z" and abs(z) > bound else ""
    words = f"{place}: {usual} (robust z {z:+.1f}, chance 95 % {bound:.1f}, p {ps[top]:.2g}{alone})"
    return Jump(what, group, scores, ps, bound, site, z, float(ps[top]), words, f"{place} ({usual}, z {z:+.1f})")


def _middle(logs: np.ndarray) -> float:
    """The median of those that are finite: maps of zeros left out."""
    finite = logs[np.isfinite(logs)]
    return float(np.median(finite)) if finite.size else float("nan")


@lru_cache(maxsize=32)
def _null(what: What, heads: tuple[int, ...], layers: tuple[int, ...], seed: int) -> Float[np.ndarray, " draws"]:
    """The same for every kind with as many heads in the same layers, hence kept."""
    law: Law = "normal" if what == "z_norm" else "largest value"
    if what not in OF_LAYERS:
        return largest_z_null(heads, law=law, draws=DRAWS, seed=seed)
    return largest_layer_z_null(heads, law=law, draws=DRAWS, seed=seed, at=layers if what == "z_trend" else None)


def _first_dyad_alone(group: Group, top: int, bound: float) -> str:
    """Whether the jump is one dyad's: whether σ₂ is out of line too."""
    second = np.log([r.S[1] if r.S.size > 1 else np.nan for r in group.records])
    z = float(robust_z(second, noise=ROUNDING)[top])
    if np.isnan(z):
        return ""
    return f"; one dyad: σ₂ is in line, z {z:+.1f}" if abs(z) <= bound else f"; σ₂ too, z {z:+.1f}"


def _spread(jump: Jump, values: np.ndarray) -> np.ndarray:
    """One value per place: a layer's goes to all of its places."""
    if jump.what not in OF_LAYERS:
        return values
    of = dict(zip(jump.group.layers, values.tolist(), strict=True))
    return np.array([of[r.site.layer or 0] for r in jump.group.records])
