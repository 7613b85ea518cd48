"""What is said of an edit: harm is claimed where the change itself is beyond chance, and worse than random changes."""

from typing import Any

import pytest

from covector.analyses.rollout_words import FEWEST, of_edit


def said(p: float, worse: float, rank: float, controls: int = FEWEST) -> str:
    row: dict[str, Any] = {"arm": "edit", "change": -0.5, "change_low": -0.9, "change_high": -0.1, "p": p}
    return of_edit({**row, "worse": worse, "p_random": rank}, controls)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (said(1e-4, 0.0, 0.05), "harms more than chance edits do"),
        (said(1e-4, 0.2, 0.25), "harms as much as chance edits do"),
        (said(1e-4, 0.9, 0.95), "harms less than chance edits do"),
        # The worst of twenty that all do next to nothing has the least rank p there is.
        (said(1.0, 0.0, 0.05), "the change itself is within chance"),
        (said(1e-4, 0.0, 0.25, controls=3), "too few to tell"),
    ],
)
def test_harm_is_claimed_by_both_tests_or_not_at_all(told: str, words: str) -> None:
    assert words in told
    assert ("harms more" in told) == (words == "harms more than chance edits do")
