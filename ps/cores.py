"""How many processors this process may use: those of its affinity, or less where a control group limits it."""

import os
from collections.abc import Callable
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float:
    """The least of what its control groups, of version 1 or 2, and its affinity allow; a quota may be a part of one."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return cores
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            cores = min([cores, *_quotas(root, path, _version_2)])
        elif "cpu" in controllers.split(","):
            cores = min([cores, *_quotas(root / "cpu", path, _version_1)])
    return cores


def _quotas(root: Path, path: str, read: Callable[[Path], tuple[str, str]]) -> list[float]:
    """Of the group and those around it."""
    folder = root / path.lstrip("/")
    found = []
    for group in (folder, *folder.parents):
        if group == root.parent:
            break
        try:
            quota, period = read(group)
            if int(quota) > 0:
                found.append(int(quota) / int(period))
        except (OSError, ValueError):  # no limit, or none that we may see
            continue
    return found


def _version_1(group: Path) -> tuple[str, str]:
    return (group / "cpu.cfs_quota_us").read_text(), (group / "cpu.cfs_period_us").read_text()


def _version_2(group: Path) -> tuple[str, str]:
    quota, period = (group / "cpu.max").read_text().split()
    return quota, period
