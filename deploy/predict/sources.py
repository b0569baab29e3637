"""What `pserver plan` is asked about: a run, or a config whose task is timed here."""

import os
from collections.abc import Sequence
from dataclasses import replace

from deploy.config import Config, load
from deploy.predict.blocks import Blocks
from deploy.predict.inputs import Wishes, changed, check_measured, on_hosts_of, scenario_of_run
from deploy.predict.scenario import Scenario
from deploy.predict.stages import Division, Divisions
from deploy.rundir import RunDirectory
from ps.errors import ConfigError


def asked(source: str, wishes: Wishes) -> tuple[Scenario, Sequence[Division]]:
    """`source`: a run's name or folder, or a config file. With the ways to divide as many workers into ranks and stages, where the task can be
    split and this is asked: of a config, of a run of stages, and with `wishes.stages`. Raises ConfigError."""
    check_measured(wishes)
    if source.endswith(".toml"):
        return _of_config(_wished(load(source), wishes), wishes)
    return _of_run(RunDirectory.open(source), wishes)


def _of_config(config: Config, wishes: Wishes) -> tuple[Scenario, Sequence[Division]]:
    blocks = Blocks(config)
    hosts = changed(on_hosts_of(config, [], blocks.specs), _of_hosts(wishes))
    if hosts.hosts == "one" and wishes.cores is None:
        hosts = replace(hosts, cores_per_host=float(os.cpu_count() or 1))
    return _divided(config, Divisions(config, hosts, blocks))


def _of_run(run: RunDirectory, wishes: Wishes) -> tuple[Scenario, Sequence[Division]]:
    found, config = scenario_of_run(run), load(run.config)
    if config.scaling.num_stages == 1 and wishes.stages is None:
        if wishes.micro_batches is not None:
            raise ConfigError("--micro-batches are for ranks of several stages: add --stages")
        return changed(found, wishes), []
    wished = _wished(config, wishes)
    blocks = Blocks(wished)
    timed = Divisions(config, found, blocks).scenario(config.scaling.num_workers, found.num_stages, config.pipeline.micro_batches)
    slowness = _compute_s(found) / _compute_s(timed)
    is_same = wished.train == config.train and wished.scaling.num_workers == config.scaling.num_workers
    hosts = changed(found, _of_hosts(wishes))
    return _divided(wished, Divisions(wished, hosts, blocks, slowness, found if is_same else None))


def _compute_s(scenario: Scenario) -> float:
    """Of a sample on all stages."""
    return (scenario.forward_s + scenario.backward_s) / scenario.samples


def _divided(config: Config, divisions: Divisions) -> tuple[Scenario, Sequence[Division]]:
    scaling = config.scaling
    scenario = divisions.scenario(scaling.num_workers, scaling.num_stages, config.pipeline.micro_batches)
    ways = divisions.all(scaling.num_members)
    return scenario, ways if len({way.scenario.num_stages for way in ways}) > 1 else []


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
