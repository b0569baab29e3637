"""`pserver doctor --run`: who waits for whom, and the stacks."""

import os
import stat
from pathlib import Path

import pytest

from deploy.cli.main import main
from deploy.hang import look_at, report, verdict
from deploy.launch.base import ProcessKey
from deploy.rundir import RunDirectory
from ps.errors import ConfigError
from ps.inspection import ProcessState
from tests.deploy.forked import ForkedLauncher, trainer

S0 = ProcessState("server", 0, "a", 10, 7, waits_for=(1,))
S1 = ProcessState("server", 1, "b", 11, 8, waits_for=(0, 1))
W0 = ProcessState("worker", 0, "a", 20, 7, doing="waits for the next version of 3 tensors")
W1 = ProcessState("worker", 1, "b", 21, 7, doing="computes")


@pytest.mark.parametrize(
    ("states", "lines"),
    [
        ([S0, S1, W0, W1], ["the servers wait for worker 1, which computes at step 7"]),
        ([S1, W0], ["the servers wait for worker 0, which waits for the next version of 3 tensors at step 7"]),
        (
            [S0, S1, W0, ProcessState("worker", 1, "b", 21, 7, doing="computes", silent_s=12.2)],
            ["worker 1 has given no sign of life for 12 s: it is stopped, or its host is overloaded"],
        ),
        (
            [ProcessState("server", 0, "a", 10, 7, silent_s=9.0, is_away=True), W0],
            ["server 0 has ended and is being started again: the others wait for it"],
        ),
        ([ProcessState("server", 0, "a", 10, -1, waits_for=(0, 1)), W0], ["nobody waits"]),
    ],
)
def test_the_cause_is_named_and_not_who_waits_for_it(states: list[ProcessState], lines: list[str]) -> None:
    assert verdict(states) == lines


def test_every_process_has_a_line() -> None:
    lines = report([S0, W0, ProcessState("worker", 1, "b", 21, 7, is_away=True)])
    assert lines[:3] == [
        "server 0 on a (pid 10): version 7, waits for rank 1; sign of life 0.0 s ago",
        "worker 0 on a (pid 20): step 7, waits for the next version of 3 tensors; sign of life 0.0 s ago",
        "worker 1 on b (pid 21): has ended",
    ]
    assert lines[-2:] == ["== worker 1", "its stacks have not come"]


def test_a_run_that_goes_on_tells_what_everybody_does_and_shows_all_stacks(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    made = trainer(tmp_path, "tests.deploy.broken:Broken", {"how": "long validation", "mark": str(mark)}, batch_size=64, epochs=1, max_failures=0)
    seen: list[list[ProcessState]] = []

    def prepare(launcher: ForkedLauncher, rundir: RunDirectory) -> None:
        def when() -> bool:
            if mark.exists():
                assert stat.S_IMODE(rundir.control.stat().st_mode) == 0o600
                seen.append(look_at(rundir))
            return bool(seen)

        launcher.victim, launcher.when = ProcessKey("worker", 0), when

    made.prepare = prepare  # type: ignore[method-assign]
    result = made.fit()
    (states,) = seen
    assert [str(state) for state in states] == ["server 0", "server 1", "worker 0", "worker 1"]
    assert all(state.pid and not state.is_away for state in states)
    assert {state.step for state in states} == {2}
    assert "signal.pause()" in states[2].stacks and "thread MainThread" in states[2].stacks
    assert "waits for rank 0, rank 1" in "\n".join(report(states))
    with pytest.raises(ConfigError, match="is not going on: its driver has ended; see"):
        look_at(RunDirectory(result.path))


def test_the_command_takes_a_run_only_with_its_flag(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, message in ((["some-run"], "to look at a run: pserver doctor --run some-run"), (["--run", str(tmp_path)], "is no run")):
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *arguments])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
