"""`pserver top`: a run while it goes on."""

from typing import Annotated

import typer


def top(run_name: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run directory or name; default: the newest.")] = None) -> None:
    """Watch a run: where its last steps went, by worker and shard, and what limits it. Not on a terminal: once."""
    from rich.console import Console

    from deploy.rundir import RunDirectory
    from deploy.top import watch

    watch(RunDirectory.open(run_name), Console(highlight=False))
