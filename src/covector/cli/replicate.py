"""`covector replicate`: published lists and findings about singular directions, beside ours."""

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from covector.cli.options import Dtype, Json, Layout, Out, Plot, Quiet, RunDevice, Seed, Strict
from covector.errors import BadRequest, in_words

if TYPE_CHECKING:
    from covector.model.opened import Model
    from covector.render import Table

# What each replication takes besides the options of every command.
TAKES = {
    "conjecture": ("published", "show", "top", "draws"),
    "sprint": ("atlas", "concept", "text", "draws"),
    "obprop": ("show", "top", "text", "draws", "names", "as-published", "section", "size"),
    "dt-svd": ("draws", "agent", "no-play", "episodes", "controls", "control-episodes", "block", "workers"),
}


def replicate(
    what: Annotated[
        str,
        typer.Argument(help="conjecture: published lists; sprint: findings A–G; obprop: observables; dt-svd: agents."),
    ],
    model: Annotated[
        str | None,
        typer.Argument(help="Hub name (gpt2, name@revision), local folder, demo-lm or demo-dt (dt-svd: demo-dt)."),
    ] = None,
    model_option: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The same as the argument MODEL.")
    ] = None,
    published: Annotated[
        Path | None, typer.Option("--published", metavar="FILE", help="conjecture: lists of your own, or downloaded.")
    ] = None,
    show: Annotated[
        str | None,
        typer.Option("--show", help="conjecture: recipes tried (default), or lists. obprop: numbers, or claims."),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option("--top", "--rows", help="Rows on the screen (conjecture 12, obprop 40); files have all."),
    ] = None,
    atlas: Annotated[
        Path | None,
        typer.Option("--atlas", metavar="DIR", help="sprint: where its atlases are, or go (a passing one)."),
    ] = None,
    concept: Annotated[
        list[str] | None, typer.Option("--concept", help='sprint: a concept to trace, such as "fire + flame".')
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Plain text to run (sprint G, obprop slopes).")
    ] = None,
    draws: Annotated[int | None, typer.Option("--draws", help="Draws of the simulated nulls.")] = None,
    names: Annotated[
        Path | None, typer.Option("--names", metavar="FILE", help="obprop: more names, 'Mary,F' a line.")
    ] = None,
    as_published: Annotated[
        list[str] | None,
        typer.Option("--as-published", metavar="all|B1,B2…", help="obprop: repeat these known defects."),
    ] = None,
    section: Annotated[list[str] | None, typer.Option("--section", help="obprop: only 2.2, 2.3 … 2.10.")] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", help="obprop: with the model 'random', by what its widths are divided (16)."),
    ] = None,
    agent: Annotated[
        Path | None, typer.Option("--agent", metavar="FILE", help="dt-svd: agent.json (default: beside the weights).")
    ] = None,
    no_play: Annotated[bool, typer.Option("--no-play", help="dt-svd: weights alone, no episodes.")] = False,
    episodes: Annotated[
        int | None, typer.Option("--episodes", help="dt-svd: episodes of every edit, the same seeds in each (100).")
    ] = None,
    controls: Annotated[
        int | None, typer.Option("--controls", help="dt-svd: random changes beside each of the post's edits (20).")
    ] = None,
    control_episodes: Annotated[
        int | None, typer.Option("--control-episodes", help="dt-svd: episodes of every random change (20).")
    ] = None,
    block: Annotated[
        int | None, typer.Option("--block", help="dt-svd: the block edited (where K's largest cosine is).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="dt-svd: processes that play (default: one per core).")
    ] = None,
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: RunDevice = "cpu",
    dtype: Dtype = "float64",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Published results on singular directions, asked again of a model: which recipe made a list, which claims hold."""
    from covector.cli.opening import check_device
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit, refuse_plot, write
    from covector.cli.run_options import check_run_options

    start = time.perf_counter()
    if model and model_option and model != model_option:
        raise BadRequest(f"expected one model, got '{model}' and --model '{model_option}'; give it once")
    model = model or model_option
    check_run_options("cpu", dtype)
    check_device(device, dtype)
    given = {"published": published, "show": show, "top": rows, "atlas": atlas, "concept": concept, "text": text,
             "draws": draws, "names": names, "as-published": as_published, "section": section,
             "size": size, "agent": agent, "no-play": no_play or None, "episodes": episodes, "controls": controls,
             "control-episodes": control_episodes, "block": block, "workers": workers}  # fmt: skip
    if what == "obprop" or show == "lists":
        refuse_plot(plot, f"replicate {what}{' --show lists' if show == 'lists' else ''}")
    _check(what, [name for name, value in given.items() if value is not None and value != []])
    if model is None and what != "dt-svd":
        raise BadRequest(f"covector replicate {what}: expected a model, got none; try demo-lm")
    model = model or "demo-dt"
    if what == "obprop":
        table = _obprop(model, layout, strict, show, names, as_published or [], text, section or [], size, draws, seed,
                        dtype, device)  # fmt: skip
        write(table, out=out, plot=plot)
        shown = table if json else table.head(40 if rows is None else rows)
        emit(shown, as_json=json, out=None, plot=None, quiet=quiet, seconds=time.perf_counter() - start)
        return
    opened = open_model(model, layout, strict=strict, device=device, dtype=dtype)
    chosen = {} if draws is None else {"draws": draws}
    if what == "dt-svd":
        counts = {"episodes": episodes, "controls": controls, "control_episodes": control_episodes}
        given_counts = {name: value for name, value in counts.items() if value is not None}
        table = _dt_svd(opened, model, layout, agent, out, no_play, given_counts, block, workers, seed, quiet, draws)
        emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start)
        return
    if what == "sprint":
        table = _sprint(opened, atlas, tuple(concept or ()), text, seed, quiet, chosen)
        emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start)
        return
    table = _conjecture(opened, published, show or "recipes", seed, chosen)
    seconds = time.perf_counter() - start
    write(table, out=out, plot=plot)
    if json or show == "lists":
        emit(table, as_json=json, out=None, plot=None, quiet=quiet, seconds=seconds)
        return
    from covector.analyses.replicate.conjecture import foremost

    emit(foremost(table, 12 if rows is None else rows), as_json=False, out=None, plot=None, quiet=quiet,
         seconds=seconds)  # fmt: skip


def _check(what: str, given: list[str]) -> None:
    if what not in TAKES:
        raise BadRequest(f"expected covector replicate {' or '.join(TAKES)}, got '{what}'")
    foreign = [name for name in given if name not in TAKES[what]]
    if foreign:
        other = next(name for name in TAKES if foreign[0] in TAKES[name])
        raise BadRequest(f"covector replicate {what} takes no --{foreign[0]}; it belongs to covector replicate {other}")


def _obprop(
    reference: str,
    layout: Path | None,
    strict: bool,
    show: str | None,
    names: Path | None,
    as_published: list[str],
    text: Path | None,
    sections: list[str],
    size: int | None,
    draws: int | None,
    seed: int,
    dtype: str,
    device: str,
) -> "Table":
    """Numbers of a model with the published places, claims of any other; `random` makes a stand-in checkpoint."""
    from covector.analyses.replicate.obprop import replicate_obprop
    from covector.analyses.replicate.obprop_claims import replicate_claims
    from covector.analyses.replicate.obprop_tasks import RANDOM, defects_of, read_gendered, same_heads, stand_in
    from covector.cli.opening import opened as open_model

    if show not in (None, "numbers", "claims"):
        raise BadRequest(f"--show: expected numbers or claims, got '{show}'")
    given, repeated = (None if names is None else read_gendered(names)), defects_of(as_published)
    if reference == RANDOM:
        model = stand_in(16 if size is None else size, given, seed)
    elif size is not None:
        raise BadRequest("--size: it belongs to the model 'random', which is made; leave it out")
    else:
        model = open_model(reference, layout, strict=strict)
    model = model if device == "cpu" else model.on(device)
    if show == "claims" or (show is None and not same_heads(model)):
        return replicate_claims(model, names=given, seed=seed, **({} if draws is None else {"draws": draws}))
    words = None if text is None else _read(text)
    return replicate_obprop(model, names=given, defects=repeated, text=words, sections=sections, dtype=dtype)


def _conjecture(model: "Model", published: Path | None, show: str, seed: int, chosen: dict[str, int]) -> "Table":
    from covector.analyses.replicate.conjecture import replicate_conjecture, replicated_lists

    known = {"recipes": replicate_conjecture, "lists": replicated_lists}
    if show not in known:
        raise BadRequest(f"--show: expected {' or '.join(known)}, got '{show}'")
    return known[show](model, None if published is None else published.expanduser(), seed=seed, **chosen)


def _dt_svd(
    model: "Model",
    reference: str,
    layout: Path | None,
    agent: Path | None,
    out: Path | None,
    no_play: bool,
    counts: dict[str, int],
    block: int | None,
    workers: int | None,
    seed: int,
    quiet: bool,
    draws: int | None,
) -> "Table":
    """Claims of weights, and of roll-outs unless they are left out; journals in DIR/edits and DIR/pieces."""
    from covector.analyses.replicate.dt_svd import DRAWS, replicate_dt_svd

    if no_play:
        idle = [
            name for name, value in ((*counts.items(), ("block", block), ("workers", workers))) if value is not None
        ]
        if idle:
            raise BadRequest(
                f"--no-play: nothing is played, so --{idle[0].replace('_', '-')} has no use; leave one out"
            )
        return replicate_dt_svd(model, draws=draws or DRAWS, seed=seed)
    from covector.analyses.replicate.dt_svd_played import options_of, played_claims
    from covector.cli.progress import Progress
    from covector.rollouts import experiment

    def play(arms, options, name):
        progress = Progress(quiet)
        try:
            return experiment(
                reference, arms, agent=agent, layout=layout, options=options, workers=workers,
                out=None if out is None else out / name, progress=progress, tell=None if quiet else _told(name),
            )  # fmt: skip
        finally:
            progress.close()

    options, draws = options_of(seed=seed, **counts), draws or DRAWS
    played = played_claims(model, play, block=block, options=options, draws=draws, seed=seed)
    return replicate_dt_svd(model, played, draws=draws, seed=seed)


def _told(name: str):
    return lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True)


def _sprint(
    model: "Model",
    folder: Path | None,
    concepts: tuple[str, ...],
    text: Path | None,
    seed: int,
    quiet: bool,
    chosen: dict[str, int],
) -> "Table":
    """The atlases that the findings need are built where the user says, or in a folder that goes away."""
    from covector.analyses.replicate.finding import CONCEPTS
    from covector.analyses.replicate.sprint import replicate_sprint
    from covector.atlas.plan import Options
    from covector.building import build_atlas
    from covector.cli.progress import Progress

    words = None if text is None else _read(text)
    with tempfile.TemporaryDirectory(prefix="covector-") as passing:
        at = Path(passing) if folder is None else folder.expanduser()

        def made(frame: str):
            progress = Progress(quiet)
            try:
                options = Options(("ov",), seed=seed)
                atlas = build_atlas(model.framed(frame), at / frame, options=options, progress=progress)
            finally:
                progress.close()
            assert atlas is not None, "whole atlases are built here, no shards"
            return atlas

        removed = _removed(words, seed)
        return replicate_sprint(
            model, made("raw"), made, removed=removed, concepts=concepts or CONCEPTS, seed=seed, **chosen
        )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(
            f"--text: expected a UTF-8 text file at '{path}', got: {in_words(error)}; check the path"
        ) from error


def _removed(text: str | None, seed: int):
    """What removes traced dyads on a text; None without a text."""
    if text is None:
        return None
    try:
        from covector.analyses.replicate.removal import removal
    except ImportError as error:
        from covector.errors import MissingExtra

        raise MissingExtra(
            f"--text runs the model: expected torch, {error.name} is missing; pip install 'covector[run]'"
        ) from error
    return lambda model, traced: removal(model, traced, text, seed=seed)
