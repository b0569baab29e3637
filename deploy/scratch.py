"""Folders for temporary files that last as long as their process: what a killed one has left is removed by the next that wants one."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "pserver-scratch-"
_OWNER = ".owner"
"""A file in the folder, locked by its process; without one the folder is nobody's to remove."""


class Scratch:
    """A folder that is removed when it is closed, or after its process has been killed, unless it is kept."""

    def __init__(self) -> None:
        remove_dead_folders()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        unseen = self.path / f"{_OWNER}.new"
        self._file = os.open(unseen, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        unseen.rename(self.path / _OWNER)  # it is never there without its lock

    def keep(self) -> None:
        """From now on the folder is the user's."""
        (self.path / _OWNER).unlink()

    def close(self) -> None:
        if (self.path / _OWNER).exists():
            shutil.rmtree(self.path)
        os.close(self._file)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """One that is gone afterwards, however that comes."""
    scratch = Scratch()
    try:
        yield scratch.path
    finally:
        scratch.close()


def remove_dead_folders() -> None:
    """Of this user, those whose owner is dead."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # kept, owned, or removed meanwhile
            about = path.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid():
                _remove_if_dead(path)


def _remove_if_dead(path: Path) -> None:
    file = os.open(path / _OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for part in path.iterdir():
            if part.is_dir():
                shutil.rmtree(part)
            elif part.name != _OWNER:  # the last one: processes that outlive the owner for a while may yet write something
                part.unlink()
        shutil.rmtree(path)
    finally:
        os.close(file)
