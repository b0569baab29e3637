"""Files of shared memory: found by their proof only, within their bounds, and removed when their owners are dead."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos import pserver_pb2 as pb
from ps import segments
from ps.segments import Segment, remove_dead_segments, run_mark, run_prefix
from ps.shared import MemberSegment, map_contributions, map_store, member_segment
from tests.ps.bench import Bench, settings, specs_of

MEMBER = pb.Member(rank=1, incarnation=2, generation=3)
RUN_ID = f"shared-{os.getpid()}"


def left(run_id: str = RUN_ID) -> list[str]:
    return sorted(path.name for path in segments.SHM.glob(f"{run_prefix(run_id)}*"))


def test_a_segment_is_found_by_its_nonce_only() -> None:
    segment = MemberSegment(RUN_ID, MEMBER, 512)
    try:
        segment.contributions[:] = 7
        found = map_contributions(RUN_ID, MEMBER, segment.offer, 512)
        assert found is not None and (found == 7).all() and not found.flags.writeable
        for changes in (
            {"nonce": bytes(32)},
            {"nonce": b""},
            {"name": "../../etc/passwd"},
            {"name": f"{segment.offer.name}/../{segment.offer.name}"},
            {"name": segment.offer.name + "\0"},
            {"name": segment.offer.name + "x" * 300},
            {"name": segment.offer.name + "x"},
            {"size_bytes": 1},
        ):
            assert map_contributions(RUN_ID, MEMBER, _changed(segment.offer, changes), 512) is None
        assert map_contributions("another-run", MEMBER, segment.offer, 512) is None
        assert map_contributions(RUN_ID, MEMBER, segment.offer, 1024) is None
    finally:
        segment.close()
    assert left() == []


def test_what_is_another_stages_takes_no_memory() -> None:
    segment = MemberSegment(RUN_ID, MEMBER, 64 << 20, [(1 << 20, 2 << 20)])
    try:
        blocks = (segments.SHM / segment.offer.name).stat().st_blocks
        assert 1 << 20 <= 512 * blocks <= (1 << 20) + 3 * 4096
        found = map_contributions(RUN_ID, MEMBER, segment.offer, 64 << 20)
        assert found is not None and len(found) == 64 << 20
    finally:
        segment.close()


def test_a_member_offers_its_own_segment_only() -> None:
    """Not that of another member or incarnation, nor a server's, even if it knows what is in it."""
    segment = MemberSegment(RUN_ID, MEMBER, 512)
    try:
        for changes in ({"rank": 0}, {"stage": 1}, {"incarnation": 3}, {"generation": 2}):
            fields = {"rank": 1, "incarnation": 2, "generation": 3} | changes
            assert map_contributions(RUN_ID, pb.Member(**fields), segment.offer, 512) is None
    finally:
        segment.close()
    with in_shm(f"{run_prefix(RUN_ID)}g3-s0", 4096 + 512) as name:
        assert map_contributions(RUN_ID, MEMBER, pb.SharedMemory(name=name, size_bytes=4096 + 512, nonce=bytes(32)), 512) is None


@pytest.mark.parametrize("how", ["link", "pipe", "folder", "another user's"])
def test_what_is_no_file_of_ours_is_not_mapped(how: str, tmp_path: Path) -> None:
    segment = MemberSegment(RUN_ID, MEMBER, 512)
    path = segments.SHM / segment.offer.name
    try:
        aside = tmp_path / "aside"
        aside.write_bytes(path.read_bytes())
        path.unlink()
        if how == "link":
            path.symlink_to(aside)
        elif how == "pipe":
            os.mkfifo(path)
        elif how == "folder":
            path.mkdir()
        else:
            path.write_bytes(aside.read_bytes())
            try:
                os.chown(path, 65534, 65534)
            except PermissionError:
                pytest.skip("only root can make another user's file")
        assert map_contributions(RUN_ID, MEMBER, segment.offer, 512) is None
    finally:
        path.rmdir() if how == "folder" else path.unlink()
        segment.close()


@pytest.mark.parametrize("field", ["oldest_at", "words_at", "even_at", "odd_at", "nonce_at"])
@pytest.mark.parametrize("place", [(1 << 16) - 4, 1 << 20, (1 << 64) - 1], ids=["partly beyond", "beyond", "the last one"])
def test_a_shards_memory_is_not_read_beyond_its_end(field: str, place: int) -> None:
    bench = Bench(specs_of(64, 64), settings(2))
    with in_shm(f"{run_prefix(RUN_ID)}g3-s0", 1 << 16) as name:
        memory = pb.SharedMemory(name=name, size_bytes=1 << 16, nonce=bytes(32))
        right = {"segment": memory, "nonce_at": 96, "oldest_at": 8, "words_at": 512, "even_at": 4096, "odd_at": 8192}
        assert map_store(RUN_ID, pb.SharedStore(**right), bench.mine) is not None
        assert map_store(RUN_ID, pb.SharedStore(**(right | {field: place})), bench.mine) is None
    bench.shard.end(None)


@contextlib.contextmanager
def in_shm(name: str, size_bytes: int) -> Iterator[str]:
    segment = Segment(segments.SHM / name, size_bytes)
    try:
        yield name
    finally:
        segment.close(remove=True)


def _changed(offer: pb.SharedMemory, changes: dict[str, object]) -> pb.SharedMemory:
    fields = {"name": offer.name, "nonce": offer.nonce, "size_bytes": offer.size_bytes}
    return pb.SharedMemory(**(fields | changes))  # type: ignore[arg-type]


def test_no_room_is_one_warning_and_no_segment(caplog: pytest.LogCaptureFixture) -> None:
    room = os.statvfs(segments.SHM)
    assert member_segment(RUN_ID, MEMBER, room.f_blocks * room.f_frsize + (1 << 30)) is None
    assert len(caplog.records) == 1 and "comm.shared_memory = false" in caplog.text and left() == []


# -- leftovers -------------------------------------------------------------------------------------------------

KILLED = """
import sys
from tests.ps.test_shared_segments import *
segment = MemberSegment(sys.argv[1], MEMBER, 512)
server = Segment(segments.SHM / f"{run_prefix(sys.argv[1])}g1-s0", 512)
print("ready", flush=True)
sys.stdin.read()
"""


def killed() -> None:
    """Leaves the segments of a member and a server whose process was killed."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, RUN_ID], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    try:
        assert process.stdout.readline() == "ready\n"
        remove_dead_segments()
        assert len([name for name in left() if not name.endswith("mark")]) == 2, "the living keep theirs"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_the_next_start_removes_what_the_dead_have_left() -> None:
    killed()
    assert len(left()) == 2
    remove_dead_segments()
    assert left() == []


def test_a_living_process_of_the_run_keeps_its_servers_segments() -> None:
    with run_mark(RUN_ID):
        killed()
        remove_dead_segments()
        assert left() == [f"{run_prefix(RUN_ID)}g1-s0", f"{run_prefix(RUN_ID)}mark"]
    assert left() == []


def test_an_owner_to_be_notices_that_its_file_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "segment"
    real, files = os.open, []

    def open_and_lose(*arguments: object) -> int:
        file = real(*arguments)  # type: ignore[arg-type]
        if not files:
            path.unlink()
        files.append(file)
        return file

    monkeypatch.setattr(segments.os, "open", open_and_lose)
    segment = Segment(path, 512)
    assert len(files) == 2 and path.exists()
    segment.close(remove=True)
