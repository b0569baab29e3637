"""CPU quotas of virtual hosts: where the system has them, and what is to be written. Pure but for `find`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000


@dataclass(frozen=True)
class Quotas:
    """Control groups of version 1 or 2 that can limit the CPU, below `root`."""

    root: Path
    version: int

    def folder(self, namespace: str) -> Path:
        return self.root / namespace

    def writes(self, namespace: str, cpus: float) -> list[tuple[Path, str]]:
        """Files to write, in this order, once the folder is made."""
        folder, share_us = self.folder(namespace), max(1000, round(cpus * _PERIOD_US))
        if self.version == 2:
            return [(self.root / "cgroup.subtree_control", "+cpu"), (folder / "cpu.max", f"{share_us} {_PERIOD_US}")]
        return [(folder / "cpu.cfs_period_us", str(_PERIOD_US)), (folder / "cpu.cfs_quota_us", str(share_us))]

    def procs(self, namespace: str) -> Path:
        """The file to which a process writes its pid to join."""
        return self.folder(namespace) / "cgroup.procs"


def find(root: Path = ROOT) -> Quotas | None:
    """What this system has; None without a CPU controller that may be used."""
    controllers = root / "cgroup.controllers"
    if controllers.exists() and "cpu" in controllers.read_text().split():
        return Quotas(root, 2)
    return Quotas(root / "cpu", 1) if (root / "cpu" / "cpu.cfs_quota_us").exists() else None
