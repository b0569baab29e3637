"""What this machine tells of a config in some seconds: the costs of a short run, and a worker's samples per second by batch."""

import math
from collections.abc import Mapping
from dataclasses import replace

from deploy.bench.places import measured
from deploy.config import Config, ScalingConfig
from deploy.predict.blocks import Blocks
from deploy.predict.costs import Costs
from deploy.predict.inputs import scenario_of_run
from ps.config import CheckpointConfig, CommConfig
from workers.sampler import BatchPlan

STEPS = 24
MOST = 2
"""Workers, and servers, of the run: costs of frames and bytes do not depend on how many there are."""
AROUND = (0.25, 0.5, 1, 2, 4)
"""Batches that are timed, as parts of the config's."""


def costs_here(config: Config, *, shared: bool) -> Costs:
    """Of the config's task, optimizer and formats in processes of this machine. `shared`: payload is in shared memory. Raises what ended the run."""
    with measured(_short(config, shared=shared), None, None, here="") as (run, _):
        return scenario_of_run(run).costs


def speeds(blocks: Blocks, config: Config) -> Mapping[int, float]:
    """Samples per second of one worker that computes alone, by the samples of a micro-batch."""
    found = {}
    for samples in sorted({max(1, round(part * batch_of(config))) for part in AROUND}):
        whole = blocks.whole(samples)
        found[samples] = samples / (whole.load_s + whole.forward_s + whole.backward_s)
    return found


def batch_of(config: Config) -> int:
    """Samples of one worker in a micro-batch."""
    train, num_workers = config.train, config.scaling.num_workers
    return math.ceil(BatchPlan.from_config(train, num_workers, num_samples=1).global_batch / num_workers / train.accumulate)


def _short(config: Config, *, shared: bool) -> Config:
    train, comm = config.train, config.comm
    return Config(
        task=config.task,
        train=replace(
            train, max_steps=STEPS, epochs=STEPS, batch_size=batch_of(config), global_batch_size=None, accumulate=1,
            validate_every=STEPS, validate_unit="step",
        ),
        optimizer=config.optimizer,
        scaling=ScalingConfig(num_workers=min(MOST, config.scaling.num_workers), num_servers=min(MOST, config.scaling.num_servers)),
        comm=CommConfig(push_format=comm.push_format, pull_format=comm.pull_format, topk_fraction=comm.topk_fraction, shared_memory=shared),
        checkpoint=CheckpointConfig(every_epochs=0),
    )  # fmt: skip
