"""From what a user says, or a run has recorded, to a scenario."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from deploy.config import Config, load
from deploy.measure.ledger_file import LedgerStep, read_ledger
from deploy.predict.calibrate import fit
from deploy.predict.costs import VIRTUAL_LINK_BYTE_S, Costs
from deploy.predict.scenario import Hosts, Pipeline, Racks, Scenario, equal_tensors, tensors_of
from deploy.rundir import RunDirectory
from ps.comm import CommConfig, PullFormat, PushFormat, parse_rate
from ps.errors import ConfigError
from ps.layout import TensorSpec

FORWARD = 1 / 3
"""Part of the compute: backward makes two products where forward makes one."""


def parse_size(text: str) -> int:
    """Bytes of "400MB", "8MiB" or "1.5GB". Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKMG])(i?)B", text)
    if not match:
        raise ConfigError(f"{text!r} is no size: for example 400MB or 8MiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** ("KMG".index(match[2].upper()) + 1))


def parse_straggler(text: str) -> tuple[int, float]:
    """Rank and factor of "rank=2,factor=1.5". Raises ConfigError."""
    match = re.fullmatch(r"rank=(\d+),factor=(\d+(?:\.\d+)?)", text)
    if not match or float(match[2]) < 1:
        raise ConfigError(f"{text!r} is no straggler: for example rank=2,factor=1.5, with a factor from 1")
    return int(match[1]), float(match[2])


def tensors_named(model: str) -> tuple[TensorSpec, ...]:
    """Tensors of a well-known model ("resnet50"), of a file of weights, or of a task's model ("package.module:Task"). Raises ConfigError."""
    from workers.shapes import shapes_named

    return _tensors_of_task(model, {}) if ":" in model else tensors_of(shapes_named(model))


def _tensors_of_task(name: str, fields: dict[str, Any]) -> tuple[TensorSpec, ...]:
    from workers.binding import specs_of
    from workers.task import load_task

    return specs_of(load_task(name, fields).model())


def scenario_of_run(run: RunDirectory) -> Scenario:
    """What a run was, with the costs and the compute that its ledger shows. Raises ConfigError."""
    steps = list(read_ledger(run.comm))
    return fit(steps, scenario_of_config(load(run.config), steps))


def scenario_of_config(config: Config, steps: Sequence[LedgerStep]) -> Scenario:
    """What trains by the config on the hosts that the ledger's `steps` show; it computes nothing, with the usual costs."""
    task = config.task
    specs, pipeline = _split(config)
    return on_hosts_of(config, steps, specs or (_tensors_of_task(task.name, task.fields) if task else equal_tensors(_pushed_bytes(steps))), pipeline)


def on_hosts_of(config: Config, steps: Sequence[LedgerStep], specs: tuple[TensorSpec, ...], pipeline: Pipeline | None = None) -> Scenario:
    """These tensors on the hosts of the config, and of the ledger."""
    is_virtual = config.comm.shaping == "links"
    return Scenario(
        specs=specs,
        pipeline=pipeline,
        forward_s=0.0,
        backward_s=0.0,
        num_workers=config.scaling.num_workers,
        num_servers=config.scaling.num_servers,
        comm=config.comm,
        overlap=config.train.overlap,
        hosts=_hosts(steps, config, is_virtual=is_virtual),
        machine_cores=float(os.cpu_count() or 1) if is_virtual else math.inf,
        latency_s=config.comm.latency_s,
        micro_batches=config.train.accumulate,
        global_batch=config.train.global_batch_size,
        computes_on_host=not config.scaling.use_gpu,
        costs=Costs(kernel_byte_s=VIRTUAL_LINK_BYTE_S if is_virtual else 0.0),
    )


def _split(config: Config) -> tuple[tuple[TensorSpec, ...], Pipeline | None]:
    """The tensors of split ranks, and an empty pipeline of theirs; none of whole ranks. Raises ConfigError."""
    from deploy.predict.blocks import Blocks
    from workers.sampler import BatchPlan

    scaling, num_stages = config.scaling, config.scaling.num_stages
    if num_stages == 1:
        return (), None
    batch = BatchPlan.from_config(config.train, scaling.num_workers, num_samples=1).global_batch
    parts = min(config.train.accumulate * config.pipeline.micro_batches, max(batch // scaling.num_workers, 1))
    equal = (1 / num_stages,) * num_stages
    return Blocks(config).placed(num_stages)[1], Pipeline(equal, equal, (0.0,) * (num_stages - 1), parts, config.pipeline.schedule)


def _hosts(steps: Sequence[LedgerStep], config: Config, *, is_virtual: bool) -> Hosts:
    """By which shards the workers have found on their hosts: some of them, or all, or none."""
    local = {traffic.local for step in steps for row in step.workers for traffic in row.shards}
    if local == {True, False} and config.scaling.num_servers <= config.scaling.num_members:
        return "colocated"
    return "apart" if is_virtual and True not in local else "one"


def _pushed_bytes(steps: Sequence[LedgerStep]) -> int:
    for step in steps:
        if step.workers:
            return sum(traffic.push_bytes for traffic in step.workers[0].shards)
    raise ConfigError("the run has no step of a worker in its ledger: nothing to plan from")


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user has asked for; None: as the run was, or the default."""

    model: str | None = None
    model_bytes: str | None = None
    compute_ms: float | None = None
    """Of one sample, forward and backward."""
    gflops: float | None = None
    """Of one sample, forward and backward."""
    device_gflops: float | None = None
    batch: int | None = None
    """Of one worker."""
    workers: int | None = None
    stages: int | None = None
    micro_batches: int | None = None
    servers: int | None = None
    bandwidth: str | None = None
    latency_ms: float | None = None
    cores: float | None = None
    colocate: bool = False
    rack_size: int | None = None
    uplink: str | None = None
    """Of a rack."""
    aggregator_bandwidth: str | None = None
    stragglers: Sequence[str] = ()
    push_format: PushFormat | None = None
    pull_format: PullFormat | None = None


def scenario_by_hand(wishes: Wishes) -> Scenario:
    """Raises ConfigError."""
    if wishes.stages or wishes.micro_batches:
        raise ConfigError("--stages and --micro-batches are for a run or a config, whose task has blocks")
    return changed(_by_hand(wishes), wishes)


def changed(base: Scenario, wishes: Wishes) -> Scenario:
    """The scenario with what is wished, but for stages. Raises ConfigError."""
    samples = wishes.batch or base.samples
    links = {"bandwidth": wishes.bandwidth, "server_bandwidth": {}, "worker_bandwidth": {}} if wishes.bandwidth else {}
    num_workers = wishes.workers or base.num_workers
    try:
        comm = replace(
            base.comm,
            **links,  # type: ignore[arg-type]
            push_format=wishes.push_format or base.comm.push_format,
            pull_format=wishes.pull_format or base.comm.pull_format,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    hosts: Hosts = "colocated" if wishes.colocate else "apart" if wishes.bandwidth is not None else base.hosts
    return replace(
        base,
        samples=float(samples),
        forward_s=base.forward_s * samples / base.samples,
        backward_s=base.backward_s * samples / base.samples,
        num_workers=num_workers,
        num_servers=wishes.servers or base.num_servers,
        comm=comm,
        hosts=hosts,
        latency_s=base.latency_s if wishes.latency_ms is None else wishes.latency_ms / 1e3,
        cores_per_host=wishes.cores or base.cores_per_host,
        machine_cores=math.inf if wishes.cores else base.machine_cores,
        costs=replace(base.costs, kernel_byte_s=0.0) if wishes.cores else base.costs,
        stragglers=dict(map(parse_straggler, wishes.stragglers)) or {rank: by for rank, by in base.stragglers.items() if rank < num_workers},
        racks=_racks(wishes),
    )


def _racks(wishes: Wishes) -> Racks | None:
    if wishes.rack_size is None:
        if wishes.uplink or wishes.aggregator_bandwidth:
            raise ConfigError("--uplink and --aggregator-bandwidth are a rack's: say with --rack-size how many workers it has")
        return None
    try:
        return Racks(
            size=wishes.rack_size,
            uplink_bytes_per_s=parse_rate(wishes.uplink) if wishes.uplink else math.inf,
            aggregator_bytes_per_s=parse_rate(wishes.aggregator_bandwidth) if wishes.aggregator_bandwidth else None,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_measured(wishes: Wishes) -> None:
    """Raises ConfigError for what is not asked beside a run or a config."""
    if named := [name for name in ("model", "model_bytes", "compute_ms", "gflops", "device_gflops") if getattr(wishes, name) is not None]:
        raise ConfigError(f"--{named[0].replace('_', '-')} beside a run or a config, which tells it: leave one of them out")


def _by_hand(wishes: Wishes) -> Scenario:
    """One sample per worker."""
    if (wishes.model is None) == (wishes.model_bytes is None):
        raise ConfigError("give a run, or one of --model and --model-bytes")
    if wishes.compute_ms is not None:
        compute_s = wishes.compute_ms / 1e3
    elif wishes.gflops is not None and wishes.device_gflops is not None:
        compute_s = wishes.gflops / wishes.device_gflops
    else:
        raise ConfigError("give --compute-ms, or --gflops of a sample and --device-gflops: how long does a worker compute?")
    return Scenario(
        specs=tensors_named(wishes.model) if wishes.model is not None else equal_tensors(parse_size(wishes.model_bytes or "")),
        forward_s=FORWARD * compute_s,
        backward_s=(1 - FORWARD) * compute_s,
        num_workers=2,
        num_servers=2,
        comm=CommConfig(),
        cores_per_host=math.inf,
        computes_on_host=wishes.device_gflops is None,
    )
