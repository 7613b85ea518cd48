"""Which paths carry a task from the prompts to the output: found best first, with exact shares of the difference.

Source: `docs/theory/observables.md`, equations 9–10; theory page §4.1, §4.5, §4.7.
"""

from collections.abc import Sequence

import numpy as np

from covector.analyses.paths_picture import path_graph
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.propagation.search import Found, Part, World, find_paths, share_of
from covector.render import Column, Table
from covector.run.pairs import worlds_of
from covector.run.prompts import Pair
from covector.study.observable import Observable
from covector.study.path import Path, parse_path


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
    at ``embed`` are complete. ``low``, ``high``: mean ± 1.96 standard errors over pairs. `by_slot` False takes all
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
    if not np.any(difference):
        raise BadRequest(f"clean and corrupt prompts give the same {observable}: there is no difference to account for")
    found = _measured(worlds, given, model) if given else find_paths(worlds, expansions, least, dyads=dyads)
    total = float(difference.mean())
    parts = sorted(found.parts, key=lambda part: (-abs(part.share), str(part.path)))
    parts = [part for part in parts if given or abs(part.share) >= least * abs(total) / 10]
    return Table(
        columns=_columns(parts, total),
        meta=model.meta | {"analysis": "paths", "observable": str(observable), "policy": "secant", "kind": "accounting",
                           "pairs": len(pairs), "at": at, "total": total, "expanded": found.expanded,
                           **_sums(found), "prompts": [list(pair.texts) for pair in pairs[:20]]},
        title=_title(model, observable, found, len(pairs)),
        says=_says(observable, found, parts),
        not_says="It does not say what patching one place does: shares account for the difference between these "
        "prompts and depend on them. A path through .q or .k moves attention, not content"
        + (f"; {observable.warning}." if observable.warning else "."),
        next=f'covector observe norms {model.words} {observable.typed}',
        picture=path_graph(found.parts, _slots(pairs) if by_slot else ["*"], model.spec.n_layers),
        key=("path",),
    )  # fmt: skip


def _slots(pairs: Sequence[Pair]) -> list[str]:
    """Names of positions as they stand in the longest prompt."""
    longest = max(pairs, key=len)
    return list(dict.fromkeys(longest.slot_of(t) for t in range(len(longest))))


def _measured(worlds: Sequence[World], given: Sequence[str], model: Model) -> Found:
    """Shares of given paths and of their ends (from the output down)."""
    wanted = [parse_path(text, model.spec) for text in given]
    every = dict.fromkeys(Path(p.steps[i:]) for p in wanted for i in range(len(p.steps)))
    parts = {path: share_of(worlds, path) for path in every}
    ends = tuple(parts[path] for path in wanted if path.steps)
    return Found(share_of(worlds, Path(())), tuple(parts.values()), ends, 0)


def _columns(parts: Sequence[Part], total: float) -> list[Column]:
    share = np.array([part.share for part in parts])
    n = len(parts[0].shares) if parts else 1
    error = np.array([part.shares.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan for part in parts])
    agree = np.array([np.mean(np.sign(part.shares) == np.sign(part.share)) for part in parts])
    return [
        Column("path", [str(part.path) for part in parts], about="earliest component first; @ where it reads"),
        Column("share", share, "logits", 3, "mean of what goes through this path and all that feed it"),
        Column("of_total", share / total, "", 3, "share over the mean difference"),
        Column("low", share - 1.96 * error, "logits", 3, "lower end of a 95 % interval over pairs"),
        Column("high", share + 1.96 * error, "logits", 3, "upper end"),
        Column("agree", agree, "", 2, "pairs in which the share has this sign"),
        Column("steps", np.array([len(part.path.steps) for part in parts]), about="components on it"),
        Column("complete", [("yes" if part.complete else "") for part in parts], about="begins at the embeddings"),
    ]


def _sums(found: Found) -> dict[str, float]:
    complete = np.array([part.share for part in found.complete])
    net, gross = float(complete.sum()), float(np.abs(complete).sum())
    return {
        "net": net,
        "gross": gross,
        "cancellation": 1 - abs(net) / gross if gross else 0.0,
        "remainder": found.remainder,
        "complete": len(complete),
    }


def _title(model: Model, observable: Observable, found: Found, pairs: int) -> str:
    sums, total = _sums(found), found.total.share
    rest = f"cancellation {sums['cancellation']:.0%}) + not looked into {sums['remainder']:.3f}"
    return (
        f"{model.name} · {observable} · {pairs} pairs · total {total:.3f} = complete paths {sums['net']:.3f} "
        f"(gross {sums['gross']:.3f}, {rest}"
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
