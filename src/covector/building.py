"""Atlases built from a model's name, and what the verdicts in one say.

atlas = covector.build_atlas("gpt2-medium", "gpt2m.atlas")
"""

import shlex
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from covector.analyses.directions import LEVEL, inside_layers
from covector.analyses.score import ALIKE, rule_text
from covector.atlas.build import WHOLE, Progress, Shard, build, compute
from covector.atlas.plan import EVERYTHING, Options, Unit
from covector.atlas.reference import anywhere as anywhere
from covector.axes import Bool, Float
from covector.engine import Engine, engine
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.io.atlas_parts import Part
from covector.linalg.dictionary import FEWEST
from covector.linalg.on_device import a_card, card
from covector.model.opened import Model
from covector.study.expression import Term, written
from covector.workbench import open as open_model


def build_atlas(
    model: Any,
    out: str | Path,
    *,
    frame: str = "raw",
    layout: str | Path | None = None,
    options: Options = EVERYTHING,
    on: str | Engine = "threads",
    workers: int | None = None,
    memory: int | None = None,
    shard: Shard = WHOLE,
    device: str = "auto",
    progress: Progress | None = None,
) -> Atlas | None:
    """Decompose a whole model into an atlas in the folder `out`; going on where an earlier call stopped.

    `model`: anything `covector.open` takes, or an opened model. `on`: ``threads``, ``processes``, ``dask://host:port``
    or an engine. `memory`: bytes of anonymous memory that the build may take in this process. With a `shard` only its
    units are computed; None comes back while others are missing. The same request gives the same bytes whatever the
    engine, the number of workers, interruptions and shards. Raises what `covector.open` raises, and BadRequest.
    `device`: where products with vocabularies are made, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is a graphics card
    where there is one. On a card p_svd may differ in the last digits of float32; everything else is the same bytes.
    """
    opened = model if isinstance(model, Model) else open_model(model, layout, frame=frame)
    chosen = engine(on, workers) if isinstance(on, str) else on
    if chosen.shares_memory:
        device = _resolved(device)
        card(device)  # refused before anything is begun
    work = None
    if not chosen.shares_memory:
        if not isinstance(model, str | Path):
            raise BadRequest(
                "expected a model by name or folder for processes and clusters, got one in memory: their workers open "
                "it themselves; use threads, or save the model first"
            )
        work = _Elsewhere(anywhere(model), str(Path(layout).absolute()) if layout else None, frame, options, device)
    return build(
        opened,
        Path(out),
        options,
        engine=chosen,
        work=work,
        memory=memory,
        shard=shard,
        device=device,
        progress=progress,
    )


def _resolved(device: str) -> str:
    """The device that ``auto`` is in this process."""
    return a_card() if device == "auto" else device


@dataclass(frozen=True)
class _Elsewhere:
    """A unit computed in another process, which opens the model for itself and keeps it open."""

    ref: str
    layout: str | None
    frame: str
    options: Options
    device: str

    def __call__(self, unit: Unit) -> Part:
        return compute(_opened(self.ref, self.layout, self.frame), unit, self.options, _resolved(self.device))


@lru_cache(maxsize=1)
def _opened(ref: str, layout: str | None, frame: str) -> Model:
    return open_model(ref, layout, frame=frame)


def said(atlas: Atlas) -> str:
    """What the verdicts of a judged atlas say, in a few lines; empty for one that was not judged."""
    if "interpretable" not in atlas.names:
        return ""
    told = atlas.columns("coherence", "interpretable", "aligned", "p_coherence_svd", "q_coherence", "basis")
    kinds = {str(basis).rpartition("_")[0] for basis in told["basis"]}
    label = "token" if kinds == {"token"} else "label"
    lines = [_near(atlas, label)]
    judged = np.isfinite(told["coherence"])
    if not judged.any():
        lines.append(f"No list could be judged: that takes {FEWEST} {label}s, here are fewer.")
        return "\n".join(lines) + "\n"
    called, aligned = int(told["interpretable"].sum()), int(told["aligned"].sum())
    rule = rule_text().replace("heldout_low", "held-out AUC from")
    of = "" if judged.all() else f" of {int(judged.sum()):,} that could be judged"
    lines.append(f"{called}{of} are interpretable by the rule ({rule}).")
    with np.errstate(invalid="ignore"):
        open_ = int(np.sum((told["q_coherence"] >= LEVEL / 2) & (told["q_coherence"] < 2 * LEVEL)))
    if open_:
        lines.append(f"Of {open_} lists q is within a factor of two of {LEVEL}: more --draws decide them.")
    lines += [*_beside_rotated(atlas), *_heads_beside_rotated(told["p_coherence_svd"], told["interpretable"])]
    if aligned:
        lines.append(f"Of the others {aligned} are themselves what their lists share, which the rule cannot judge.")
    return "\n".join(lines) + "\n"


def _near(atlas: Atlas, label: str) -> str:
    """How many directions lie near a label: inside layers, and of embeddings, for which that says little."""
    inside, near = inside_layers(atlas), atlas.column("q_dir") < LEVEL
    said = [f"{int((near & of).sum()):,} of {int(of.sum()):,} directions" for of in (inside, ~inside)]
    if not inside.any():
        return f"{said[1]} of embeddings lie closer to a {label} than random ones, as those of random weights do."
    text = f"{said[0]}{' in layers' if not inside.all() else ''} lie closer to a {label} than random ones (q < .05)"
    return text + ("." if inside.all() else f"; of embeddings {said[1]} do, which lie near their own rows anyway.")


def _heads_beside_rotated(p: Float[np.ndarray, " n"], called: Bool[np.ndarray, " n"]) -> list[str]:
    """Whether singular vectors of heads make better lists than rotated bases of the same subspaces do."""
    of = p[np.isfinite(p)]
    if not of.size:
        return []
    share = float(np.mean(of <= LEVEL))
    said = f"{share:.1%} of lists of heads are more coherent than 95 % of those of rotated bases (5 % by chance)"
    if share < 2 * LEVEL:
        said += ": rotated bases score like singular vectors"
    within = p[called & np.isfinite(p)]
    if within.size and np.median(within) >= ALIKE:
        said += ", and what is called interpretable in heads is their subspaces'"
    return [f"{said}."]


def _beside_rotated(atlas: Atlas) -> list[str]:
    """What rotated bases say of the interpretable ones, for as many as have any: those of heads."""
    told = atlas.columns("interpretable", "svd_specific", "p_coherence_svd", "q_coherence_svd")
    asked = told["interpretable"] & np.isfinite(told["p_coherence_svd"])
    if np.isfinite(told["p_coherence_svd"]).any() and not np.isfinite(told["q_coherence_svd"]).any():
        return ["None can be svd_specific: one rotation of so narrow a head is too few directions; --rotations 2 is "
                "enough."]  # fmt: skip
    if not asked.any():
        return []
    specific = int(told["svd_specific"].sum())
    said = f"Of the {int(asked.sum())} in heads {specific} also against rotated bases of their head"
    least = float(np.nanmin(told["q_coherence_svd"]))
    if not specific and least >= 0.05:
        said += f" (the least q of the atlas is {least:.2g}; more --rotations tell smaller ones)"
    return [f"{said}."]


def example(atlas: Atlas) -> str:
    """Something to search an atlas for, as a word of a command line: the label that a direction writes nearest to."""
    labels, size = atlas.column("label"), np.abs(np.nan_to_num(atlas.column("zeta")))
    words = np.array([str(label).strip().replace(" ", "").isalpha() for label in labels])
    nearest = int(np.argmax(size * (words if words.any() else 1)))
    typed = written([Term(1.0, str(labels[nearest]), True)])
    return f'"{typed}"' if not set(typed) & set('"$`\\!') else shlex.quote(typed)
