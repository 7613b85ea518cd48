"""`covector heads`: what kind of head each head is, which carry a relation, which are of one piece, which compose."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from covector.cli.options import Device, Dtype, FrameName, Json, Layout, ModelRef, Out, Plot, Quiet, Seed, Strict
from covector.errors import BadRequest

if TYPE_CHECKING:
    from covector.model.opened import Model
    from covector.render import Table

# What each question takes besides the options of every command.
TAKES = {
    "": ("k", "basis", "sample", "draws"),
    "--relation": ("k", "basis", "draws"),
    "--units": ("k", "basis", "rank", "metric", "draws"),
    "--compose": ("between", "dyads", "top"),
}


def heads(
    model: ModelRef,
    relation: Annotated[
        Path | None,
        typer.Option("--relation", metavar="FILE", help="Which heads send sources to targets: pairs, parted by a tab."),
    ] = None,
    units: Annotated[bool, typer.Option("--units", help="Are a head's leading directions about one thing?")] = False,
    compose: Annotated[bool, typer.Option("--compose", help="Which heads read what earlier heads write.")] = False,
    k: Annotated[
        int | None, typer.Option("-k", help="Labels that pass for a hit: 1 for copying, 10 with --relation, --units.")
    ] = None,
    basis: Annotated[
        str | None, typer.Option("--basis", help="Source vectors: token_in, token_in_mlp0. With --units: token_out.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", help="Source tokens that copying is counted on (1024; 0: all).")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="With --units: directions per head (10).")] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="With --units: compare lists in the whitened or the centred space.")
    ] = None,
    between: Annotated[
        str | None,
        typer.Option(
            "--between",
            help="With --compose: heads, all (embeddings, MLPs, outputs too), or places, commas between: L0H1,L2H0.",
        ),
    ] = None,
    dyads: Annotated[
        bool, typer.Option("--dyads", help="With --compose: every pair of dyads, the most aligned first.")
    ] = False,
    top: Annotated[int | None, typer.Option("--top", help="With --compose: pairs to show (20; 0: all).")] = None,
    draws: Annotated[int | None, typer.Option("--draws", help="Draws of the simulated nulls.")] = None,
    frame: FrameName = "raw",
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: Device = "cpu",
    dtype: Dtype = "float64",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """What kind of head each head is: scores from weights alone, each with its null."""
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit
    from covector.cli.run_options import check_run_options

    start = time.perf_counter()
    check_run_options(device, dtype)
    asked = {"--relation": relation is not None, "--units": units, "--compose": compose}
    given = {
        "k": k,
        "basis": basis,
        "sample": sample,
        "rank": rank,
        "metric": metric,
        "between": between,
        "dyads": dyads or None,
        "top": top,
        "draws": draws,
    }
    question, chosen = _question(asked, {name: value for name, value in given.items() if value is not None})
    table = _answer(open_model(model, layout, frame=frame, strict=strict), question, relation, chosen, seed)
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start)


def _question(asked: dict[str, bool], given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Which question is asked, and its options; a contradiction is refused by name."""
    wanted = [name for name, yes in asked.items() if yes]
    if len(wanted) > 1:
        raise BadRequest(f"expected one of --relation, --units, --compose at a time, got {' and '.join(wanted)}")
    question = wanted[0] if wanted else ""
    foreign = [name for name in given if name not in TAKES[question]]
    if foreign:
        fits = [f"covector heads {q}".rstrip() for q, names in TAKES.items() if foreign[0] in names]
        option = "-k" if foreign[0] == "k" else f"--{foreign[0]}"
        told = f"covector heads {question}".rstrip()
        raise BadRequest(f"{told} takes no {option}; it belongs to {', '.join(fits)}")
    return question, given


def _answer(model: "Model", question: str, pairs: Path | None, given: dict[str, Any], seed: int) -> "Table":
    from covector.analyses.compose import compose
    from covector.analyses.compose_dyads import compose_dyads
    from covector.analyses.heads import heads as head_scores
    from covector.analyses.joint_unit import joint_units
    from covector.analyses.relation import relation

    if question == "--relation" and pairs is not None:
        return relation(model, pairs, seed=seed, **given)
    if question == "--units":
        return joint_units(model, seed=seed, **given)
    if question == "--compose":
        asked = compose_dyads if given.pop("dyads", False) else compose
        return asked(model, **given)
    return head_scores(model, seed=seed, **given)
