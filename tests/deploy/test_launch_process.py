import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.launch.base import ProcessKey, last_words
from deploy.launch.process import ProcessLauncher
from ps.errors import ResourcesMissing
from tests.deploy.conftest import Notes, gone
from tests.deploy.waiting import ending_of

WORKER = ProcessKey("worker", 0)
SERVER = ProcessKey("server", 1)
STAND_IN = {"server": "tests.deploy.stand_in", "worker": "tests.deploy.stand_in"}


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[ProcessLauncher]:
    with ProcessLauncher(lambda key: tmp_path / f"{key.role}-{key.index}.log", modules=STAND_IN) as launcher:
        launcher.check()
        yield launcher


def test_a_normal_end_is_code_0(launcher: ProcessLauncher) -> None:
    launcher.start(WORKER, json.dumps({"end": "return"}))
    ending = ending_of(launcher, WORKER)
    assert (ending.code, ending.reason) == (0, "ended normally")


def test_an_exit_code_and_the_last_words_are_told(launcher: ProcessLauncher) -> None:
    launcher.start(SERVER, json.dumps({"end": "exit", "code": 3}))
    ending = ending_of(launcher, SERVER)
    assert (ending.code, ending.reason) == (3, "exited with code 3")
    assert set(ending.last_words.splitlines()) == {"first words", "last words", "on stderr"}


def test_of_a_crash_the_last_words_are_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / "worker-0.log"
    places = ["torch/dist-packages/torch/nn/functional.py", "task.py", "python/site-packages/workers/step.py"]
    frames = [f'  File "{place}", line {line} in forward' for line, place in enumerate(places, start=7)]
    dump = [
        "Fatal Python error: Segmentation fault",
        "",
        "Current thread 0x01 (most recent call first):",
        *frames,
        "",
        "Extension modules: numpy (total: 1)",
    ]
    log.write_text("\n".join(["before", *dump]))
    assert last_words(log) == 'Fatal Python error: Segmentation fault in "task.py", line 8 in forward'
    log.write_text("\n".join([*dump, "a successor speaks"]))
    assert last_words(log).endswith("a successor speaks")


def test_last_words_are_the_last_five_lines_of_the_log(launcher: ProcessLauncher) -> None:
    launcher.start(WORKER, json.dumps({"end": "raise"}))
    words = ending_of(launcher, WORKER).last_words.splitlines()
    assert len(words) == 5
    assert "ValueError: no such thing" in words


def test_a_signal_is_named_and_takes_the_children_along(launcher: ProcessLauncher, notes: Notes, tmp_path: Path) -> None:
    launcher.start(WORKER, json.dumps({"end": "sleep", "say_to": notes.port, "child": str(tmp_path / "child")}))
    os.kill(notes.next()["pid"], signal.SIGKILL)
    ending = ending_of(launcher, WORKER, timeout_s=5)
    assert (ending.code, ending.reason) == (None, "was killed by SIGKILL")
    assert gone(int((tmp_path / "child").read_text()))


def test_the_token_is_in_neither_arguments_nor_environment(launcher: ProcessLauncher, notes: Notes) -> None:
    launcher.start(WORKER, json.dumps({"end": "sleep", "say_to": notes.port, "token": "the-secret"}))
    note = notes.next()
    assert "the-secret" not in str(note["argv"])
    assert not note["token_in_environ"]
    assert b"the-secret" not in Path(f"/proc/{note['pid']}/cmdline").read_bytes()


def test_stop_leaves_no_process_and_may_be_repeated(launcher: ProcessLauncher, notes: Notes, tmp_path: Path) -> None:
    launcher.start(SERVER, json.dumps({"end": "sleep", "say_to": notes.port}))
    launcher.start(WORKER, json.dumps({"end": "sleep", "say_to": notes.port, "child": str(tmp_path / "child")}))
    pids = [notes.next()["pid"], notes.next()["pid"], int((tmp_path / "child").read_text())]
    launcher.stop(10.0)
    launcher.stop(10.0)
    assert all(gone(pid) for pid in pids)
    assert {key: ending.reason for key, ending in launcher.ended().items()} == dict.fromkeys([SERVER, WORKER], "was killed by SIGTERM")


def test_a_process_that_does_not_obey_is_killed_after_the_grace(launcher: ProcessLauncher, notes: Notes) -> None:
    launcher.start(WORKER, json.dumps({"end": "sleep", "say_to": notes.port, "deaf": True}))
    notes.next()
    launcher.stop(0.1)
    assert launcher.ended()[WORKER].reason == "was killed by SIGKILL"


def test_gpus_that_are_not_there_are_refused(tmp_path: Path) -> None:
    launcher = ProcessLauncher(lambda key: tmp_path / "log", num_gpus=2000)
    with pytest.raises(ResourcesMissing, match=r"^GPU: 2000 asked, \d+ on this host: .*use_gpu = false"):
        launcher.check()


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [("GRPC_VERBOSITY", "ERROR", "DEBUG"), ("GLIBC_TUNABLES", "glibc.cpu.x86_non_temporal_threshold=0x200000", "glibc.malloc.check=0")],
)
def test_processes_have_an_environment_of_their_own_where_the_users_says_nothing(
    name: str, ours: str, theirs: str, launcher: ProcessLauncher, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for told, found in ((None, ours), (theirs, theirs)):
        monkeypatch.delenv(name, raising=False)
        if told:
            monkeypatch.setenv(name, told)
        launcher.start(WORKER, json.dumps({"end": "sleep", "say_to": notes.port}))
        environment = Path(f"/proc/{notes.next()['pid']}/environ").read_bytes().split(b"\0")
        assert f"{name}={found}".encode() in environment
        launcher.kill(WORKER)
