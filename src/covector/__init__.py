"""covector reads a transformer's weights: what each direction reads and writes, and how likely that is by chance.

    model = covector.open("demo-lm")
    covector.readout(model, "L2H1").show()

Names are loaded when they are first used, so that ``import covector`` and ``covector --help`` are quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from covector.analyses.agent_map import agent_map as agent_map
    from covector.analyses.agent_map_contrasts import action_contrasts as action_contrasts
    from covector.analyses.align import align as align
    from covector.analyses.attend import attend as attend
    from covector.analyses.attribute import attribute as attribute
    from covector.analyses.choose_edit import choose_curve as choose_curve
    from covector.analyses.choose_edit import choose_edit as choose_edit
    from covector.analyses.compare import compare as compare
    from covector.analyses.compare_atlases import compare_atlases as compare_atlases
    from covector.analyses.compose import compose as compose
    from covector.analyses.compose_dyads import compose_dyads as compose_dyads
    from covector.analyses.couple import couple as couple
    from covector.analyses.couple import coupling as coupling
    from covector.analyses.debias import debias as debias
    from covector.analyses.diff import diff as diff
    from covector.analyses.directions import directions as directions
    from covector.analyses.dyad_sweep import dyad_sweep as dyad_sweep
    from covector.analyses.edit_effect import edit_effect as edit_effect
    from covector.analyses.edit_tokens import edit_tokens as edit_tokens
    from covector.analyses.glance import glance as glance
    from covector.analyses.grid_map import grid_map as grid_map
    from covector.analyses.head_norms import head_norms as head_norms
    from covector.analyses.heads import heads as heads
    from covector.analyses.inspect import inspect as inspect
    from covector.analyses.ioi import ioi as ioi
    from covector.analyses.ioi_prompts import ioi_tasks as ioi_tasks
    from covector.analyses.joint_unit import joint_units as joint_units
    from covector.analyses.layernorm import layernorm as layernorm
    from covector.analyses.locate import locate as locate
    from covector.analyses.look_first import look_first as look_first
    from covector.analyses.neurons import neurons as neurons
    from covector.analyses.patch import patch as patch
    from covector.analyses.paths import paths as paths
    from covector.analyses.predict import predict_heads as predict_heads
    from covector.analyses.predict_path import predict_path as predict_path
    from covector.analyses.probes import probes as probes
    from covector.analyses.propagate import propagate as propagate
    from covector.analyses.rank_sweep import rank_sweep as rank_sweep
    from covector.analyses.readout import readout as readout
    from covector.analyses.readout_bases import readout_bases as readout_bases
    from covector.analyses.regions import regions as regions
    from covector.analyses.relation import relation as relation
    from covector.analyses.replicate.conjecture import replicate_conjecture as replicate_conjecture
    from covector.analyses.replicate.conjecture import replicated_lists as replicated_lists
    from covector.analyses.replicate.dt_svd import replicate_dt_svd as replicate_dt_svd
    from covector.analyses.replicate.obprop import replicate_obprop as replicate_obprop
    from covector.analyses.replicate.obprop_claims import replicate_claims as replicate_claims
    from covector.analyses.replicate.sprint import replicate_sprint as replicate_sprint
    from covector.analyses.selective_induction import selective_induction as selective_induction
    from covector.analyses.shares import shares as shares
    from covector.analyses.spectrum import spectrum as spectrum
    from covector.analyses.steer import steer as steer
    from covector.analyses.studies import studies as studies
    from covector.analyses.timesteps import timesteps as timesteps
    from covector.analyses.virtual_heads import virtual_heads as virtual_heads
    from covector.atlases import fired as fired
    from covector.atlases import open_atlas as open_atlas
    from covector.atlases import trace as trace
    from covector.building import build_atlas as build_atlas
    from covector.changes import adapted as adapted
    from covector.changes import changed as changed
    from covector.errors import CovectorError as CovectorError
    from covector.io.atlas import Atlas as Atlas
    from covector.linalg.svd import SVD as SVD
    from covector.linalg.svd import svd as svd
    from covector.linalg.svd import svds as svds
    from covector.model.bases import Basis as Basis
    from covector.model.opened import Model as Model
    from covector.model.spec import ModelSpec as ModelSpec
    from covector.render import Table as Table
    from covector.rollouts import rollout as rollout
    from covector.run.inputs_file import read_input_pairs as read_input_pairs
    from covector.run.prompts import fill_template as fill_template
    from covector.run.prompts import read_pairs as read_pairs
    from covector.saving import save_adapter as save_adapter
    from covector.saving import save_edited as save_edited
    from covector.scoring import score as score
    from covector.study.edit import Edit as Edit
    from covector.study.feature import Feature as Feature
    from covector.study.observable import Observable as Observable
    from covector.workbench import open as open
    from covector.workbench import transformers_runner as transformers_runner

# Public name → the module that defines it. A test holds this table against the annotations above.
_HOMES = {
    "SVD": "covector.linalg.svd",
    "Atlas": "covector.io.atlas",
    "Basis": "covector.model.bases",
    "CovectorError": "covector.errors",
    "Edit": "covector.study.edit",
    "Feature": "covector.study.feature",
    "Model": "covector.model.opened",
    "ModelSpec": "covector.model.spec",
    "Observable": "covector.study.observable",
    "Table": "covector.render",
    "action_contrasts": "covector.analyses.agent_map_contrasts",
    "adapted": "covector.changes",
    "agent_map": "covector.analyses.agent_map",
    "align": "covector.analyses.align",
    "attend": "covector.analyses.attend",
    "attribute": "covector.analyses.attribute",
    "build_atlas": "covector.building",
    "changed": "covector.changes",
    "choose_curve": "covector.analyses.choose_edit",
    "choose_edit": "covector.analyses.choose_edit",
    "compare": "covector.analyses.compare",
    "compare_atlases": "covector.analyses.compare_atlases",
    "compose": "covector.analyses.compose",
    "compose_dyads": "covector.analyses.compose_dyads",
    "couple": "covector.analyses.couple",
    "coupling": "covector.analyses.couple",
    "debias": "covector.analyses.debias",
    "diff": "covector.analyses.diff",
    "directions": "covector.analyses.directions",
    "dyad_sweep": "covector.analyses.dyad_sweep",
    "edit_effect": "covector.analyses.edit_effect",
    "edit_tokens": "covector.analyses.edit_tokens",
    "fill_template": "covector.run.prompts",
    "fired": "covector.atlases",
    "glance": "covector.analyses.glance",
    "grid_map": "covector.analyses.grid_map",
    "head_norms": "covector.analyses.head_norms",
    "heads": "covector.analyses.heads",
    "inspect": "covector.analyses.inspect",
    "ioi": "covector.analyses.ioi",
    "ioi_tasks": "covector.analyses.ioi_prompts",
    "joint_units": "covector.analyses.joint_unit",
    "layernorm": "covector.analyses.layernorm",
    "locate": "covector.analyses.locate",
    "look_first": "covector.analyses.look_first",
    "neurons": "covector.analyses.neurons",
    "open": "covector.workbench",
    "open_atlas": "covector.atlases",
    "patch": "covector.analyses.patch",
    "paths": "covector.analyses.paths",
    "predict_heads": "covector.analyses.predict",
    "predict_path": "covector.analyses.predict_path",
    "probes": "covector.analyses.probes",
    "propagate": "covector.analyses.propagate",
    "rank_sweep": "covector.analyses.rank_sweep",
    "read_input_pairs": "covector.run.inputs_file",
    "read_pairs": "covector.run.prompts",
    "readout": "covector.analyses.readout",
    "readout_bases": "covector.analyses.readout_bases",
    "regions": "covector.analyses.regions",
    "relation": "covector.analyses.relation",
    "replicate_claims": "covector.analyses.replicate.obprop_claims",
    "replicate_conjecture": "covector.analyses.replicate.conjecture",
    "replicate_dt_svd": "covector.analyses.replicate.dt_svd",
    "replicate_obprop": "covector.analyses.replicate.obprop",
    "replicate_sprint": "covector.analyses.replicate.sprint",
    "replicated_lists": "covector.analyses.replicate.conjecture",
    "rollout": "covector.rollouts",
    "save_adapter": "covector.saving",
    "save_edited": "covector.saving",
    "score": "covector.scoring",
    "selective_induction": "covector.analyses.selective_induction",
    "shares": "covector.analyses.shares",
    "spectrum": "covector.analyses.spectrum",
    "steer": "covector.analyses.steer",
    "studies": "covector.analyses.studies",
    "svd": "covector.linalg.svd",
    "svds": "covector.linalg.svd",
    "timesteps": "covector.analyses.timesteps",
    "trace": "covector.atlases",
    "transformers_runner": "covector.workbench",
    "virtual_heads": "covector.analyses.virtual_heads",
}

__all__ = [
    "SVD",
    "Atlas",
    "Basis",
    "CovectorError",
    "Edit",
    "Feature",
    "Model",
    "ModelSpec",
    "Observable",
    "Table",
    "action_contrasts",
    "adapted",
    "agent_map",
    "align",
    "attend",
    "attribute",
    "build_atlas",
    "changed",
    "choose_curve",
    "choose_edit",
    "compare",
    "compare_atlases",
    "compose",
    "compose_dyads",
    "couple",
    "coupling",
    "debias",
    "diff",
    "directions",
    "dyad_sweep",
    "edit_effect",
    "edit_tokens",
    "fill_template",
    "fired",
    "glance",
    "grid_map",
    "head_norms",
    "heads",
    "inspect",
    "ioi",
    "ioi_tasks",
    "joint_units",
    "layernorm",
    "locate",
    "look_first",
    "neurons",
    "open",
    "open_atlas",
    "patch",
    "paths",
    "predict_heads",
    "predict_path",
    "probes",
    "propagate",
    "rank_sweep",
    "read_input_pairs",
    "read_pairs",
    "readout",
    "readout_bases",
    "regions",
    "relation",
    "replicate_claims",
    "replicate_conjecture",
    "replicate_dt_svd",
    "replicate_obprop",
    "replicate_sprint",
    "replicated_lists",
    "rollout",
    "save_adapter",
    "save_edited",
    "score",
    "selective_induction",
    "shares",
    "spectrum",
    "steer",
    "studies",
    "svd",
    "svds",
    "timesteps",
    "trace",
    "transformers_runner",
    "virtual_heads",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name == "__version__":
        return importlib.import_module("covector.workbench").own_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'covector' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Public names, sorted."""
    return sorted([*__all__, "__version__"])
