"""Published lists of singular directions beside ours, and the recipe that they were made by.

Every recipe that the model has is tried on all lists of a source; what it reproduces stands beside what random
directions would, and the recipes that cannot be told apart from the best one are named. Where the model is not the one
that the lists were made from, nothing published is compared: the same recipes are then compared with each other, on the
corresponding places of this model, which shows how much a choice of recipe matters and whether it could be identified.

Source: §3.1–3.4 of the theory page; `docs/replicate.md`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covector.analyses.replicate.agreement import DRAWS, RANDOM, Asked, Ours, Tried, asked, found_lists, identify
from covector.analyses.replicate.conjecture_lines import list_line, recipe_line
from covector.analyses.replicate.published import Entry, Published, PublishedList, packaged, read_published
from covector.analyses.replicate.recipes import Kitchen, Recipe, recipes, stated
from covector.errors import BadRequest
from covector.model.address import Site
from covector.model.opened import Model
from covector.render import Column, Grid, Table

# Values of a rehearsal are rounded as the originals are.
DIGITS = 4
FEWEST_DRAWS = 99


@dataclass(frozen=True, eq=False)
class Case:
    """One source on one model: the lists compared, why they are not the published ones (else empty), what was tried."""

    published: Published
    why_not: str
    lists: tuple[PublishedList, ...]
    told: Asked
    kitchen: Kitchen
    said: Recipe
    tried: list[Tried]

    @property
    def named(self) -> list[Tried]:
        """Recipes that are not told apart from the best one, which is beyond chance."""
        return [t for t in self.tried if t.named]


def replicate_conjecture(
    model: Model, published: Published | str | Path | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Table:
    """Every recipe tried on published lists, one row each, the best of each source first.

    `published`: lists of another source (a file: `read_published`); None: those that come with this package, of which
    only the ones made from a model of this shape are compared. `score` is the share of published labels and values that
    a recipe reproduces, `chance` what 95 % of deals of random directions stay below; p is of the best recipe's score,
    the recipe chosen anew in every deal; `p_behind` a sign test against the best recipe over lists. `named` marks what
    is beyond chance and not told apart from the best.
    The model's own frame does not matter: recipes choose theirs. Raises BadRequest for files that hold no lists, or a
    model without tokens or without the places.
    Source: `docs/replicate.md`.
    """
    cases = _cases(model, published, draws, seed)
    rows = [(case, tried) for case in cases for tried in case.tried]
    return Table(
        columns=_columns(rows),
        meta=model.meta | _request(cases, draws, seed),
        title=_title(model, cases, f"{len(rows)} recipes tried"),
        says=" ".join(_said(model, case) for case in cases),
        not_says=_not_says(cases),
        next=_next(model, cases[0]),
        picture=lambda _: _picture(cases[0]),
        lines=recipe_line,
        key=("source", "recipe"),
    )


def replicated_lists(
    model: Model, published: Published | str | Path | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Table:
    """The published lists beside ours, by the best recipe of each source: one row per dyad and pole.

    Where the model is not the one that they were made from, ours stand alone, by the recipe that the source tells.
    Arguments, errors as `replicate_conjecture`.
    """
    cases = _cases(model, published, draws, seed)
    rows = [row for case in cases for row in _beside(case)]
    return Table(
        columns=[
            Column("source", [r["source"] for r in rows], about="where the lists were published"),
            Column("dyad", [r["dyad"] for r in rows], about="site and index"),
            Column("pole", [r["pole"] for r in rows], about="of the published list; ours is turned to it"),
            Column("published", [r["published"] for r in rows], about="labels, strongest first; ? where not told"),
            Column("ours", [r["ours"] for r in rows], about="as many of ours"),
            Column("published_values", [r["published_values"] for r in rows], digits=4),
            Column("our_values", [r["our_values"] for r in rows], digits=4),
            Column("labels", np.array([r["labels"] for r in rows]), digits=2, about="share of its labels among ours",
                   chance="labels_null"),
            Column("labels_null", np.array([r["labels_null"] for r in rows]), digits=2,
                   about="mean of random directions"),
        ],
        meta=model.meta | _request(cases, draws, seed) | {"analysis": "replicated_lists"},
        title=_title(model, cases, "lists"),
        says=" ".join(_said(model, case) for case in cases),
        not_says=_not_says(cases),
        next=_next(model, cases[0]),
        lines=list_line,
        key=("source", "dyad", "pole"),
    )  # fmt: skip


def foremost(table: Table, n: int) -> Table:
    """The first n rows of every source."""
    if n < 1:
        raise BadRequest(f"expected --top >= 1, got {n}; leave it out for 12")
    seen: dict[str, int] = {}
    kept = []
    for i, source in enumerate(table["source"]):
        seen[source] = seen.get(source, 0) + 1
        kept += [i] if seen[source] <= n else []
    return table.take(kept)


def _cases(model: Model, published: Any, draws: int, seed: int) -> list[Case]:
    if isinstance(draws, bool) or draws < FEWEST_DRAWS:
        raise BadRequest(f"expected draws >= {FEWEST_DRAWS}, got {draws}; leave it out for {DRAWS}")
    if published is None:
        sources = packaged()
        fitting = [p for p in sources if not why_not(model, p)]
        return [_case(model, p, draws, seed) for p in fitting or sources[:1]]
    given = published if isinstance(published, Published) else read_published(published)
    return [_case(model, given, draws, seed)]


def _case(model: Model, published: Published, draws: int, seed: int) -> Case:
    reason = why_not(model, published)
    said = stated(model, published.recipe)
    every = recipes(model, [one.kind for one in published.lists])  # refuses models without tokens
    if reason and said.frame not in {r.frame for r in every}:
        said = dataclasses.replace(said, frame="raw")
    lists = _rehearsed(model, published, said) if reason else published.lists
    kitchen = Kitchen(model, _depths(lists))
    # A rehearsal's labels are given by id, whatever form the source has.
    compared = dataclasses.replace(published, within=None) if reason else published
    told = asked(compared, model.bases["token_out"].labels, lists)
    tried = identify(kitchen, told, lists, every, seed=seed, draws=draws)
    if not tried:
        raise BadRequest(f"{model.name} has not all of the dyads that {published.name} names; give lists of this model")
    return Case(published, reason, lists, told, kitchen, said, tried)


def why_not(model: Model, published: Published) -> str:
    """Why published values cannot be compared with this model's: its shape or its vocabulary; empty if they can."""
    spec = model.spec
    here = {"d_model": spec.d_model, "n_layers": spec.n_layers, "n_heads": spec.n_heads, "n_vocab": spec.n_vocab}
    other = [f"{name} {value:,}, here {here.get(name, 0):,}" for name, value in published.shape.items()
             if here.get(name) != value]  # fmt: skip
    if other:
        return f"made from {published.model} ({'; '.join(other)})"
    labels = model.bases["token_out"].labels if "token_out" in model.bases else ()
    named = [e for one in published.lists for e in (*one.plus, *one.minus) if e.id is not None and e.label is not None]
    wrong = [e for e in named if e.id is None or e.id >= len(labels) or labels[e.id] != e.label]
    if wrong:
        return f"made with another vocabulary (its token {wrong[0].id} is {wrong[0].label!r})"
    return ""


def _depths(lists: Sequence[PublishedList]) -> dict[str, int]:
    depth: dict[str, int] = {}
    for one in lists:
        depth[one.site] = max(depth.get(one.site, 0), one.dyad + 1)
    return depth


def _rehearsed(model: Model, published: Published, said: Recipe) -> tuple[PublishedList, ...]:
    """This model's own lists by the stated recipe, cut and rounded like the published ones."""
    moved = [(one, str(site)) for one in published.lists if (site := _corresponding(model, published, one)) is not None]
    depth = {site: max(o.dyad for o, s in moved if s == site) + 1 for _, site in moved}
    kitchen = Kitchen(model, depth)
    wanted = {(site, one.dyad): one for one, site in moved if kitchen.direction(said, site, one.dyad) is not None}
    lists = [PublishedList(site, dyad) for site, dyad in wanted]
    if not lists:
        raise BadRequest(f"{model.name}: expected heads or MLPs that correspond to {published.name}'s, it has none")
    longest = max(max(len(o.plus), len(o.minus), len(o.sizes)) for o in wanted.values())
    found = found_lists(kitchen, said, lists, longest)
    assert found is not None, "dyads that are not there were left out"
    labels = model.bases["token_out"].labels
    return tuple(_as_published(one, wanted[one.site, one.dyad], found, i, labels) for i, one in enumerate(lists))


def _as_published(
    here: PublishedList, like: PublishedList, found: Ours, i: int, labels: tuple[str, ...]
) -> PublishedList:
    def pole(ids: np.ndarray, scores: np.ndarray, n: int) -> tuple[Entry, ...]:
        return tuple(
            Entry(labels[j], int(j), round(float(s), DIGITS)) for j, s in zip(ids[:n], scores[:n], strict=True)
        )

    both = np.sort(np.abs(np.concatenate([found.top_score[i], found.bottom_score[i]])))[::-1]
    return dataclasses.replace(
        here,
        plus=pole(found.top[i], found.top_score[i], len(like.plus)),
        minus=pole(found.bottom[i], found.bottom_score[i], len(like.minus)),
        sizes=tuple(round(float(v), DIGITS) for v in both[: len(like.sizes)]),
    )


def _corresponding(model: Model, published: Published, one: PublishedList) -> Site | None:
    """The place of the same kind at the same relative depth."""
    layer = int(one.site[1:].partition("H")[0].partition(".")[0])
    deepest = max(published.shape.get("n_layers", layer + 1) - 1, 1)
    wanted = layer / deepest * (model.spec.n_layers - 1)
    blocks = model.spec.blocks
    with_part = [i for i, b in enumerate(blocks) if (b.attn if one.kind == "ov" else b.mlp) is not None]
    if not with_part:
        return None
    nearest = min(with_part, key=lambda i: (abs(i - wanted), i))
    if one.kind != "ov":
        return Site(nearest, None, one.kind)
    attn = blocks[nearest].attn
    head = int(one.site.partition("H")[2].partition(".")[0])
    return Site(nearest, head % (attn.n_heads if attn else 1), "ov")


def _columns(rows: list[tuple[Case, Tried]]) -> list[Column]:
    tried = [t for _, t in rows]
    return [
        Column("source", [case.published.name for case, _ in rows], about="where the lists were published"),
        Column("recipe", [str(t.recipe) for t in tried], about="frame, side of heads, basis, score, labels shown"),
        Column("score", np.array([t.score for t in tried]), digits=3,
               about="share of published labels and values that it reproduces", chance="chance"),
        Column("chance", np.array([t.chance for t in tried]), digits=3,
               about="score that 95 % of deals of random directions stay below"),
        Column("labels", np.array([t.labels for t in tried]), digits=3, about="share of labels"),
        Column("values", np.array([t.values for t in tried]), digits=3, about="share of values, within the tolerance"),
        Column("p", np.array([t.p for t in tried]),
               about="chance that the best recipe reaches this score with random directions"),
        Column("p_behind", np.array([t.p_behind for t in tried]),
               about="chance of being so often behind the best if it were as good (sign test over lists)"),
        Column("named", np.array([t.named for t in tried]), about="beyond chance and not told apart from the best"),
        *(Column(name, [t.recipe.words[name] for t in tried]) for name in ("frame", "side", "basis")),
        Column("scored", [t.recipe.score for t in tried]),
        Column("kept", [t.recipe.labels for t in tried]),
        Column("stated", np.array([t.recipe == case.said for case, t in rows]),
               about="the recipe that the source tells"),
    ]  # fmt: skip


def _beside(case: Case) -> list[dict[str, Any]]:
    best = case.tried[0] if not case.why_not else next(t for t in case.tried if t.recipe == case.said)
    found = found_lists(case.kitchen, best.recipe, case.lists, case.told.k)
    assert found is not None, "this recipe was tried"
    labels = case.kitchen.model.bases["token_out"].labels
    made = []
    for i, one in enumerate(case.lists):
        flipped = best.agreement.sign[i] < 0
        poles = [("+", one.plus), ("−", one.minus)] if not one.sizes else [("±", ())]
        for pole, entries in poles:
            n = len(entries) or len(one.sizes)
            if not n:
                continue
            ids, scores = _ours(found, i, pole, bool(flipped), n)
            made.append(_row(case, one, pole, entries, [labels[j] for j in ids], scores))
    return made


def _ours(found: Ours, i: int, pole: str, flipped: bool, n: int) -> tuple[np.ndarray, np.ndarray]:
    if pole == "±":
        ids = np.concatenate([found.top[i], found.bottom[i]])
        scores = np.abs(np.concatenate([found.top_score[i], found.bottom_score[i]]))
        order = np.argsort(-scores, kind="stable")[:n]
        return ids[order], scores[order]
    if (pole == "+") != flipped:
        ids, scores = found.top[i], found.top_score[i]
    else:
        ids, scores = found.bottom[i], found.bottom_score[i]
    return ids[:n], (-scores if flipped else scores)[:n]


def _row(
    case: Case, one: PublishedList, pole: str, entries: tuple[Entry, ...], ours: list[str], scores: np.ndarray
) -> dict[str, Any]:
    there = not case.why_not
    strip = case.published.labels == "stripped"
    texts = {t.strip() if strip else t for t in ours}
    values = [e.value for e in entries] or list(one.sizes)
    return {
        "source": case.published.name,
        "dyad": f"{one.site}:{one.dyad}",
        "pole": pole,
        "published": [e.label or f"id {e.id}" for e in entries] if there else [],
        "ours": ours,
        "published_values": [float("nan") if v is None else v for v in values] if there else [],
        "our_values": [float(s) for s in scores],
        "labels": sum(e.label in texts for e in entries) / len(entries) if there and entries else float("nan"),
        "labels_null": len(ours) / max(len(case.kitchen.model.bases["token_out"]), 1),
    }


def _request(cases: list[Case], draws: int, seed: int) -> dict[str, Any]:
    return {
        "analysis": "replicate_conjecture",
        "policy": "none: weights only",
        "seed": seed,
        "draws": draws,
        "null": f"{RANDOM} Haar directions dealt to the lists; the best recipe chosen anew",
        "sources": [
            {"name": c.published.name, "source": c.published.source, "model": c.published.model,
             "compared": not c.why_not, "why_not": c.why_not, "lists": len(c.lists), "stated": str(c.said),
             "tolerance": c.published.tolerance, "places": sorted({one.site for one in c.lists})} for c in cases
        ],
    }  # fmt: skip


def _title(model: Model, cases: list[Case], what: str) -> str:
    lists = sum(len(c.lists) for c in cases)
    names = ", ".join(c.published.name for c in cases)
    return f"{model.name} · {'rehearsal of ' if cases[0].why_not else ''}{names} · {lists} dyads · {what}"


def _said(model: Model, case: Case) -> str:
    name, total = case.published.name, int(case.told.labels.sum() + case.told.values.sum())
    others = len(case.named) - 1
    if case.why_not:
        same = f"{others} others give the same here" if others > 1 else "one other gives the same here" if others else (
            "every other recipe gives other lists here"
        )  # fmt: skip
        rest = [t for t in case.tried if not t.named]
        exact = case.said == stated(model, case.published.recipe)
        how = f"as {name} says" if exact else f"as near as it can to what {name} says"
        near = f"; the nearest that does not, {rest[0].recipe}, reproduces {rest[0].score:.2f} of them" if rest else ""
        return (
            f"No published values are compared: {name} was {case.why_not}. Instead {total} labels and values of this "
            f"model itself, made {how} ({case.said}), are looked for by every recipe: {same}{near}."
        )
    best = case.tried[0]
    if not case.named:
        return f"{name}: no recipe reproduces more than random directions do (best {best.score:.2f}, p {best.p:.2g})."
    agrees = "as its source says" if best.recipe == case.said else f"its source says {case.said}"
    tail = f"; {others} more are not told apart from it" if others else "; no other does as well"
    return (
        f"{name}: {best.recipe} reproduces {best.score:.2f} of {total} published labels and values (chance "
        f"{best.chance:.2f}, p {best.p:.2g}; {agrees}){tail}."
    )


def _not_says(cases: list[Case]) -> str:
    said = "It does not say that a recipe is right, only that it makes these lists; signs are free, so each dyad is "
    said += "compared with both."
    if any(not c.why_not for c in cases):
        said += " Where σ are close, another machine's rounding turns the dyads: then no recipe agrees wholly."
    return said


def _next(model: Model, case: Case) -> str:
    best = case.tried[0].recipe if not case.why_not else case.said
    frame = "" if best.frame == "raw" else f" --frame {best.frame}"
    score = " --score raw" if best.score == "raw" else ""
    ascii_only = " --without ascii" if best.labels == "ascii" else ""
    return f"covector svd {model.words} {case.lists[0].site}{frame} --basis {best.basis}{score}{ascii_only}"


def _picture(case: Case) -> Grid:
    """Score of every recipe: frames down, the other choices across."""
    frames = list(dict.fromkeys(t.recipe.frame for t in case.tried))
    rest = sorted({str(t.recipe).partition(", ")[2] for t in case.tried})
    values = np.full((len(frames), len(rest)), np.nan)
    for t in case.tried:
        frame, _, other = str(t.recipe).partition(", ")
        values[frames.index(frame), rest.index(other)] = t.score
    return Grid(values, frames, rest, value_name="reproduced", unit="share", centre=None,
                chance=max(t.chance for t in case.tried), row_name="frame", column_name="recipe")  # fmt: skip
