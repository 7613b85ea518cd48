"""Atlases as people ask for them: opened, searched with words or vectors, and followed into a text.

covector.trace("gpt2m.atlas", "' fire' + ' flame' + ' smoke'").show()
"""

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covector.analyses.expand import expanded
from covector.analyses.query import Query, like_query, token_query, vector_query
from covector.analyses.search import search
from covector.analyses.search_sites import search_sites
from covector.arch.adapter import AdaptedWeights
from covector.changes import reopened
from covector.errors import BadRequest, CovectorError, MissingExtra
from covector.io.atlas import MANIFEST, Atlas
from covector.io.feature_file import vector_in as vector_in
from covector.io.unchanged import ChangedSince, Unchanged, UnchangedWeights
from covector.model.change import CHANGED_TO, ChangeModel
from covector.model.frames import framed
from covector.model.opened import Model
from covector.render import Table
from covector.study.expression import parse
from covector.workbench import open as open_model


def open_atlas(folder: str | Path) -> Atlas:
    """The atlas in a folder. Raises CorruptAtlas where there is none or it is not complete."""
    return Atlas(folder)


def model_of(atlas: Atlas) -> Model:
    """The model that an atlas was made from, opened by the words it was built with, in the atlas' frame.

    Raises what `covector.open` raises where it is no longer there, BadRequest where the checkpoint has other tensors.
    A tensor that the atlas was made from is compared with the digest in its manifest when it is first read, once per
    process: ChangedSince, a BadRequest, comes then. Tensors that the atlas does not record (of kinds that were left
    out, biases and norms of the raw frame) cannot be compared.
    """
    words, meta = atlas.manifest["reference"], atlas.manifest["meta"]
    words, _, other = words.partition(CHANGED_TO)
    ref, _, layout = words.partition(" --layout ")
    opened = open_model(_unquoted(ref), _unquoted(layout) or None, frame=meta["frame"])
    opened = reopened(opened, other) if other else opened
    if dict(opened.meta.get("files") or {}) != dict(meta.get("files") or {}):
        raise BadRequest(
            f"{atlas.folder}: expected the checkpoint that it was built from, {words} has other tensors now; "
            "build the atlas again"
        )
    if opened.spec.d_model != atlas.manifest["d_model"]:
        raise BadRequest(
            f"{atlas.folder}: expected a model of d_model {atlas.manifest['d_model']}, as its directions have, {words} "
            f"has {opened.spec.d_model}; build the atlas again"
        )
    return _watched(opened, atlas)


def _watched(model: Model, atlas: Atlas) -> Model:
    """The model, its tensors compared with the atlas' digests when they are read."""
    digests = atlas.manifest.get("tensors") or {}
    refusal = (
        f"{atlas.folder}: expected the checkpoint that it was built from, tensor '{{}}' of {model.name} has other "
        "values now; build the atlas again, elsewhere"
    )
    if isinstance(model, ChangeModel):
        stored, weights = (UnchangedWeights(of, digests, refusal) for of in (model.stored, model.weights))
        return dataclasses.replace(model, stored=stored, weights=weights)
    if not isinstance(model.stored, AdaptedWeights):  # a toy is made anew by the program itself
        return model
    read = dataclasses.replace(model.stored, source=Unchanged(model.stored.source, digests, refusal))
    return dataclasses.replace(model, stored=read, weights=framed(read, model.frame))


def _unquoted(words: str) -> str:
    return "".join(shlex.split(words))


def trace(
    atlas: Atlas | str | Path,
    query: str | np.ndarray | Path | None = None,
    *,
    like: str | Sequence[str] | None = None,
    by: str = "direction",
    model: Model | None = None,
    last: bool = False,
    expand: int = 0,
    exact: bool = False,
    dyads: int | None = None,
    **options: Any,
) -> Table:
    """Which directions of an atlas read or write a concept.

    `query`: weighted tokens as text, vectors [d] or [k, d] (their span), or the path of a safetensors file with a
    tensor ``vector`` (or a single one). `like` takes stored directions instead (``L22H10.ov:1``; several: their span).
    `by` is ``direction`` or ``site`` (one row per side of a site). `expand` repeats the search with the tokens it
    found, so many times at most. `exact` scores all directions that are shown in float64 from the checkpoint, not only
    those of heads. `dyads`: by site, how many leading ones fit together. `options` are those of
    `covector.analyses.search` (`search_sites`): top, sides, kinds, alpha, seed.
    `model` is the atlas' own, opened if it is there; tokens, `expand` and `exact` need it.
    Raises BadRequest, NotOneToken, and what `covector.open` raises where the checkpoint is needed and not there.
    """
    opened = atlas if isinstance(atlas, Atlas) else Atlas(atlas)
    if (query is None) == (like is None):
        raise BadRequest("expected a query (tokens, --vector or --like), and one of them only")
    if by not in ("direction", "site"):
        raise BadRequest(f"expected --by direction or site, got '{by}'")
    if last and not isinstance(query, str):
        raise BadRequest("--last is about phrases: expected tokens with it; leave it out")
    needed = isinstance(query, str) or expand or exact
    found_model = model or (model_of(opened) if needed else _model_if_there(opened))
    if by == "site" and exact:
        raise BadRequest("--exact scores single directions: leave it or --by site out")
    if by == "direction" and dyads is not None:
        raise BadRequest("--dyads is how many directions fit a concept together: expected --by site with it")

    def asked(of: Model | None) -> Table:
        found, steps = _query(opened, query, like, of, last), list[dict[str, Any]]()
        if expand:
            assert of is not None
            found, steps = expanded(opened, found, of, most=expand, options=options)
        if by == "site":
            return search_sites(opened, found, steps=steps, dyads=dyads, **options)
        return search(opened, found, model=of, exact=exact, steps=steps, **options)

    try:
        return asked(found_model)
    except ChangedSince:
        if needed or model is not None:
            raise
        return asked(None)  # as where the checkpoint is not there


def _query(
    atlas: Atlas,
    query: str | np.ndarray | Path | None,
    like: str | Sequence[str] | None,
    model: Model | None,
    last: bool,
) -> Query:
    if like is not None:
        return like_query(atlas, like)
    if isinstance(query, Path):
        return vector_query(vector_in(query), atlas, query.name)
    if isinstance(query, str):
        assert model is not None
        return token_query(parse(query), model, atlas, last=last)
    rows = np.asarray(query)
    return vector_query(rows, atlas, "a vector" if rows.ndim == 1 else "a subspace")


def _model_if_there(atlas: Atlas) -> Model | None:
    """The model, or None where its checkpoint is not there or not the same any more."""
    try:
        return model_of(atlas)
    except CovectorError:
        return None


def fired(
    model: Any,
    place: str,
    text: str,
    *,
    layout: str | Path | None = None,
    frame: str = "raw",
    device: str = "cpu",
    **options: Any,
) -> Table:
    """Where a dyad or a vector fires in a text; see `covector.analyses.fires.fires`.

    `model`: what `covector.open` takes, an opened model, or an atlas (its folder): then its model and frame are used.
    `device`: where it runs. Raises MissingExtra without torch.
    """
    # Idle torch threads that spin make everything twenty times slower where another program uses the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from covector.analyses.fires import fires
    except ImportError as error:
        raise MissingExtra(
            f"fires runs the model: expected torch, {error.name} is missing; pip install 'covector[run]'"
        ) from error
    if isinstance(model, str | Path) and (Path(model) / MANIFEST).exists():
        model = model_of(Atlas(model))
    opened = model if isinstance(model, Model) else open_model(model, layout, frame=frame)
    return fires(opened if device == "cpu" else opened.on(device), place, text, **options)
