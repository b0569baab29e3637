"""The driver of a simulated run, on a virtual host: what it is told on standard input, and what it writes to the open file of its argument."""

import os
import sys
from dataclasses import dataclass
from typing import Literal

from deploy.config import Config
from deploy.console import Console
from deploy.launch.base import Launcher, ProcessKey
from deploy.launch.choice import make_launcher
from deploy.launch.hosts import HostsLauncher, Place
from deploy.rundir import RunDirectory
from deploy.trainer import Trainer
from ps.config import from_json, to_json
from ps.errors import ConfigError, by_name


@dataclass(frozen=True, kw_only=True)
class Inside:
    """All that the driver needs."""

    config: Config
    places: dict[str, Place]
    """Hosts by name."""
    host_of: list[tuple[ProcessKey, str]]
    """Name of the host of every process."""
    simulated: str
    """What the run's output and summary say of the hosts."""
    launcher: Literal["process", "ray"]
    address: str | None
    """Of the Ray cluster on the hosts."""
    quiet: bool


@dataclass(frozen=True)
class Outcome:
    """How a simulated run has ended."""

    path: str | None
    """The run directory; None if it ended before there was one."""
    simulated: str
    """What was simulated."""
    error: Exception | None


@dataclass(frozen=True)
class Told:
    """An outcome on its way between processes."""

    path: str | None
    error_type: str | None = None
    error: str = ""

    def outcome(self, simulated: str) -> Outcome:
        return Outcome(self.path, simulated, by_name(self.error_type, self.error) if self.error_type else None)


class SimulatedTrainer(Trainer):
    """A trainer whose processes are on virtual hosts, if it is given any."""

    inside: Inside | None = None

    def _make_launcher(self, rundir: RunDirectory, console: Console) -> Launcher:
        inside = self.inside
        if inside is None:
            return super()._make_launcher(rundir, console)
        host_of = dict(inside.host_of)
        if inside.launcher == "process":
            return HostsLauncher(lambda key: rundir.process_log(key.role, key.index), inside.places, host_of)
        return make_launcher("ray", self._config, rundir, self._what(), address=inside.address, say=console.line, hosts=host_of)


def _train(inside: Inside) -> Told:
    try:
        trainer = SimulatedTrainer.from_config(inside.config, launcher=inside.launcher, quiet=inside.quiet)
        trainer.inside, trainer.simulated = inside, inside.simulated
        result = trainer.fit()
    except (ConfigError, OSError) as error:
        return Told(None, type(error).__name__, str(error))
    if result.error is None:
        return Told(str(result.path))
    return Told(str(result.path), type(result.error).__name__, str(result.error))


def main() -> None:
    """Entry point."""
    inside = from_json(Inside, sys.stdin.buffer.read())
    if inside.quiet:
        sys.stdout = sys.stderr
    told = to_json(_train(inside))
    with os.fdopen(int(sys.argv[1]), "w") as file:
        file.write(told)


if __name__ == "__main__":
    main()
