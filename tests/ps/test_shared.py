"""Payload in shared memory: the same bits as over gRPC, whoever dies or has no room."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protos import pserver_pb2 as pb
from ps import segments
from ps.config import CommConfig, OptimizerConfig
from ps.errors import Diverged, Fenced, MalformedFrame
from ps.frame import chunk_digests
from ps.layout import Run
from ps.segments import Segment, remove_dead_segments, run_mark, run_prefix
from ps.shared import MemberSegment, map_contributions, map_store, member_segment
from tests.ps.bench import Bench, Line, settings, specs_of
from tests.ps.cluster import Member, cluster, exchange, in_threads, start
from tests.ps.training import Job, Net, Outcome, run

GRPC = CommConfig(shared_memory=False)
MEMBER = pb.Member(rank=1, incarnation=2, generation=3)
RUN_ID = f"shared-{os.getpid()}"


def left(run_id: str = RUN_ID) -> list[str]:
    return sorted(path.name for path in segments.SHM.glob(f"{run_prefix(run_id)}*"))


@pytest.fixture(scope="module", params=[None, 0.5], ids=["plain", "two-phase"])
def over_grpc(request: pytest.FixtureRequest) -> tuple[Job, Outcome]:
    job = Job(optimizer=OptimizerConfig(lr=0.1, momentum=0.9, max_grad_norm=request.param), comm=GRPC, num_servers=1, num_workers=3)
    return job, run(job)


@pytest.mark.parametrize("num_servers", [1, 2, 4])
def test_the_bits_are_those_of_grpc(num_servers: int, over_grpc: tuple[Job, Outcome]) -> None:
    job, expected = over_grpc
    found = run(replace(job, num_servers=num_servers, comm=CommConfig(frame_bytes=8192, out_of_order_bytes=0), shuffle=1))
    assert (found.params_sha256, found.buffers_sha256, found.sums) == (expected.params_sha256, expected.buffers_sha256, expected.sums)


def test_streams_that_break_change_no_bit(over_grpc: tuple[Job, Outcome]) -> None:
    job, expected = over_grpc
    assert run(replace(job, comm=CommConfig(), num_servers=2, breaks=True)).params_sha256 == expected.params_sha256


def test_mixed_members_agree() -> None:
    """Rank 1 works over gRPC with the same servers."""
    with cluster(2, 2) as servers:
        members = [servers.member(0, Net()), servers.member(1, Net(), comm=GRPC)]
        _copy(members)
        in_threads([lambda m=m: _step(m) for m in members])
        assert [line.pushes_shared and line.store is not None for m in members for line in m.client._state.lines] == [True, True, False, False]
        assert (members[0].bound.landing[1] == members[1].bound.landing[1]).all()


def _copy(members: list[Member]) -> None:
    for member in members[1:]:
        for mine, first in zip(member.bound.landing, members[0].bound.landing, strict=True):
            mine[:] = first


def _step(member: Member) -> None:
    start(member)
    _exchange(member)


def _exchange(member: Member):
    member.bound.gradients[:] = 0
    return exchange(member, 0, 1.0)


# -- a shard without servers ---------------------------------------------------------------------------------


@pytest.fixture
def made() -> Iterator[Bench]:
    bench = Bench(specs_of(64, 64), settings(2, optimizer=OptimizerConfig(lr=0.5)))
    bench.init(bench.flat(0.0))
    yield bench
    bench.shard.end(None)


def rejoin(bench: Bench, rank: int, incarnation: int, memory: np.ndarray) -> Line:
    line = Line()
    _, bench.sessions[rank] = bench.shard.join(bench.member(rank, incarnation), memory)
    bench.shard.open_stream(bench.member(rank, incarnation), line.stream)
    return line


def push(bench: Bench, rank: int, step: int, memory: np.ndarray, incarnation: int = 1, weight: float = 1.0) -> None:
    whole = Run(0, bench.mine.num_versioned)
    digests, dtype = chunk_digests(memory, bench.mine, whole, flat=True), bench.mine.block_of(whole).dtype
    header = pb.FrameHeader(kind=pb.PUSH, step=step, num_chunks=len(whole), weight=weight, digests=digests, dtype=dtype, shared=True)
    bench.shard.push(bench.member(rank, incarnation), header, whole, np.empty(0, np.uint8), lambda v: bench.verdicts.append((rank, v.name)))


def drained(bench: Bench) -> None:
    bench.shard.work._pool.shutdown(wait=True)


def test_what_a_dead_incarnation_had_queued_is_not_summed(made: Bench) -> None:
    zombie, mine, other = made.flat(100.0), made.flat(3.0), made.flat(1.0)
    rejoin(made, 1, 1, zombie)
    push(made, 1, 0, zombie)
    rejoin(made, 1, 2, mine)
    with pytest.raises(Fenced):
        push(made, 1, 0, zombie, incarnation=1)
    zombie[:] = 255
    push(made, 1, 0, mine, incarnation=2)
    made.push_all(0, 0, other)
    drained(made)
    assert all((value == -0.5 * 2.0).all() for value in made.values(1))


def test_what_a_dead_incarnation_had_summed_is_read_no_more_in_its_segment(made: Bench) -> None:
    """The first contribution is added where it lies, as long as its owner lives."""
    zombie, again, other = made.flat(3.0), made.flat(3.0), made.flat(1.0)
    rejoin(made, 0, 1, zombie)
    push(made, 0, 0, zombie)
    made.shard.work._pool.submit(lambda: None).result()
    rejoin(made, 0, 2, again)
    zombie[:] = 255
    push(made, 0, 0, again, incarnation=2)
    made.push_all(1, 0, other)
    drained(made)
    assert [verdict for _, verdict in made.verdicts] == ["ACCEPTED", "DUPLICATE", "ACCEPTED"]
    assert all((value == -0.5 * 2.0).all() for value in made.values(1))


@pytest.mark.parametrize("weights", [(1.0, 3.0, 0.5), (2.0, 2.0, 2.0)])
def test_lent_contributions_give_the_bits_of_copied_ones(weights: tuple[float, float, float]) -> None:
    def final(*, shared: bool, absent: int | None) -> list[np.ndarray]:
        bench = Bench(specs_of(64, 20000, dtype="float32"), settings(3, optimizer=OptimizerConfig(lr=0.5)))
        bench.init(bench.flat(0.0))
        memories = [bench.flat(0.1 * (rank + 1)) for rank in range(3)]
        for rank, (memory, weight) in enumerate(zip(memories, weights, strict=True)):
            if shared:
                rejoin(bench, rank, 1, memory)
            if rank == absent:
                bench.push_all(rank, 0, None, weight)
            elif shared:
                push(bench, rank, 0, memory, weight=weight)
            else:
                bench.push_all(rank, 0, memory, weight)
        drained(bench)
        bench.shard.end(None)
        return bench.values(1)

    for absent in (None, 0, 1, 2):
        pairs = zip(final(shared=True, absent=absent), final(shared=False, absent=absent), strict=True)
        assert all(one.tobytes() == other.tobytes() and one.any() for one, other in pairs)


def test_a_segment_of_an_older_incarnation_is_never_read_again(made: Bench) -> None:
    rejoin(made, 1, 1, made.flat(1.0))
    made.join(1, incarnation=2)  # comes without a segment
    with pytest.raises(MalformedFrame, match="shared memory"):
        push(made, 1, 0, made.flat(1.0), incarnation=2)


def test_bytes_in_the_segment_are_compared_when_a_push_is_repeated(made: Bench) -> None:
    memory = made.flat(1.0)
    rejoin(made, 1, 1, memory)
    push(made, 1, 0, memory)
    push(made, 1, 0, memory)
    announced = memory.copy()
    memory[8] ^= 1
    with pytest.raises(Diverged):
        push(made, 1, 0, announced)
    assert [verdict for _, verdict in made.verdicts] == ["ACCEPTED", "DUPLICATE"]


# -- proof and room --------------------------------------------------------------------------------------------


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


SMALL = """
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"], check=True)
from tests.ps.test_shared import step_of_one
step_of_one()
"""


def step_of_one() -> None:
    with cluster(1, 1) as servers:
        member = servers.member(0, Net())
        _step(member)
        assert not any(line.pushes_shared or line.store for line in member.client._state.lines)
        print("landed", not member.client._state.exchange._missing)


@pytest.mark.root
def test_a_small_dev_shm_falls_back_to_grpc() -> None:
    ended = subprocess.run(["unshare", "-m", sys.executable, "-c", SMALL], capture_output=True, text=True, timeout=50)
    assert ended.returncode == 0 and "landed True" in ended.stdout, ended.stderr


# -- leftovers -------------------------------------------------------------------------------------------------

KILLED = """
import sys
from tests.ps.test_shared import *
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
