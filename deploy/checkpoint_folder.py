"""The folder `checkpoints` of a run directory: the only file that knows the names inside it (schemas: docs/run-directory.md)."""

import contextlib
import itertools
import shutil
from pathlib import Path


class CheckpointFolder:
    """Paths of a run's checkpoints; their names tell whole ones from those that are being written, or are damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def whole(self, version: int) -> Path:
        """Folder of a whole one."""
        return self.path / str(version)

    def unfinished(self, version: int, generation: int) -> Path:
        """Folder that becomes `whole` by its new name."""
        before, after = self.part_paths(generation)
        return Path(f"{before}{version}{after}")

    def part_paths(self, generation: int) -> tuple[str, str]:
        """Path of an unfinished checkpoint, before the version and after it."""
        return f"{self.path.absolute()}/.", f"-g{generation}"

    def part_name(self, role: str, index: int) -> str:
        """File of a server's part, or a worker's."""
        return f"{'shard' if role == 'server' else 'rank'}-{index}.safetensors"

    def manifest(self, folder: Path) -> Path:
        """Of a checkpoint's folder."""
        return folder / "manifest.json"

    def versions(self) -> list[int]:
        """Of the whole ones, the oldest first."""
        return sorted(int(path.name) for path in self.path.glob("*") if path.name.isdecimal())

    def remove(self, version: int) -> None:
        """At no moment is a part of it taken for the whole."""
        gone = self.path / f".{version}-removed"
        with contextlib.suppress(OSError):
            self.whole(version).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def set_aside(self, version: int) -> Path:
        """Keeps a checkpoint that cannot be used out of the way."""
        aside = next(path for n in itertools.count(1) if not (path := self.path / f"{version}.damaged-{n}").exists())
        self.whole(version).rename(aside)
        return aside

    def remove_unfinished(self) -> None:
        """Of drivers that have died."""
        for path in self.path.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)
