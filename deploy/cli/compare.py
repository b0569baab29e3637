"""`pserver compare`: pserver beside DDP, on the user's own task."""

import contextlib
import json as json_text
import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import Address, Launcher, LauncherName, Servers, Sets, Stack, Workers, changes


def compare(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The config file of the task.")],
    sets: Sets = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of each of the two.")] = 36,
    workers: Workers = None,
    servers: Servers = None,
    launcher: Launcher = LauncherName.RAY,
    address: Address = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else on stdout.")] = False,
    show_stack: Stack = False,
) -> None:
    """Should I use this at all? The same steps under pserver and under PyTorch's DDP, in turns."""
    from deploy.compare import compare
    from deploy.config import load
    from deploy.launch.choice import make_launcher

    flags = {"scaling.num_workers": workers, "scaling.num_servers": servers}
    with contextlib.redirect_stdout(sys.stderr):  # the user's module may print
        config = load(config_file, changes(sets, flags))
        code = config.task.name if config.task else ""
        found = compare(
            config,
            lambda config, rundir, console: make_launcher(launcher.value, config, rundir, code, address=address, say=console.line),
            num_steps=steps,
        )
    typer.echo(json_text.dumps(found.to_dict(), indent=2) if json else found.text())
