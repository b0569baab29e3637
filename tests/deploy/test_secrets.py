"""The secrets of a run are nowhere but where they must be: whole runs of real processes are looked through while they go on and afterwards."""

import json
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.config import RunConfig, ScalingConfig
from deploy.console import Console
from deploy.launch.base import Ending, ProcessKey
from deploy.launch.process import ProcessLauncher
from deploy.launch.ray import RayLauncher
from deploy.rundir import RunDirectory
from deploy.trainer import Trainer
from ps.config import CommConfig
from workers.config import TrainConfig
from workers.tasks.digits import Digits


def secrets_in(settings: Any) -> Iterator[str]:
    """What must not be seen, of anything in JSON."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from secrets_in(value)
        elif value and name in ("secret", "token"):
            yield value.rpartition(":")[2]
        elif name == "key":
            yield value.splitlines()[1]


class Watching:
    """Notes what processes are told, and looks around as soon as all of them live."""

    rundir: RunDirectory
    beside: Path | None
    """A folder where secrets may be found too: of Ray's logs."""

    def watch(self, rundir: RunDirectory, beside: Path | None) -> None:
        """Before the first process."""
        self.rundir, self.beside = rundir, beside
        self.secrets: set[str] = set()
        self.encrypted = False
        self.looked_at: set[str] = set()
        self.leaks: list[str] = []

    def start(self, key: ProcessKey, settings_json: str) -> None:
        settings = json.loads(settings_json)
        self.encrypted = settings["tls"] is not None
        self.secrets |= set(secrets_in(settings))
        super().start(key, settings_json)

    def ended(self) -> dict[ProcessKey, Ending]:
        if self.rundir.metrics.exists() and not self.looked_at:
            self.secrets |= set(secrets_in(json.loads(self.rundir.control.read_text())))
            assert stat.S_IMODE(self.rundir.control.stat().st_mode) == 0o600
            self.leaks = [*self._in_processes(), *found_in(self.rundir.path, self.secrets, but=self.rundir.control)]
            if self.beside:
                self.leaks += found_in(self.beside, self.secrets)
        return super().ended()

    def _in_processes(self) -> Iterator[str]:
        for folder in Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "environ"):
                with suppress(OSError):
                    data = (folder / name).read_bytes()
                    self.looked_at.add(f"{folder.name}/{name}")
                    if any(secret.encode() in data for secret in self.secrets):
                        yield f"{folder}/{name}"


def found_in(folder: Path, secrets: set[str], but: Path | None = None) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and path != but and any(secret.encode() in path.read_bytes() for secret in secrets):
            yield str(path)


class Watched(Watching, ProcessLauncher):
    """Of plain processes."""


class WatchedRay(Watching, RayLauncher):
    """Of actors."""


class WatchedTrainer(Trainer):
    launcher: Watched | WatchedRay
    beside: Path | None = None

    def _make_launcher(self, rundir: RunDirectory, console: Console) -> Watched | WatchedRay:
        def log_path(key: ProcessKey) -> Path:
            return rundir.process_log(key.role, key.index)

        scaling = self._config.scaling
        on_ray = self._launcher == "ray"
        self.launcher = WatchedRay(log_path, num_workers=scaling.num_members, num_servers=scaling.num_servers) if on_ray else Watched(log_path)
        self.launcher.watch(rundir, self.beside)
        return self.launcher


def outside() -> str | None:
    """An address of this host that is not loopback's; what is sent to it stays here."""
    found = (a.address for own in psutil.net_if_addrs().values() for a in own if a.family == socket.AF_INET)
    return next((address for address in found if not address.startswith("127.")), None)


@pytest.mark.parametrize("encrypted", [False, True], ids=["tokens on loopback", "certificates off loopback"])
def test_secrets_are_in_no_argument_environment_log_report_or_checkpoint(encrypted: bool, tmp_path: Path) -> None:
    address = outside() if encrypted else None
    if encrypted and address is None:
        pytest.skip("this host has the loopback interface only")
    made = WatchedTrainer(
        Digits(hidden=4),
        train_config=TrainConfig(epochs=2, batch_size=64, max_steps=30),
        scaling_config=ScalingConfig(num_workers=1, num_servers=1),
        run_config=RunConfig(storage_path=str(tmp_path)),
        comm=CommConfig(interface=address),
        quiet=True,
        launcher="process",
    )
    launcher = fitted(made)
    assert launcher.encrypted is encrypted
    assert len(launcher.secrets) == 3 and all(len(secret) == 64 for secret in launcher.secrets)
    assert len(launcher.looked_at) > 4
    assert launcher.leaks == []
    assert not launcher.rundir.control.exists()
    assert list(found_in(tmp_path, launcher.secrets)) == []
    assert "listens on" in (launcher.rundir.process_log("server", 0)).read_text(), "logs are looked at"


def fitted(made: WatchedTrainer) -> Watching:
    result = made.fit()
    assert result.error is None, result.error
    return made.launcher


def test_a_leak_is_found(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker.log").write_text("settings: the-secret")
    assert list(found_in(tmp_path, {"the-secret"})) == [str(tmp_path / "logs" / "worker.log")]
    assert list(secrets_in({"secret": "a", "tls": {"key": "-\nb\n-"}, "credentials": {"token": "driver:c", "tls": None}})) == ["a", "b", "c"]
