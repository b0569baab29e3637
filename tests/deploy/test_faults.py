"""Processes that are killed where that is not made good: the run ends soon, says by whom, and leaves nothing behind."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray

from deploy.config import FailureConfig, RunConfig, ScalingConfig
from deploy.console import Console
from deploy.launch.base import Ending, ProcessKey
from deploy.launch.ray import RayLauncher
from deploy.result import Result
from deploy.rundir import RunDirectory
from deploy.trainer import Trainer
from ps.config import Timeouts
from ps.errors import ProcessDied
from tests.deploy.broken import BROKEN, ENDLESS, Broken
from tests.deploy.conftest import gone
from tests.deploy.forked import CONTEXT, ForkedLauncher, ForkedTrainer, train, trainer
from tests.deploy.leftovers import nothing_left, segments_of
from tests.deploy.waiting import in_training
from tests.waiting import until
from workers.config import TrainConfig

SOON_S = 10.0
"""From a kill to the end of the run, beside other tests."""


def killed(made: ForkedTrainer, victim: ProcessKey, when: Callable[[RunDirectory], bool]) -> tuple[Result, float]:
    """The run whose `victim` is killed when `when` holds, and the seconds from then to its end."""
    since: list[float] = []

    def prepare(launcher: ForkedLauncher, rundir: RunDirectory) -> None:
        def now() -> bool:
            if when(rundir):
                since.append(time.monotonic())
            return bool(since)

        launcher.victim, launcher.when = victim, now

    made.prepare = prepare  # type: ignore[method-assign]
    with nothing_left():
        result = made.fit()
        took_s = time.monotonic() - since[0]
    assert made.launcher.has_killed
    assert not segments_of(result.path)
    return result, took_s


def at_once(rundir: RunDirectory) -> bool:
    return True


@pytest.mark.parametrize("victim", [ProcessKey("worker", 1), ProcessKey("server", 0)], ids=str)
@pytest.mark.parametrize("when", [at_once, in_training], ids=["at the start", "in mid-training"])
def test_a_killed_process_ends_the_run_and_is_named(victim: ProcessKey, when: Callable[[RunDirectory], bool], tmp_path: Path) -> None:
    result, took_s = killed(trainer(tmp_path, BROKEN, {"how": "long"}, **ENDLESS, max_failures=0), victim, when)
    assert took_s < SOON_S
    assert isinstance(result.error, ProcessDied)
    log = result.path / "logs" / f"{victim.role}-{victim.index}.log"
    assert str(result.error).startswith(f"{victim} was killed by SIGKILL")
    assert str(result.error).endswith(f"see {log}")
    assert "\n" not in str(result.error)
    assert json.loads((result.path / "summary.json").read_text())["error_type"] == "ProcessDied"


@pytest.mark.parametrize("victim", [ProcessKey("worker", 0), ProcessKey("server", 1)], ids=str)
def test_a_process_killed_during_validation_is_named(victim: ProcessKey, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    made = trainer(tmp_path, BROKEN, {"how": "long validation", "mark": str(mark)}, batch_size=64, epochs=1, max_failures=0)
    result, took_s = killed(made, victim, lambda _: mark.exists())
    assert took_s < SOON_S
    assert str(result.error).startswith(f"{victim} was killed by SIGKILL")


def test_a_worker_that_dies_in_the_middle_of_a_step_is_named(tmp_path: Path) -> None:
    with nothing_left():
        result = train(tmp_path, BROKEN, {"how": "suicide"}, **ENDLESS)
    assert str(result.error).startswith("worker 1 was killed by SIGKILL; its last words: ")
    assert "(it has died 10 times at step " in str(result.error)
    assert {death["process"] for death in json.loads((result.path / "summary.json").read_text())["failures"]} == {"worker 1"}


class Killer(Trainer):
    """On Ray; kills the worker in mid-training, and the server when the worker is back."""

    def _make_launcher(self, rundir: RunDirectory, console: Console) -> RayLauncher:
        launcher = super()._make_launcher(rundir, console)
        assert isinstance(launcher, RayLauncher)
        ended = launcher.ended
        self.killed: list[psutil.Process] = []

        def kill_first() -> dict[ProcessKey, Ending]:
            if not self.killed and in_training(rundir):
                self._kill(launcher, ProcessKey("worker", 0))
            elif len(self.killed) == 1 and "worker 0 is back at step" in rundir.driver_log().read_text():
                self._kill(launcher, ProcessKey("server", 0))
            return ended()

        launcher.ended = kill_first  # type: ignore[method-assign]
        return launcher

    def _kill(self, launcher: RayLauncher, key: ProcessKey) -> None:
        process = launcher._process(key)
        assert process
        process.kill()
        self.killed.append(process)


def test_actors_that_are_killed_are_named_and_one_too_many_ends_the_run(tmp_path: Path, ray_cluster: str) -> None:
    made = Killer(
        Broken(how="long"),
        train_config=TrainConfig(**ENDLESS),
        scaling_config=ScalingConfig(num_workers=1, num_servers=1),
        failure=FailureConfig(max_failures=1),
        run_config=RunConfig(storage_path=str(tmp_path)),
        quiet=True,
    )
    with nothing_left():
        result = made.fit()
    assert len(made.killed) == 2 and not any(process.is_running() for process in made.killed)
    log = (result.path / "logs" / "driver.log").read_text()
    assert "worker 0 was killed or has crashed at step " in log
    assert isinstance(result.error, ProcessDied)
    assert str(result.error).startswith("server 0 was killed or has crashed; its last words: ")
    assert not segments_of(result.path)
    assert ray.is_initialized()


def test_processes_whose_driver_was_killed_end_and_remove_their_memory(tmp_path: Path) -> None:
    rundir = RunDirectory(tmp_path / "run")
    options = {**ENDLESS, "num_workers": 1, "num_servers": 1, "name": "run", "timeouts": Timeouts(heartbeat_s=0.2, orphan_after_s=1.0)}
    driver = CONTEXT.Process(target=train, args=(tmp_path, BROKEN, {"how": "long"}), kwargs=options)
    driver.start()
    try:
        until(lambda: in_training(rundir), 60)
        children = [child.pid for child in psutil.Process(driver.pid).children(recursive=True)]
        assert len(children) >= 2
    finally:
        driver.kill()
        driver.join()
    assert segments_of(rundir.path)
    assert all(gone(pid) for pid in children)
    assert not segments_of(rundir.path)
