"""`covector view`: look at a model's weights in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from covector.errors import BadRequest, MissingExtra


def view(
    atlas: Annotated[str, typer.Argument(help="An atlas folder; or a model, whose atlas is then built first.")],
    other: Annotated[Path | None, typer.Argument(help="A second atlas folder, to compare with.")] = None,
    port: Annotated[int, typer.Option("--port", help="The port to listen on (any that is free).")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the address, open no browser.")] = False,
) -> None:
    """Look at a model's weights in the browser: places, directions, concepts, observables, edits, agents.

    The page is served to this machine alone, under an address with a token that is new at each start.
    """
    try:
        from covector.web.serve import serve
        from covector.web.shown import Shown
    except ImportError as error:
        raise MissingExtra(
            f"view serves a page: expected fastapi and uvicorn, {error.name} is missing; pip install 'covector[app]'"
        ) from error
    if not 0 <= port < 2**16:
        raise BadRequest(f"--port: expected a port from 1 to 65535, or 0 for any that is free, got {port}")
    if atlas.endswith(".atlas") and not Path(atlas).exists():
        raise BadRequest(
            f"expected an atlas at '{atlas}', there is none; covector atlas MODEL --out {atlas} builds one"
        )
    shown = Shown(atlas, None if other is None else str(other))
    if not shown.is_built:
        shown.check()
    try:
        serve(shown, port=port, browser=not no_open)
    except OSError as error:
        raise BadRequest(
            f"--port: expected a port that is free, {port} is not ({error.strerror}); name another"
        ) from error
