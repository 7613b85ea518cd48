"""Ten steps with covector: open, inspect, decompose, read, table, torch, frame, compare, plot, save.

Runs on the bundled model; every step is a line that you would type in a notebook. Prints one line per step.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import covector


def main(folder: Path) -> int:
    """The ten steps; files go to `folder`."""
    say = lambda step, text: sys.stdout.write(f"{step:>2}. {text}\n")  # noqa: E731

    model = covector.open("demo-lm")
    say(1, f"open: {model.name}, {model.spec.n_layers} layers of d_model {model.spec.d_model}")

    tensors = covector.inspect(model)
    say(2, f"inspect: {len(tensors)} kinds of tensors, stored as {model.meta['dtype']}")

    d = covector.svd(model.map("L1H0.ov"))
    say(3, f"svd: {d.rank} dyads, gains {d.S[0]:.3g} to {d.S[-1]:.3g}, found by {d.route}")

    table = covector.readout(model, "L1H0", k=6)
    say(4, f"readout: {table.says}")

    frame = table.to_pandas()
    say(5, f"pandas: {frame.shape[0]} rows, {int((frame.write_q < 0.05).sum())} with q < .05")

    U, S, Vh = d.torch()
    say(6, f"torch: {type(U).__name__} of shape {tuple(U.shape)}, {S.dtype}")

    folded = covector.readout(model, "L1H0", frame="folded", k=6)
    say(7, f"frame: σ₀ {table['sigma'][0]:.3g} raw, {folded['sigma'][0]:.3g} folded")

    theirs = np.linalg.svd(model.map("L1H0.ov").dense().astype(np.float32), full_matrices=False)
    say(8, f"compare: {covector.compare(model, 'L1H0', *theirs).words}")

    table.plot(folder / "L1H0.svg")
    say(9, f"plot: L1H0.svg, {(folder / 'L1H0.svg').stat().st_size // 1024} kB")

    table.save(folder / "L1H0.parquet")
    again = covector.Table.load(folder / "L1H0.parquet")
    say(10, f"save: read back {len(again)} rows, the same {again.rows == table.rows}")
    return 0 if again.rows == table.rows and Vh.shape[0] == len(S) else 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        sys.exit(main(Path(name)))
