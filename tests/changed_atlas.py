"""An atlas with other values in some columns of its index: what a test plants there."""

from pathlib import Path

import numpy as np
from pyarrow import array, parquet

import covector
from covector.io import atlas as store


def with_columns(atlas: covector.Atlas, folder: Path, **columns: np.ndarray) -> covector.Atlas:
    """The same atlas in a new folder, with these columns of its index."""
    table = parquet.read_table(atlas.folder / store.INDEX)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, array(values))
    folder.mkdir()
    store.write_table(folder, store.INDEX, table)
    for name in (store.VECTORS, store.SITES):
        (folder / name).write_bytes((atlas.folder / name).read_bytes())
    kept = {name: value for name, value in store.read_manifest(atlas.folder).items() if name not in ("format", "files")}
    store.write_manifest(folder, kept)
    return covector.Atlas(folder)
