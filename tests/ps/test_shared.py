"""Payload in shared memory: the same bits as over gRPC, whoever dies or has no room."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from protos import pserver_pb2 as pb
from ps.config import CommConfig, OptimizerConfig
from ps.errors import Diverged, Fenced, MalformedFrame
from ps.layout import Run
from tests.ps.bench import Bench, Line, settings, specs_of
from tests.ps.cluster import Member, cluster, exchange, in_threads, start
from tests.ps.training import Job, Net, Outcome, run

GRPC = CommConfig(shared_memory=False)


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


def push(bench: Bench, rank: int, step: int, memory: np.ndarray, incarnation: int = 1, weight: float = 1.0, run: Run | None = None) -> None:
    run = run or Run(0, bench.mine.num_versioned)
    dtype = bench.mine.block_of(run).dtype
    header = pb.FrameHeader(kind=pb.PUSH, step=step, first_chunk=run.first, num_chunks=len(run), weight=weight, dtype=dtype, shared=True)
    bench.shard.push(bench.member(rank, incarnation), header, run, np.empty(0, np.uint8), lambda v: bench.verdicts.append((rank, v.name)))


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
    rejoin(made, 0, 1, memory)
    push(made, 0, 0, memory)
    push(made, 0, 0, memory)
    memory[8] ^= 1
    with pytest.raises(Diverged):
        push(made, 0, 0, memory)
    assert [verdict for _, verdict in made.verdicts] == ["ACCEPTED", "DUPLICATE"]


def test_a_contribution_in_a_segment_that_comes_again_as_absent_is_another_one(made: Bench) -> None:
    memory = made.flat(1.0)
    rejoin(made, 0, 1, memory)
    push(made, 0, 0, memory)
    run = Run(0, made.mine.num_versioned)
    header = pb.FrameHeader(kind=pb.ABSENT, step=0, first_chunk=run.first, num_chunks=len(run), weight=1.0)
    with pytest.raises(Diverged):
        made.shard.push(made.member(0), header, run, np.empty(0, np.uint8), lambda _: None)


@pytest.mark.parametrize("shares_again", [True, False])
@pytest.mark.parametrize("is_same", [True, False])
def test_a_restarted_rank_is_held_to_what_lay_in_its_former_segment(made: Bench, *, shares_again: bool, is_same: bool) -> None:
    """Nobody makes digests of what lies in a segment until its member joins anew; the zombie may write there from then on."""
    former, again = made.flat(3.0), made.flat(3.0)
    rejoin(made, 0, 1, former)
    push(made, 0, 0, former)
    made.shard.work._pool.submit(lambda: None).result()
    again[8 * 100] ^= not is_same
    if shares_again:
        rejoin(made, 0, 2, again)
    else:
        made.join(0, incarnation=2)
    former[:] = 255
    whole = Run(0, made.mine.num_versioned)

    def bring() -> None:
        if shares_again:
            push(made, 0, 0, again, incarnation=2)
        else:
            made.push(0, 0, whole, again, incarnation=2)

    if is_same:
        bring()
    else:
        with pytest.raises(Diverged, match="rank 0 pushed other bytes for step 0"):
            bring()
    assert [verdict for _, verdict in made.verdicts] == ["ACCEPTED", *(["DUPLICATE"] if is_same else [])]


# -- too little room -------------------------------------------------------------------------------------------

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
