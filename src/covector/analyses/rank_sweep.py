"""How much of a place's rank a model needs: its map truncated to k dyads, or rescaled, and what the model then does.

One row per kept rank. Beside each: the same place with a random subspace kept instead, at equal ‖ΔM‖.

Source: Sharma et al., "The truth is in there" (LASER, 2023); `docs/theory/changes.md`, equations 11–15; SV-16.
"""

import shlex
from collections.abc import Mapping, Sequence

import numpy as np

from covector.errors import BadRequest, FrameUnavailable
from covector.linalg.chance.streams import generator
from covector.linalg.rank_reduction import change_size, kept_rank, random_core, rescaling, truncation
from covector.model.address import Site
from covector.model.opened import Model
from covector.model.reduction import side_of
from covector.render import Column, Curve, Table
from covector.run.decoder import Decoder
from covector.run.prompts import Pair
from covector.run.reduction import Measured, ReductionBench, first_tokens
from covector.study.observable import Observable

# Ranks are told among this many random subspaces, at the least.
FEWEST_DRAWS = 20


def rank_sweep(
    model: Model,
    site: str,
    *,
    keep: Sequence[int] = (),
    share: Sequence[float] = (),
    rescale: Sequence[float] = (),
    renormalise: bool = False,
    text: str,
    observable: Observable | None = None,
    pairs: Sequence[Pair] = (),
    at: str = "end",
    draws: int = FEWEST_DRAWS,
    seed: int = 0,
) -> Table:
    """Loss, KL and an observable with a place truncated to each kept rank; one row per rank.

    `site`: an address or a pattern (all its places are reduced at once). `keep`: ranks; `share`: parts of the largest
    rank, counted as LASER does (⌊ρ·max⌋; 0 dyads is a map of zero); neither: powers of two. `rescale` gives one row
    instead, the leading gains multiplied by these factors (`renormalise`: and all by Σσ/Σσz). `text`: KL(unchanged ‖
    changed) and the change of the loss are taken on it, nats per token. `observable` with `pairs`: its change, clean −
    corrupt where prompts differ.

    Controls: `draws` times a random subspace of as many dimensions is kept instead (a rescaling: of as many as have a
    factor, the rest is damped), with only as much of the rest taken off as makes ‖ΔM‖ equal. `kl_place` is the place of
    the KL among them, 1 the least harm. Truncation is exact: no randomised SVD.
    Raises BadRequest, BadSite, FrameUnavailable for a frame other than raw.
    """
    if str(model.frame) != "raw":
        raise FrameUnavailable(f"rank reduction rewrites the stored weights: expected frame raw, got {model.frame}")
    if draws < FEWEST_DRAWS:
        raise BadRequest(f"expected at least {FEWEST_DRAWS} random subspaces, got {draws}")
    if (observable is None) != (not pairs):
        raise BadRequest("an observable needs prompts, and prompts an observable: give both or neither")
    if model.spec.output("token") is None:
        raise BadRequest(f"{model.name} writes no tokens: expected a language model, whose loss can be taken")
    bench = ReductionBench(
        model, Decoder(model.weights, device=model.device), model.sites(site), first_tokens(model, text), tuple(pairs),
        observable, at,
    )  # fmt: skip
    arms = _arms(bench, keep, share, rescale, renormalise)
    rows = []
    for name, kept, cores in arms:
        sizes = {s: change_size(bench.found[s], core, side_of(s)) for s, core in cores.items()}
        real = bench.measured(cores)
        rows.append((name, kept, sizes, real, _random(bench, kept, sizes, draws, seed)))
    return _table(bench, rows, site, draws, seed, bool(rescale))


def _arms(
    bench: ReductionBench, keep: Sequence[int], share: Sequence[float], rescale: Sequence[float], renormalise: bool
) -> list[tuple[str, int, dict[Site, np.ndarray]]]:
    """(name, dyads that are kept, core per site) of every row."""
    if rescale:
        if keep or share:
            raise BadRequest("expected kept ranks or factors of gains, got both; ask twice")
        cores = {s: rescaling(found, np.array(rescale), renormalise) for s, found in bench.found.items()}
        told = ",".join(f"{z:g}" for z in rescale)
        return [(f"σ × {told}{' / trace' if renormalise else ''}", len(rescale), cores)]
    if renormalise:
        raise BadRequest("renormalising goes with factors of gains: give --rescale")
    largest = max((found.rank for found in bench.found.values()), default=0)
    ranks = [*keep, *(kept_rank(rho, largest) for rho in share)]
    if not ranks:
        ranks = [k for k in (0, *(2**i for i in range(20))) if k < largest] + [largest]
    if any(k > largest for k in ranks):
        raise BadRequest(f"expected ranks up to {largest}, which is all that is there, got {max(ranks)}")
    some = sorted(dict.fromkeys(ranks))
    return [(str(k), k, {s: truncation(found, k) for s, found in bench.found.items()}) for k in some]


def _random(bench: ReductionBench, kept: int, sizes: Mapping[Site, float], draws: int, seed: int) -> list[Measured]:
    """Random subspaces of the same dimension, at equal ‖ΔM‖; none where nothing is taken off or nothing kept."""
    least = min(found.rank for found in bench.found.values())
    if not 0 < kept < least or not any(sizes.values()):
        return []
    made = []
    for i in range(draws):
        rng = generator((seed, kept), "random subspace", i)
        cores = {s: random_core(bench.found[s], kept, rng, side_of(s), size) for s, size in sizes.items()}
        made.append(bench.measured(cores))
    return made


_Row = tuple[str, int, dict[Site, float], Measured, list[Measured]]


def _table(bench: ReductionBench, rows: Sequence[_Row], site: str, draws: int, seed: int, rescaled: bool) -> Table:
    size = {s: float(np.linalg.norm(found.S)) for s, found in bench.found.items()}
    whole = float(np.linalg.norm(list(size.values())))
    moved = [float(np.linalg.norm(list(sizes.values()))) / whole if whole else 0.0 for _, _, sizes, _, _ in rows]
    n = sum(tokens.size for tokens in bench.tokens)
    largest = max((found.rank for found in bench.found.values()), default=0)
    return Table(
        columns=_columns(bench, rows, moved, rescaled),
        meta=bench.model.meta
        | {
            "analysis": "rank_sweep",
            "site": site,
            "sites": [str(s) for s in bench.sites],
            "largest_rank": largest,
            "tokens": n,
            "loss": bench.loss,
            "observable": str(bench.observable) if bench.observable else None,
            "prompts": len(bench.pairs),
            "unchanged": None if bench.observable is None else bench.unchanged,
            "draws": draws,
            "seed": seed,
            "null": "random subspace of as many dimensions inside what the map writes (QK: queries), equal ‖ΔM‖",
            "policy": "exact truncation of the weights, model run",
        },
        title=f"{bench.model.name} {site} · {len(bench.sites)} place{'s' * (len(bench.sites) != 1)} of rank up to "
        f"{largest} · loss {bench.loss:.3f} nats on {n} tokens · {draws} random subspaces of equal ‖ΔM‖",
        says=_says(rows),
        not_says="It does not say that what was taken off is noise: another text or task may need it. A better number "
        "on one rank of many is also the luck of choosing it.",
        next=_next(bench, site),
        picture=_sweep if not rescaled else None,
        key=("kept",) if not rescaled else ("gains",),
    )


def _columns(bench: ReductionBench, rows: Sequence[_Row], moved: Sequence[float], rescaled: bool) -> list[Column]:
    names, kept, _, real, random = zip(*rows, strict=True)
    first = (
        Column("gains", list(names), about="what the leading gains were multiplied by")
        if rescaled
        else Column("kept", np.array(kept), about="dyads that are left")
    )
    made = [
        first,
        Column("change", np.array(moved), "‖M‖", 3, "‖ΔM‖ / ‖M‖, Frobenius"),
        Column("kl", _means([m.kl for m in real]), "nats", 4, "KL(unchanged ‖ changed) per token", chance="kl_random"),
        Column("kl_place", _place(real, random, "kl"), "", 0, "place among the random ones, 1 the least KL"),
        Column("kl_p", _p(real, random, "kl"), about="share of the random ones, itself one of them, with as little KL"),
        Column("loss", _means([m.loss for m in real]), "nats", 4, "change of the loss per token", chance="loss_random"),
        Column("loss_error", _errors([m.loss for m in real]), "nats", 4, "its standard error over windows"),
        Column("loss_place", _place(real, random, "loss"), "", 0, "place among the random ones, 1 the least loss"),
        Column("loss_p", _p(real, random, "loss"), about="the same for as little loss"),
    ]
    if bench.observable is not None:
        unit = bench.observable.unit
        made += [
            Column("effect", np.array([m.effect for m in real]), unit, 3, f"change of {bench.observable}",
                   chance="effect_random"),
            Column("effect_place", _place(real, random, "effect"), "", 0, "place of |effect| among the random ones"),
            Column("effect_p", _p(real, random, "effect"), about="the same for as small an |effect|"),
        ]  # fmt: skip
    made.append(Column("of", np.array([len(r) + 1 if r else 0 for r in random]), about="random ones and itself"))
    for name in ("kl", "loss"):
        level = [float(np.median([np.mean(getattr(m, name)) for m in r])) if r else np.nan for r in random]
        made.append(Column(f"{name}_random", np.array(level), "nats", 4, "median of the random ones"))
    if bench.observable is not None:
        level = [float(np.median([abs(m.effect) for m in r])) if r else np.nan for r in random]
        made.append(Column("effect_random", np.array(level), bench.observable.unit, 3, "median |effect| of the random"))
    return made


def _means(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([float(v.mean()) for v in values])


def _errors(values: Sequence[np.ndarray]) -> np.ndarray:
    """Standard errors of the means; NaN for one window."""
    return np.array([float(v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else np.nan for v in values])


def _value(m: Measured, name: str) -> float:
    return abs(m.effect) if name == "effect" else float(np.mean(getattr(m, name)))


def _place(real: Sequence[Measured], random: Sequence[list[Measured]], name: str) -> np.ndarray:
    """1 + how many random ones are smaller; NaN without them."""
    return np.array(
        [
            1 + sum(_value(r, name) < _value(m, name) for r in some) if some else np.nan
            for m, some in zip(real, random, strict=True)
        ],
        dtype=np.float64,
    )


def _p(real: Sequence[Measured], random: Sequence[list[Measured]], name: str) -> np.ndarray:
    """(1 + random ones that are as small) / (1 + random ones): uniform if it were one more of them. NaN without them.

    The other end is 1 + 1/(1 + draws) less it, for harm.
    """
    return np.array(
        [
            (1 + sum(_value(r, name) <= _value(m, name) for r in some)) / (1 + len(some)) if some else np.nan
            for m, some in zip(real, random, strict=True)
        ],
        dtype=np.float64,
    )


def _says(rows: Sequence[_Row]) -> str:
    best = min(rows, key=lambda row: float(row[3].loss.mean()))
    compared = [row for row in rows if row[4]]
    ahead = sum(all(_value(r, "kl") > _value(row[3], "kl") for r in row[4]) for row in compared)
    least = 1 / (1 + max((len(row[4]) for row in compared), default=0))
    told = f"less KL than every random subspace of equal ‖ΔM‖ in {ahead} of {len(compared)} rows (p {least:.2g} each)"
    change = float(best[3].loss.mean())
    error = float(_errors([best[3].loss])[0])
    spread = f" ± {1.96 * error:.4f}" if np.isfinite(error) else ""
    best_at = f"the loss is least at {best[0]} ({change:+.4f}{spread} nats per token)"
    return f"{best_at[0].upper()}{best_at[1:]}{'; ' + told if compared else ''}."


def _next(bench: ReductionBench, site: str) -> str:
    return f"covector spectrum {bench.model.words} --sites {shlex.quote(site)}"


def _sweep(table: Table) -> Curve:
    """KL by kept rank, with the median of random subspaces."""
    return Curve(
        x=np.array(table["kept"], dtype=np.float64),
        ys=np.stack([np.array(table["kl"]), np.array(table["kl_random"])]),
        names=["truncation", "random subspace, equal ‖ΔM‖"],
        x_name="dyads kept",
        y_name="KL per token",
        x_unit="",
        y_unit="nats",
    )
