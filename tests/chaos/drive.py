"""The driver of one run, as a process of its own: `python -m tests.chaos.drive STORAGE NAME SPEC_JSON`."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from deploy.config import RunConfig, ScalingConfig
from deploy.console import Console
from deploy.launch.base import Launcher, ProcessKey, Role
from deploy.launch.process import ProcessLauncher
from deploy.rundir import RunDirectory
from deploy.trainer import Trainer
from ps.config import CommConfig, Timeouts
from tests.deploy.forked import ForkedLauncher
from tests.deploy.killing import OPTIMIZERS
from tests.deploy.own_loops import Noisy
from workers.config import TrainConfig

LauncherName = Literal["process", "ray", "forked"]
STEPS_PER_EPOCH = 12
"""23 samples, two ranks, one sample each."""
FROZEN_AFTER_S = 3.0
TARGETS: Mapping[Role, str] = {"server": "tests.chaos.armed:serve", "worker": "tests.chaos.armed:work"}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One run."""

    launcher: LauncherName
    optimizer: str
    """One of `OPTIMIZERS`."""
    shared_memory: bool
    steps: int
    """Rounded up to whole epochs."""
    num_workers: int = 2
    num_servers: int = 2

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class ArmedProcesses(ProcessLauncher):
    """Plain processes that can be stopped at a place."""

    def command(self, key: ProcessKey) -> list[str]:
        return [sys.executable, "-m", "tests.chaos.armed", key.role]


class ChaosTrainer(Trainer):
    """Its processes are those of `tests.chaos.armed`."""

    spec: Spec

    def _make_launcher(self, rundir: RunDirectory, console: Console) -> Launcher:
        def log_path(key: ProcessKey) -> Path:
            return rundir.process_log(key.role, key.index)

        if self.spec.launcher == "process":
            return ArmedProcesses(log_path)
        if self.spec.launcher == "forked":
            forked = ForkedLauncher(log_path)
            forked.targets = TARGETS
            return forked
        from deploy.launch.ray import RayLauncher

        return RayLauncher(log_path, num_workers=self.spec.num_workers, num_servers=self.spec.num_servers, targets=TARGETS)


def drive(storage: str, name: str, spec: Spec) -> int:
    """Exit code 1 if the run fails."""
    made = ChaosTrainer(
        Noisy(),
        train_config=TrainConfig(batch_size=1, epochs=-(-spec.steps // STEPS_PER_EPOCH)),
        optimizer=OPTIMIZERS[spec.optimizer],
        scaling_config=ScalingConfig(num_workers=spec.num_workers, num_servers=spec.num_servers),
        comm=CommConfig(shared_memory=spec.shared_memory),
        run_config=RunConfig(storage_path=storage, name=name),
        timeouts=Timeouts(heartbeat_s=0.1, frozen_after_s=FROZEN_AFTER_S),
    )
    made.spec = spec
    return 1 if made.fit().error else 0


if __name__ == "__main__":
    sys.exit(drive(sys.argv[1], sys.argv[2], Spec(**json.loads(sys.argv[3]))))
