import os
from pathlib import Path

import pytest

from ps.cores import usable_cores

ALL = float(len(os.sched_getaffinity(0)))


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("4:cpu,cpuacct:/a/b\n", {"cpu/a/b/cpu.cfs_quota_us": "25000\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"}, 0.25),
        ("4:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, ALL),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "10000 100000\n"}, 0.1),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, ALL),
        ("3:memory:/a\n0::/\n", {}, ALL),
    ],
    ids=["version 1", "version 1 without a quota", "version 2, tighter around it", "version 2 without a quota", "no controller"],
)
def test_a_quota_is_a_part_of_the_processors(membership: str, files: dict[str, str], cores: float, tmp_path: Path) -> None:
    groups = written(tmp_path, {"membership": membership, **files})
    assert usable_cores(groups, groups / "membership") == pytest.approx(cores)


def test_a_system_without_control_groups_has_its_affinity(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path / "none") == ALL
