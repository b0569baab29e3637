"""Who owns which virtual cluster: a locked file per owner tag. A lock ends with its process; a pid may come back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

PREFIX = "pserver-"
"""How the names of all namespaces and control groups of virtual clusters begin."""
FOLDER = Path("/run/pserver-virtual")


class Claim:
    """An owner tag that is this process' until it is released."""

    def __init__(self, tag: int, file: int, path: Path) -> None:
        self.tag = tag
        self._file = file
        self._path = path

    def release(self) -> None:
        """Idempotent."""
        if self._file >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1
            with contextlib.suppress(OSError):  # other owners' files are in it
                self._path.parent.rmdir()


def claim(tag: int, folder: Path = FOLDER) -> Claim | None:
    """None if a living process owns `tag`."""
    path = folder / f"{tag}.lock"
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # the folder has just gone with another owner
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_ino == path.stat().st_ino:
                return Claim(tag, file, path)
        except BlockingIOError:
            os.close(file)
            return None
        except FileNotFoundError:
            pass
        os.close(file)  # locked the file of an owner that has just released it


def known_tags(folder: Path = FOLDER) -> Iterator[int]:
    """Tags with a file, whether their owner lives or not."""
    if folder.is_dir():
        yield from (int(path.stem) for path in folder.glob("*.lock") if path.stem.isdecimal())


def owner_of(namespace: str) -> int | None:
    """The owner tag in the name of a namespace or control group; None if it is not ours."""
    found = re.fullmatch(rf"{PREFIX}(\d+)(-[a-z0-9-]+)?", namespace)
    return int(found[1]) if found else None
