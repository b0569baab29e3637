"""Plain processes on virtual hosts."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from deploy.launch.base import LogPath, ProcessKey
from deploy.launch.process import ProcessLauncher
from deploy.virtual.plan import enter

DRIVER = "driver"
"""Name of the driver's host."""


class Place(NamedTuple):
    """A virtual host, for those who start processes there."""

    holder_pid: int
    address: str
    cgroup_procs: str | None = None
    """File to which a process writes its pid to be held to the host's CPU quota. None: there is no quota."""


class HostsLauncher(ProcessLauncher):
    """Plain processes, each on the virtual host that `host_of` tells; this one is on that of the driver."""

    def __init__(self, log_path: LogPath, places: Mapping[str, Place], host_of: Mapping[ProcessKey, str]) -> None:
        super().__init__(log_path)
        self._driver = places[DRIVER]
        self._places = {key: places[host] for key, host in host_of.items()}

    def control_host(self) -> str:
        return self._driver.address

    def bind_host(self, key: ProcessKey) -> str:
        return self._places[key].address

    def command(self, key: ProcessKey) -> list[str]:
        place = self._places[key]
        return enter(place.holder_pid, super().command(key), str(Path.cwd()), place.cgroup_procs)
