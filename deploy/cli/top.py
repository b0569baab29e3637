"""`pserver top`: a run while it goes on."""

from deploy.cli.options import Run


def top(run_name: Run = None) -> None:
    """Watch a run: where its last steps went, by worker and shard, and what limits it. Not on a terminal: once."""
    from rich.console import Console

    from deploy.rundir import RunDirectory
    from deploy.top import watch

    watch(RunDirectory.open(run_name), Console(highlight=False))
