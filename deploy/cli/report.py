"""`pserver report`: a run on one page."""

import typer

from deploy.cli.options import Run


def report(run_name: Run = None) -> None:
    """Write a run's report.html: what limits it, what would help, where time and bytes went, and how it learned."""
    from deploy.report.page import write_report
    from deploy.rundir import RunDirectory

    typer.echo(write_report(RunDirectory.open(run_name)))
