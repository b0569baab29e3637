"""Memory that survives its process: files mapped shared, owned by a lock.

Not `multiprocessing.shared_memory`: its tracker unlinks a segment when a mere reader exits.
"""

import fcntl
import hashlib
import mmap
import os
import tempfile
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

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._lock()
            self.existed = os.fstat(self._file).st_size == size_bytes
            """Whether a file of this size was there: a former owner's memory."""
            if not self.existed:
                os.ftruncate(self._file, 0)
                os.posix_fallocate(self._file, 0, size_bytes)
            self._map = mmap.mmap(self._file, size_bytes)
        except SegmentBusy:
            os.close(self._file)
            raise
        except OSError:
            path.unlink(missing_ok=True)
            os.close(self._file)
            raise
        self.memory: Bytes = np.frombuffer(self._map, np.uint8)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SegmentBusy(f"{self.path} belongs to a living process") from error

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


def segment_folder(size_bytes: int) -> Path:
    """Folder for segments of so many bytes: memory if it has room, else the folder for temporary files."""
    if SHM.is_dir():
        room = os.statvfs(SHM)
        if room.f_bavail * room.f_frsize > size_bytes:
            return SHM
    return Path(tempfile.gettempdir())


def run_prefix(run_id: str) -> str:
    """How the names of all segments of a run begin."""
    return f"pserver-{hashlib.blake2b(run_id.encode(), digest_size=8).hexdigest()}-"


def remove_segments(run_id: str) -> None:
    """Removes what killed processes of a run have left on this host; the run has ended."""
    for folder in (SHM, Path(tempfile.gettempdir())):
        for path in folder.glob(f"{run_prefix(run_id)}*"):
            path.unlink(missing_ok=True)
