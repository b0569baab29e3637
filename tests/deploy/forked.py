"""Runs whose processes are forked from one that has imported everything: real processes, without seconds for each."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from deploy.config import Config, FailureConfig, RunConfig, ScalingConfig, TaskConfig
from deploy.launch.base import Ending, LogPath, ProcessKey, Role
from deploy.launch.process import ProcessLauncher
from deploy.result import Result
from deploy.rundir import RunDirectory
from deploy.trainer import Trainer
from ps.config import CheckpointConfig, CommConfig, MetricsConfig, OptimizerConfig, Timeouts
from ps.decisions import EarlyStoppingConfig, PlateauConfig
from tests.deploy.faults import Armed, arm
from workers.config import PipelineConfig, TrainConfig

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.deploy.preloaded"])
TARGETS: Mapping[Role, str] = {"server": "ps.server:serve", "worker": "workers.worker:work"}


class _Forked:
    """What the process launcher uses of `subprocess.Popen`."""

    def __init__(self, settings_json: str, log: Path, fault: Armed | None, target: str) -> None:
        self._process = CONTEXT.Process(target=_live, args=(target, settings_json, log, fault, os.getcwd()))
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid
        self.terminate = self._process.terminate

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        if timeout is None:
            self._process.kill()
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("forked", timeout or 0)
        return self._process.exitcode


class ForkedLauncher(ProcessLauncher):
    """The process launcher, but for how a process begins; kills `victim` once, as soon as `when` says so."""

    targets: Mapping[Role, str] = TARGETS
    victim: ProcessKey | None = None
    when: Callable[[], bool] = staticmethod(lambda: True)
    has_killed = False

    def __init__(self, log_path: LogPath, *, num_gpus: int = 0) -> None:
        super().__init__(log_path, num_gpus=num_gpus)
        self.faults: dict[str, list[Armed]] = {}
        """By process, as `Faults.arm` gives them: each of its incarnations in turn has the next one."""

    def start(self, key: ProcessKey, settings_json: str) -> None:
        self._ended.pop(key, None)
        left = self.faults.get(f"{key.role}-{key.index}")
        fault = left.pop(0) if left else None
        self._running[key] = _Forked(settings_json, self._log_path(key), fault, self.targets[key.role])  # type: ignore[assignment]

    def ended(self) -> dict[ProcessKey, Ending]:
        if self.victim in self._running and not self.has_killed and self.when():
            os.kill(self._running[self.victim].pid, signal.SIGKILL)
            self.has_killed = True
        return super().ended()


class ForkedTrainer(Trainer):
    """A trainer whose processes are forked."""

    launcher: ForkedLauncher

    def _make_launcher(self, rundir: RunDirectory, *_: Any) -> ForkedLauncher:
        self.launcher = ForkedLauncher(lambda key: rundir.process_log(key.role, key.index))
        self.prepare(self.launcher, rundir)
        return self.launcher

    def prepare(self, launcher: ForkedLauncher, rundir: RunDirectory) -> None:
        """For tests that plan a fault."""


def trainer(storage: Path, task: str | None, fields: dict[str, Any] | None = None, **options: Any) -> ForkedTrainer:
    """For a task by its name, or None and the option `loop`.

    `options` are `optimizer`, `early_stopping`, `plateau`, `timeouts` and fields of the sections train, scaling, comm, checkpoint,
    failure, metrics and run, which share none.
    """

    def of(section: Any) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name in section.__dataclass_fields__}

    config = Config(
        task=TaskConfig(name=task, fields=fields or {}) if task else None,
        train=TrainConfig(**of(TrainConfig)),
        optimizer=options.get("optimizer", OptimizerConfig()),
        scaling=ScalingConfig(**of(ScalingConfig)),
        pipeline=PipelineConfig(**of(PipelineConfig)),
        comm=CommConfig(**of(CommConfig)),
        failure=FailureConfig(**of(FailureConfig)),
        checkpoint=CheckpointConfig(**of(CheckpointConfig)),
        early_stopping=options.get("early_stopping", EarlyStoppingConfig()),
        plateau=options.get("plateau", PlateauConfig()),
        metrics=MetricsConfig(**of(MetricsConfig)),
        run=RunConfig(storage_path=str(storage), **of(RunConfig)),
    )
    return ForkedTrainer.from_config(config, quiet=True, timeouts=options.get("timeouts", Timeouts(heartbeat_s=0.2)))


def train(storage: Path, task: str, fields: dict[str, Any] | None = None, **options: Any) -> Result:
    """Trains to the end; see `trainer`."""
    return trainer(storage, task, fields, **options).fit()


def _live(target: str, settings_json: str, log: Path, fault: Armed | None, folder: str) -> None:
    from ps.logs import configure_logging

    os.chdir(folder)
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    configure_logging()
    if fault:
        arm(fault)
    module, _, function = target.partition(":")
    sys.exit(getattr(import_module(module), function)(settings_json))
