"""The floors of the house: imports go down, families live in arch alone, torch stays where models run."""

import ast
import re
from pathlib import Path

import pytest

from covector.arch.family import families

SRC = Path(__file__).resolve().parents[1] / "src" / "covector"
# Floor of each package or module. Modules of one floor may use each other's packages only within one package.
FLOORS = {
    "errors": 0, "axes": 0, "linalg": 1, "render": 2, "model": 2, "arch": 3, "demo": 3, "study": 3, "io": 4,
    "engine": 4, "propagation": 4, "run": 5, "analyses": 6, "atlas": 7, "workbench": 8, "changes": 9, "saving": 9,
    "atlases": 10, "building": 10, "rollouts": 11, "scoring": 11, "web": 12, "cli": 13, "__main__": 14,
}  # fmt: skip
# Imports inside functions: optional or slow libraries at a door, and the commands of the CLI (quick --help).
DOORS = {
    "analyses/couple.py": {"covector"},
    "atlases.py": {"covector"},
    "engine/engines.py": {"distributed"},
    "io/gguf.py": {"gguf"},
    "io/hub.py": {"huggingface_hub"},
    "io/torch_bin.py": {"torch"},
    "io/vocabulary.py": {"tokenizers"},
    "linalg/factorings.py": {"sklearn"},
    "linalg/half.py": {"torch"},
    "linalg/independent.py": {"sklearn"},
    "linalg/interval.py": {"scipy"},
    "linalg/lapack.py": {"scipy"},
    "linalg/on_device.py": {"torch"},
    "linalg/svd.py": {"torch"},
    "model/activations.py": {"scipy"},
    "render/files.py": {"pandas", "pyarrow"},
    "run/film.py": {"imageio_ffmpeg"},
    "render/plot.py": {"matplotlib"},
    "render/plotly_plot.py": {"plotly"},
    "render/terminal.py": {"rich"},
    "render/html.py": {"matplotlib"},
    "workbench.py": {"covector"},
}
# Analyses that run a model; only their callers' doors import them.
RUNNING = {
    "analyses/attribute.py", "analyses/choose.py", "analyses/choose_metric.py", "analyses/fires.py",
    "analyses/ioi_ablation.py", "analyses/patch.py", "analyses/proof.py", "analyses/replicate/obprop_bench.py",
    "analyses/replicate/obprop_numbers.py", "analyses/replicate/removal.py", "analyses/rollout_arms.py",
    "analyses/sweep_setup.py",
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(p for p in SRC.rglob("*.py") if p.name != "__init__.py" or p.parent != SRC)


def name_of(path: Path) -> str:
    return str(path.relative_to(SRC))


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute, so that a reader and this test see where they go"
        return [f"covector.{a.name}" for a in node.names] if node.module == "covector" else [node.module or ""]
    return [a.name for a in node.names] if isinstance(node, ast.Import) else []


def type_checking_only(tree: ast.Module) -> set[int]:
    blocks = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    return {id(inner) for block in blocks for inner in ast.walk(block)}


def floor(module: str) -> int:
    return FLOORS[module.split(".")[1]]


def upward(path: Path, source: str) -> list[str]:
    """Imports of a higher floor, or of another package of the same floor."""
    package = path.relative_to(SRC).parts[0].removesuffix(".py")
    own, found = FLOORS[package], []
    tree = ast.parse(source)
    skipped = type_checking_only(tree)
    for node in ast.walk(tree):
        for module in imported(node) if id(node) not in skipped else []:
            if not module.startswith("covector."):
                continue
            target = module.split(".")[1]
            if FLOORS[target] > own or (FLOORS[target] == own and target != package and own > 0):
                found.append(f"{name_of(path)} imports {module}")
    return found


def test_every_package_has_a_floor() -> None:
    packages = {p.relative_to(SRC).parts[0].removesuffix(".py") for p in modules()}
    assert packages <= FLOORS.keys()


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_only_go_down(path: Path) -> None:
    assert upward(path, path.read_text(encoding="utf-8")) == []


def test_an_upward_import_is_seen() -> None:
    assert upward(SRC / "linalg" / "maps.py", "from covector.model.spec import Norm\n")
    assert upward(SRC / "model" / "spec.py", "from covector.render import Table\n")
    assert upward(SRC / "io" / "hub.py", "from covector import workbench\n")
    with pytest.raises(AssertionError, match="imports are absolute"):
        upward(SRC / "io" / "hub.py", "from ..cli.main import run\n")


@pytest.mark.parametrize("path", [p for p in modules() if p.parent.name != "cli"], ids=name_of)
def test_imports_stand_at_the_top_but_for_named_doors(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = [n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)]
    late = {m.split(".")[0] for n in inner for m in imported(n)}
    assert late <= DOORS.get(name_of(path), set())


@pytest.mark.parametrize("path", [p for p in modules() if p.parts[-2] != "run"], ids=name_of)
def test_torch_and_transformers_are_imported_where_models_run(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if name_of(path).startswith("demo/") or "torch" in DOORS.get(name_of(path), set()) or name_of(path) in RUNNING:
        return  # scripts that train the bundled models; doors; analyses that run a model
    assert not {m.split(".")[0] for n in ast.walk(tree) for m in imported(n)} & {"torch", "transformers"}


@pytest.mark.parametrize("path", [p for p in modules() if p.parts[-2] not in ("arch", "demo")], ids=name_of)
def test_no_family_is_named_outside_arch(path: Path) -> None:
    """In code: docstrings and help texts may name one as an example."""
    names = [n for n in families() if n not in ("toy", "transformer_lens")]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    words = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    words += [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
    named = [w for w in words if any(re.fullmatch(f"{f}|{f.replace('_', '-')}", w, re.IGNORECASE) for f in names)]
    assert named == []
