"""An atlas of a hundred thousand random directions, in the shape of gpt2-medium: for sizes and speed alone."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from covector.atlas.plan import Options
from covector.io import atlas as store
from covector.io.atlas_columns import SCORED

LAYERS, HEADS, D_HEAD, D_MODEL, K = 24, 16, 64, 1024, 10
SIDES = {"ov": ("read", "write"), "qk": ("query", "key"), "mlp.in": ("read",), "mlp.out": ("write",)}
FLOATS = (
    "gap", "turn", "sign_margin", "p_svd", "p_cov", "score_pole", "heldout_low", "heldout_high", "whole", "carried",
    "stability", "p_whole", "q_svd", "q_whole", *SCORED,
    *(f"p_{score}{null}" for score in SCORED for null in ("", "_cov", "_svd", "_pooled")),
    *(f"q_{score}{null}" for score in SCORED for null in ("", "_cov", "_svd")),
    *(f"z_{score}{null}" for score in SCORED for null in ("", "_svd")),
)  # fmt: skip
FLAGS = ("noisy", "interpretable", "svd_specific", "aligned")


def words_like(n: int, seed: int = 0) -> list[str]:
    """As many different labels as a vocabulary has, of its lengths."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    return [
        " " * int(rng.random() < 0.6) + "".join(rng.choice(letters, rng.integers(2, 9))) + str(i % 7) for i in range(n)
    ]


def places() -> list[tuple[str, int, int | None, str]]:
    """Every OV, QK and MLP map of the model."""
    heads = [(f"L{i}H{h}.{kind}", i, h, kind) for i in range(LAYERS) for kind in ("ov", "qk") for h in range(HEADS)]
    return heads + [(f"L{i}.{kind}", i, None, kind) for i in range(LAYERS) for kind in ("mlp.in", "mlp.out")]


def write_big_atlas(folder: Path, mlp_rank: int = 35, seed: int = 0) -> int:
    """Write the atlas; returns its number of directions (99,984 with the MLP rank that is given)."""
    rng = np.random.default_rng(seed)
    rows = [
        (site, layer, head, kind, side, dyad)
        for site, layer, head, kind in places()
        for side in SIDES[kind]
        for dyad in range(D_HEAD if head is not None else mlp_rank)
    ]
    n = len(rows)
    words = words_like(50257)
    nearest = rng.standard_gamma(2.0, n) * 0.8 + 3.0
    cos = nearest / np.sqrt(D_MODEL) * rng.choice([-1.0, 1.0], n)
    p = np.exp(-0.5 * np.maximum(nearest - 3.2, 0) ** 2 * 3)
    lists = {pole: rng.integers(0, len(words), (n, K), dtype=np.int32) for pole in ("top", "bottom")}
    falling = np.sort(np.abs(cos)[:, None] * rng.uniform(0.7, 1, (n, K)), axis=1)[:, ::-1]
    columns = {
        name: [row[i] for row in rows] for i, name in enumerate(("site", "layer", "head", "kind", "side", "dyad"))
    }
    columns |= {"sigma": np.sort(rng.lognormal(0, 0.8, n))[::-1], "cos": cos, "zeta": cos * np.sqrt(D_MODEL)}
    columns |= {
        "p_dir": p,
        "q_dir": np.minimum(p * 20, 1.0),
        "block_first": columns["dyad"],
        "block_last": columns["dyad"],
    }
    columns |= {name: rng.random(n) for name in FLOATS} | {name: rng.random(n) < 0.02 for name in FLAGS}
    columns["basis"] = ["token_out" if side == "write" else "token_in" for *_, side, _ in rows]
    columns["label"] = [words[i] for i in lists["top"][:, 0]]
    arrays = {name: pa.array(values) for name, values in columns.items()}
    for name in ("layer", "head", "dyad", "block_first", "block_last"):
        arrays[name] = arrays[name].cast(pa.int32())
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * K)
    vocabulary = pa.array(words)
    for pole, sign in (("top", 1.0), ("bottom", -1.0)):
        ids = lists[pole].ravel()
        arrays[pole] = pa.ListArray.from_arrays(offsets, vocabulary.take(pa.array(ids)))
        arrays[f"{pole}_id"] = pa.ListArray.from_arrays(offsets, pa.array(ids))
        arrays[f"{pole}_cos"] = pa.ListArray.from_arrays(offsets, pa.array((sign * falling).astype(np.float32).ravel()))
    folder.mkdir(parents=True)
    store.write_vectors(folder, (_units(rng, min(4096, n - i)) for i in range(0, n, 4096)), (n, 64))
    store.write_table(folder, store.INDEX, pa.table(arrays))
    store.write_table(folder, store.SITES, _sites(rng, mlp_rank))
    meta = {
        "model": "random-medium",
        "family": "gpt2",
        "frame": "raw",
        "dtype": "float16",
        "files": {},
        "revision": None,
    }
    options = Options(k=K, seed=seed).to_dict()
    store.write_manifest(folder, {
        "complete": True, "d_model": 64, "directions": n, "meta": meta, "options": options, "parts": {},
        "reference": "random-medium", "tensors": {},
    })  # fmt: skip
    return n


def _units(rng: np.random.Generator, n: int) -> np.ndarray:
    rows = rng.standard_normal((n, 64))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def _sites(rng: np.random.Generator, mlp_rank: int) -> pa.Table:
    found = places()
    spectra = [
        np.sort(rng.lognormal(0, 0.8, D_HEAD if head is not None else mlp_rank))[::-1].tolist() for *_, head, _ in found
    ]
    return pa.table({
        "site": [s for s, *_ in found],
        "layer": pa.array([layer for _, layer, _, _ in found], pa.int32()),
        "head": pa.array([head for _, _, head, _ in found], pa.int32()),
        "kind": [kind for *_, kind in found],
        "n": [4096 if kind == "mlp.out" else D_MODEL for *_, kind in found],
        "m": [4096 if kind == "mlp.in" else D_MODEL for *_, kind in found],
        "inner": pa.array([D_HEAD if head is not None else None for *_, head, _ in found], pa.int64()),
        "noise": [1e-4] * len(found),
        "sigma": spectra,
    })  # fmt: skip
