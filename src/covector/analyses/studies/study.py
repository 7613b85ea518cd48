"""What a study is: a question with a name, the function that answers it, and what that function has to be given."""

from collections.abc import Callable
from dataclasses import dataclass

from covector.render import Table

# What a study is called with, in words of a list: `covector study` shows them.
NEEDS = {
    "atlas": "an atlas",
    "model": "an atlas",
    "atlases": "atlases",
    "sizes": "atlases",
    "frames": "an atlas",
    "counts": "an atlas (and a text)",
    "text": "an atlas and a text",
    "toy": "nothing, or an atlas",
}


@dataclass(frozen=True)
class Study:
    """A named question.

    `function` takes what `needs` says first: ``atlas`` (an Atlas), ``model`` (an Atlas and the Model it was made from),
    ``atlases`` (a sequence of them), ``sizes`` (a sequence of them, and the parameters of their models), ``frames`` (an
    Atlas and a callable from a frame's name to its Atlas), ``counts`` (as ``model``, and how often each token occurs,
    or None), ``text`` (as ``model``, and a callable from names of hook points to what passes there), ``toy`` (nothing,
    or as ``model``); then keywords that its docstring names, `seed` among them where it is `seeded`. It returns a
    Table.
    """

    name: str
    question: str
    function: Callable[..., Table]
    needs: str
    design: str
    seeded: bool = True

    def __post_init__(self) -> None:
        assert self.needs in NEEDS, self.needs
