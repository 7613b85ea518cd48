"""Finished parts become the store: one row per direction with its chance over the whole atlas, one per site.

False-discovery rates need every direction, so they are computed here; everything else was settled in the parts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from covector.atlas.decompose import SIDES
from covector.atlas.judge import BESIDE, COLUMNS, POOL, SCORES, p_within
from covector.atlas.plan import IN_LAYER, Unit, compared_at, null_of
from covector.atlas.verdict import AGAINST_DRAWS, POOLED, adjusted, chances, verdicts
from covector.errors import BadRequest
from covector.io.atlas import INDEX, SITES, write_table, write_vectors
from covector.io.atlas_parts import Part
from covector.linalg import chance
from covector.model.address import Site
from covector.model.opened import Model

# Columns that come from the parts as they are.
_NUMBERS = ("dyad", "sigma", "gap", "turn", "noisy", "sign_margin", "cos", "p_dir", "p_svd")


def assemble(model: Model, folder: Path, plan: tuple[Unit, ...], part_of: Callable[[Unit], Part]) -> int:
    """Write vectors, index and sites of an atlas whose parts `part_of` gives; returns the number of directions.

    Rows stand by layer, attention before MLP, kind, head, side, dyad, whatever the order of the files was. Holds the
    index in memory, and the vectors of one part. Raises what `part_of` raises, and BadRequest for a model of zeros.
    """
    nulls = {str(u.basis): part_of(u).arrays for u in plan if u.basis}
    ordered = sorted((u for u in plan if u.sites), key=lambda unit: _place(model, unit.sites[0]))
    columns: dict[str, list[Any]] = {}
    sites: dict[str, list[Any]] = {}
    n, pooled = 0, {name: [np.zeros(0)] for name in (*POOL.values(), *BESIDE.values())}
    for unit in ordered:
        part = part_of(unit)
        for name, chunks in pooled.items():
            chunks.append(part.arrays.get(name, np.zeros(0)))
        if "vectors" in part.arrays:
            n += len(part.arrays["site"])
            for name, values in _index_columns(model, unit, part, nulls).items():
                columns.setdefault(name, []).append(values)
        for name, values in _site_columns(unit, part).items():
            sites.setdefault(name, []).append(values)
    if not n:
        raise BadRequest(
            f"{model.name}: expected weights that are not all zero (of a change: more than rounding); there is no "
            "direction to keep"
        )
    table = {name: pa.concat_arrays(columns.pop(name)) for name in list(columns)}
    table |= {"q_dir": pa.array(adjusted(_numbers(table["p_dir"])))}
    table |= {"q_svd": pa.array(adjusted(_numbers(table["p_svd"])))}
    if "coherence" in table:
        whole = {name: _numbers(table[name]) for name in (*COLUMNS, "stability", *AGAINST_DRAWS)}
        among = {
            POOLED[score]: p_within(score, *(np.concatenate(pooled.pop(of[score])) for of in (BESIDE, POOL)))
            for score in SCORES
        }
        table |= {name: pa.array(values) for name, values in (among | verdicts(whole | among)).items()}
    write_table(folder, INDEX, pa.table(table))
    write_table(folder, SITES, pa.table({name: pa.concat_arrays(chunks) for name, chunks in sites.items()}))
    vectors = (part_of(unit).arrays.get("vectors") for unit in ordered)
    write_vectors(folder, (rows for rows in vectors if rows is not None), (n, model.spec.d_model))
    return n


def _place(model: Model, site: Site) -> tuple[int, int, str]:
    """Embeddings in front, unembeddings behind, layers between; attention before MLP."""
    if site.layer is None:
        reads = site.kind == "unembed" or site.kind.endswith("_out")
        return (model.spec.n_layers if reads else -1, 0, site.kind)
    return (site.layer, IN_LAYER.index(site.kind), "")


def _index_columns(model: Model, unit: Unit, part: Part, nulls: dict[str, Any]) -> dict[str, pa.Array]:
    arrays = part.arrays
    of = [unit.sites[i] for i in arrays["site"]]
    against = _compared(model, unit, arrays)
    made = {
        "site": pa.array([str(site) for site in of]),
        "layer": pa.array([site.layer for site in of], pa.int32()),
        "head": pa.array([site.head for site in of], pa.int32()),
        "kind": pa.array([_kind(site) for site in of]),
        "side": pa.array([SIDES[i] for i in arrays["side"]]),
    }
    made |= {name: pa.array(arrays[name]) for name in _NUMBERS}
    made["block_first"] = pa.array(arrays["block"][:, 0])
    made["block_last"] = pa.array(arrays["block"][:, 1] - 1)
    made["basis"] = pa.array([str(a) for a in against])
    d = np.array([a.dimension(model) for a in against])
    made["zeta"] = pa.array(np.sqrt(d) * arrays["cos"])
    drawn = [str(null_of(model, a)) for a in against]
    made["p_cov"] = pa.array(_p_cov(np.abs(arrays["cos"]), drawn, nulls))
    if "coherence" in arrays:
        made |= {name: pa.array(arrays[name]) for name in (*COLUMNS, "stability")}
        made |= {name: pa.array(p) for name, p in chances(arrays, drawn, nulls).items()}
    made["label"] = _labels(model, against, arrays["best"][:, None]).flatten()
    for pole in ("top", "bottom"):
        made[pole] = _labels(model, against, arrays[pole])
        ids = arrays[pole]
        made[f"{pole}_id"] = _lists(pa.array(ids.ravel()), ids)
        made[f"{pole}_cos"] = _lists(pa.array(arrays[f"{pole}_cos"].ravel()), ids)
    return made


def _compared(model: Model, unit: Unit, arrays: Any) -> list[Any]:
    """What every row was compared with."""
    known = {
        (i, ("query", "key")[at] if site.kind == "qk" else ("read", "write")[at]): against
        for i, site in enumerate(unit.sites)
        for at, against in compared_at(model, site).items()
    }
    return [known[int(i), SIDES[s]] for i, s in zip(arrays["site"], arrays["side"], strict=True)]


def _kind(site: Site) -> str:
    return f"mlp.{site.kind}" if site.in_mlp else site.kind


def _labels(model: Model, against: list[Any], ids: np.ndarray) -> pa.Array:
    """Lists of label texts; rows of one basis looked up together."""
    texts = np.empty(ids.shape, dtype=object)
    for name in dict.fromkeys(a.basis for a in against):
        rows = np.array([a.basis == name for a in against])
        texts[rows] = np.array([*model.bases[name].labels, ""], dtype=object)[ids[rows]]
    return _lists(pa.array(texts.ravel(), pa.string()), ids)


def _lists(values: pa.Array, ids: np.ndarray) -> pa.Array:
    """One list per row, of the entries that are there (their id is not −1)."""
    there = ids >= 0
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values.filter(pa.array(there.ravel())))


def _p_cov(best: np.ndarray, names: list[str], nulls: dict[str, Any]) -> np.ndarray:
    p = np.empty(len(best))
    for name in dict.fromkeys(names):
        at = np.array([n == name for n in names])
        p[at] = chance.monte_carlo_p(best[at], nulls[name]["cov.max"]).value
    return p


def _numbers(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)


def _site_columns(unit: Unit, part: Part) -> dict[str, pa.Array]:
    arrays = {name.removeprefix("site."): values for name, values in part.arrays.items() if name.startswith("site.")}
    offsets = np.concatenate([[0], np.cumsum(arrays["count"])]).astype(np.int32)
    return {
        "site": pa.array([str(site) for site in unit.sites]),
        "layer": pa.array([site.layer for site in unit.sites], pa.int32()),
        "head": pa.array([site.head for site in unit.sites], pa.int32()),
        "kind": pa.array([_kind(site) for site in unit.sites]),
        "n": pa.array(arrays["shape"][:, 0]),
        "m": pa.array(arrays["shape"][:, 1]),
        "inner": pa.array(arrays["inner"]),
        "noise": pa.array(arrays["noise"]),
        "sigma": pa.ListArray.from_arrays(pa.array(offsets), pa.array(arrays["sigma"])),
    }
