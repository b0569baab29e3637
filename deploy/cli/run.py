"""`pserver run`: trains what a config file says."""

import contextlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class LauncherName(StrEnum):
    """How processes are started."""

    RAY = "ray"
    PROCESS = "process"


def run(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The config file.")],
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key; may be repeated.")] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Short for --set scaling.num_workers=N.")] = None,
    servers: Annotated[int | None, typer.Option(metavar="N", help="Short for --set scaling.num_servers=N.")] = None,
    loop: Annotated[str | None, typer.Option(metavar="FILE.py:FUNCTION", help="Your own loop; short for --set train.loop=...")] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Short for --set run.name=NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help='Go on from the last checkpoint; short for --set run.resume="auto".')] = False,
    allow_drift: Annotated[bool, typer.Option("--allow-drift", help="Resume with other settings too, to other bits.")] = False,
    launcher: Annotated[LauncherName, typer.Option(help="Ray actors, or plain processes on this machine.")] = LauncherName.RAY,
    address: Annotated[str | None, typer.Option(help="Ray cluster to use. Default: RAY_ADDRESS, else a local one.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print summary.json and nothing else on stdout.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the config with all defaults and end.")] = False,
    show_stack: Annotated[bool, typer.Option("--traceback", help="Show the stack of an error.")] = False,
) -> None:
    """Train: a task, on workers, through a sharded parameter server."""
    from deploy.config import load, to_toml
    from deploy.config.write import to_value
    from deploy.rundir import RunDirectory

    flags = {"train.loop": loop, "scaling.num_workers": workers, "scaling.num_servers": servers, "run.name": name}
    flags |= {"run.resume": "auto" if resume else None, "run.allow_drift": True if allow_drift else None}
    with contextlib.redirect_stdout(sys.stderr):  # the user's module may print
        config = load(config_file, [*(sets or []), *(f"{key}={to_value(value)}" for key, value in flags.items() if value is not None)])
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
