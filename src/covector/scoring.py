"""Token lists scored, as people ask for it: of a place of a model, or of what an atlas found.

covector.score("demo.atlas").show()
"""

from pathlib import Path

from covector.analyses.labels import Labeller
from covector.analyses.score_table import DRAWS, score_table
from covector.atlases import model_of
from covector.errors import BadRequest
from covector.io.atlas import MANIFEST, Atlas
from covector.model.opened import Model
from covector.render import Table
from covector.workbench import open as open_model


def score(
    model: Model | Atlas | str | Path,
    where: str | None = None,
    *,
    rank: int = 10,
    corpus: str | None = None,
    labeller: Labeller | None = None,
    layout: str | Path | None = None,
    frame: str = "raw",
    draws: int = DRAWS,
    seed: int = 0,
) -> Table:
    """Token lists of directions scored beside chance, named by a labeller, and judged by the written rule.

    `model`: what `covector.open` takes, an opened model, or an atlas (opened, or its folder): then rows of it are
    scored, in its frame and from its own model, and q is over all its directions. `where`: ``L3H0`` (its leading `rank`
    dyads), ``L3.mlp.out:0-4``; without it the `rank` directions that the atlas calls interpretable by the least q, or
    the strongest by z of coherence if it calls none. `corpus`: a text that NPMI is counted in. `labeller`: a function
    of the words of a list that returns a name, or "" where it sees none; lists of random directions are mixed in
    blind, ``meta["false_label_rate"]`` says how often it names those.
    Columns: scores with the level that 95 % of `draws` random directions stay below; see `docs/theory/scores.md`.
    Raises BadRequest, BadRank, BadSite, and what `covector.open` raises.
    """
    folder = Path(model).expanduser() if isinstance(model, str | Path) else None
    if folder is not None and (folder / MANIFEST).exists():
        model = Atlas(folder)
    if isinstance(model, Atlas):
        opened, atlas = model_of(model), model
        if frame not in ("raw", str(opened.frame)):
            raise BadRequest(f"{atlas.folder}: expected its own frame, {opened.frame}, got '{frame}'; score its model")
    else:
        opened, atlas = model if isinstance(model, Model) else open_model(model, layout, frame=frame), None
    return score_table(opened, where, atlas=atlas, rank=rank, corpus=corpus, labeller=labeller, draws=draws, seed=seed)
