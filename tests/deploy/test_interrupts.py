"""Ctrl-C and SIGTERM, at any moment: the run ends soon, says so, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy.interrupts import interruptible
from deploy.launch.base import ProcessKey
from deploy.launch.choice import LauncherName
from deploy.rundir import RunDirectory
from ps.errors import ProcessDied, Stopped
from tests.deploy.broken import BROKEN, ENDLESS
from tests.deploy.conftest import gone
from tests.deploy.forked import ForkedLauncher, trainer
from tests.deploy.leftovers import nothing_left, segments_of
from tests.deploy.waiting import in_training

SOON_S = 10.0
"""From an interrupt to the end of the run, beside other tests."""

JOB = """
[task]
name = "tests.deploy.broken:Broken"
how = "long"
[train]
batch_size = 8
epochs = 1000000
[scaling]
num_workers = 1
num_servers = 1
[run]
name = "run"
"""


class Driver:
    """A driver in a process of its own, in a folder of its own."""

    def __init__(self, folder: Path, *command: str, address: str = "") -> None:
        self.rundir = RunDirectory(folder / "runs" / "run")
        on_loopback = {"RAY_ADDRESS": address, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # or Ray would seek it at the outer address
        env = {**os.environ, "PYTHONPATH": os.getcwd(), **(on_loopback if address else {})}
        self._output = folder / "output.txt"
        with self._output.open("w") as file:
            self.process = subprocess.Popen([sys.executable, *command], cwd=folder, env=env, stdout=file, stderr=file, process_group=0)

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 100
        while not done():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def command(folder: Path, launcher: LauncherName, address: str = "") -> Driver:
    (folder / "job.toml").write_text(JOB)
    return Driver(folder, "-c", "from deploy.cli.main import main; main()", "run", "job.toml", "--launcher", launcher, address=address)


@pytest.fixture
def interrupted(tmp_path: Path) -> tuple[Driver, float, list[int]]:
    """A run of plain processes that was interrupted in mid-training, and again and again while it ended; the seconds it took, its processes."""
    driver = command(tmp_path, "process")
    try:
        driver.wait_for(lambda: in_training(driver.rundir))
        children = driver.children()
        started = time.monotonic()
        driver.process.send_signal(signal.SIGINT)
        while all(map(psutil.pid_exists, children)):
            assert time.monotonic() - started < SOON_S
        while driver.process.poll() is None and not driver.rundir.summary.exists():
            assert time.monotonic() - started < 2 * SOON_S
            driver.process.send_signal(signal.SIGINT)
            time.sleep(0.0005)
        driver.process.wait(20)
        return driver, time.monotonic() - started, children
    finally:
        driver.end()


@pytest.mark.alone
def test_ctrl_c_ends_within_five_seconds_and_leaves_a_whole_directory(interrupted: tuple[Driver, float, list[int]]) -> None:
    driver, took_s, children = interrupted
    assert driver.process.returncode == 130
    assert took_s < 5
    assert len(children) == 2 and all(gone(pid, 0) for pid in children)
    summary = json.loads(driver.rundir.summary.read_text())
    assert summary["status"] == "interrupted"
    assert summary["comm"]["steps"] > 0
    assert not segments_of(driver.rundir.path)
    assert "Traceback" not in driver.output
    assert "error: interrupted" in driver.output


def assert_interrupted_by(sent: signal.Signals, driver: Driver) -> None:
    """The run ends soon, and says why."""
    started = time.monotonic()
    driver.process.send_signal(sent)
    assert driver.process.wait(20) == 130, driver.output
    assert time.monotonic() - started < SOON_S
    assert json.loads(driver.rundir.summary.read_text())["status"] == "interrupted"


def test_an_interrupt_while_servers_start_leaves_nothing(tmp_path: Path) -> None:
    driver = command(tmp_path, "process")
    try:
        with nothing_left():
            driver.wait_for(driver.rundir.process_log("server", 0).exists)
            assert_interrupted_by(signal.SIGINT, driver)
    finally:
        driver.end()
    assert f"interrupted before an epoch had ended: {Path('runs/run')} holds no weights" in driver.output


def test_an_interrupt_at_the_very_end_breaks_nothing_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def control(rundir: RunDirectory) -> Path:
        if made.launcher.ended() and not sent:  # its last use, in the midst of what the driver closes
            sent.append(True)
            signal.raise_signal(signal.SIGINT)
        return rundir.path / ".control.json"

    monkeypatch.setattr(RunDirectory, "control", property(control))
    made = trainer(tmp_path, BROKEN, {"how": "not at all"}, batch_size=8, epochs=1)
    with nothing_left():
        result = made.fit()
    assert sent
    assert result.error is None
    assert result.comm["steps"] > 0


def test_an_interrupt_while_processes_are_killed_breaks_nothing_off(tmp_path: Path) -> None:
    sent = []

    def prepare(launcher: ForkedLauncher, rundir: RunDirectory) -> None:
        bury = launcher._bury

        def then_interrupt(key: ProcessKey) -> None:
            bury(key)
            sent.append(key)
            signal.raise_signal(signal.SIGINT)

        def stop(grace_s: float) -> None:
            launcher._bury = then_interrupt  # type: ignore[method-assign]
            ForkedLauncher.stop(launcher, grace_s)

        launcher.stop = stop  # type: ignore[method-assign]

    made = trainer(tmp_path, BROKEN, {"how": "loss"}, batch_size=8, epochs=1)
    made.prepare = prepare  # type: ignore[method-assign]
    with nothing_left():
        result = made.fit()
    assert {ProcessKey("server", 0), ProcessKey("server", 1)} <= set(sent)
    assert not isinstance(result.error, Stopped)


def test_a_death_is_named_although_the_end_that_it_brings_is_interrupted(tmp_path: Path) -> None:
    victim = ProcessKey("worker", 1)

    def prepare(launcher: ForkedLauncher, rundir: RunDirectory) -> None:
        def stop(grace_s: float) -> None:
            terminate = launcher._running[ProcessKey("server", 0)].terminate

            def then_interrupt() -> None:
                terminate()
                signal.raise_signal(signal.SIGINT)

            launcher._running[ProcessKey("server", 0)].terminate = then_interrupt  # type: ignore[method-assign]
            ForkedLauncher.stop(launcher, grace_s)

        launcher.stop = stop  # type: ignore[method-assign]
        launcher.victim, launcher.when = victim, lambda: in_training(rundir)

    made = trainer(tmp_path, BROKEN, {"how": "long"}, max_failures=0, **ENDLESS)
    made.prepare = prepare  # type: ignore[method-assign]
    with nothing_left():
        result = made.fit()
    assert isinstance(result.error, ProcessDied) and "worker 1" in str(result.error)


def test_a_second_interrupt_at_once_is_the_first() -> None:
    with interruptible() as interrupt:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert interrupt.seen


@pytest.mark.parametrize("made_of_it", [None, ValueError("a schema cannot be built")], ids=["swallowed", "another error"])
def test_an_interrupt_still_ends_the_run_whatever_an_extension_makes_of_it(tmp_path: Path, made_of_it: Exception | None) -> None:
    seen = []

    def prepare(launcher: ForkedLauncher, rundir: RunDirectory) -> None:
        def interrupt() -> bool:
            if not seen and in_training(rundir):
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                except KeyboardInterrupt:
                    seen.append(True)
                    if made_of_it:
                        raise made_of_it from None
            return False

        launcher.victim, launcher.when = ProcessKey("worker", 0), interrupt

    made = trainer(tmp_path, BROKEN, {"how": "long"}, **ENDLESS)
    made.prepare = prepare  # type: ignore[method-assign]
    with nothing_left():
        result = made.fit()
    assert seen
    assert isinstance(result.error, Stopped)


def test_sigterm_ends_a_run_on_ray(tmp_path: Path, ray_cluster: str) -> None:
    driver = command(tmp_path, "ray", ray_cluster)
    try:
        driver.wait_for(lambda: in_training(driver.rundir))
        assert_interrupted_by(signal.SIGTERM, driver)
    finally:
        driver.end()
    assert "Traceback" not in driver.output
