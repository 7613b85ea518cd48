"""Atlases written by hand: places of a made-up model, random frames as vectors, and columns that a test chooses."""

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.building import build_atlas
from covector.io.atlas import INDEX, SITES, Atlas, write_manifest, write_table, write_vectors

Columns = dict[str, np.ndarray]
SIDES = {"ov": ("read", "write"), "qk": ("query", "key"), "mlp.in": ("read",), "mlp.out": ("write",),
         "embed": ("write",)}  # fmt: skip


def frame(rng: np.random.Generator, d: int, r: int) -> np.ndarray:
    """r orthonormal rows of R^d."""
    return np.linalg.qr(rng.standard_normal((d, r)))[0].T


def synthetic(
    folder: Path,
    change: Callable[[Columns, np.random.Generator], None] | None = None,
    *,
    seed: int = 0,
    layers: int = 4,
    heads: int = 4,
    d_head: int = 8,
    ranks: tuple[int, ...] = (),
    d: int = 32,
    kinds: tuple[str, ...] = ("ov", "qk", "mlp.in", "mlp.out", "embed"),
    rotations: int = 1,
    name: str = "made",
    frame_name: str = "raw",
) -> Atlas:
    """An atlas in which nothing means anything: every p is uniform, every z normal; `change` puts something in.

    `ranks`: how many dyads the heads of a layer have, in turn, where it is not `d_head`.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict] = []
    sites, vectors = [], []
    for kind in kinds:
        for layer in range(layers) if kind != "embed" else (None,):
            for head in range(heads) if kind in ("ov", "qk") else (None,):
                place = kind if layer is None else f"L{layer}" + (f"H{head}.{kind}" if head is not None else f".{kind}")
                rank = (ranks or (d_head,))[head % max(1, len(ranks))] if head is not None else d
                sites.append({"site": place, "layer": layer, "head": head, "kind": kind, "sigma": np.ones(rank)})
                for side in SIDES[kind]:
                    vectors.append(frame(rng, d, rank))
                    basis = "token_out" if side == "write" else "token_in"
                    rows += [
                        {"site": place, "layer": layer, "head": head, "kind": kind, "side": side, "dyad": i,
                         "basis": basis} for i in range(rank)
                    ]  # fmt: skip
    n = len(rows)
    table: Columns = {key: np.array([row[key] for row in rows], dtype=object) for key in rows[0]}
    table["dyad"] = table["dyad"].astype(np.int32)
    is_head = np.array([row["head"] is not None for row in rows])
    for column in ("p_coherence", "p_coherence_cov", "p_dir", "p_svd", "p_coherence_svd"):
        table[column] = rng.random(n)
    table["p_coherence_svd"] = np.ceil(table["p_coherence_svd"] * (rotations * d_head + 1)) / (rotations * d_head + 1)
    for column in ("p_svd", "p_coherence_svd"):
        table[column] = np.where(is_head, table[column], np.nan)
    table["z_coherence"] = rng.standard_normal(n)
    table["coherence"] = 0.01 * table["z_coherence"]
    table["cos"] = rng.uniform(0.2, 0.5, n)
    table["zeta"] = np.sqrt(d) * table["cos"]
    table["q_dir"], table["q_coherence"] = np.ones(n), np.ones(n)
    table["interpretable"] = np.zeros(n, bool)
    for pole in ("top", "bottom"):
        table[pole] = np.array([["a", "b"]] * n + [None], dtype=object)[:-1]
    table["vectors"] = np.concatenate(vectors)
    if change is not None:
        change(table, rng)
    rows_written = table.pop("vectors")
    folder.mkdir(parents=True)
    write_table(folder, INDEX, pa.table({k: pa.array(list(v)) for k, v in table.items()}))
    listed = {k: pa.array([s[k] for s in sites]) for k in ("site", "layer", "head", "kind", "sigma")}
    write_table(folder, SITES, pa.table(listed))
    write_vectors(folder, [rows_written], (n, d))
    write_manifest(
        folder,
        {
            "complete": True,
            "reference": shlex.quote(name),
            "d_model": d,
            "meta": {"model": name, "frame": frame_name},
            "options": Options(kinds=("ov",), rotations=rotations, draws=1000).to_dict(),
        },
    )
    return Atlas(folder)


def reading_topics(seed: int = 6):
    """A model whose heads read near topics that the unembedding has and the embedding has not, and write at random.

    300 tokens in 30 topics, ten each: as many as a list of that vocabulary scores.
    """
    weights = random_model(seed=seed, n_layers=3, d_model=32, d_head=8, n_vocab=300, norm=None)
    rng = np.random.default_rng(seed)
    topics = rng.standard_normal((30, 32)) / np.sqrt(32)
    arrays = dict(weights.arrays)
    arrays["W_U"] = (topics[np.arange(300) % 30] + 0.7 * rng.standard_normal((300, 32)) / np.sqrt(32)).T
    for layer in range(3):
        reads = [topics[rng.permutation(30)[:8]] + 0.7 * rng.standard_normal((8, 32)) / np.sqrt(32) for _ in range(4)]
        arrays[f"L{layer}.W_V"] = np.stack([np.linalg.qr(one.T)[0] * np.linspace(4, 1, 8) for one in reads])
        arrays[f"L{layer}.W_O"] = np.stack([frame(rng, 32, 8) for _ in range(4)])
    return type(weights)(weights.spec, arrays)


def built(model: object, folder: Path, options: Options) -> Atlas:
    """The atlas of a small model, on one worker."""
    atlas = build_atlas(model, folder, options=options, workers=1)
    assert atlas is not None
    return atlas
