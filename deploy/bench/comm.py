"""What the communication of a model's steps costs: its tensors travel as in training, nothing is computed."""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from deploy.bench.places import measured
from deploy.config import Config, ScalingConfig, TaskConfig
from deploy.measure.recorded import Recorded, read_run
from deploy.measure.table import tables
from deploy.measure.text import counted, seconds, size
from deploy.measure.verdict import verdict
from deploy.predict.floors import colocated_s, one_way_s
from deploy.simulation.wishes import Wishes
from ps.config import CheckpointConfig, CommConfig, OptimizerConfig
from workers.config import TrainConfig

WARM_UP = 2
"""Steps that do not count."""
_SHARED = "on this machine, payload in shared memory"


@dataclass(frozen=True, kw_only=True)
class CommFound:
    """Figures of one measurement; seconds are of the mean rank."""

    model: str
    where: str
    workers: int
    servers: int
    push_format: str
    pull_format: str
    steps: int
    step_s: float
    """Median."""
    quartiles_s: tuple[float, float]
    push_bytes: float
    """Payload of one worker in one step, as `pull_bytes`."""
    pull_bytes: float
    floor_s: float | None
    """What the thinnest link needs for its payload in one direction; None if the links' rates are not known."""
    bottleneck: str
    tables: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "tables"}

    def text(self) -> str:
        formats = f"push {self.push_format}, pull {self.pull_format}"
        lines = [
            f"{self.model}: {size(self.push_bytes)} up and {size(self.pull_bytes)} down per worker and step, {formats}, nothing computed",
            self.where if self.where != _SHARED else f"{counted(self.workers, 'worker')} and {counted(self.servers, 'server')} {self.where}",
            *self.tables,
            f"step {seconds(self.step_s)} (quartiles {' .. '.join(map(seconds, self.quartiles_s))}, {counted(self.steps, 'step')})",
            f"floor {seconds(self.floor_s)}: {self.step_s / self.floor_s:.2f} times" if self.floor_s else "no floor: the links' rates are not known",
            f"bottleneck: {self.bottleneck}",
        ]
        return "\n".join(lines)


def config_for(model: str, *, workers: int, servers: int, steps: int, push_format: str = "fp32", pull_format: str = "fp32") -> Config:
    """A run of Adam on the model's tensors. Raises ConfigError for a model that is none."""
    from workers.tasks.shapes import ModelShapes  # brings torch

    steps += WARM_UP
    fields = {"like": model, "samples": workers * steps}
    ModelShapes(like=model).model()  # a wrong name shows here, not in a worker
    return Config(
        task=TaskConfig(name="workers.tasks.shapes:ModelShapes", fields=fields),
        train=TrainConfig(batch_size=1, epochs=1, max_steps=steps),
        optimizer=OptimizerConfig(name="adam", lr=1e-3),
        scaling=ScalingConfig(num_workers=workers, num_servers=servers),
        comm=CommConfig(push_format=push_format, pull_format=pull_format),  # type: ignore[arg-type]
        checkpoint=CheckpointConfig(every_epochs=0),
    )


def bench_comm(config: Config, wishes: Wishes | None = None, address: str | None = None) -> CommFound:
    """Runs it."""
    with measured(config, wishes, address, here=_SHARED) as (run, where):
        return _found(config, read_run(run), where, colocated=bool(wishes and wishes.colocate))


def _found(config: Config, recorded: Recorded, where: str, *, colocated: bool) -> CommFound:
    assert config.task
    window, scaling = recorded.window, config.scaling
    lengths = recorded.series.step_s[WARM_UP:]
    low, _, high = statistics.quantiles(lengths, n=4, method="inclusive")
    push, pull = (sum(means[way] for means in window.shards.values()) / scaling.num_workers for way in ("push_bytes", "pull_bytes"))
    return CommFound(
        model=config.task.fields["like"],
        where=where,
        workers=scaling.num_workers,
        servers=scaling.num_servers,
        push_format=config.comm.push_format,
        pull_format=config.comm.pull_format,
        steps=len(lengths),
        step_s=statistics.median(lengths),
        quartiles_s=(low, high),
        push_bytes=push,
        pull_bytes=pull,
        floor_s=_floor_s(recorded, max(push, pull), colocated=colocated),
        bottleneck=str(verdict(window)),
        tables=tuple(table.plain() for table in tables(window)),
    )


def _floor_s(recorded: Recorded, num_bytes: float, *, colocated: bool) -> float | None:
    window = recorded.window
    workers, servers = len(window.ranks), len(window.shards)
    shards = [rate for rate in window.links.values() if rate]
    if window.rank_link is None or len(shards) < servers:
        return None
    if colocated and servers <= workers:
        return colocated_s(num_bytes, workers, servers, min(window.rank_link, *shards)) if workers > 1 else None
    return one_way_s(num_bytes, workers, servers, window.rank_link, min(shards))
