"""`pserver export`: takes the weights out of a run."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run_and_file: Annotated[
        list[str], typer.Argument(metavar="[RUN] FILE.safetensors", help="RUN: a run directory or name; default: the newest with such weights.")
    ],
    best: Annotated[bool, typer.Option("--best", help="The weights of the best epoch in place of the last ones.")] = False,
) -> None:
    """Copy a run's weights to a file that plain torch can load."""
    from deploy.rundir import RunDirectory, Weights

    *runs, file = run_and_file
    if len(runs) > 1:
        raise typer.BadParameter("give at most one RUN and one FILE.safetensors")
    if not file.endswith(".safetensors"):
        raise typer.BadParameter(f"{file} does not end in .safetensors: the last argument is the file to write")
    which: Weights = "best" if best else "last"
    run = RunDirectory.open(runs[0]) if runs else RunDirectory.open_with(which)
    run.export(Path(file), which)
    typer.echo(f"{file}: the {which} weights of {run.path}")
