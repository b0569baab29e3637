"""`pserver compare`: both contenders compute the same, whatever the task does; what DDP cannot do is refused."""

import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.compare import MIN_STEPS, check, compare
from deploy.config import Config, ScalingConfig, TaskConfig
from deploy.console import Console
from deploy.measure.comparison import Comparison
from deploy.rundir import RunDirectory
from ps.config import CommConfig, GroupConfig, OptimizerConfig, ScheduleConfig, Timeouts
from ps.errors import ConfigError, ProcessDied, Unreachable
from tests.deploy.forked import ForkedLauncher
from tests.deploy.leftovers import nothing_left
from workers.compare import BLOCK_STEPS
from workers.config import TrainConfig

ODD = "tests.deploy.odd:Odd"


def config_of(task: str, fields: dict[str, Any] | None = None, *, comm: CommConfig | None = None, **options: Any) -> Config:
    optimizer, schedule = options.pop("optimizer", OptimizerConfig(lr=0.05, momentum=0.9)), options.pop("schedule", ScheduleConfig())
    scaling = ScalingConfig(num_workers=options.pop("num_workers", 2), num_servers=2)
    train = TrainConfig(**{"batch_size": 8, **options})
    return Config(
        task=TaskConfig(name=task, fields=fields or {}),
        train=train,
        optimizer=optimizer,
        schedule=schedule,
        scaling=scaling,
        comm=comm or CommConfig(),
    )


def forked(config: Config, rundir: RunDirectory, console: Console) -> ForkedLauncher:
    return ForkedLauncher(lambda key: rundir.process_log(key.role, key.index))


def compared(config: Config) -> Comparison:
    return compare(config, forked, num_steps=MIN_STEPS, timeouts=Timeouts(heartbeat_s=0.2))


ALIKE = [
    pytest.param({}, {"num_workers": 3}, id="own weights, an uneven last batch"),
    pytest.param({"weighs": False, "samples": 33, "normalise": False}, {"accumulate": 2}, id="accumulation, ranks without samples"),
    pytest.param(
        {"weighs": False},
        {
            "optimizer": OptimizerConfig(name="adamw", max_grad_norm=0.5, clip_value=0.2, groups=(GroupConfig(pattern="*.bias", lr_factor=3.0),)),
            "schedule": ScheduleConfig(name="cosine", warmup_steps=4),
        },
        id="clipping, groups, schedule",
    ),
]


@pytest.mark.parametrize(("fields", "options"), ALIKE)
def test_both_compute_the_same_losses(fields: dict[str, Any], options: dict[str, Any]) -> None:
    with nothing_left():
        found = compared(config_of(ODD, fields, dtype="float64", **options))
    assert found.ours.first_loss == pytest.approx(found.ddp.first_loss, rel=1e-12)
    assert found.ours.last_loss == pytest.approx(found.ddp.last_loss, rel=1e-8)
    assert found.ours.last_loss < 0.9 * found.ours.first_loss or not math.isclose(found.ours.last_loss, found.ours.first_loss, rel_tol=1e-3)
    assert found.losses_agree and found.exact
    assert "unused parameters looked for" in found.variant
    assert found.num_measured == MIN_STEPS - BLOCK_STEPS - 2
    assert min(found.ours.step_s, found.ours.cpu_s, found.ddp.step_s, found.ddp.cpu_s, found.ours.samples_per_s) > 0


def test_a_worker_that_dies_under_ddp_ends_the_comparison_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with nothing_left(), pytest.raises((ProcessDied, Unreachable), match="worker 1 was killed by SIGKILL") as caught:
        compared(config_of("tests.deploy.broken:Broken", {"how": "suicide"}))
    log = Path(re.findall(r"see (\S+)", str(caught.value))[0])
    assert log.is_file() and log.is_relative_to(tmp_path)


REFUSED = [
    (lambda config: replace(config, task=None, train=replace(config.train, loop="mine:train")), "compare needs a task"),
    (lambda config: replace(config, scaling=ScalingConfig(use_gpu=True)), "use_gpu = false"),
    (lambda config: replace(config, comm=CommConfig(bandwidth="200mbit")), "comm.bandwidth and comm.latency are for pserver's streams"),
    (lambda config: replace(config, optimizer=OptimizerConfig(momentum=0.9, momentum_form="ema")), "no class in torch.optim"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_ddp_cannot_do_is_refused_before_anything_starts(change: Any, message: str) -> None:
    config = change(config_of("digits"))
    with pytest.raises(ConfigError, match=message):
        check(config, MIN_STEPS)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match=f"at least {MIN_STEPS}"):
        check(config_of("digits"), MIN_STEPS - 1)


def test_fewer_samples_than_workers_are_refused() -> None:
    with nothing_left(), pytest.raises(ConfigError, match="fewer samples than the 3 workers"):
        compared(config_of(ODD, {"samples": 2}, num_workers=3))
