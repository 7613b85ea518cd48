"""What `covector locate` shows besides places: dyads, contrasts of actions, maps of the grid, curves in time."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from covector.errors import BadRequest

if TYPE_CHECKING:
    from covector.model.opened import Model
    from covector.render import Table

# What 120 columns hold; the rest is in --json and --out.
ON_SCREEN = {
    "dyads": ("site", "side", "dyad", "basis", "label", "cos", "p", "q", "means", "direct", "straight", "total",
              "untrained"),
    "clusters": ("cluster", "site", "side", "dyad", "silhouette", "cos", "label", "like"),
    "contrasts": ("site", "side", "dyad", "energy", "energy_level", "q", "contrast", "cos", "cos_level", "actions"),
    "map": ("channel", "cells", "I", "I_level", "p", "familywise", "p_direction", "fam_direction", "peak", "cos"),
    "curve": ("direction", "swing", "swing_level", "p_swing", "trend", "trend_level", "p_trend", "peak", "peak_level",
              "step", "familywise"),
    "components": ("component", "share", "share_level", "with_time", "p_time"),
}  # fmt: skip
BY = ("places", "dyads", "contrasts", "clusters")


@dataclass(frozen=True)
class Asked:
    """The options of the command that name one of these ways to look."""

    by: str
    sites: str
    side: str
    dyads: int
    contrasts: tuple[str, ...]
    map: str | None
    path: str | None
    curve: tuple[str, ...]
    concept: tuple[str, ...]
    without: tuple[str, ...]
    draws: int
    seed: int

    @property
    def kind(self) -> str:
        """Which of them it is: ``places`` is locate's own. Raises BadRequest for options that do not go together."""
        if self.by not in BY:
            raise BadRequest(f"--by: expected {', '.join(BY)}, got '{self.by}'")
        ways = [w for w, on in (("--map", self.map), ("--curve", self.curve), ("--by", self.by != "places")) if on]
        if len(ways) > 1:
            raise BadRequest(f"expected one of --map, --curve and --by, got {' and '.join(ways)}; ask one by one")
        if self.path and not self.map:
            raise BadRequest("--path goes with --map 'forward - left': the observable that is taken along the path")
        if self.contrasts and self.by != "contrasts":
            raise BadRequest("--contrast names contrasts of actions; expected --by contrasts with it")
        kind = "map" if self.map else "curve" if self.curve else self.by
        if self.concept and kind != "places":
            raise BadRequest(f"--concept goes with places; {ways[0]} looks at all labels, leave it out")
        if self.without and kind not in ("places", "dyads"):
            raise BadRequest(f"--without goes with places and dyads; {ways[0]} leaves untrained labels out itself")
        return kind


def looked(model: "Model", basis: str, asked: Asked) -> tuple["Table", tuple[str, ...]]:
    """The table of any way but places, and its columns on the screen."""
    from covector.analyses.agent_map import agent_map
    from covector.analyses.agent_map_contrasts import action_contrasts
    from covector.analyses.dyad_clusters import dyad_clusters

    if asked.map:
        return _map(model, basis, asked), ON_SCREEN["map"]
    if asked.curve:
        return _curve(model, basis, asked)
    chosen = {"sites": asked.sites, "side": asked.side, "dyads": asked.dyads}
    if asked.by == "dyads":
        return agent_map(model, basis, **chosen, without=asked.without), ON_SCREEN["dyads"]
    if asked.by == "clusters":
        chosen |= {"side": "read" if asked.side == "both" else asked.side}
        return dyad_clusters(model, basis, **chosen, draws=min(asked.draws, 200), seed=asked.seed), ON_SCREEN[
            "clusters"
        ]
    more = {"contrasts": asked.contrasts, "draws": asked.draws, "seed": asked.seed}
    return action_contrasts(model, basis, **chosen, **more), ON_SCREEN["contrasts"]


def _map(model: "Model", basis: str, asked: Asked) -> "Table":
    from covector.analyses.agent_direction import direction, of_feature, of_observable
    from covector.analyses.grid_map import grid_map
    from covector.io.feature_file import load_feature

    text = asked.map or ""
    if asked.path:
        found = of_observable(model, text, asked.path)
    elif text.endswith(".safetensors"):
        found = of_feature(load_feature(Path(text).expanduser()), Path(text).name)
    else:
        found = direction(model, text)
    if len(found.row) != model.spec.d_model:
        raise BadRequest(f"{text}: expected a vector of {model.spec.d_model} entries (d_model), got {len(found.row)}")
    return grid_map(model, found, basis, draws=asked.draws, seed=asked.seed)


def _curve(model: "Model", basis: str, asked: Asked) -> tuple["Table", tuple[str, ...]]:
    from covector.analyses.agent_direction import direction
    from covector.analyses.timesteps import components, timesteps

    if "components" in asked.curve:
        if len(asked.curve) > 1:
            raise BadRequest("--curve components is of the table alone; ask for dyads' curves in another command")
        return components(model, basis, seed=asked.seed), ON_SCREEN["components"]
    found = [direction(model, text) for text in asked.curve]
    return timesteps(model, found, basis, draws=asked.draws, seed=asked.seed), ON_SCREEN["curve"]
