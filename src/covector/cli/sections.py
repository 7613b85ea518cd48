"""What the commands are, in the order and under the headings of the help."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from typer.core import TyperGroup

# Heading → command → the module of covector.cli that has it.
SECTIONS = {
    "Look at weights": {
        "svd": "svd", "spectrum": "spectrum", "heads": "heads", "locate": "locate", "diff": "diff",
        "inspect": "inspect",
    },
    "A whole model": {
        "view": "view", "atlas": "atlas", "glance": "glance", "search": "search", "directions": "glance",
        "score": "score", "fires": "fires", "compare-atlases": "compare_atlases", "report": "report",
    },
    "What decides a task": {
        "observe": "observe", "attribute": "attribute", "patch": "patch", "attend": "attend", "induction": "induction",
        "sweep": "sweep",
    },
    "Change weights, and see": {"edit": "edit", "steer": "steer", "rank": "rank", "debias": "debias"},
    "Agents": {"rollout": "rollout"},
    "Questions with their designs": {"study": "study", "replicate": "replicate"},
}  # fmt: skip
COMMANDS = {name: module for commands in SECTIONS.values() for name, module in commands.items()}
# The command that has commands of its own.
GROUP = "observe"
# Longer than any first sentence, so that none is cut.
WHOLE = 500


class Sentences(TyperGroup):
    """Help with the first sentence of every command in full."""

    headings: ClassVar[Mapping[str, Iterable[str]]] = {}

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 (click gives it)
        """One list for each heading; one of all commands where there are no headings."""
        for heading, names in (self.headings or {"Commands": self.commands}).items():
            commands = [(name, self.commands[name]) for name in names if name in self.commands]
            if commands:
                with formatter.section(heading):
                    formatter.write_dl([(name, command.get_short_help_str(WHOLE)) for name, command in commands])


class Sections(Sentences):
    """The help of all commands, by heading."""

    headings = SECTIONS
