"""The public names: every one exists, is documented, and is listed once, sorted."""

import ast
import inspect
from pathlib import Path

import pytest

import covector

SOURCE = Path(covector.__file__)


@pytest.mark.parametrize("name", covector.__all__)
def test_a_public_name_loads_and_says_what_it_is(name: str) -> None:
    value = getattr(covector, name)
    assert inspect.getdoc(value)
    assert value.__module__.startswith("covector.")


def test_the_lists_of_public_names_agree() -> None:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    annotated = {a.asname for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert annotated == set(covector.__all__) == set(covector._HOMES)
    assert len(covector.__all__) == len(set(covector.__all__))


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = covector.nothing


def test_the_version_is_that_of_the_package_and_of_the_changelog() -> None:
    root = SOURCE.parents[2]
    assert f'version = "{covector.__version__}"' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert f"## {covector.__version__}" in (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {covector.__version__}" in (root / "CITATION.cff").read_text(encoding="utf-8")
