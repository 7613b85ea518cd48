"""Do concepts share directions: what removing the directions of one does to the others, the causal cross-talk matrix.

Source: theory page Q5(c); `docs/theory/edits.md`, equation 25.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from covector.analyses.choose_candidates import Candidates, candidates
from covector.analyses.choose_metric import Metric
from covector.analyses.clock import Clock, Tell
from covector.analyses.sweep_setup import SITES, Started, check_raw, started
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance import bh
from covector.linalg.chance.streams import generator
from covector.linalg.matched import two_sided_p
from covector.linalg.sweeping import off_diagonal, share_of_size
from covector.model.opened import Model
from covector.render import Column, Grid, Table

LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Crossed:
    """``K`` [ablated, measured]: change of b's metric when a's directions are removed; ``null`` of random sets.

    ``related`` says how many directions of each concept were removed; ``low``, ``high`` are 95 % intervals; ``typed``
    is the first concept as it was typed.
    """

    model: Model
    names: tuple[str, ...]
    related: tuple[int, ...]
    K: Float[np.ndarray, "k k"]
    low: Float[np.ndarray, "k k"]
    high: Float[np.ndarray, "k k"]
    null: Float[np.ndarray, "k k draws"]
    typed: str = ""

    @property
    def mass(self) -> float:
        """Off-diagonal share of Σ|K|."""
        return float(off_diagonal(self.K))

    @property
    def masses(self) -> Float[np.ndarray, " draws"]:
        """The same of random sets, one for every concept."""
        return off_diagonal(np.moveaxis(self.null, 2, 0))


def concept_matrix(
    model: Model,
    concepts: Sequence[str | Sequence[str] | Float[np.ndarray, "_ d"]],
    metrics: Sequence[Metric],
    *,
    names: Sequence[str] | None = None,
    sites: Sequence[str] = SITES,
    first: int = 32,
    draws: int = 100,
    seed: int = 0,
    tell: Tell | None = None,
) -> Table:
    """One row per pair (a removed, b measured): K_ab, the change of b's metric, logits; with its null and interval.

    Removed are the directions of all sites that write a beyond chance (q ≤ 0.05 by weights alone), at most `first`,
    largest σ²(v·a)² first. The null: `draws` random sets of dyads of the same sites with equal Σε²σ² at each (the last
    dyad in part). ``p`` two-sided on |K|; ``q`` Benjamini–Hochberg over pairs a ≠ b; ``z`` in standard deviations of
    the null. The off-diagonal mass Σ_{a≠b}|K| / Σ|K| and its null are in ``meta`` and in the sentence. Exact to
    rounding. Random sets may hold dyads of the concepts: p is then on the safe side.
    Raises BadRequest for fewer than two concepts, a concept without a related direction, a frame other than raw.
    Source: `docs/theory/edits.md`, equation 25; theory page Q5(c).
    """
    if len(concepts) < 2 or len(concepts) != len(metrics):
        raise BadRequest(f"expected two or more concepts, a metric for each, got {len(concepts)} and {len(metrics)}")
    check_raw(model)
    if draws < 1 or first < 1:
        raise BadRequest(f"--draws, --first: expected at least 1, got {draws} and {first}")
    found = [candidates(model, c, sites) for c in concepts]
    removed = [related(one, first) for one in found]
    told = tuple(names) if names else tuple(one.words for one in found)
    if len(set(told)) < len(told):
        raise BadRequest("expected concepts that differ, one came twice; leave it out")
    layers = [s.layer for s in found[0].sites if s.layer is not None]
    runs = [started(metric, layers) for metric in metrics]
    crossed = _crossed(model, told, found, removed, runs, draws, seed, tell)
    typed = concepts[0] if isinstance(concepts[0], str) else told[0]
    return _table(replace(crossed, typed=typed), metrics, seed)


def related(found: Candidates, first: int) -> Float[np.ndarray, " n"]:
    """ε of −1 for the directions of a concept: related beyond chance, largest σ²a first. Raises BadRequest for none."""
    gain = np.where(found.beyond, found.gains**2 * found.related, 0.0)
    if not gain.any():
        best = int(np.argmax(found.related))
        raise BadRequest(
            f"no direction of {len(found):,} is related to {found.words} beyond chance (q ≤ 0.05): the closest is "
            f"{found.address(best)}, |cos| {np.sqrt(found.related[best]):.2f} where luck reaches {found.tau:.2f}; name "
            "other sites, or more words"
        )
    epsilon = np.zeros(len(found))
    epsilon[np.argsort(-gain, kind="stable")[: min(first, int((gain > 0).sum()))]] = -1.0
    return epsilon


def random_set(found: Candidates, epsilon: Float[np.ndarray, " n"], rng: np.random.Generator) -> np.ndarray:
    """ε of a random set of dyads with, at every site, the same Σε²σ²."""
    made = np.zeros(len(found))
    for s in np.unique(found.site[epsilon != 0]):
        here = np.flatnonzero(found.site == s)
        wanted = float(np.sum((epsilon[here] * found.gains[here]) ** 2))
        made[here] = share_of_size(found.gains[here], wanted, rng.permutation(len(here)))
    return made


def _crossed(
    model: Model, names: tuple[str, ...], found: list[Candidates], removed: list[np.ndarray], runs: list[Started],
    draws: int, seed: int, tell: Tell | None,
) -> Crossed:  # fmt: skip
    k = len(found)
    clock = Clock(k * k * (1 + draws), tell, doing="gradient")
    base = [one.of() for one in runs]
    K, low, high, null = (np.zeros((k, k)) for _ in range(4))
    null = np.zeros((k, k, draws))
    for a in range(k):
        change = found[a].changed_by(removed[a])
        for b in range(k):
            K[a, b], low[a, b], high[a, b] = runs[b].interval(runs[b].of(change) - base[b])
            clock(names[a])
        for j in range(draws):
            random = found[a].changed_by(random_set(found[a], removed[a], generator((seed, a, j), "concept sets")))
            for b in range(k):
                null[a, b, j] = runs[b].mean(runs[b].of(random) - base[b])
            clock(f"random sets for {names[a]}", k)
    return Crossed(model, names, tuple(int((e != 0).sum()) for e in removed), K, low, high, null)


def _table(crossed: Crossed, metrics: Sequence[Metric], seed: int) -> Table:
    k, names, K = len(crossed.names), crossed.names, crossed.K
    a, b = (x.ravel() for x in np.indices((k, k)))
    p = np.array([two_sided_p(K[i, j], crossed.null[i, j]) for i, j in zip(a, b, strict=True)])
    off = a != b
    q = np.full(len(p), np.nan)
    q[off] = bh(p[off])
    mean, sd = crossed.null.mean(axis=2).ravel(), crossed.null.std(axis=2, ddof=1).ravel()
    z = np.divide(K.ravel() - mean, sd, out=np.full(len(p), np.nan), where=sd > 0)
    band = np.quantile(np.abs(crossed.null), 0.95, axis=2).ravel()
    masses = crossed.masses
    p_mass = (1 + int(np.sum(masses <= crossed.mass + 1e-12))) / (1 + len(masses))
    columns = [
        Column("removed", [names[i] for i in a], about="the concept whose directions are removed"),
        Column("measured", [names[j] for j in b], about="the concept whose metric is read"),
        Column("dyads", np.array(crossed.related)[a], "", 0, "directions removed"),
        Column("effect", K.ravel(), "logits", 3, "K: change of the measured concept's metric"),
        Column("band", band, "logits", 3, "95 % of random sets of equal size stay within ±"),
        Column("z", z, "", 1, "distance from the random sets' mean in their standard deviations"),
        Column("p", p, about="random sets of equal Σε²σ² at the same sites that do as much"),
        Column("q", q, about="Benjamini–Hochberg over pairs of different concepts"),
        Column("low", crossed.low.ravel(), "logits", 3, "95 % interval over windows or names"),
        Column("high", crossed.high.ravel(), "logits", 3, "upper end"),
    ]
    hits = int((q[off] <= LEVEL).sum())
    says = (
        f"{crossed.mass:.0%} of what removing does lies off the diagonal; of random sets of equal size it is "
        f"{np.median(masses):.0%} (5–95 %: {np.quantile(masses, 0.05):.0%} to {np.quantile(masses, 0.95):.0%}; p "
        f"{p_mass:.2g} for as little). {hits} of {int(off.sum())} pairs of different concepts affect each other more "
        f"than random sets do (q ≤ {LEVEL})."
    )
    return Table(
        columns=columns,
        meta=crossed.model.meta | {
            "analysis": "concept_matrix", "concepts": list(names), "metrics": [m.words for m in metrics], "seed": seed,
            "draws": crossed.null.shape[2], "off_diagonal": crossed.mass, "p_off_diagonal": p_mass,
            "off_diagonal_null": np.quantile(masses, (0.05, 0.5, 0.95)).tolist(), "kind": "ablation",
            "null": "random dyads of the same sites with equal Σε²σ² at each",
        },
        title=f"{crossed.model.name} · {k} concepts, one removed, all measured · {crossed.null.shape[2]} random sets",
        says=says,
        not_says="It does not say that concepts share a meaning: one direction may write both for other reasons, and a "
        "metric can move because later layers lose what they build on.",
        next=f"covector search {crossed.model.words} {_quoted(crossed.typed)}",
        picture=lambda _: heat_map(crossed), key=("removed", "measured"),
    )  # fmt: skip


def _quoted(text: str) -> str:
    return f'"{text}"' if "'" in text else f"'{text}'"


def heat_map(crossed: Crossed) -> Grid:
    """K, rows removed, columns measured, with p among random sets."""
    k = len(crossed.names)
    short = [f"{i + 1} {name if len(name) <= 28 else name[:27] + '…'}" for i, name in enumerate(crossed.names)]
    p = np.array([[two_sided_p(crossed.K[i, j], crossed.null[i, j]) for j in range(k)] for i in range(k)])
    text = [[f"p {p[i, j]:.2g}" for j in range(k)] for i in range(k)]
    return Grid(
        crossed.K, short, [s.split(" ", 1)[0] for s in short] if k > 4 else short, text, "effect", "logits",
        chance=float(np.quantile(np.abs(crossed.null), 0.95)), row_name="removed", column_name="measured",
    )  # fmt: skip
