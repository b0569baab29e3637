"""`pserver simulate`: trains on hosts and links that this machine has not."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import ConfigFile, LauncherName, Name, Servers, Sets, Stack, Straggler, Workers, changes


def simulate(
    config_file: ConfigFile,
    sets: Sets = None,
    workers: Workers = None,
    servers: Servers = None,
    name: Name = None,
    bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="Of every host's link, each way, for example 1gbit.")] = None,
    server_bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="Of the servers' hosts.")] = None,
    latency: Annotated[str | None, typer.Option(metavar="TIME", help="How much longer frames travel, one way, for example 2ms.")] = None,
    colocate: Annotated[bool, typer.Option("--colocate", help="Servers on the workers' hosts.")] = False,
    cpus_per_host: Annotated[float | None, typer.Option(metavar="N", min=0.01, help="Cores of every host.")] = None,
    straggler: Straggler = None,
    host: Annotated[list[str] | None, typer.Option(metavar="HOST:KEY=VALUE,...", help="worker-1:bandwidth=25mbit,cpus=0.5; may be repeated.")] = None,
    launcher: Annotated[LauncherName, typer.Option(help="Plain processes on the hosts, or Ray, a raylet on each.")] = LauncherName.PROCESS,
    json: Annotated[bool, typer.Option("--json", help="Print summary.json and nothing else on stdout.")] = False,
    show_stack: Stack = False,
) -> None:
    """Train on a simulated cluster: virtual hosts on this machine, with links as thin as wished; gone at the end."""
    from deploy.config import load
    from deploy.rundir import RunDirectory
    from deploy.simulation.run import enter_user_namespace, simulate
    from deploy.simulation.wishes import Wishes

    enter_user_namespace()
    flags = {"scaling.num_workers": workers, "scaling.num_servers": servers, "run.name": name}
    with contextlib.redirect_stdout(sys.stderr):  # the user's module may print
        config = load(config_file, changes(sets, flags))
    wishes = Wishes(
        bandwidth=bandwidth,
        server_bandwidth=server_bandwidth,
        latency=latency,
        colocate=colocate,
        cpus=cpus_per_host,
        stragglers=tuple(straggler or ()),
        hosts=tuple(host or ()),
    )
    with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
        outcome = simulate(config, wishes, launcher=launcher.value, quiet=json)
    if json and outcome.path:
        typer.echo(RunDirectory(Path(outcome.path)).summary.read_text(), nl=False)
    if outcome.error is not None:
        raise outcome.error
