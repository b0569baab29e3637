"""A sweep from its first point to its last, or from where it was left."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from deploy.config import Config, load, to_toml
from deploy.measure.recorded import read_run
from deploy.measure.target import steps_to
from deploy.rundir import RunDirectory
from deploy.simulation.run import simulate
from deploy.simulation.wishes import hosts_of
from deploy.sweep.grid import Axis, Point, Scaling, changes, points_of, reference_batch_size, wishes_of
from deploy.sweep.results import Results, Row, measured
from deploy.trainer import Trainer
from ps.errors import ConfigError, Stopped
from workers.landscape import Landscape, landscape
from workers.task import load_task


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is swept."""

    config_file: Path
    sets: Sequence[str]
    axes: Sequence[Axis]
    scaling: Scaling | None = None
    target: tuple[str, float] | None = None
    """Metric, and the value that counts as reached."""

    def __post_init__(self) -> None:
        for point in points_of(self.axes):  # every mistake shows before the first run
            config, wishes = self.config(point), wishes_of(point)
            if wishes:
                hosts_of(config, wishes, shm_bytes=0)

    @property
    def base(self) -> Config:
        return load(self.config_file, self.sets)

    @property
    def folder(self) -> Path:
        """The same for the same config, whatever the axes: points that were there before are not run again."""
        base = self.base
        text = to_toml(replace(base, run=replace(base.run, name=None, storage_path="runs"))) + str(self.scaling) + str(self.target)
        name = base.run.name or f"{self.config_file.stem}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
        return Path(base.run.storage_path) / "sweeps" / name

    def config(self, point: Point) -> Config:
        """Of the point's run. Raises ConfigError."""
        found = load(self.config_file, [*self.sets, *changes(point, self.base, self.scaling, self.axes)])
        return replace(found, run=replace(found.run, name=point.name, storage_path=str(self.folder / "points")))

    def reference(self, point: Point) -> int | None:
        """See `reference_batch_size`."""
        return reference_batch_size(point, self.base, self.axes)

    def holds(self, row: Row, point: Point) -> bool:
        """Whether the row of a former sweep is what the point would be now: a smaller batch in the grid is another one to count k from."""
        return row.error is None and row.reference_batch_size == self.reference(point)

    @property
    def learns(self) -> bool:
        """Whether points are trained otherwise, so that what they learn is compared."""
        return self.target is not None or any(axis.learns for axis in self.axes)


def sweep(wanted: Sweep, say: Callable[[str], None], show: Callable[[Sequence[Row]], object]) -> list[Row]:
    """Runs what has not been run, and returns all rows in the order of the grid. Raises Stopped after Ctrl-C: the same call goes on.

    A run that fails is a row with its error; the next call tries it again. `show` is given the rows that are there, after every one that is new.
    """
    results = Results(wanted.folder)
    results.folder.mkdir(parents=True, exist_ok=True)
    points = points_of(wanted.axes)
    found = results.read()
    known = {point.key: found[point.key] for point in points if point.key in found and wanted.holds(found[point.key], point)}
    if known:
        say(f"{len(known)} of {len(points)} points are there already: {results.folder}")
    for number, point in enumerate(points, start=1):
        if point.key in known:
            continue
        row = _run(wanted, point)
        results.add(row)
        known[point.key] = row
        step = f"{row.step_s * 1e3:.1f} ms a step, {row.bottleneck}" if row.step_s else "no step"
        say(f"{number}/{len(points)} {point}: {row.error or step}")
        show([known[point.key] for point in points if point.key in known])
    return [known[point.key] for point in points]


def _run(wanted: Sweep, point: Point) -> Row:
    config, wishes = wanted.config(point), wishes_of(point)
    left = Path(config.run.storage_path) / point.name
    if left.exists():  # of a point that did not end
        shutil.rmtree(left)
    try:
        if wishes is None:
            result = Trainer.from_config(config, launcher="process", quiet=True).fit()
            error, path = result.error, str(result.path)
        else:
            outcome = simulate(config, wishes, quiet=True)
            error, path = outcome.error, outcome.path or str(left)
    except ConfigError as refused:
        return Row(point=point.values, run=point.name, error=" ".join(str(refused).split()))
    if isinstance(error, Stopped):
        raise Stopped(f"the sweep was interrupted at {point}: the same command goes on there")
    if error is not None:
        return Row(point=point.values, run=point.name, error=" ".join(str(error).split()) or type(error).__name__)
    return _row(wanted, point, config, RunDirectory(Path(path)))


def _row(wanted: Sweep, point: Point, config: Config, run: RunDirectory) -> Row:
    recorded = read_run(run)
    row = Row(point=point.values, run=point.name, reference_batch_size=wanted.reference(point), **measured(recorded))
    if wanted.target:
        row = replace(row, steps_to_target=steps_to(recorded.history, *wanted.target))
    if not wanted.learns or config.task is None:
        return row
    found = _landscape(config, run)
    return replace(row, train_loss=found.train_loss, validation_loss=found.validation_loss, gap=found.gap, rise=found.rise)


def _landscape(config: Config, run: RunDirectory) -> Landscape:
    """Of the run's last weights."""
    assert config.task
    task = load_task(config.task.name, config.task.fields)
    torch.manual_seed(config.train.seed)
    model = task.model().to(getattr(torch, config.train.dtype))
    model.load_state_dict(load_file(run.weights("last")), strict=False)  # tied weights are stored once
    return landscape(task, model)
