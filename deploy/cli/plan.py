"""`pserver plan`: what a step would take, without a cluster."""

import contextlib
import json as json_text
import sys
from enum import StrEnum
from typing import Annotated

import typer

from deploy.cli.options import PullFormat, PushFormat, Straggler


class Calibration(StrEnum):
    """Where costs come from."""

    AUTO = "auto"


def plan(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[RUN|CONFIG.toml]", help="A run, whose ledger tells model, compute, costs; or a config, whose task is timed here."),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME|FILE|TASK", help="resnet50, gpt2, bert-large, FILE.safetensors, module:Task.")] = None,
    model_bytes: Annotated[str | None, typer.Option(metavar="SIZE", help="Or only its size, for example 400MB.")] = None,
    compute_ms: Annotated[float | None, typer.Option(metavar="MS", min=0, help="Forward and backward of one sample on one worker.")] = None,
    gflops: Annotated[float | None, typer.Option(metavar="G", min=0, help="Or 10^9 operations of a sample, with --device-gflops.")] = None,
    device_gflops: Annotated[float | None, typer.Option(metavar="G", min=1e-9, help="10^9 operations per second that a worker reaches.")] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", min=1, help="Samples of a worker in a step.")] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, help="Ranks.")] = None,
    stages: Annotated[int | None, typer.Option(metavar="N", min=1, help="Workers of each rank, of a run or a config.")] = None,
    micro_batches: Annotated[int | None, typer.Option(metavar="N", min=1, help="As pipeline.micro_batches.")] = None,
    servers: Annotated[int | None, typer.Option(metavar="N", min=1)] = None,
    bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="Of every host's link, for example 1gbit.")] = None,
    latency_ms: Annotated[float | None, typer.Option(metavar="MS", min=0, help="One way.")] = None,
    cores: Annotated[float | None, typer.Option(metavar="N", min=0.01, help="Of every host.")] = None,
    colocate: Annotated[bool, typer.Option("--colocate", help="Servers on the workers' hosts.")] = False,
    rack_size: Annotated[int | None, typer.Option(metavar="N", min=1, help="Workers' hosts stand in racks of N, servers outside of them.")] = None,
    uplink: Annotated[str | None, typer.Option(metavar="RATE", help="Of a rack, each way.")] = None,
    aggregator_bandwidth: Annotated[
        str | None, typer.Option(metavar="RATE", help="A host in every rack, with a link of that rate, sums what its workers push.")
    ] = None,
    straggler: Straggler = None,
    push_format: Annotated[PushFormat | None, typer.Option()] = None,
    pull_format: Annotated[PullFormat | None, typer.Option()] = None,
    calibrate: Annotated[
        Calibration | None, typer.Option(help="auto: of a config, measure costs in a short run here, and samples per second by batch size.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="METRIC=VALUE", help="Of a run: how long to a value that it has reached, for example validation_loss=0.3.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
) -> None:
    """What a step would take on other hosts and links, what would limit it, and what would help."""
    from deploy.predict.answers import by_hand, of_source
    from deploy.predict.inputs import Wishes

    wishes = Wishes(
        model=model,
        model_bytes=model_bytes,
        compute_ms=compute_ms,
        gflops=gflops,
        device_gflops=device_gflops,
        batch=batch,
        workers=workers,
        stages=stages,
        micro_batches=micro_batches,
        servers=servers,
        bandwidth=bandwidth,
        latency_ms=latency_ms,
        cores=cores,
        colocate=colocate,
        rack_size=rack_size,
        uplink=uplink,
        aggregator_bandwidth=aggregator_bandwidth,
        stragglers=tuple(straggler or ()),
        push_format=push_format.value if push_format else None,
        pull_format=pull_format.value if pull_format else None,
    )
    if source is None and (calibrate or target):
        raise typer.BadParameter("--calibrate is for a config, --target for a run: name one")
    with contextlib.redirect_stdout(sys.stderr):  # the user's module may print
        found = by_hand(wishes) if source is None else of_source(source, wishes, calibrate=calibrate is not None, target=target)
    typer.echo(json_text.dumps(found.values, indent=2) if json else found.text)
