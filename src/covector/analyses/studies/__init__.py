"""The questions of the literature as studies: each a function of atlases with a result, a null and a page in the docs.

A study is a file in this folder with a `STUDY`; it is found by listing the folder.

Source: §4 of the theory page; `docs/theory/studies.md`.
"""

import importlib
from functools import cache
from pathlib import Path

from covector.analyses.studies.study import Study
from covector.errors import BadRequest


@cache
def studies() -> dict[str, Study]:
    """Every study by name, found by listing this folder.

    ``covector.studies()["kinds"].function(atlas, model)`` returns its Table; `Study` says what each has to be given.
    """
    names = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    found = [getattr(importlib.import_module(f"{__name__}.{name}"), "STUDY", None) for name in names]
    return {study.name: study for study in found if isinstance(study, Study)}


def study_of(name: str) -> Study:
    """The study of that name. Raises BadRequest, listing them, where there is none."""
    known = studies()
    if name not in known:
        raise BadRequest(f"expected a study ({', '.join(known)}), got '{name}'; covector study lists their questions")
    return known[name]
