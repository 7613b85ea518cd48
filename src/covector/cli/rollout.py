"""`covector rollout`: an agent in its environment, as it is and edited, with controls, on the same seeds."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from covector.cli.options import Json, Layout, ModelRef, Out, Plot, Quiet, RunDevice, Seed

BY = ("arm", "control", "episode", "target", "actions", "dyad")
Arms = Annotated[
    list[str] | None,
    typer.Option("--arm", help="An edit to try: 'L2.mlp.out:0*0', or NAME='L2.mlp.out:0*0' (repeatable)."),
]
AgentFile = Annotated[
    Path | None,
    typer.Option("--agent", metavar="FILE", help="agent.json: environment, statistics, target (default: beside it)."),
]
EnvName = Annotated[
    str | None,
    typer.Option("--env", help="Another registered environment, or package.module:function that makes one."),
]


def rollout(
    model: ModelRef,
    arm: Arms = None,
    agent: AgentFile = None,
    env: EnvName = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", help="Episodes of every arm, the same seeds in each (300; --each: 50).")
    ] = None,
    controls: Annotated[
        int, typer.Option("--controls", help="Random changes of equal output per arm; 0 for none.")
    ] = 100,
    control_episodes: Annotated[
        int, typer.Option("--control-episodes", help="Episodes of every control: the first of the seeds.")
    ] = 30,
    norm_controls: Annotated[
        int, typer.Option("--norm-controls", help="Besides, so many random changes of equal ‖ΔM‖ per arm.")
    ] = 0,
    target: Annotated[
        str | None, typer.Option("--target", help="Returns asked for, with commas (default: the agent file's).")
    ] = None,
    stop: Annotated[
        bool,
        typer.Option("--stop", help="Compare while playing; an edit stops when decided, 5 % error over all looks."),
    ] = False,
    looks: Annotated[
        int | None, typer.Option("--looks", help="With --stop: how often arms are compared (5).", show_default=False)
    ] = None,
    first_seed: Annotated[
        int, typer.Option("--first-seed", help="Seed of the first episode; the others count up.")
    ] = 0,
    each: Annotated[
        str | None,
        typer.Option("--each", help="Remove the dyads of these sites one by one: 'L*H*.ov,L*.mlp.out'; a row each."),
    ] = None,
    dyads: Annotated[int, typer.Option("--dyads", help="With --each: the first so many dyads of each site.")] = 16,
    by: Annotated[
        str | None,
        typer.Option(
            "--by", help="What a row is: arm, control, episode, target, actions (dyads against them); with --each dyad."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes (default: one per core).")] = None,
    engine: Annotated[str, typer.Option("--engine", help="processes, threads, or dask://host:port.")] = "processes",
    top: Annotated[int, typer.Option("--top", help="Rows on the screen; 0 for all. Files hold them all.")] = 40,
    dtype: Annotated[str, typer.Option("--dtype", help="Precision of the runs: float32 or float64.")] = "float32",
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="FILE", help="A film of one seed: clean | edits | a control; .gif or .mp4."),
    ] = None,
    record_seed: Annotated[
        int | None, typer.Option("--record-seed", help="Its seed (default: the first on which the edit fails).")
    ] = None,
    device: RunDevice = "cpu",
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    quiet: Quiet = False,
) -> None:
    """Play episodes of an agent, as it is and edited: return, success, length, and what random edits would do.

    With --out DIR every finished episode is kept in DIR/episodes.jsonl, and the same command goes on where it stopped.
    """
    from covector.cli.output import emit, refuse_plot
    from covector.cli.progress import Progress
    from covector.errors import BadRequest

    by = by or ("dyad" if each else "arm")
    count = episodes if episodes is not None else 50 if each else 300
    if (by == "dyad") != bool(each):
        raise BadRequest("--by dyad: expected --each SITES with it, and no other --by with --each")
    if each and arm:
        raise BadRequest("expected --arm or --each, got both; --each removes dyads one at a time")
    if by not in BY:
        raise BadRequest(f"--by: expected {', '.join(BY)}, got '{by}'")
    if record is not None and record.suffix.lower() not in (".gif", ".mp4"):
        raise BadRequest(f"--record: expected a file that ends in .gif or .mp4, got '{record.name}'")
    if record_seed is not None and not first_seed <= record_seed < first_seed + count:
        raise BadRequest(
            f"--record-seed: expected one of the seeds played, {first_seed}–{first_seed + count - 1}, got {record_seed}"
        )
    if by in ("episode", "actions"):
        refuse_plot(plot, f"rollout --by {by}")
    if top < 0:
        raise BadRequest(f"--top: expected 0 (all) or more rows, got {top}")
    named, asked = named_arms(arm or []), _numbers(target)
    if looks is not None and not stop:
        raise BadRequest("--looks goes with --stop: how often arms are compared while they are played")
    if stop and not named:
        more = "--each compares all dyads on equal terms" if each else "it is the edits that stop"
        raise BadRequest(f"--stop: expected an --arm; {more}, leave --stop out")
    if by == "control" and not (named and controls):
        raise BadRequest("--by control: expected an --arm and --controls above 0, whose rows these are")
    if by == "target" and len(asked) < 2:
        raise BadRequest(f"--by target: expected several returns asked for, got {len(asked)}; give --target 1,0.5,0")
    from covector.analyses.rollout import Options
    from covector.analyses.rollout_actions import by_actions
    from covector.analyses.rollout_details import by_episode, by_target
    from covector.analyses.rollout_tables import by_arm, by_control
    from covector.analyses.rollout_words import LOOKS
    from covector.rollouts import experiment

    options = Options(count, controls if named else 0, min(control_episodes, count), asked, first_seed,
                      seed, dtype, device, (looks if looks is not None else LOOKS) if stop else 0,
                      norm_controls if named else 0)  # fmt: skip
    bar = Progress(quiet)
    try:
        found = experiment(
            model, named, agent=agent, env=env, layout=layout, options=options, on=engine, workers=workers, out=out,
            each=each, dyads=dyads, record=record, progress=bar, tell=None if quiet else _say,
        )  # fmt: skip
    except KeyboardInterrupt:
        bar.close()
        kept = f"kept, the same command goes on from {out}/episodes.jsonl" if out else "lost; --out DIR keeps them"
        print(f"interrupted; finished parts are {kept}", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        bar.close()
    if by == "dyad":
        from covector.rollouts import behaviour_table

        table = behaviour_table(found)
    else:
        tables = {"arm": by_arm, "control": by_control, "episode": by_episode, "target": by_target,
                  "actions": by_actions}  # fmt: skip
        table = tables[by](found)
    if record is not None:
        from covector.analyses.rollout_film import panels
        from covector.rollouts import filmed

        filmed(found, panels(found, record_seed), record, env=env)
        _say(f"written: {record}")
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, top=top or None)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def named_arms(given: list[str]) -> dict[str, str]:
    """Edits by name: ``NAME=EDIT``, or the edit alone, which is its own name. Raises BadRequest for one name twice."""
    from covector.errors import BadRequest

    found: dict[str, str] = {}
    for text in given:
        name, equals, edit = text.partition("=")
        if not equals or not edit or not name.replace("-", "").replace("_", "").isalnum():
            name, edit = text.replace("/", "÷"), text
        if name in found:
            raise BadRequest(f"--arm: expected every name once, '{name}' is given twice; write NAME='…'")
        found[name] = edit.strip("'\"") if edit != text else edit
    return found


def _numbers(text: str | None) -> tuple[float, ...]:
    from covector.errors import BadRequest

    if text is None:
        return ()
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise BadRequest(f"--target: expected numbers with commas, as 1,0.5,0, got '{text}'") from None
    if len(set(found)) < len(found):
        raise BadRequest(f"--target: expected every return once, got '{text}'")
    return found
