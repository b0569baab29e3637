"""`pserver diff`: what changed between two runs."""

from typing import Annotated

import typer


def diff(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A run directory or name.")],
    second: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Another one; default: the newest.")] = None,
) -> None:
    """Say what changed from one run to another: configuration, seconds per step, bytes, metrics."""
    from deploy.measure.difference import difference
    from deploy.measure.recorded import read_run
    from deploy.rundir import RunDirectory

    typer.echo(difference(read_run(RunDirectory.open(first)), read_run(RunDirectory.open(second))))
