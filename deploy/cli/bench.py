"""`pserver bench`: what links carry, and what a model's steps cost on them, without training."""

import json as json_text
from typing import Annotated, Any

import typer

from deploy.cli.options import PullFormat, PushFormat, Stack

bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure links, and what a model's steps cost on them, without training.")

Bandwidth = Annotated[str | None, typer.Option("--bandwidth", metavar="RATE", help="On virtual hosts: of every host's link, for example 1gbit.")]
Latency = Annotated[str | None, typer.Option("--latency", metavar="TIME", help="On virtual hosts: how much longer frames travel, for example 2ms.")]
Host = Annotated[list[str] | None, typer.Option("--host", metavar="HOST:KEY=VALUE", help="worker-1:bandwidth=25mbit; may be repeated.")]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster to measure. Default: this machine.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


@bench.command()
def net(
    hosts: Annotated[int, typer.Option("--hosts", metavar="N", min=1, help="Hosts to measure between.")] = 2,
    bandwidth: Bandwidth = None,
    latency: Latency = None,
    host: Host = None,
    address: Address = None,
    json: Json = False,
    show_stack: Stack = False,
) -> None:
    """Measure the links between hosts with pserver's own frames: rate and delay of every pair."""
    from deploy.bench.net import bench_net, config_for
    from deploy.simulation.run import enter_user_namespace

    wishes = _wishes(bandwidth=bandwidth, latency=latency, hosts=tuple(host or ()))
    if wishes:
        enter_user_namespace()
    _show(bench_net(config_for(hosts, on_ray=address is not None), wishes, address), json=json)


@bench.command()
def comm(
    model: Annotated[str, typer.Option(metavar="NAME|FILE|TASK", help="resnet50, gpt2, bert-large, FILE.safetensors, module:Task.")],
    workers: Annotated[int, typer.Option(metavar="N", min=1)] = 2,
    servers: Annotated[int, typer.Option(metavar="N", min=1)] = 2,
    steps: Annotated[int, typer.Option(metavar="N", min=2, help="Steps that count.")] = 10,
    push_format: Annotated[PushFormat, typer.Option()] = PushFormat.FP32,
    pull_format: Annotated[PullFormat, typer.Option()] = PullFormat.FP32,
    bandwidth: Bandwidth = None,
    server_bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="On virtual hosts: of the servers' hosts.")] = None,
    latency: Latency = None,
    colocate: Annotated[bool, typer.Option("--colocate", help="On virtual hosts: servers on the workers' hosts.")] = False,
    host: Host = None,
    address: Address = None,
    json: Json = False,
    show_stack: Stack = False,
) -> None:
    """Measure the communication of a model's steps: its tensors travel as in training, nothing is computed."""
    from deploy.bench.comm import bench_comm, config_for
    from deploy.simulation.run import enter_user_namespace

    wishes = _wishes(bandwidth=bandwidth, server_bandwidth=server_bandwidth, latency=latency, colocate=colocate, hosts=tuple(host or ()))
    if wishes:
        enter_user_namespace()
    formats = {"push_format": push_format.value, "pull_format": pull_format.value}
    _show(bench_comm(config_for(model, workers=workers, servers=servers, steps=steps, **formats), wishes, address), json=json)


def _wishes(**given: Any) -> Any:
    """None if nothing is to be simulated."""
    from deploy.simulation.wishes import Wishes

    return Wishes(**given) if any(given.values()) else None


def _show(found: Any, *, json: bool) -> None:
    typer.echo(json_text.dumps(found.to_dict(), indent=2) if json else found.text())
