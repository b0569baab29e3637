import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ps import segments
from ps.segments import Segment, SegmentBusy, new_segment, segment_folder

SIZE = 1 << 16
OWNER = """
import sys
from pathlib import Path
from ps.segments import Segment
segment = Segment(Path(sys.argv[1]), int(sys.argv[2]))
segment.memory[:3] = 1, 2, 3
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def owner(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the segment."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, path, str(SIZE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_memory_of_a_killed_owner_is_attached_again_and_that_of_a_living_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    with owner(path) as process:
        with pytest.raises(SegmentBusy, match="belongs to a living process"):
            Segment(path, SIZE)
        process.send_signal(signal.SIGKILL)
        process.wait()
        segment = Segment(path, SIZE)
        assert segment.existed and segment.memory[:3].tolist() == [1, 2, 3]
        segment.close(remove=True)
    assert not path.exists()


def test_new_memory_is_zero_and_lives_on_after_a_close_without_removal(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    first = Segment(path, SIZE)
    assert not first.existed and not first.memory.any()
    first.memory[7] = 9
    view: np.ndarray = first.memory[:8]
    first.close(remove=False)
    first.close(remove=True)  # a second close does nothing
    assert view[7] == 9 and path.exists()
    second = Segment(path, SIZE)
    assert second.existed and second.memory[7] == 9
    second.close(remove=True)


def test_memory_of_another_size_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    first = Segment(path, SIZE)
    first.memory[:] = 1
    first.close(remove=False)
    second = Segment(path, 2 * SIZE)
    assert not second.existed and len(second.memory) == 2 * SIZE and not second.memory.any()
    second.close(remove=True)


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    segment = Segment(tmp_path / "segment", SIZE)
    assert (tmp_path / "segment").stat().st_mode & 0o777 == 0o600
    segment.close(remove=True)


def test_a_full_file_system_is_an_error_and_leaves_nothing_behind() -> None:
    room = os.statvfs("/dev/shm")
    path = Path(f"/dev/shm/pserver-test-full-{os.getpid()}")
    try:
        with pytest.raises(OSError, match="No space left"):
            Segment(path, room.f_blocks * room.f_frsize + (1 << 30))
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)


def test_a_segment_that_does_not_fit_into_memory_goes_to_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert segment_folder(1) == Path("/dev/shm")
    assert segment_folder(1 << 60) != Path("/dev/shm")
    monkeypatch.setattr(segments, "SHM", tmp_path / "none")
    assert segment_folder(1) != tmp_path / "none"


def test_a_segment_whose_room_another_process_has_just_taken_goes_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = os.posix_fallocate

    def taken_in_memory(file: int, at: int, size: int) -> None:
        if os.readlink(f"/proc/self/fd/{file}").startswith("/dev/shm/"):
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(file, at, size)

    monkeypatch.setattr(os, "posix_fallocate", taken_in_memory)
    name = f"pserver-test-late-{os.getpid()}"
    segment = new_segment(name, 1 << 16)
    try:
        assert segment.path.parent != Path("/dev/shm") and not Path("/dev/shm", name).exists()
    finally:
        segment.close(remove=True)


def test_memory_that_others_can_read_or_have_put_there_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(bytes(SIZE))
    path.chmod(0o640)
    with pytest.raises(PermissionError, match="is not ours alone"):
        Segment(path, SIZE)
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        with pytest.raises(PermissionError, match="is not ours alone"):
            Segment(path, SIZE)
        os.chown(path, 0, 0)
    Segment(path, SIZE).close(remove=True)
