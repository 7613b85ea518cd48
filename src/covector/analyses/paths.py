"""Which paths carry a task from the prompts to the output: found best first, with exact shares of the difference.

Source: `docs/theory/observables.md`, equations 9–10; theory page §4.1, §4.5, §4.7.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from covector.analyses.paths_picture import path_graph
from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.interval import half_width
from covector.model.opened import Model
from covector.propagation.search import Found, Part, World, find_paths, share_of
from covector.render import Column, Table
from covector.run.clusters import clusters_of, no_interval, pairs_told
from covector.run.pairs import worlds_of
from covector.run.prompts import Pair, batches, canonical_slot
from covector.study.observable import Observable
from covector.study.path import Path, parse_path

# Pairs whose mean difference is less than this share of their sizes point both ways.
CANCELS = 1e-6


def paths(
    model: Model,
    observable: Observable | str,
    pairs: Sequence[Pair],
    *,
    at: str = "end",
    expansions: int = 100,
    least: float = 0.005,
    by_slot: bool = True,
    dyads: bool = False,
    given: Sequence[str] = (),
) -> Table:
    """Paths by |share| of the mean difference clean − corrupt of the observable, every prefix with its own share.

    A path is typed: a head is entered through its values, ``.q`` or ``.k``; ``@slot`` is where a component reads. The
    largest part is split first, `expansions` times or until no unsplit part has `least` of the total; rows that begin
    at ``embed`` are complete. ``low``, ``high``: 95 % interval (t) over names, optimistic
    for rows picked for their size. `by_slot` False takes all
    positions together. `dyads` splits a head's edge into the dyads that it reads along before going on. `given` are
    paths as they are typed: they alone are measured, with each of their ends (no search).
    Accounting, not prediction: secant stand-ins saw both prompts, and their shares sum to the measured difference to
    rounding; they are not the effect of patching one place.
    Costs two runs per pair and a backward step through all earlier components per expansion. Raises BadRequest for no
    pairs, or pairs that do not differ in the observable; NotOneToken, UnknownBasis.
    """
    if not pairs:
        raise BadRequest("expected pairs of prompts, got none; give --template and --fill, or --prompts FILE")
    observable = Observable.parse(observable, model) if isinstance(observable, str) else observable
    worlds, measured = worlds_of(model, observable, pairs, at=at, by_slot=by_slot)
    difference = measured[:, 0] - measured[:, 1]
    _check_difference(difference, observable)
    ordered = [pair for batch in batches(pairs) for pair in batch.pairs]
    given = [_canonical(text, pairs, model) for text in given] if by_slot else given
    found = _measured(worlds, given, model) if given else find_paths(worlds, expansions, least, dyads=dyads)
    total = float(difference.mean())
    parts = sorted(found.parts, key=lambda part: (-abs(part.share), str(part.path)))
    parts = [part for part in parts if given or abs(part.share) >= least * abs(total) / 10]
    return Table(
        columns=_columns(parts, total, clusters_of(ordered), observable.unit),
        meta=model.meta | {"analysis": "paths", "observable": str(observable), "policy": "secant", "kind": "accounting",
                           "pairs": len(pairs), "at": at, "total": total, "expanded": found.expanded,
                           **_sums(found), "prompts": [list(pair.texts) for pair in pairs[:20]]},
        title=_title(model, observable, found, pairs_told(pairs)),
        says=_says(observable, found, parts),
        not_says="It does not say what patching one place does: shares account for the difference between these "
        f"prompts and depend on them{no_interval(pairs)}. A path through .q or .k moves attention, not content"
        + (f"; {observable.warning}." if observable.warning else "."),
        next=f"covector patch {model.words} {observable.typed} with the same prompts",
        picture=path_graph(found.parts, _slots(pairs) if by_slot else ["*"], model.spec.n_layers),
        key=("path",),
    )  # fmt: skip


def _check_difference(difference: Float[np.ndarray, " n"], observable: Observable) -> None:
    """Raise BadRequest where pairs do not differ, or differ both ways so that their mean says nothing."""
    if not np.any(difference):
        raise BadRequest(f"clean and corrupt prompts give the same {observable}: there is no difference to account for")
    size = float(np.abs(difference).mean())
    if abs(difference.mean()) < CANCELS * size:
        raise BadRequest(
            f"the pairs differ in {observable} by {size:.3g} each and by {difference.mean():.1g} on average: "
            "they point both ways; put the prompt that favours the same answer first in each"
        )


def _slots(pairs: Sequence[Pair]) -> list[str]:
    """Names of positions as they stand in the longest prompt."""
    longest = max(pairs, key=len)
    return list(dict.fromkeys(longest.slot_of(t) for t in range(len(longest))))


def _canonical(text: str, pairs: Sequence[Pair], model: Model) -> str:
    """A typed path with the slots of its steps as positions are named here (``@2`` becomes ``@NAME``)."""
    steps = parse_path(text, model.spec).steps
    return str(Path(tuple(replace(s, slot=canonical_slot(pairs, s.slot)) if s.slot else s for s in steps)))


def _measured(worlds: Sequence[World], given: Sequence[str], model: Model) -> Found:
    """Shares of given paths and of their ends (from the output down)."""
    wanted = [parse_path(text, model.spec) for text in given]
    every = dict.fromkeys(Path(p.steps[i:]) for p in wanted for i in range(len(p.steps)))
    parts = {path: share_of(worlds, path) for path in every}
    ends = tuple(parts[path] for path in wanted if path.steps)
    return Found(share_of(worlds, Path(())), tuple(parts.values()), ends, 0)


def _columns(parts: Sequence[Part], total: float, clusters: Int[np.ndarray, " n"], unit: str) -> list[Column]:
    share = np.array([part.share for part in parts])
    error = np.array([float(half_width(part.shares, clusters)) for part in parts])
    agree = np.array([np.mean(np.sign(part.shares) == np.sign(part.share)) for part in parts])
    return [
        Column("path", [str(part.path) for part in parts], about="earliest component first; @ where it reads"),
        Column("share", share, unit, 3, "mean of what goes through this path and all that feed it"),
        Column("of_total", share / total, "", 3, "share over the mean difference"),
        Column("low", share - error, unit, 3, "lower end of a 95 % interval over names"),
        Column("high", share + error, unit, 3, "upper end"),
        Column("agree", agree, "", 2, "pairs in which the share has this sign"),
        Column("steps", np.array([len(part.path.steps) for part in parts]), about="components on it"),
        Column("complete", [("yes" if part.complete else "") for part in parts], about="begins at the embeddings"),
    ]


def _sums(found: Found) -> dict[str, float]:
    complete = np.array([part.share for part in found.complete])
    frontier = np.array([part.share for part in found.frontier])
    gross = float(np.abs(frontier).sum())
    return {
        "net": float(complete.sum()),
        "gross": float(np.abs(complete).sum()),
        "frontier_gross": gross,
        "cancellation": 1 - abs(float(frontier.sum())) / gross if gross else 0.0,
        "remainder": found.remainder,
        "remainder_gross": float(sum(abs(part.share) for part in found.unsplit)),
        "closure": found.closure,
        "complete": len(complete),
    }


def _title(model: Model, observable: Observable, found: Found, pairs: str) -> str:
    sums, total = _sums(found), found.total.share
    if not found.expanded:
        return f"{model.name} · {observable} · {pairs} · total {total:.3f} · given paths"
    rest = f"not looked into {sums['remainder']:.3f} (gross {sums['remainder_gross']:.3f})"
    return (
        f"{model.name} · {observable} · {pairs} · total {total:.3f} = complete paths {sums['net']:.3f} "
        f"(gross {sums['gross']:.3f}) + {rest} · cancellation so far {sums['cancellation']:.0%}"
    )


def _says(observable: Observable, found: Found, parts: Sequence[Part]) -> str:
    if not parts:
        return f"No component carries {observable} here."
    first = parts[0]
    last = max((p for p in parts if len(p.path.steps) == 1), key=lambda p: abs(p.share), default=first)
    against = [p for p in found.parts if p.share * found.total.share < 0 and len(p.path.steps) == 1]
    told = f"; {max(against, key=lambda p: abs(p.share)).path} works most against it" if against else ""
    return (
        f"{last.path} brings {last.share / found.total.share:.0%} of the difference in {observable} directly{told}; "
        f"{len(found.complete)} complete paths were found."
    )
