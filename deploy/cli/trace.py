"""`pserver trace`: where every process was at every moment of a run."""

from typing import Annotated

import typer

from deploy.cli.options import Run


def trace(
    run_name: Run = None,
    first: Annotated[int | None, typer.Option("--from", metavar="STEP", min=0, help="From this step on. Default: the last steps that fit.")] = None,
) -> None:
    """Write a run's trace.json, for https://ui.perfetto.dev or chrome://tracing; runs that have ended have one."""
    from deploy.measure.trace_file import write_trace
    from deploy.rundir import RunDirectory

    typer.echo(write_trace(RunDirectory.open(run_name), first=first))
