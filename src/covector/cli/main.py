"""The `covector` command: reads the words, runs one command, turns every failure into one line and an exit code.

0 done; 2 the request was wrong (one line on standard error: what was expected, what came, what to do); 1 a defect of
ours. Commands import what they need when they run, so that ``--help`` needs neither NumPy nor torch.
"""

import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from covector.cli.retyped import TYPED
from covector.cli.sections import COMMANDS, GROUP, Sections
from covector.errors import CovectorError

# What the extra `run` brings; without it weights are read and no model runs.
RUNS = ("torch", "transformers")
# The exit code of what Ctrl-C ends: 128 and the number of the signal.
INTERRUPTED = 130


def _version(wanted: bool) -> bool:
    if wanted:
        from covector.workbench import own_version

        sys.stdout.write(f"covector {own_version()}\n")
        raise typer.Exit
    return wanted


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Read a transformer's weights: what each direction reads and writes, and how likely that is by chance."""


def app(only: str | None = None) -> typer.Typer:
    """The command line; `only` one command of it, which spares the tenth of a second that setting up all takes."""
    made = typer.Typer(
        name="covector",
        cls=Sections,
        help="Read a transformer's weights: what each direction reads and writes, and how likely that is by chance.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    made.callback()(_root)
    for name, module in COMMANDS.items():
        if name != GROUP and only in (None, name):
            made.command(name=name)(getattr(import_module(f"covector.cli.{module}"), name.replace("-", "_")))
    if only in (None, GROUP):
        from covector.cli import ioi, observe_more  # noqa: F401 (they add their sub-commands)
        from covector.cli.observe import observe

        made.add_typer(observe, name=GROUP)
    return made


def main() -> None:
    """Run the command line and exit with its code."""
    # Idle torch threads that spin make every run several times slower where other programs use the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(run(sys.argv[1:]))


def run(words: list[str]) -> int:
    """Run one command line; returns the exit code. With COVECTOR_DEBUG=1 a failure keeps its traceback."""
    words = [*words, "--help"] if words in ([], [GROUP]) else words
    known = words[0] in COMMANDS
    command = typer.main.get_command(app(words[0] if known else None))
    TYPED.set(tuple(words))
    try:
        result = command.main(args=words, prog_name="covector", standalone_mode=False)
        if result == INTERRUPTED:  # the option parser turns Ctrl-C into this code
            return _failed("interrupted", INTERRUPTED)
        return result if isinstance(result, int) else 0
    except CovectorError as error:
        return _failed(str(error), 2)
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away; nothing to say
        return 0
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name not in RUNS:
            return _defect(error)
        return _failed(
            f"this command runs a model: expected torch, {error.name} is missing; pip install 'covector[run]' "
            "(here: make setup-all)",
            2,
        )
    except Exception as error:
        usage_error = getattr(error, "format_message", None)  # the option parser's errors, whatever library they are of
        if usage_error is not None:
            where = getattr(getattr(error, "ctx", None), "command_path", None) or f"covector {words[0]}"
            return _failed(f"{usage_error()} See {where} --help.", 2)
        return _defect(error)


def _defect(error: Exception) -> int:
    """What is our fault: one line, or its traceback with COVECTOR_DEBUG=1."""
    if os.environ.get("COVECTOR_DEBUG"):
        raise error
    return _failed(
        f"a defect of ours: {type(error).__name__}: {error}; COVECTOR_DEBUG=1 shows where. Please report it", 1
    )


def _failed(text: str, code: int) -> int:
    from covector.render.labels import printable

    # Errors quote what files hold: nothing from a checkpoint may steer a terminal.
    sys.stderr.write("covector: " + printable(" ".join(text.split())) + "\n")
    return code
