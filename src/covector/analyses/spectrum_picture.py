"""Pictures of spectra: all layers laid over each other with the null's band, or norms against depth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covector.analyses.spectrum_jumps import OF_LAYERS, Group, Jump
from covector.axes import Float
from covector.linalg.chance.outliers import CONSISTENT
from covector.linalg.chance.random_matrix import SpectrumNull, norm_band
from covector.render import Table
from covector.render.picture import Curve

VIEWS = ("spectra", "depth")
# Places that get a curve of their own, beside the layers' medians: those out of line, strongest first.
NAMED = 3


def spectrum_picture(
    groups: Sequence[Group], nulls: Mapping[Any, SpectrumNull], found: Sequence[Jump], view: str, table: Table
) -> Curve:
    """The picture of one kind: that of the strongest jump among the rows of the table, else the first kind."""
    shown = set(table["site"])
    left = [g for g in groups if any(str(r.site) in shown for r in g.records)] or list(groups)
    named = sorted((j for j in found if j.group in left and abs(j.z) > j.level), key=lambda j: -abs(j.z) / j.level)
    group = named[0].group if named else left[0]
    own = [j for j in found if j.group is group]
    return _overlay(group, nulls[group.key], own) if view == "spectra" else _depth(group, own)


def _overlay(group: Group, null: SpectrumNull, own: Sequence[Jump]) -> Curve:
    """σ against index, cut at rank; one curve per layer, and one per place that is out of line."""
    padded = np.zeros((len(group.records), null.rank))
    for row, record in zip(padded, group.records, strict=True):
        row[: record.S.size] = record.S
    layers = group.layers
    several = len(group.records) > max(len(layers), 1)
    curves = [np.median(padded[rows], axis=0) for rows in group.of_layer(np.arange(len(padded)))] or list(padded)
    names = [f"L{layer}" + (", median of its heads" if several else "") for layer in layers] or [
        str(r.site) for r in group.records
    ]
    shades: list[float | None] = [i / max(len(curves) - 1, 1) for i in range(len(curves))]
    for i in _outside(group, own) if several else ():
        curves.append(padded[i])
        names.append(str(group.records[i].site))
        shades.append(None)
    drawn = np.array(curves)
    drawn[drawn == 0] = np.nan  # below rank there is nothing to draw
    low, high = norm_band(null) * float(np.median([np.linalg.norm(r.S) for r in group.records]))
    return Curve(
        x=np.arange(1, null.rank + 1),
        ys=drawn,
        names=names,
        x_name="index of the singular value",
        y_name=f"σ of {group.name} maps",
        x_unit="",
        y_unit="",
        log_y=True,
        band=(low, high),
        band_name="noise of the median norm, 95 % at each index",
        shades=shades,
    )


def _depth(group: Group, own: Sequence[Jump]) -> Curve:
    """σ₁ and norms against layers, with the band beyond which σ₁ is out of line."""
    largest = np.array([r.S[0] if r.S.size else np.nan for r in group.records])
    norms = np.array([np.linalg.norm(r.S) if r.S.size else np.nan for r in group.records])
    layers = np.array(group.layers or [0])
    by_layer, norm_by_layer = group.of_layer(largest) or [largest], group.of_layer(norms) or [norms]
    ys = [[np.max(v) for v in by_layer], [np.median(v) for v in by_layer], [np.median(v) for v in norm_by_layer]]
    names = ["largest σ₁ of a layer", "median σ₁", "median Frobenius norm"]
    if all(len(v) == 1 for v in by_layer):
        ys, names = [ys[0], ys[2]], ["σ₁", "Frobenius norm"]
    # Of places or of layers, whichever is farther out of line: the sentence names that one.
    compared = {
        "z": largest,
        "z_layer": np.array([np.nanmedian(v) if np.isfinite(v).any() else np.nan for v in by_layer]),
    }
    told = max((j for j in own if j.what in compared), key=lambda j: abs(j.z) / j.level, default=None)
    band = None if told is None else _in_line(compared[told.what], told.level)
    band_name = (
        "σ₁ in line with its kind" if told is None or told.what == "z" else "median σ₁ in line with other layers"
    )
    return Curve(
        x=layers,
        ys=np.array(ys),
        names=names,
        x_name="layer",
        y_name=f"size of {group.name} maps",
        x_unit="",
        y_unit="",
        log_y=True,
        band=band,
        band_name=f"{band_name}, 95 % over the request",
    )


def _in_line(sizes: Float[np.ndarray, " n"], level: float) -> tuple[float, float] | None:
    """Between which sizes |robust z| stays below the level; zeros and what is missing are not counted."""
    logs = np.log(sizes[sizes > 0])
    if not logs.size:
        return None
    middle = np.median(logs)
    reach = level * CONSISTENT * np.median(np.abs(logs - middle))
    return float(np.exp(middle - reach)), float(np.exp(middle + reach))


def _outside(group: Group, own: Sequence[Jump]) -> list[int]:
    """Places whose σ₁ or norm is out of line, strongest first."""
    strength = np.zeros(len(group.records))
    for jump in (j for j in own if j.what not in OF_LAYERS):
        strength = np.fmax(strength, np.abs(jump.scores) / jump.level)
    order = np.argsort(-strength, kind="stable")
    return [int(i) for i in order[:NAMED] if strength[i] > 1]
