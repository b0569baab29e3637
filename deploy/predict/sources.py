"""What `pserver plan` is asked about: a run, or a config whose task is timed here."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deploy.config import Config, load
from deploy.measure.recorded import read_run
from deploy.measure.target import parse_target
from deploy.predict.blocks import Blocks
from deploy.predict.duration import Duration, duration
from deploy.predict.here import costs_here, speeds
from deploy.predict.inputs import Wishes, changed, check_measured, on_hosts_of, scenario_of_run
from deploy.predict.scenario import Scenario
from deploy.predict.simulate import Prediction
from deploy.predict.stages import Division, Divisions, best, table
from deploy.rundir import RunDirectory
from ps.errors import ConfigError


@dataclass(frozen=True)
class Asked:
    """What a source tells."""

    scenario: Scenario
    ways: Sequence[Division] = ()
    """To divide as many workers into ranks and stages, where the task can be split and this is asked: of a config, of a run of stages, and
    with `wishes.stages`."""
    speeds: Mapping[int, float] = field(default_factory=dict)
    """Samples per second of one worker here by its batch, if that was timed."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        divided = {"divisions": [way.to_dict() for way in self.ways], "best_division": best(self.ways).to_dict()} if self.ways else {}
        timed = {"samples_per_s_by_batch": {str(batch): speed for batch, speed in self.speeds.items()}} if self.speeds else {}
        return {**divided, **timed}

    def lines(self) -> list[str]:
        """For people."""
        speeds = ", ".join(f"{speed:.4g} by {batch}" for batch, speed in self.speeds.items())
        timed = [f"samples/s of one worker alone on this machine, by micro-batch: {speeds}"] if self.speeds else []
        return [*timed, *([table(self.ways)] if self.ways else [])]


def asked(source: str, wishes: Wishes, *, calibrate: bool = False) -> Asked:
    """`source`: a run's name or folder, or a config file. `calibrate`: of a config, costs are those of a short run here, and batches are timed.
    Raises ConfigError, and what ended that run."""
    check_measured(wishes)
    if source.endswith(".toml"):
        return _of_config(_wished(load(source), wishes), wishes, calibrate=calibrate)
    if calibrate:
        raise ConfigError("--calibrate auto beside a run, which tells the costs: leave one of them out")
    return _of_run(RunDirectory.open(source), wishes)


def _of_config(config: Config, wishes: Wishes, *, calibrate: bool) -> Asked:
    blocks = Blocks(config)
    hosts = changed(on_hosts_of(config, [], blocks.specs), _of_hosts(wishes))
    if hosts.hosts == "one" and wishes.cores is None:
        hosts = replace(hosts, cores_per_host=float(os.cpu_count() or 1))
    if not calibrate:
        return _divided(config, Divisions(config, hosts, blocks))
    hosts = replace(hosts, costs=costs_here(config, shared=hosts.is_shared))
    return replace(_divided(config, Divisions(config, hosts, blocks)), speeds=speeds(blocks, config))


def _of_run(run: RunDirectory, wishes: Wishes) -> Asked:
    found, config = scenario_of_run(run), load(run.config)
    if config.scaling.num_stages == 1 and wishes.stages is None:
        if wishes.micro_batches is not None:
            raise ConfigError("--micro-batches are for ranks of several stages: add --stages")
        return Asked(changed(found, wishes))
    wished = _wished(config, wishes)
    blocks = Blocks(wished)
    timed = Divisions(config, found, blocks).scenario(config.scaling.num_workers, found.num_stages, config.pipeline.micro_batches)
    slowness = _compute_s(found) / _compute_s(timed)
    is_same = wished.train == config.train and wished.scaling.num_workers == config.scaling.num_workers
    hosts = changed(found, _of_hosts(wishes))
    return _divided(wished, Divisions(wished, hosts, blocks, slowness, found if is_same else None))


def to_target(source: str, step: Prediction, target: str) -> Duration:
    """How long steps like `step` take to a value that the run has reached, "METRIC=VALUE". Raises ConfigError."""
    metric, value = parse_target(target)
    if source.endswith(".toml"):
        raise ConfigError(f"--target {target} beside a config: how many steps it takes, only a run tells")
    return duration(read_run(RunDirectory.open(source)), step, metric, value)


def _compute_s(scenario: Scenario) -> float:
    """Of a sample on all stages."""
    return (scenario.forward_s + scenario.backward_s) / scenario.samples


def _divided(config: Config, divisions: Divisions) -> Asked:
    scaling = config.scaling
    scenario = divisions.scenario(scaling.num_workers, scaling.num_stages, config.pipeline.micro_batches)
    ways = divisions.all(scaling.num_members)
    return Asked(scenario, ways if len({way.scenario.num_stages for way in ways}) > 1 else [])


def _of_hosts(wishes: Wishes) -> Wishes:
    """Without what the config says already."""
    return replace(wishes, batch=None, workers=None)


def _wished(config: Config, wishes: Wishes) -> Config:
    """Raises ConfigError."""
    scaling, pipeline, train = config.scaling, config.pipeline, config.train
    try:
        if wishes.batch is not None:
            train = replace(train, batch_size=wishes.batch, global_batch_size=None)
        scaling = replace(
            scaling,
            num_workers=wishes.workers or scaling.num_workers,
            num_stages=wishes.stages or scaling.num_stages,
            num_servers=wishes.servers or scaling.num_servers,
        )
        pipeline = replace(pipeline, micro_batches=wishes.micro_batches or pipeline.micro_batches)
        return replace(config, train=train, scaling=scaling, pipeline=pipeline)
    except ValueError as error:
        raise ConfigError(str(error)) from error
