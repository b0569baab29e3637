"""From "workers=1,2,4 bandwidth=100mbit,1gbit" to the points of a grid, and what each changes. Pure."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deploy.config import Config
from deploy.config.source import parse_value
from deploy.config.suggest import hint
from deploy.config.write import to_value
from deploy.simulation.wishes import Wishes
from ps.errors import ConfigError
from workers.sampler import BatchPlan

Scaling = Literal["strong", "weak"]
SHORT = {
    "workers": "scaling.num_workers",
    "stages": "scaling.num_stages",
    "servers": "scaling.num_servers",
    "push_format": "comm.push_format",
    "pull_format": "comm.pull_format",
    "batch": "train.batch_size",
    "lr": "optimizer.lr",
    "lr_scaling": "optimizer.lr_scaling",
    "seed": "train.seed",
}
"""Keys of the config by their short names."""
LINKS = ("bandwidth", "server_bandwidth", "latency", "colocate", "cpus", "straggler")
"""Axes that are simulated."""
LEARNING = ("train.", "optimizer.", "schedule.")
"""How keys begin that change what is learnt."""
Value = str | int | float | bool


@dataclass(frozen=True)
class Axis:
    """One `KEY=VALUE,VALUE`."""

    name: str
    values: tuple[Value, ...]

    @property
    def key(self) -> str:
        return SHORT.get(self.name, self.name)

    @property
    def learns(self) -> bool:
        """Whether another value trains to other weights, beyond what the number of samples of a step does."""
        return self.key.startswith(LEARNING)


@dataclass(frozen=True)
class Point:
    """One value of every axis."""

    values: Mapping[str, Value]

    @property
    def name(self) -> str:
        """Of its run directory."""
        text = "_".join(f"{key.rpartition('.')[2]}-{value}" for key, value in self.values.items())
        return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text) or "point"

    @property
    def key(self) -> str:
        """The same for the same values in another order of axes."""
        return json.dumps(dict(sorted(self.values.items())))

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.values.items()) or "the config as it is"


def parse_axes(texts: Sequence[str]) -> list[Axis]:
    """Raises ConfigError."""
    axes: list[Axis] = []
    for text in texts:
        name, _, values = text.partition("=")
        if not values or not all(values.split(",")):
            raise ConfigError(f"--grid {text}: write KEY=VALUE,VALUE, for example workers=1,2,4")
        if name not in (*SHORT, *LINKS) and "." not in name:
            raise ConfigError(f"--grid {text}: unknown key {name}: {hint(name, [*SHORT, *LINKS], kind='the keys are section.key or')}")
        if name in [axis.name for axis in axes] or (SHORT.get(name, name) in [axis.key for axis in axes]):
            raise ConfigError(f"--grid {text}: {name} has come before: give all its values at once")
        parsed = tuple(value if name in LINKS else parse_value(value) for value in _values(name, values))
        if len(set(parsed)) != len(parsed):
            raise ConfigError(f"--grid {text}: a value comes twice")
        axes.append(Axis(name, parsed))
    return axes


def _values(name: str, text: str) -> list[str]:
    """A straggler, rank=2,factor=2, has a comma itself: several are divided by a slash."""
    return text.split("/" if name == "straggler" else ",")


def points_of(axes: Sequence[Axis]) -> list[Point]:
    """All combinations, the last axis changing fastest."""
    names = [axis.name for axis in axes]
    return [Point(dict(zip(names, values, strict=True))) for values in itertools.product(*(axis.values for axis in axes))]


def changes(point: Point, base: Config, scaling: Scaling | None, axes: Sequence[Axis]) -> list[str]:
    """What `--set` must say for the point. `scaling`: "strong" keeps the base's global batch, "weak" a worker's; None: what the base says."""
    sets = [f"{SHORT.get(name, name)}={_text(value)}" for name, value in point.values.items() if name not in LINKS and name != "batch"]
    if "lr_scaling" in point.values:
        sets.append(f"optimizer.reference_batch_size={reference_batch_size(point, base, axes) or ''}")
    batch = point.values.get("batch")
    if scaling == "strong" or (scaling is None and base.train.batch_size is None and batch is None):
        return [*sets, "train.batch_size=", f"train.global_batch_size={_global_batch(base, batch)}"]
    per_worker = batch or base.train.batch_size or max(1, _global_batch(base, None) // base.scaling.num_workers // base.train.accumulate)
    return [*sets, "train.global_batch_size=", f"train.batch_size={per_worker}"]


def reference_batch_size(point: Point, base: Config, axes: Sequence[Axis]) -> int | None:
    """Samples of a step that the point's batch rule counts from: the base's, else the smallest of the grid. None: the grid gives it no rule."""
    if point.values.get("lr_scaling", "none") == "none":
        return None
    return base.optimizer.reference_batch_size or min(_global_batch(base, each.values.get("batch")) for each in points_of(axes))


def wishes_of(point: Point) -> Wishes | None:
    """What is simulated at the point; None: nothing."""
    given = {name: str(value) for name, value in point.values.items() if name in LINKS}
    if not given:
        return None
    try:
        cpus = float(given["cpus"]) if "cpus" in given else None
    except ValueError as error:
        raise ConfigError(f"--grid cpus={given['cpus']}: give a number of cores, for example 0.5") from error
    if given.get("colocate", "false") not in ("true", "false"):
        raise ConfigError(f"--grid colocate={given['colocate']}: true or false")
    return Wishes(
        bandwidth=given.get("bandwidth"),
        server_bandwidth=given.get("server_bandwidth"),
        latency=given.get("latency"),
        colocate=given.get("colocate") == "true",
        cpus=cpus,
        stragglers=(given["straggler"],) if "straggler" in given else (),
    )


def _global_batch(base: Config, batch: Any) -> int:
    """Of the base, or with `batch` samples per worker."""
    if batch is None:
        return BatchPlan.from_config(base.train, base.scaling.num_workers, 1).global_batch
    return int(batch) * base.scaling.num_workers * base.train.accumulate


def _text(value: Value) -> str:
    return value if isinstance(value, str) else to_value(value)
