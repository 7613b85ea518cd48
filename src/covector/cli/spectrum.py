"""`covector spectrum`: sizes and dimensions of a model's maps over depth, against noise of the same shape."""

import dataclasses
import time
from typing import Annotated

import typer

from covector.cli.options import Device, Dtype, FrameName, Json, Layout, ModelRef, Out, Plot, Quiet, Seed, Strict


def spectrum(
    model: ModelRef,
    sites: Annotated[
        str, typer.Argument(help="Addresses, commas between: L*H*.ov,L3.mlp.out; * is every ov, qk and MLP map.")
    ] = "*",
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kinds", "--kind", help="Only this kind (repeatable): ov, qk, in, gate, out, q, k, v, o, embed, unembed …"
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option("--top", "--rows", help="Rows on the screen, those most out of line; files have all.")
    ] = 32,
    view: Annotated[
        str, typer.Option("--view", help="What --plot draws: spectra (all layers overlaid) or depth (norms).")
    ] = "spectra",
    draws: Annotated[int, typer.Option("--draws", help="Random maps behind every chance level.")] = 1000,
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
    """Norms, dimensions and spikes of every map against noise of its shape; names the layer or head that jumps."""
    from covector.analyses.spectrum import foremost
    from covector.analyses.spectrum import spectrum as measure
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit, write
    from covector.cli.run_options import check_run_options

    start = time.perf_counter()
    check_run_options(device, dtype)
    opened = open_model(model, layout, frame=frame, strict=strict)
    table = measure(opened, sites, kinds=tuple(kind or ()), draws=draws, view=view, seed=seed)
    seconds = time.perf_counter() - start
    shown = foremost(table, rows)
    write(table, out=out, plot=plot)
    if json:
        emit(table, as_json=True, out=None, plot=None, quiet=quiet)
        return
    if len(shown) < len(table):
        title = f"{table.title} · the {len(shown)} most out of line"
        shown = dataclasses.replace(shown, title=title)
    emit(shown, as_json=False, out=None, plot=None, quiet=quiet, seconds=seconds)
