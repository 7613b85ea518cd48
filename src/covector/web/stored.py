"""Results that commands wrote with ``--out``, as a report keeps them: each on the view where one would ask for it."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covector.errors import BadRequest, BadTable
from covector.web.results import FILMS, BadPicture, films_of, result_of, tables_in

# The view of every analysis; one that stands nowhere here goes to `OTHER`.
VIEWS: dict[str, tuple[str, ...]] = {
    "observables": (
        "align", "attend", "attribute", "couple", "feature", "head_norms", "ioi", "ioi_ablation", "ioi_edges",
        "ioi_paths", "layernorm", "neurons", "patch", "paths", "predict", "probes", "regions", "segments", "shared",
        "shares", "virtual_heads",
    ),
    "edits": (
        "choose", "choose_curve", "concept_matrix", "diff", "diff_components", "diff_directions", "dyad_sweep",
        "edit_controls", "edit_dyads", "edit_effect", "edit_prompts", "edit_tokens", "granularity",
        "head_curve", "rank_sweep", "selective_induction", "selective_induction_heads",
        "selective_induction_tokens", "unit_ablation",
    ),
    "steering": ("debias", "steer", "steer_split"),
    "agents": (
        "action_contrasts", "agent_map", "behaviour", "dyad_clusters", "grid_map", "locate", "readout_bases", "rollout",
        "rollout_actions", "timestep_components", "timesteps",
    ),
    "results": (
        "atlas_summary", "compare_atlases", "compose", "compose_dyads", "directions", "fires", "glance", "heads",
        "inspect", "joint_units", "look_first", "proof", "readout", "relation", "replicate_conjecture",
        "replicate_dt_svd", "replicate_obprop", "replicate_obprop_claims", "replicate_sprint", "replicated_lists",
        "score", "search", "spectrum", "studies", "study_activations", "study_basis", "study_dictionary",
        "study_factorial", "study_frames", "study_frequency", "study_index", "study_kinds", "study_packing",
        "study_poles", "study_ridge", "study_sides", "study_size", "study_width",
    ),
}  # fmt: skip
OTHER = "results"
_VIEW_OF = {analysis: view for view, analyses in VIEWS.items() for analysis in analyses}
# What a command writes beside its main result, and stands after it.
DETAILS = (
    "edit_controls", "edit_dyads", "edit_prompts", "edit_tokens", "rollout_actions", "selective_induction_heads",
    "selective_induction_tokens", "steer_split",
)  # fmt: skip
# Results on which a film that lies beside them stands.
FILMED = ("rollout", "agent_map")


def view_of(analysis: str) -> str:
    """The view on which a result of that analysis stands."""
    return _VIEW_OF.get(analysis, OTHER)


def stored(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Every result in these folders: its view, the result with its picture, and the films beside it as data addresses.

    In the order of the folders; in one the main results first, by the files' names. Raises BadRequest for a folder that
    is none, that holds no result, or a picture that is none.
    """
    return [entry for folder in folders for entry in _of(Path(folder))]


def _of(folder: Path) -> list[dict[str, Any]]:
    if not folder.is_dir():
        raise BadRequest(f"--results: expected a folder that a command wrote with --out, '{folder}' is none; name it")
    entries = [{"view": view_of(_analysis(r)), "result": r, "films": []} for r in _results(folder)]
    entries.sort(key=lambda entry: _analysis(entry["result"]) in DETAILS)
    films = [_address(film) for film in films_of(folder)]
    if not entries and not films:
        raise BadRequest(
            f"--results: expected results (NAME.json, as --out writes them) in '{folder}', there are none; run a "
            "command with --out first"
        )
    if films and not entries:
        raise BadRequest(f"--results: expected a result beside the films in '{folder}', there is none; give its --out")
    if films:
        filmed = [e for e in entries if _analysis(e["result"]) in FILMED]
        (filmed or entries)[0]["films"] = films
    return entries


def _analysis(result: dict[str, Any]) -> str:
    return str(result["meta"].get("analysis", ""))


def _results(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in tables_in(folder):
        try:
            told = result_of(path)
        except BadPicture as error:
            raise BadRequest(f"--results: {error}") from error
        except BadTable:
            continue  # other files of a command's folder: an edit, a journal
        # Of the folder its name alone: who gets a report is not told the sender's folders.
        python = f"covector.Table.load({f'{folder.name}/{path.name}'!r})"
        found.append({**told, "command": str(told["meta"].pop("command", "")), "python": python})
    return found


def _address(film: Path) -> str:
    return f"data:{FILMS[film.suffix]};base64,{base64.b64encode(film.read_bytes()).decode()}"
