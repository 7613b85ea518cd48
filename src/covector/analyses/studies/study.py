"""What a study is: a question with a name, the function that answers it, and what that function has to be given."""

from collections.abc import Callable
from dataclasses import dataclass

from covector.render import Table

# What a study is called with: the atlas alone, the atlas and its model, several atlases, or an atlas with a maker of
# atlases in other frames.
NEEDS = ("atlas", "model", "atlases", "frames")


@dataclass(frozen=True)
class Study:
    """A named question.

    `function` takes what `needs` says first: ``atlas`` (an Atlas), ``model`` (an Atlas and the Model it was made from),
    ``atlases`` (a sequence of them), ``frames`` (an Atlas and a callable from a frame's name to its Atlas); then
    keywords that its docstring names, `seed` among them where it is `seeded`. It returns a Table.
    """

    name: str
    question: str
    function: Callable[..., Table]
    needs: str
    design: str
    seeded: bool = True

    def __post_init__(self) -> None:
        assert self.needs in NEEDS, self.needs
