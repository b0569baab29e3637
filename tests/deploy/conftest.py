import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from deploy.cli.main import main
from deploy.launch import process
from deploy.launch.local_ray import start_local_ray
from deploy.rundir import RunDirectory
from tests.deploy.forked import ForkedLauncher
from tests.deploy.reported import write_whole


class Notes:
    """Where stand-ins report to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(30)
        self.port: int = self._listener.getsockname()[1]

    def next(self) -> dict[str, Any]:
        connection, _ = self._listener.accept()
        with connection:
            return json.loads(b"".join(iter(lambda: connection.recv(4096), b"")))

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def notes() -> Iterator[Notes]:
    notes = Notes()
    try:
        yield notes
    finally:
        notes.close()


@pytest.fixture
def dead_pid() -> int:
    """Of a process that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


@pytest.fixture(scope="session")
def local_ray() -> Iterator[dict[str, Any]]:
    """One local Ray for the whole session, as it tells of itself; logical CPUs, so that small requests always fit. Its processes are
    as nice as others: by default they are 15 nicer, and wait for all tests beside theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        context = start_local_ray(8)
        try:
            yield context.address_info
        finally:
            ray.shutdown()


@pytest.fixture(scope="session")
def ray_cluster(local_ray: dict[str, Any]) -> str:
    """Its address."""
    return str(local_ray["address"])


@pytest.fixture(scope="session")
def ray_session(local_ray: dict[str, Any]) -> Path:
    """Where it has its logs; its name is in the arguments of its processes."""
    return Path(local_ray["session_dir"])


@dataclass(frozen=True)
class Ended:
    """What a command leaves."""

    code: Any
    out: str
    err: str


@pytest.fixture
def pserver(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command with these arguments, in this process; what it starts with `--launcher process` is forked."""
    monkeypatch.setattr(process, "ProcessLauncher", ForkedLauncher)

    def pserver(*arguments: str) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        printed = capfd.readouterr()
        return Ended(ended.value.code, printed.out, printed.err)

    return pserver


@pytest.fixture
def whole_run(tmp_path: Path) -> RunDirectory:
    return write_whole(tmp_path)


def gone(pid: int, timeout_s: float = 10.0) -> bool:
    """Waits until no such process is alive; a zombie is not."""
    try:
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            process.wait(timeout_s)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return process.status() == psutil.STATUS_ZOMBIE
    return True
