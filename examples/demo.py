"""The main job on the bundled model: what its heads read and write, against chance. Run by `make demo`.

Prints the sizes of the model, scans every head for the one whose written directions are least like chance, reads it,
decomposes the whole model into an atlas, traces a concept through it, and leaves everything in out/demo.
"""

import sys
from pathlib import Path

import covector

OUT = Path("out/demo")


def strongest_head(model: covector.Model) -> tuple[str, float]:
    """The head whose leading dyads write the most labels beyond chance (largest mean |ζ| of five dyads)."""
    best = ("", 0.0)
    for site in model.sites("L*H*.ov"):
        table = covector.readout(model, str(site), rank=5, k=1)
        score = float(abs(table["write_zeta"]).mean())
        best = max(best, (str(site), score), key=lambda found: found[1])
    return best


def main() -> int:
    """Inspect, scan, read, save."""
    model = covector.open("demo-lm")
    covector.inspect(model).show()
    address, score = strongest_head(model)
    sys.stdout.write(f"\nOf all heads, {address} writes what is least like chance (mean |ζ| {score:.1f}):\n\n")
    table = covector.readout(model, address)
    table.show()
    OUT.mkdir(parents=True, exist_ok=True)
    table.save(OUT / "readout.parquet")
    table.save(OUT / "readout.json")
    sys.stdout.write("\nThe whole model, and a concept traced through it:\n\n")
    atlas = covector.build_atlas(model, OUT / "demo-lm.atlas")
    if atlas is not None:
        covector.trace(atlas, "' rain' + ' hail' + ' lightning'", top=8).show()
    sys.stdout.write(f"\nresults: {OUT}/readout.json, {OUT}/readout.parquet, {OUT}/demo-lm.atlas\n")
    sys.stdout.write(f"look:    .venv/bin/covector view {OUT}/demo-lm.atlas\n")
    sys.stdout.write("go on:   .venv/bin/covector svd demo-lm L3.mlp.out --grid      .venv/bin/covector --help\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
