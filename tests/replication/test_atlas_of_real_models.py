"""An atlas of every trained model: whole, of orthonormal directions, and the same for the dyads that `svd` finds."""

from pathlib import Path

import numpy as np
import pytest

import covector
from covector.atlas.plan import Options

LAYOUTS = Path(__file__).parents[1] / "layouts"
MODELS = (
    "dt-cartpole", "dt-minigrid-memory", "dt-minigrid-obstacles", "induction-gpt2", "modadd59-clock", "stories260k",
)  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_an_atlas_of_a_trained_model_holds_every_dyad_of_every_map(shared: Path, name: str, tmp_path: Path) -> None:
    beside = LAYOUTS / f"{name}.toml"
    model = covector.open(shared / "models" / name, beside if beside.exists() else None)
    atlas = covector.build_atlas(model, tmp_path / "atlas", options=Options(draws=300, k=5), workers=1)
    assert atlas is not None
    index = atlas.columns("site", "side", "dyad", "sigma", "p_dir", "q_dir")
    held = set(index["site"])
    assert {str(site) for kind in ("ov", "qk") for site in model.sites(f"L*H*.{kind}")} <= held
    for address in ("L0H0.ov", "L0H0.qk"):
        found = covector.svd(model.map(address))
        for side, rows in zip(
            ("query", "key") if "qk" in address else ("read", "write"), (found.U.T, found.Vh), strict=True
        ):
            at = (index["site"] == address) & (index["side"] == side)
            # One BLAS thread in the atlas, as many as there are here: gains agree to rounding, signs as written.
            np.testing.assert_allclose(index["sigma"][at], found.S, rtol=1e-9)
            cosines = np.sum(atlas.vectors[at].astype(np.float64) * rows, axis=1)
            apart = found.gap > 1e-6
            np.testing.assert_allclose(cosines[apart], 1.0, atol=2e-3)  # float16 rows
    assert np.all((index["p_dir"] >= 0) & (index["p_dir"] <= 1))
    assert np.all(index["q_dir"] >= index["p_dir"] - 1e-15)  # adjusting never lowers
