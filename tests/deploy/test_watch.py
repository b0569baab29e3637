"""What the driver makes of endings: a launcher in memory stands for the processes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.interrupts import Interrupt
from deploy.launch.base import Ending, ProcessKey
from deploy.recovery import Recovery
from deploy.rundir import RunDirectory
from deploy.watch import Watch
from ps.config import Timeouts
from ps.control import Control, Failure, ServerAddress
from ps.control_service import ControlServicer
from ps.errors import NonFinite, ProcessDied

W0, W1, S0 = ProcessKey("worker", 0), ProcessKey("worker", 1), ProcessKey("server", 0)
KILLED = Ending(None, "was killed by SIGKILL", "some\nlast words")


class Memory:
    """A launcher that starts nothing."""

    def __init__(self) -> None:
        self.endings: dict[ProcessKey, Ending] = {}
        self.started: list[ProcessKey] = []

    def check(self) -> None: ...

    def control_host(self) -> str:
        return "127.0.0.1"

    def bind_host(self, key: ProcessKey) -> str:
        return "127.0.0.1"

    def start(self, key: ProcessKey, settings_json: str) -> None:
        self.endings.pop(key, None)
        self.started.append(key)

    def ended(self) -> dict[ProcessKey, Ending]:
        return dict(self.endings)

    def kill(self, key: ProcessKey) -> None:
        self.endings[key] = KILLED

    def cpu_s(self, key: ProcessKey) -> float | None:
        return None

    def memory_of(self, key: ProcessKey, name: str) -> None:
        return None

    def stop(self, grace_s: float) -> None: ...


class Run:
    """Two workers and a server that have registered."""

    def __init__(self, folder: Path, max_failures: int | None = None, timeouts: Timeouts | None = None) -> None:
        self.launcher = Memory()
        self.control = Control(num_workers=2, num_servers=1)
        self.service = ControlServicer(self.control, 1, on_epoch=lambda _: False, on_rows=lambda *_: None, on_step=lambda *_: None)
        self.recovery = Recovery(max_failures)
        self.said: list[str] = []
        for key in (S0, W0, W1):
            self.register(key)
        self.watch = Watch(
            self.launcher,
            self.control,
            self.service,
            RunDirectory(folder),
            Interrupt(),
            recovery=self.recovery,
            timeouts=timeouts or Timeouts(),
            restart=lambda key: self.launcher.start(key, ""),
            on_tick=lambda: None,
            say=self.said.append,
        )

    def register(self, key: ProcessKey) -> None:
        self.control.register(key.role, key.index, ServerAddress(0, "a:1", "a:2") if key.role == "server" else None)

    def until(self, done: Callable[[], bool]) -> None:
        self.watch.wait("the test", done)


def test_what_dies_is_started_again_and_lost_to_others_until_it_has_registered(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.control.beat("worker", 0, 7)
    run.launcher.endings = {S0: KILLED, W1: KILLED}
    run.until(lambda: len(run.launcher.started) == 2)
    assert run.launcher.started == [S0, W1]
    assert run.control.locate(0) is None
    assert run.said == [f"{key} was killed by SIGKILL at step 7: starting it again" for key in (S0, W1)]
    for key in (S0, W1):
        run.register(key)
        run.control.beat(key.role, key.index, 7)
    run.until(lambda: all(death.back_after_s is not None for death in run.recovery.deaths))
    assert run.control.locate(0) == ServerAddress(0, "a:1", "a:2")
    assert run.said[2].startswith("server 0 is back at step 7, ")


def test_the_last_death_says_what_died_its_last_words_and_why_that_is_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, max_failures=1)
    run.launcher.endings = {S0: KILLED}
    run.until(lambda: bool(run.launcher.started))
    run.launcher.endings = {W1: KILLED}
    with pytest.raises(ProcessDied) as died:
        run.until(lambda: False)
    log = tmp_path / "logs" / "worker-1.log"
    assert str(died.value) == f"worker 1 was killed by SIGKILL; its last words: last words (failure.max_failures = 1 is used up); see {log}"


@pytest.mark.parametrize(
    ("key", "ending", "message"),
    [
        (
            S0,
            Ending(None, "was lost with its Ray node", "", lost_host=True),
            r"server 0 was lost .* \(its part of the parameters was in that host's memory\)",
        ),
        (W0, Ending(2, "exited with code 2", "error: no such module"), r"worker 0 exited with code 2; its last words: error: no such module; see"),
    ],
    ids=["a server's host", "who cannot start"],
)
def test_what_cannot_be_made_good_ends_the_run(key: ProcessKey, ending: Ending, message: str, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.control.incarnations.pop(("worker", 0))
    run.launcher.endings = {key: ending}
    with pytest.raises(ProcessDied, match=message):
        run.until(lambda: False)
    assert not run.launcher.started


def test_a_worker_on_a_lost_host_may_be_started_elsewhere(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.launcher.endings = {W0: Ending(None, "was lost with its Ray node", "", lost_host=True)}
    run.until(lambda: bool(run.launcher.started))
    assert run.launcher.started == [W0]
    assert run.said == ["worker 0 was lost with its Ray node at step 0: starting it again"]


def test_a_rank_that_has_finished_may_die(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.control.finish(0, 9)
    run.launcher.endings = {W0: KILLED, W1: KILLED}
    run.until(lambda: bool(run.launcher.started))
    assert run.launcher.started == [W1]


def test_a_failure_that_a_rank_has_reported_ends_the_run_and_its_death_is_none(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.control.fail(Failure(1, "NonFinite", "loss is nan", "stack"))
    run.launcher.endings = {W1: Ending(1, "exited with code 1", "")}
    with pytest.raises(NonFinite, match="rank 1: loss is nan"):
        run.until(lambda: False)
    assert not run.launcher.started


def test_a_successor_that_never_registers_ends_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, timeouts=Timeouts(start_s=0.05))
    run.launcher.endings = {W1: KILLED}
    with pytest.raises(ProcessDied, match=r"worker 1 was started again, but did not register within 0.05 s; see .*worker-1.log"):
        run.until(lambda: False)


def test_a_silent_process_is_named_killed_and_started_again(tmp_path: Path) -> None:
    run = Run(tmp_path, timeouts=Timeouts(frozen_after_s=0.3))
    run.control.lose("server", 0)
    run.control.lose("worker", 0)
    run.until(lambda: bool(run.launcher.started))
    assert run.launcher.started == [W1]
    assert run.said == [
        "worker 1 has given no sign of life for 0.1 s: is it stopped, or its host overloaded?",
        "worker 1 gave no sign of life for 0.3 s and was killed at step 0: starting it again",
    ]
