"""A command that proposes the next one can be typed as it stands."""

import shlex

import pytest

from covector.cli.retyped import TYPED, retyped


@pytest.mark.parametrize(
    ("typed", "more", "expected"),
    [
        (
            ["steer", "m", "' a'", "--path", "L2H3>out"],
            ["--split"],
            ["steer", "m", "' a'", "--path", "L2H3>out", "--split"],
        ),
        (
            ["steer", "--path=L2H3>out", "--", "m", "n"],
            ["--split"],
            ["steer", "m", "n", "--path=L2H3>out", "--split"],
        ),
        (["observe", "norms", "--", "m", "' a'"], ["--json"], ["observe", "norms", "m", "' a'", "--json"]),
    ],
)
def test_options_stand_where_they_are_options(typed: list[str], more: list[str], expected: list[str]) -> None:
    """The explorer's worker puts ``--`` before what a person typed; options behind it would be words."""
    token = TYPED.set(tuple(typed))
    try:
        assert shlex.split(retyped(*more)) == ["covector", *expected]
    finally:
        TYPED.reset(token)
