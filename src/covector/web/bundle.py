"""An atlas as the page reads it: one overview, and typed arrays for everything that has a hundred thousand rows.

The page in a browser and the report in one file read the same four parts: ``overview`` (JSON), ``directions``,
``labels`` and ``spectra`` (packed arrays). Numbers of the arrays have four digits; the index of the atlas has them all.
"""

import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from covector.analyses.glance import glance
from covector.analyses.look_first import look_first
from covector.analyses.score import rule_text
from covector.analyses.site_spectra import PRODUCTS
from covector.analyses.spectrum_band import spectrum_bands
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.render import Table
from covector.render.picture_data import picture_data
from covector.web.packing import packed, rounded

# Columns of the index that the page draws, filters and lists, where an atlas has them.
NUMBERS = (
    "sigma", "gap", "cos", "zeta", "p_dir", "q_dir", "p_cov", "p_svd", "q_svd", "coherence", "q_coherence",
    "p_coherence_svd", "heldout", "lexical", "stability", "score_pole",
)  # fmt: skip
FLAGS = ("noisy", "interpretable", "svd_specific", "aligned")
CODES = ("side", "kind", "basis", "label")
# Places are counted in 16 bits; the largest models that are public have some 30,000 heads.
MOST_PLACES = 2**16
PARTS = ("directions", "labels", "spectra")
# A pole's labels that the page holds; the atlas may have more.
POLE = 10
# Cosines as whole numbers: the page shows three digits, and a report of 100,000 directions stays under 15 MB.
COSINE_STEPS = 1000


class Bundle:
    """The parts of one atlas, each made when it is first asked for and kept."""

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas
        self._locks = {name: threading.Lock() for name in ("overview", *PARTS)}

    def part(self, name: str) -> Any:
        """``overview`` or one of `PARTS`; made once, also where several threads ask at a time."""
        with self._locks[name]:
            return getattr(self, name)

    def warm(self) -> None:
        """Make all of them, those first that the page asks for first."""
        for name in self._locks:
            self.part(name)

    @cached_property
    def overview(self) -> dict[str, Any]:
        """What the atlas is of, its places at a glance, and what it was judged by."""
        manifest = self.atlas.manifest
        seen = glance(self.atlas)
        return {
            "meta": manifest["meta"],
            "options": manifest["options"],
            "reference": manifest["reference"],
            "d_model": manifest["d_model"],
            "directions": len(self.atlas),
            "judged": bool(seen.meta["judged"]),
            "rule": rule_text(),
            "glance": table_data(seen),
            "level": seen.meta["level"],
            "first": table_data(look_first(self.atlas)),
            "sites": [_place(r) for r in self.atlas.sized_sites],
        }

    @cached_property
    def directions(self) -> bytes:
        """One entry per direction: place, side, dyad, block, numbers, flags; texts as codes into lists."""
        self.atlas.need()
        names = set(self.atlas.names)
        if len(self.atlas.sites) > MOST_PLACES:
            n = len(self.atlas.sites)
            raise BadRequest(f"expected at most {MOST_PLACES} places to look at, got {n}; build it with fewer --kinds")
        given = self.atlas.columns("dyad", "block_first", "block_last")
        arrays: dict[str, np.ndarray] = {"site": self.atlas.places.astype(np.uint16)}
        arrays |= {n: given[n].astype(np.uint16) for n in ("dyad", "block_first", "block_last")}
        texts = {}
        for name in (c for c in CODES if c in names):
            arrays[name], texts[name] = _coded(self.atlas.column(name))
        for name in (c for c in NUMBERS if c in names):
            arrays[name] = rounded(self.atlas.column(name))
        flags = np.zeros(len(self.atlas), dtype=np.uint8)
        for i, name in enumerate(f for f in FLAGS if f in names):
            flags |= self.atlas.column(name).astype(np.uint8) << i
        arrays["flags"] = flags
        about = {"texts": texts, "flags": [f for f in FLAGS if f in names], "rows": len(self.atlas)}
        return packed(arrays, about)

    @cached_property
    def labels(self) -> bytes:
        """The first labels of both poles of every direction, as codes into one list, with their cosines."""
        arrays: dict[str, np.ndarray] = {}
        table = self.atlas.table("top", "top_cos", "bottom", "bottom_cos")
        poles = {pole: _pole(table[pole]) for pole in ("top", "bottom")}
        words = pa.concat_arrays([values for values, _ in poles.values()]).dictionary_encode()
        codes = words.indices.fill_null(len(words.dictionary)).to_numpy(zero_copy_only=False)
        none, at = len(words.dictionary), 0
        for pole, (values, place) in poles.items():
            mine = np.full((len(self.atlas), POLE), none, dtype=np.uint32)
            mine[place] = codes[at : at + len(values)]
            at += len(values)
            cos, where = _pole(table[f"{pole}_cos"])
            steps = np.zeros((len(self.atlas), POLE), dtype=np.int16)
            steps[where] = np.rint(np.nan_to_num(cos.to_numpy(zero_copy_only=False)) * COSINE_STEPS)
            arrays[pole] = mine if none > np.iinfo(np.uint16).max else mine.astype(np.uint16)
            arrays[f"{pole}_cos"] = steps
        return packed(arrays, {"words": words.dictionary.to_pylist(), "steps": COSINE_STEPS, "pole": POLE})

    @cached_property
    def spectra(self) -> bytes:
        """Every place's singular values, and the band in which noise of its shape and norm has each of them."""
        rows = [np.array(r["sigma"], dtype=np.float32) for r in self.atlas.sites]
        bands = spectrum_bands(self.atlas)
        starts = np.cumsum([0, *map(len, rows)]).astype(np.uint32)
        arrays = {"start": starts, "sigma": rounded(np.concatenate(rows))}
        for i, name in enumerate(("low", "high")):
            arrays[name] = rounded(np.concatenate([b[i] for b in bands]))
        return packed(arrays, {"band": "noise of its norm, 95 %"})


def _place(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the page is told of a place; ``inner`` is the size between two factors, and None for a single matrix."""
    inner = record["inner"] if record["kind"] in PRODUCTS else None
    return {**{k: v for k, v in record.items() if k != "sigma"}, "inner": inner}


def table_data(table: Table) -> dict[str, Any]:
    """A result as the page takes it: words, columns with their meaning, values column by column, and the picture."""
    drawn = table.drawn
    return {
        "title": table.title,
        "says": table.says,
        "not_says": table.not_says,
        "next": table.next,
        "key": list(table.key),
        "meta": dict(table.meta),
        "columns": [
            {
                "name": c.name,
                "unit": c.unit,
                "digits": c.digits,
                "about": c.about,
                "chance": c.chance,
                "numbers": c.is_number,
                "values": _finite(c.plain_values()),
            }
            for c in table.columns
        ],
        "picture": picture_data(drawn) if drawn is not None else None,
    }


def _finite(values: list) -> list:
    """The values with infinities as None, which JSON has no word for."""
    endless = (float("inf"), float("-inf"))
    return [None if isinstance(v, float) and v in endless else v for v in values]


def _coded(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Texts as places in a list of the different ones, in order of appearance; a missing one is an empty text."""
    coded = pa.array(["" if v is None else str(v) for v in values]).dictionary_encode()
    codes = coded.indices.to_numpy(zero_copy_only=False)
    return codes.astype(np.uint8 if len(coded.dictionary) <= 256 else np.uint32), coded.dictionary.to_pylist()


def _pole(column: pa.ChunkedArray) -> tuple[pa.Array, tuple[np.ndarray, np.ndarray]]:
    """The first `POLE` entries of each list, one after another, and the (row, place) each of them has."""
    lists = column.combine_chunks()
    starts = lists.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(starts)
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(starts[-1] - starts[0]) - np.repeat(starts[:-1] - starts[0], lengths)
    kept = place < POLE
    return lists.flatten().filter(pa.array(kept)), (row[kept], place[kept])
