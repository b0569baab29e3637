"""`pserver run`: trains what a config file says."""

import contextlib
import sys
from typing import Annotated

import typer

from deploy.cli.options import Address, ConfigFile, Launcher, LauncherName, Name, Servers, Sets, Stack, Workers, changes


def run(
    config_file: ConfigFile,
    sets: Sets = None,
    workers: Workers = None,
    servers: Servers = None,
    loop: Annotated[str | None, typer.Option(metavar="FILE.py:FUNCTION", help="Your own loop; short for --set train.loop=...")] = None,
    name: Name = None,
    resume: Annotated[bool, typer.Option("--resume", help='Go on from the last checkpoint; short for --set run.resume="auto".')] = False,
    allow_drift: Annotated[bool, typer.Option("--allow-drift", help="Resume with other settings too, to other bits.")] = False,
    launcher: Launcher = LauncherName.RAY,
    address: Address = None,
    json: Annotated[bool, typer.Option("--json", help="Print summary.json and nothing else on stdout.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the config with all defaults and end.")] = False,
    show_stack: Stack = False,
) -> None:
    """Train: a task, on workers, through a sharded parameter server."""
    from deploy.config import load, to_toml
    from deploy.rundir import RunDirectory

    flags = {"train.loop": loop, "scaling.num_workers": workers, "scaling.num_servers": servers, "run.name": name}
    flags |= {"run.resume": "auto" if resume else None, "run.allow_drift": True if allow_drift else None}
    with contextlib.redirect_stdout(sys.stderr):  # the user's module may print
        config = load(config_file, changes(sets, flags))
    if print_config:
        typer.echo(to_toml(config), nl=False)
        return
    from deploy.trainer import Trainer

    with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
        result = Trainer.from_config(config, launcher=launcher.value, address=address, quiet=json).fit()
    if json:
        typer.echo(RunDirectory(result.path).summary.read_text(), nl=False)
    if result.error is not None:
        raise result.error
