"""Memory that survives its process: files mapped shared, owned by a lock.

Not `multiprocessing.shared_memory`: its tracker unlinks a segment when a mere reader exits.
"""

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ps.frame import Bytes

SHM = Path("/dev/shm")


class SegmentBusy(OSError):
    """Another living process owns the segment."""


class Segment:
    """A file of `size_bytes` mapped into memory, locked by this process while it is open.

    The lock, not a pid, tells whether an owner lives. Blocks are allocated at once, so that a full
    file system is an OSError here and never a SIGBUS at first touch.
    """

    def __init__(self, path: Path, size_bytes: int, parts: Sequence[tuple[int, int]] | None = None) -> None:
        """`parts`: first and last byte (excluded) of what will be used, and takes memory. None: all."""
        self.path = path
        self._file = _open_locked(path)
        try:
            self.existed = os.fstat(self._file).st_size == size_bytes
            """Whether a file of this size was there: a former owner's memory."""
            if not self.existed:
                os.ftruncate(self._file, 0)
                if parts is not None:  # a kill before all are allocated leaves the whole size: never for memory that a successor attaches to
                    os.ftruncate(self._file, size_bytes)
                for start, stop in [(0, size_bytes)] if parts is None else parts:
                    os.posix_fallocate(self._file, start, stop - start)
            self._map = mmap.mmap(self._file, size_bytes)
        except OSError:
            path.unlink(missing_ok=True)
            os.close(self._file)
            raise
        self.memory: Bytes = np.frombuffer(self._map, np.uint8)

    def close(self, *, remove: bool) -> None:
        """Gives the lock back and, if asked to, removes the file. Views of `memory` stay valid until they are dropped."""
        if self._file < 0:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        fcntl.flock(self._file, fcntl.LOCK_UN)  # the map holds a duplicate of the file, which would keep the lock
        os.close(self._file)
        self._file = -1
        del self.memory  # the map itself goes with the last view


def find_segment(name: str) -> Path | None:
    """The file of that name that some process has made on this host."""
    return next((path for folder in _folders() if (path := folder / name).exists()), None)


def read_segment(name: str) -> Bytes | None:
    """A copy of the memory that a dead process has left on this host under this name. Raises OSError, SegmentBusy while it lives."""
    path = find_segment(name)
    if path is None:
        return None
    segment = Segment(path, path.stat().st_size)
    try:
        return segment.memory.copy()
    finally:
        segment.close(remove=False)


def _open_locked(path: Path, lock: int = fcntl.LOCK_EX) -> int:
    """The file, made if it is missing, locked. Raises SegmentBusy."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if not _is_ours_alone(file):
            os.close(file)
            raise PermissionError(f"{path} is not ours alone: another user of this host has put it there")
        try:
            fcntl.flock(file, lock | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            if path.exists():
                raise SegmentBusy(f"{path} belongs to a living process") from error
            continue
        if os.fstat(file).st_nlink:
            return file
        os.close(file)  # another process has just removed it for want of an owner


def _is_ours_alone(file: int) -> bool:
    """Everybody may make files in these folders: memory that another user has put there, or can read, is not used."""
    about = os.fstat(file)
    return about.st_uid == os.geteuid() and not about.st_mode & 0o077


def segment_folder(size_bytes: int) -> Path:
    """Folder for segments of so many bytes: memory if it has room, else the folder for temporary files."""
    if SHM.is_dir():
        room = os.statvfs(SHM)
        if room.f_bavail * room.f_frsize > size_bytes:
            return SHM
    return Path(tempfile.gettempdir())


def new_segment(name: str, size_bytes: int) -> Segment:
    """A segment in that folder. Raises OSError."""
    folder = segment_folder(size_bytes)
    try:
        return Segment(folder / name, size_bytes)
    except OSError as error:
        if folder != SHM or error.errno != errno.ENOSPC:
            raise
    return Segment(Path(tempfile.gettempdir()) / name, size_bytes)  # another process was quicker to take the room


def run_prefix(run_id: str) -> str:
    """How the names of all segments of a run begin."""
    return f"pserver-{hashlib.blake2b(run_id.encode(), digest_size=8).hexdigest()}-"


@contextlib.contextmanager
def run_mark(run_id: str) -> Iterator[None]:
    """While a process of a run lives on this host, the memory of the run's dead servers is kept for their successors. Before and
    after, what dead processes have left here is removed."""
    marks = [_hold(folder / f"{run_prefix(run_id)}mark") for folder in _folders() if folder.is_dir()]
    remove_dead_segments()
    try:
        yield
    finally:
        for mark in marks:
            os.close(mark)
        remove_dead_segments()


def _hold(path: Path) -> int:
    while True:
        try:
            return _open_locked(path, fcntl.LOCK_SH)
        except SegmentBusy:  # somebody looks whether it is held
            time.sleep(0.001)


def remove_segments(run_id: str) -> None:
    """Removes what killed processes of a run have left on this host; the run has ended."""
    for path in _segments(run_prefix(run_id)):
        path.unlink(missing_ok=True)


def remove_dead_segments() -> None:
    """Removes the segments on this host whose owners are dead, of any run."""
    for path in _segments("pserver-"):
        match = _NAME.fullmatch(path.name)
        if match and not (match["kind"] in ("s", "e") and _is_held(path.with_name(f"{match['run']}mark"))):
            _remove_if_dead(path)


_NAME = re.compile(r"(?P<run>pserver-[0-9a-f]{16}-)(mark|g[0-9]+-(?P<kind>[sre]).*)")


def _segments(prefix: str) -> list[Path]:
    return [path for folder in _folders() for path in folder.glob(f"{prefix}*")]


def _folders() -> tuple[Path, Path]:
    return SHM, Path(tempfile.gettempdir())


def _is_held(path: Path) -> bool:
    """Whether a living process has a lock on the file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _remove_if_dead(path: Path) -> None:
    """Under the file's lock, so that an owner to be finds out."""
    with contextlib.suppress(OSError):  # removed meanwhile, owned, or another user's
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(file)
