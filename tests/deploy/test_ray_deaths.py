"""The deaths of actors: the driver starts new ones, in the same places, and the run goes on to the same bits."""

from pathlib import Path

import pytest

from deploy.config import RunConfig, ScalingConfig
from deploy.console import Console
from deploy.launch.base import ProcessKey
from deploy.launch.ray import RayLauncher
from deploy.result import Result
from deploy.rundir import RunDirectory
from deploy.trainer import Trainer
from ps.config import Timeouts
from tests.deploy import armed
from tests.deploy.faults import S0, W0, Faults
from tests.deploy.killing import OPTIMIZERS, bits_of, deaths_of, undisturbed
from tests.deploy.leftovers import segments_of
from tests.deploy.own_loops import Noisy
from workers.config import TrainConfig

ARMED = {"server": "tests.deploy.armed:serve", "worker": "tests.deploy.armed:work"}


class ArmedTrainer(Trainer):
    """On Ray; the processes are armed with `faults`."""

    faults: Faults

    def _make_launcher(self, rundir: RunDirectory, console: Console) -> RayLauncher:
        armed.plan(rundir.name, self.faults)

        def log_path(key: ProcessKey) -> Path:
            return rundir.process_log(key.role, key.index)

        return RayLauncher(log_path, num_workers=2, num_servers=1, targets=ARMED)


def run(storage: Path, faults: Faults) -> Result:
    made = ArmedTrainer(
        Noisy(),
        train_config=TrainConfig(batch_size=4, epochs=4),
        optimizer=OPTIMIZERS["two phases"],
        scaling_config=ScalingConfig(num_workers=2, num_servers=1),
        run_config=RunConfig(storage_path=str(storage)),
        quiet=True,
        timeouts=Timeouts(heartbeat_s=0.2, frozen_after_s=6.0),
    )
    made.faults = faults
    result = made.fit()
    armed.forget(result.path.name, faults)
    assert not segments_of(result.path)
    return result


@pytest.mark.timeout(240)  # two silences of 6 s, four new actors
def test_actors_that_die_or_stop_are_replaced_and_no_bit_changes(tmp_path: Path, ray_cluster: str) -> None:
    """Those that stop are the successors of those that die."""
    faults = Faults().kill(S0, ("shard.recorded", 2)).kill(W0, ("worker.landed", 7))
    faults.stop(S0, ("shard.applied", 2)).stop(W0, ("worker.sent", 9))
    result = run(tmp_path, faults)
    assert bits_of(result) == undisturbed("two phases")
    assert deaths_of(result) == faults.victims
