"""`pserver report`: a run on one page."""

from typing import Annotated

import typer


def report(run_name: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run directory or name; default: the newest.")] = None) -> None:
    """Write a run's report.html: what limits it, what would help, where time and bytes went, and how it learned."""
    from deploy.report.page import write_report
    from deploy.rundir import RunDirectory

    typer.echo(write_report(RunDirectory.open(run_name)))
