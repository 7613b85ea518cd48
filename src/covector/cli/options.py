"""Options that every command takes, spelled and explained once."""

from pathlib import Path
from typing import Annotated

import typer

from covector.errors import BadRequest

ModelRef = Annotated[str, typer.Argument(help="Hub name (gpt2, name@revision), local folder, demo-lm or demo-dt.")]
AtlasRef = Annotated[
    str,
    typer.Argument(help="Folder that covector atlas has made; or a model: its atlas is built first, in the cache."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object {meta, rows} on standard output, nothing else.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Also write the result (JSON, Parquet) into this folder.")
]


def _drawable(path: Path | None) -> Path | None:
    """The file of a picture; refused by its name, before anything is computed."""
    if path is not None and path.suffix.lower() not in (".png", ".svg", ".html"):
        raise BadRequest(f"--plot: expected a file that ends in .png, .svg or .html, got '{path.name}'")
    return path


Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", callback=_drawable, help="Draw the picture: .png, .svg or .html."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random number.")]
Device = Annotated[str, typer.Option("--device", help="Where models run: cpu. Weight analyses always run on the CPU.")]
RunDevice = Annotated[
    str, typer.Option("--device", help="Where the model runs: cpu, cuda, cuda:N (a graphics card), mps.")
]
RunnerName = Annotated[
    str,
    typer.Option(
        "--runner",
        help="What is measured with: decoder (ours), or transformers, which runs each prompt from its start: slower.",
    ),
]
Dtype = Annotated[
    str, typer.Option("--dtype", help="Precision of model runs: float64 or float32. Decompositions are float64.")
]
FrameName = Annotated[
    str,
    typer.Option(
        "--frame", help="raw, folded, gauge_fixed, tl_default; views tl_demo, conjecture2022; each with +bias."
    ),
]
Layout = Annotated[
    Path | None, typer.Option("--layout", metavar="FILE", help="layout.toml of a home-made model (default: beside it).")
]
AgentNames = Annotated[
    Path | None,
    typer.Option("--agent", metavar="FILE", help="agent.json that names actions and states (default: beside it)."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse configuration keys that no adapter knows.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no sentences: the result only.")]

# Prompts.
Template = Annotated[
    list[str] | None,
    typer.Option("--template", help='Prompt with slots: "So, [NAME] really is" (repeatable); fill them with --fill.'),
]
Fill = Annotated[
    list[str] | None,
    typer.Option("--fill", help="NAME=clean.txt:corrupt.txt, one name a line; or NAME=Mary,Lisa:John,Mark."),
]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", metavar="FILE", help="JSONL: clean, corrupt, slots, names on each line.")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--inputs",
        metavar="FILE",
        help="Of an agent: CLEAN.json:CORRUPT.json (inputs by name), or JSONL: clean, corrupt, slots (repeatable).",
    ),
]
Bos = Annotated[str, typer.Option("--bos", help="Start token in front of prompts: auto, yes, no.")]
At = Annotated[str, typer.Option("--at", help="Where the output is read: a slot (end, NAME+1) or a position.")]
