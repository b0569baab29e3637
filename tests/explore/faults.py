"""What goes wrong in a history."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.errors import EarlyPush, Fenced, PserverError
from ps.layout import Run
from tests.explore.clock import Process
from tests.explore.driver import FROZEN_S
from tests.explore.member import Member
from tests.explore.server import Server
from tests.explore.wire import KEEPALIVE_S

if TYPE_CHECKING:
    from tests.explore.world import World


def kill_one(world: "World") -> None:
    if processes := world.processes():
        world.count("kill")
        world.kill(world.rng.choice(processes))


def kill_several(world: "World") -> None:
    for process in world.processes():
        if world.rng.random() < 0.6:
            world.count("kill")
            world.kill(process)


def stop(world: "World") -> None:
    """For a moment, or until it is taken for dead. A worker may wake beside its successor; a server is killed and reaped first."""
    if not (processes := world.processes()):
        return
    process = world.rng.choice(processes)
    is_long = world.rng.random() < 0.5
    duration = world.rng.uniform(FROZEN_S, 2 * FROZEN_S) if is_long else world.rng.uniform(0.01, 5.0)
    world.tell(f"STOP {process.name} for {duration:.2f} s")
    world.count("stop, long" if is_long else "stop")
    process.stopped_until = max(process.stopped_until, world.clock.now + duration)
    if is_long:
        world.clock.after(FROZEN_S, None, lambda: _frozen(world, process))


def _frozen(world: "World", process: Process) -> None:
    if isinstance(process, Member) and world.rng.random() < 0.5:
        world.count("zombie")
        world.tell(f"{process.name} is taken for dead")
        world.end_seen(process, 0.0)
    else:
        world.kill(process)


def break_one(world: "World") -> None:
    wires = [wire for member in world.members() for wire in member.wires if wire]
    if wires:
        wire = world.rng.choice(wires)
        world.count("break")
        world.tell(f"BREAK {wire.owner.name} to {wire.server.name}")
        wire.break_off(world.rng.choice((0.1, 1.0, 10.0)))


def partition(world: "World") -> None:
    """Some ranks do not reach some servers; frames wait, or if it lasts both ends give the connection up."""
    ranks = [rank for rank in range(world.job.num_workers) if world.rng.random() < 0.5]
    shards = [shard for shard in range(world.job.num_servers) if world.rng.random() < 0.7]
    until = world.clock.now + world.rng.choice((1.0, 10.0, 60.0))
    world.count("partition")
    world.tell(f"CUT ranks {ranks} from shards {shards} until {until:.2f}")
    for pair in [(rank, shard) for rank in ranks for shard in shards]:
        world.cuts[pair] = until
    for member in world.members():
        for wire in member.wires:
            if wire and member.rank in ranks and wire.server.index in shards:
                wire.cut_until = until
                if until - world.clock.now > KEEPALIVE_S:
                    world.clock.after(KEEPALIVE_S, None, wire.break_off)


def forge(world: "World") -> None:
    """What no living member would send arrives, with garbage and the right session: a message of a former incarnation, of the
    timeline before this one, or of the next step."""
    servers = [process for process in world.processes() if isinstance(process, Server)]
    if not servers:
        return
    server, rank = world.rng.choice(servers), world.rng.randrange(world.job.num_workers)
    stage = world.rng.randrange(world.job.num_stages) if world.job.num_stages > 1 else 0
    number = rank * world.job.num_stages + stage
    newest = world.driver.control.incarnations.get(("worker", number), 1)
    session = server.shard._streams._session[number]
    member = pb.Member(rank=rank, stage=stage, incarnation=newest, generation=1, session=session)
    kind = world.rng.choice(("old incarnation", "old timeline", "old timeline joins", "next step"))
    if server.shard._barrier._incarnation[number] < newest or server.shard.work.reads(rank):
        return  # as far as this server can know, nothing is old; or Join, if it is not refused, would wait
    if kind == "old incarnation":
        member.incarnation -= 1
    elif kind != "next step":
        member.generation = 0
    step = max(server.store.version, 0)
    world.count(f"forged: {kind}")
    if kind == "old timeline joins":
        member.incarnation += 1000
        server.run(lambda: _refused(lambda: server.shard.join(member), Fenced))
    elif kind == "next step":
        _push_garbage(world, server, member, int(server.store.words.max()) + 1, EarlyPush)
        if stream := server.shard._streams.of(number):
            stream.end(EarlyPush("it came on this stream"))
    else:
        _push_garbage(world, server, member, step, Fenced)


def _push_garbage(world: "World", server: Server, member: pb.Member, step: int, error: type[PserverError]) -> None:
    shard, run = server.shard, Run(0, 1)
    payload = np.full(shard.layout.payload_bytes(run), 7, np.uint8)
    header = pb.FrameHeader(kind=pb.PUSH, step=step, first_chunk=0, num_chunks=1, weight=1.0)
    header.digests.extend(frame.payload_digests(payload, shard.layout, run))
    server.run(lambda: _refused(lambda: shard.push(member, header, run, payload, lambda verdict: None, may_wait=False), error))


def _refused(call: Callable[[], object], error: type[PserverError]) -> None:
    """If it is not, the bits show it."""
    with contextlib.suppress(error):
        call()


def haunt(world: "World", successor: Member) -> None:
    """The last copies of dead processes into their segments happen late, when the successor has joined everywhere."""
    for member in world.former:
        if member.number == successor.number and member.is_dead and not successor.is_dead and None not in successor.joined:
            world.count("late copy")
            member.memory.gradients[:] = 7


def read(world: "World") -> None:
    """A reader that is no member pulls what is there."""
    for server in world.processes():
        if isinstance(server, Server) and server.store.initialised:
            version = max(server.store.version - world.rng.randrange(2), 0)
            world.read_all(server, version)


def snapshot(world: "World") -> None:
    """The driver asks for the newest version, or for one that is gone by now."""
    for server in world.processes():
        if isinstance(server, Server) and server.store.version >= 1:
            world.count("snapshot")
            server.snapshot(max(server.store.version - world.rng.randrange(2), 1))


FAULTS: tuple[Callable[["World"], None], ...] = (kill_one, kill_one, kill_several, stop, break_one, partition, forge, read, snapshot)
