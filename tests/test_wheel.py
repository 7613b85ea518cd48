"""The wheel: built from this tree, it holds the bundled model, and runs with core dependencies alone."""

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The bundled language model, its truth and its card may take this much of the wheel (MiB).
MODEL_LIMIT = 4.0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network by the build backend that is installed."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], check=True, cwd=ROOT,
                   capture_output=True)  # fmt: skip
    return next(out.glob("*.whl"))


def core_distributions() -> set[str]:
    """Names of covector's dependencies without extras, and of theirs."""
    found: set[str] = set()
    waiting = ["covector"]
    while waiting:
        for line in importlib.metadata.requires(waiting.pop()) or []:
            name = re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0]
            optional = "extra ==" in line
            applies = not re.search(r"(sys_platform|platform_system)\s*==\s*[\"']win|python_version\s*<", line)
            if optional or not applies or name in found:
                continue
            try:
                importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            found.add(name)
            waiting.append(name)
    return found


@pytest.fixture(scope="module")
def core_only(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel unpacked and links to its core dependencies: nothing else can be imported from it."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in core_distributions():
        distribution = importlib.metadata.distribution(name)
        tops = {f.parts[0] for f in distribution.files or [] if f.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            link = site / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return site


def python(site: Path, code: str) -> str:
    """Standard output of code run with the standard library and `site` alone."""
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=site)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_bundled_model_fits_its_limit(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        size = sum(i.compress_size for i in archive.infolist() if i.filename.startswith("covector/demo/"))
        names = archive.namelist()
    assert size <= MODEL_LIMIT * 2**20
    assert "covector/py.typed" in names
    assert {
        "covector/demo/lm/model.safetensors",
        "covector/demo/dt/model.safetensors",
        "covector/demo/dt/agent.json",
    } <= {*names}


def test_torch_is_not_among_the_core_dependencies(core_only: Path) -> None:
    assert "False" in python(core_only, "import importlib.util; print(importlib.util.find_spec('torch') is not None)")


def test_the_wheel_reads_the_bundled_model_with_core_dependencies_alone(core_only: Path) -> None:
    code = (
        "import covector\n"
        "table = covector.readout(covector.open('demo-lm'), 'L1H0', rank=3, exact=True, draws=200)\n"
        "print(len(table), len(table.to_json()) > 1000)"
    )
    assert python(core_only, code).split() == ["3", "True"]


def test_the_command_runs_and_says_what_an_extra_is_needed_for(core_only: Path) -> None:
    assert "dyads" in python(
        core_only, "from covector.cli.main import run; run(['svd', 'demo-lm', 'L1H0', '--rank', '2'])"
    )
    code = (
        "import sys; from covector.cli.main import run; sys.stderr = sys.stdout\n"
        "print(run(['inspect', 'demo-lm', '--check']))"
    )
    out = python(core_only, code)
    assert "pip install 'covector[run]'" in out
    assert out.strip().endswith("2")
