"""`covector inspect`: what a checkpoint is, and the proof that it is read rightly."""

import dataclasses
import time
from typing import Annotated

import typer

from covector.cli.options import Device, Dtype, FrameName, Json, Layout, ModelRef, Out, Plot, Quiet, Seed, Strict


def inspect(
    model: ModelRef,
    check: Annotated[
        bool, typer.Option("--check", help="Prove the loader: every linear piece against the real model.")
    ] = False,
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
    """Sizes, family, tensors and bytes of a checkpoint; with --check, the proof that it is read rightly.

    The proof is of the weights as stored (frame raw): frames are tested to keep the function, not proven here.
    """
    from covector.analyses.inspect import inspect as inspect_model
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit, refuse_plot
    from covector.cli.run_options import check_run_options

    start = time.perf_counter()
    check_run_options(device, dtype)
    refuse_plot(plot, "a list of tensors")
    opened = open_model(model, layout, frame=frame, strict=strict)
    table = inspect_model(opened)
    if check:
        from covector.workbench import prove

        sizes, table = table, prove(model, layout, strict=strict, dtype=dtype, seed=seed)
        told = {"spec": sizes.meta["spec"], "parameters": sizes.meta["parameters"], "frame": "raw"}
        title = f"{sizes.title} · {table.title.partition(' · ')[2]}"
        table = dataclasses.replace(table, title=title, says=f"{sizes.says} {table.says}", meta={**table.meta, **told})
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start)
