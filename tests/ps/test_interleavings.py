"""Thousands of histories of one job: frames late, lost, twice and out of order, streams that break, members and shards that
restart. Whatever happens, the weights are those of two lines of numpy."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from protos import pserver_pb2 as pb
from ps.config import OptimizerConfig
from ps.errors import Fenced
from ps.frame import Bytes
from ps.layout import Run
from tests.ps.bench import Bench, Line, settings, specs_of

SIZES = (8192 + 64, 5, 130)
STEPS = 3
OPTIMIZER = OptimizerConfig(lr=0.25, momentum=0.5)


def gradient(params: np.ndarray, rank: int, step: int) -> np.ndarray | None:
    """A function of parameters, rank and step; absent from all in the last step but one for the second tensor."""
    return np.sin(params * (rank + 1) + step)


def is_absent(tensor: int, rank: int, step: int) -> bool:
    return tensor == 1 and (step == 1 or (rank + step) % 3 == 0)


def reference(num_workers: int) -> list[np.ndarray]:
    """Weighted mean in rank order, then torch's momentum, for each tensor."""
    found = []
    for tensor, size in enumerate(SIZES):
        w, v, updates = np.linspace(-1, 1, size), np.zeros(size), 0
        for step in range(STEPS):
            grads = [(r, gradient(w, r, step)) for r in range(num_workers) if not is_absent(tensor, r, step)]
            if not grads:
                continue
            total = grads[0][1] * (grads[0][0] + 1.0)
            for rank, grad in grads[1:]:
                total = total + grad * (rank + 1.0)
            mean = total / sum(r + 1.0 for r in range(num_workers))
            v = 0.5 * v + mean if updates else mean
            w = w - 0.25 * v
            updates += 1
        found.append(w)
    return found


@dataclass
class Push:
    """A frame on its way."""

    rank: int
    incarnation: int
    shard: int
    step: int
    run: Run
    flat: Bytes | None


@dataclass
class Member:
    """A rank as the protocol wants it: landed chunks by shard, and the step it computes."""

    rank: int
    incarnation: int = 1
    step: int = -1
    params: Bytes | None = None
    grads: Bytes | None = None
    landed: list[set[int]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    read: list[int] = field(default_factory=list)


class World:
    """Members, shards and a network without manners; one event at a time."""

    def __init__(self, seed: int, num_workers: int, num_servers: int) -> None:
        self.random = random.Random(seed)
        self.num_workers = num_workers
        self.specs = specs_of(*SIZES)
        self.configs = [settings(num_workers, shard=s, num_servers=num_servers, optimizer=OPTIMIZER) for s in range(num_servers)]
        self.shards = [Bench(self.specs, config) for config in self.configs]
        start = self.shards[0].flat([np.linspace(-1, 1, size) for size in SIZES])
        for shard in self.shards:
            shard.init(start)
        self.members = [Member(rank) for rank in range(num_workers)]
        self.network: list[Push] = []
        self.happened: dict[str, int] = {}
        for member in self.members:
            self.restart(member)

    def count(self, what: str) -> None:
        self.happened[what] = self.happened.get(what, 0) + 1

    # -- members ---------------------------------------------------------------------------------------------

    def restart(self, member: Member) -> None:
        """Joins all shards, takes the smallest version, reads it and computes."""
        member.lines = [shard.join(member.rank, member.incarnation) for shard in self.shards]
        version = min(shard.store.version for shard in self.shards)
        flat = np.zeros(self.shards[0].layout.flat_bytes, np.uint8)
        for shard in self.shards:
            shard.shard.answers.pull_version(version)
            for run in shard.mine.frames(1 << 20):
                memory = shard.store.copy_of(version, run)
                for piece in shard.mine.pieces(run):
                    flat[piece.flat : piece.flat + piece.num_bytes] = memory[piece.local : piece.local + piece.num_bytes]
        self.begin(member, version, flat)

    def begin(self, member: Member, version: int, params: Bytes) -> None:
        """The first-push gate is open: computes and sends all frames of the step."""
        member.step, member.params = version, params
        member.landed = [set() for _ in self.shards]
        if version == STEPS:
            return
        layout = self.shards[0].layout
        starts = layout.tensor_flat.tolist()
        views = [params[at : at + 8 * size].view(np.float64) for at, size in zip(starts, SIZES, strict=True)]
        member.grads = self.shards[0].flat([gradient(view, member.rank, version) for view in views])
        member.params = params.copy()
        for index in range(len(self.shards)):
            self.send(member, index)

    def send(self, member: Member, index: int) -> None:
        """Frames of everything of the step that has not landed, of one or several chunks."""
        shard = self.shards[index]
        left = [c for c in range(len(shard.mine)) if c not in member.landed[index]]
        while left:
            first = stop = left.pop(0)
            stop += 1
            while left and left[0] == stop and shard.mine.tensor[stop] == shard.mine.tensor[first] and self.random.random() < 0.5:
                stop = left.pop(0) + 1
            absent = is_absent(int(shard.mine.tensor[first]), member.rank, member.step)
            run = Run(first, stop)
            self.network.append(Push(member.rank, member.incarnation, index, member.step, run, None if absent else member.grads))

    def land(self, member: Member) -> None:
        """Reads what the streams brought; begins the next step when everything of all shards has landed."""
        for index, (shard, line) in enumerate(zip(self.shards, member.lines, strict=True)):
            for header, payload in line.of_kind(pb.PARAMS):
                if header.step != member.step + 1:
                    continue
                run = Run(header.first_chunk, header.first_chunk + header.num_chunks)
                assert member.params is not None
                for piece in shard.mine.pieces(run):
                    member.params[piece.flat : piece.flat + piece.num_bytes] = payload[piece.payload : piece.payload + piece.num_bytes]
                member.landed[index].update(range(run.first, run.stop))
            line.sent.clear()
        if member.step < STEPS and all(len(got) == len(s.mine) for got, s in zip(member.landed, self.shards, strict=True)):
            assert member.params is not None
            self.begin(member, member.step + 1, member.params)

    # -- events ----------------------------------------------------------------------------------------------

    def deliver(self, push: Push) -> None:
        shard = self.shards[push.shard]
        try:
            shard.push(push.rank, push.step, push.run, push.flat, push.rank + 1.0, push.incarnation)
        except Fenced:
            assert push.incarnation < self.members[push.rank].incarnation
            self.count("FENCED")
            return
        self.count(shard.verdicts[-1][1])

    def event(self) -> None:
        chance = self.random.random()
        if self.network and chance < 0.70:
            at = self.random.randrange(len(self.network))
            push = self.network[at]
            self.deliver(push)
            if self.random.random() < 0.8:
                self.network.pop(at)
        elif chance < 0.95:
            self.land(self.random.choice(self.members))
        elif chance < 0.965:
            self.break_stream(self.random.choice(self.members), self.random.randrange(len(self.shards)))
        elif chance < 0.98:
            member = self.random.choice(self.members)
            member.incarnation += 1
            self.count("restart")
            self.restart(member)
        elif chance < 0.99:
            self.kill_shard(self.random.randrange(len(self.shards)))

    def break_stream(self, member: Member, index: int) -> None:
        """What was on its way is lost, or comes late all the same; the member joins again and pushes what has not landed."""
        self.count("break")
        lose = self.random.random() < 0.5
        self.network = [p for p in self.network if not (lose and p.rank == member.rank and p.shard == index)]
        member.lines[index] = self.shards[index].join(member.rank, member.incarnation)
        if member.step < STEPS:
            self.send(member, index)

    def kill_shard(self, index: int) -> None:
        """Its memory stays, all else is lost; members find their streams broken."""
        self.count("kill")
        self.shards[index] = Bench(self.specs, self.configs[index], self.shards[index].memory.copy())
        for member in self.members:
            self.break_stream(member, index)

    def run(self) -> None:
        for _ in range(20_000):
            if all(member.step == STEPS for member in self.members):
                return
            self.event()
        raise AssertionError(f"no end is reached: {[m.step for m in self.members]}, {[s.store.words for s in self.shards]}")

    def weights(self) -> list[np.ndarray]:
        (first, *others) = [member.params for member in self.members]
        assert first is not None and all(np.array_equal(first, other) for other in others if other is not None)
        starts = self.shards[0].layout.tensor_flat.tolist()
        return [first[at : at + 8 * size].view(np.float64) for at, size in zip(starts, SIZES, strict=True)]


@pytest.mark.parametrize(("num_workers", "num_servers"), [(2, 1), (2, 2), (3, 2), (4, 3)])
def test_every_history_ends_with_the_same_bits(num_workers: int, num_servers: int) -> None:
    wanted = reference(num_workers)
    happened: dict[str, int] = {}
    for seed in range(25):
        world = World(seed, num_workers, num_servers)
        world.run()
        for found, value in zip(world.weights(), wanted, strict=True):
            np.testing.assert_allclose(found, value, rtol=0, atol=1e-12)
        happened = {key: happened.get(key, 0) + world.happened.get(key, 0) for key in {*happened, *world.happened}}
        if seed == 0:
            bits = [found.tobytes() for found in world.weights()]
        assert [found.tobytes() for found in world.weights()] == bits
    expected = {"ACCEPTED", "DUPLICATE", "ALREADY_APPLIED", "FENCED", "break", "restart", "kill"}
    assert {key for key, count in happened.items() if count >= 5} == expected, happened
