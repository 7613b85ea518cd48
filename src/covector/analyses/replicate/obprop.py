"""The published experiments of observable propagation, measured again: every number beside ours, defects on or off.

Source: §2, §3 of the theory page; Dunefsky & Cohan 2024 (arXiv 2312.16291); `docs/replicate-obprop.md`.
"""

from collections.abc import Sequence

import numpy as np

from covector.analyses.replicate.obprop_bench import Bench, NotAsked
from covector.analyses.replicate.obprop_numbers import KINDS
from covector.analyses.replicate.obprop_tasks import (
    DEFECTS,
    Names,
    Published,
    own_names,
    published,
    same_heads,
    same_shape,
    tasks,
)
from covector.errors import BadRequest, CovectorError
from covector.model.opened import Model
from covector.render import Column, Table

# The numbers that need no data and no linearisation point: what a loader and a feature have to reproduce first.
TARGETS = ("logit", "readout_cos", "raw_norm", "raw_cos", "raw_coupling", "svd_cos")


def replicate_obprop(
    model: Model,
    *,
    names: Names | None = None,
    defects: frozenset[str] = frozenset(),
    text: str | None = None,
    sections: Sequence[str] = (),
    dtype: str = "float64",
) -> Table:
    """One row per published number of §2.2 to §2.10: theirs, ours, whether ours is within its tolerance, and why not.

    Values are compared on a model of the published sizes alone; on another with 24 layers of 16 heads everything is
    measured and nothing compared. `defects`: which known defects of the notebooks are repeated (`DEFECTS`), for the
    numbers that they changed. `names` more than the published 10 + 10. `sections` (``2.3``) some of them.
    What cannot be measured says why. Raises BadRequest for a model of another anatomy or an unknown section.
    """
    if not same_heads(model):
        told = tasks()["config"]
        raise BadRequest(
            f"{model.name}: expected {told['num_layers']} layers of {told['num_heads']} heads with MLPs, so that the "
            "published places exist; try --show claims, or the model 'random'"
        )
    known = published()
    unknown = set(sections) - {p.section for p in known}
    if unknown:
        raise BadRequest(f"--section: expected 2.2 to 2.10, got {', '.join(sorted(unknown))}")
    some = [p for p in known if not sections or p.section in sections]
    compared = same_shape(model)
    benches = {d: Bench(model, names or own_names(), d, text, dtype) for d in {frozenset(), *_used(some, defects)}}
    answers = [_asked(benches[frozenset(p.defects) & defects], p) for p in some]
    return _table(model, some, answers, defects, compared, len(names or own_names()))


def _told(p: Published, defects: frozenset[str]) -> str:
    """The defects repeated for a number; in parentheses those that it was published with."""
    repeated = " ".join(sorted(set(p.defects) & defects))
    return repeated or (f"({' '.join(p.defects)})" if p.defects else "")


def _used(some: Sequence[Published], defects: frozenset[str]) -> set[frozenset[str]]:
    return {frozenset(p.defects) & defects for p in some}


def _asked(bench: Bench, p: Published) -> tuple[float, str]:
    """Our number, or NaN and why there is none."""
    if p.kind == "none":
        return float("nan"), p.note
    try:
        return KINDS[p.kind](bench, p.args), ""
    except (NotAsked, CovectorError) as error:
        return float("nan"), str(error)


def _table(
    model: Model,
    some: Sequence[Published],
    answers: Sequence[tuple[float, str]],
    defects: frozenset[str],
    compared: bool,
    n_names: int,
) -> Table:
    ours = np.array([a for a, _ in answers])
    theirs = np.array([p.value for p in some])
    asked = np.isfinite(ours)
    agrees = [("yes" if p.agrees(float(o)) else "no") if compared and ok and p.tolerance else ""
              for p, o, ok in zip(some, ours, asked, strict=True)]  # fmt: skip
    columns = [
        Column("section", [p.section for p in some], about="of the theory page"),
        Column("number", [f"{i} {p.what}" for i, p in enumerate(some, 1)], about="what was published"),
        Column("published", theirs, "", 4, "theirs"),
        Column("ours", ours, "", 4, "measured here"),
        Column("off", np.where(asked & compared, ours - theirs, np.nan), "", 4, "ours − theirs; same weights only"),
        Column("agrees", agrees, about="within the tolerance; empty where values are not compared"),
        Column("defects", [_told(p, defects) for p in some], about="repeated here; in parentheses: repaired"),
        Column("source", [p.source for p in some], about="notebook and cell, or S, the post"),
        Column("told", [why or p.note for (_, why), p in zip(answers, some, strict=True)], about="what to know"),
    ]  # fmt: skip
    target = [i for i, p in enumerate(some) if p.kind in TARGETS and agrees[i]]
    met, n = agrees.count("yes"), len([a for a in agrees if a])
    mode = f"defects repeated: {', '.join(sorted(defects))}" if defects else "defects repaired"
    said = (
        f"{met} of {n} compared numbers agree, {sum(agrees[i] == 'yes' for i in target)} of {len(target)} that need "
        "neither data nor a working point."
        if compared
        else f"{int(asked.sum())} of {len(some)} numbers were measured and none compared: {model.name} is not "
        f"{tasks()['model']}."
    )
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "replicate_obprop", "compared": compared, "repeated": sorted(defects),
                           "known_defects": DEFECTS, "names": 2 * n_names, "measured": int(asked.sum()),
                           "agree": met, "kind": "measurement"},
        title=f"{model.name} · observable propagation · {int(asked.sum())} of {len(some)} published numbers measured · "
        f"{mode}",
        says=said,
        not_says="A number that agrees bears out the arithmetic, not the claim drawn from it (--show claims asks those "
        "with nulls). Sources contradict each other in places: docs/replicate-obprop.md.",
        next=f"covector replicate obprop {model.words} --show claims",
        key=("section", "number"),
    )  # fmt: skip
