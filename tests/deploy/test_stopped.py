"""SIGSTOP: for a moment it is harmless, for too long it is a death; who is merely slow is left alone."""

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest

from deploy.launch.base import ProcessKey
from deploy.result import Result
from deploy.rundir import RunDirectory
from ps.config import OptimizerConfig, Timeouts
from tests.deploy.faults import S0, S1, W0, W1, Faults
from tests.deploy.forked import ForkedLauncher, trainer
from tests.deploy.killing import NOISY, OPTIMIZERS, bits_of, deaths_of, run, undisturbed
from tests.deploy.leftovers import nothing_left

SOON = Timeouts(heartbeat_s=0.2, frozen_after_s=2.0)


@pytest.mark.parametrize(
    "faults",
    [
        Faults().stop(W1, ("worker.sent", 5)).stop(S0, ("shard.written", 6)),
        Faults().stop(W0, ("worker.landed", 9)).stop(S1, ("shard.taken", 11)),
        Faults().stop(S0, ("shard.joined", 1)),
    ],
    ids=str,
)
def test_processes_that_stop_are_killed_and_their_successors_go_on_to_the_same_bits(faults: Faults, tmp_path: Path) -> None:
    result = run(tmp_path, "adam", faults, timeouts=SOON)
    assert bits_of(result) == undisturbed("adam")
    assert deaths_of(result) == faults.victims
    log = (result.path / "logs" / "driver.log").read_text()
    for victim in faults.victims:
        assert f"{victim} has given no sign of life for 0.67 s" in log
        assert f"{victim} gave no sign of life for 2 s and was killed" in log


def test_all_that_stop_for_a_moment_go_on_themselves(tmp_path: Path) -> None:
    made = trainer(tmp_path, NOISY, batch_size=4, epochs=4, optimizer=OPTIMIZERS["adam"])
    faults = Faults().stop(W1, ("worker.sent", 5)).stop(W0, ("worker.landed", 9)).stop(S0, ("shard.written", 4)).stop(S1, ("shard.taken", 11))
    woken: list[ProcessKey] = []

    def prepare(launcher: ForkedLauncher, rundir: RunDirectory) -> None:
        launcher.faults = faults.arm(tmp_path)

        def wake() -> bool:
            for key, process in launcher._running.items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if psutil.Process(process.pid).status() == psutil.STATUS_STOPPED:
                        woken.append(key)
                        os.kill(process.pid, signal.SIGCONT)
            return False

        launcher.victim, launcher.when = W0, wake

    made.prepare = prepare  # type: ignore[method-assign]
    with nothing_left():
        result: Result = made.fit()
    assert bits_of(result) == undisturbed("adam")
    assert deaths_of(result) == []
    faults.check_fired()
    assert set(woken) == {W0, W1, S0, S1}


def test_a_slow_rank_is_never_killed(tmp_path: Path) -> None:
    made = trainer(
        tmp_path,
        "tests.deploy.broken:Broken",
        {"how": "slow"},
        batch_size=128,
        epochs=1,
        optimizer=OptimizerConfig(lr=0.01),
        timeouts=SOON,
    )
    result = made.fit()
    assert result.error is None
    assert deaths_of(result) == []
