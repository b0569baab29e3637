"""Small sets of tensors and shards of them, without servers."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.checkpoints.cut import Cut, Cuts
from ps.config import Saving, ServerSettings
from ps.errors import PserverError
from ps.frame import Bytes
from ps.layout import Layout, Rule, Run, TensorSpec
from ps.ledger import RowBuffer
from ps.optimizers import num_slots
from ps.plan import Plan
from ps.shard import Shard
from ps.stats import ServerStats
from ps.store import Store
from ps.streams import Stream

KEY = bytes(range(32))
PLAN = Plan(steps_per_epoch=4, total_steps=1000)


def specs_of(*sizes: int, dtype: str = "float64", rule: Rule = Rule.OPTIMIZER) -> list[TensorSpec]:
    """Vectors w0, w1, … of the sizes."""
    return [TensorSpec(name=f"w{i}", shape=(size,), dtype=dtype, rule=rule) for i, size in enumerate(sizes)]


def settings(num_workers: int = 1, **changes: object) -> ServerSettings:
    base = ServerSettings(run_id="run", secret="t", shard=0, num_servers=1, num_workers=num_workers)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


class Line:
    """The server's end of a member's stream: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[pb.FrameHeader, Bytes]] = []
        self.ended: PserverError | bool | None = False
        """False while it lives, then how it ended."""
        self.stream = Stream(send=lambda data: self.sent.append(frame.decode(data)), end=self._end)

    def _end(self, error: PserverError | None) -> None:
        self.ended = error

    def of_kind(self, kind: pb.Kind) -> list[tuple[pb.FrameHeader, Bytes]]:
        return [(header, payload) for header, payload in self.sent if header.kind == kind]


class Bench:
    """One shard without I/O, and what members, all of which have joined, do to it. Gradients and values are flat layouts."""

    def __init__(self, specs: Sequence[TensorSpec], config: ServerSettings, memory: Bytes | None = None, plan: Plan = PLAN) -> None:
        self.config = config
        self.layout = Layout(specs, config.num_servers)
        self.mine = self.layout.shards[config.shard]
        slots = num_slots(config.optimizer)
        num_norms = sum(s.num_optimizer for s in self.layout.shards) if config.optimizer.two_phase else 0
        size = Store.size_bytes(self.mine, slots=slots, num_norms=num_norms)
        self.memory = np.zeros(size, np.uint8) if memory is None else memory
        """The shard's durable memory; a copy of it is what a kill leaves."""
        self.store = Store(self.memory, self.mine, slots=slots, num_norms=num_norms, key=KEY)
        if not self.store.attach():
            self.store.format()
        stats = ServerStats(config.shard, config.num_workers, RowBuffer(), None)
        self.cuts: dict[int, bytes] = {}
        """Versions that were cut, with `config.saving`."""
        self.given_up: dict[int, str] = {}
        self.holds_cut = False
        """Keeps the memory of the next cut, as somebody does who still writes it."""
        self._cuts = self._made_cuts(config.saving, plan) if config.saving else None
        self.shard = Shard(self.layout, self.store, config, plan, stats, self._cuts)
        self.verdicts: list[tuple[int, str]] = []
        self.sessions: dict[int, int] = {}
        self.lines = [self.join(rank) for rank in range(config.num_workers)]
        """The members' first streams."""

    def _made_cuts(self, saving: Saving, plan: Plan) -> Cuts:
        def deliver(cut: Cut) -> None:
            self.cuts[cut.version] = cut.memory.tobytes()
            if not self.holds_cut:
                cuts.release()

        cuts = Cuts(self.store, lambda version: saving.is_due(version, plan.steps_per_epoch), deliver, self.given_up.__setitem__)
        return cuts

    def flat(self, values: Sequence[np.ndarray] | float) -> Bytes:
        """A flat layout with one array (or the one number) per tensor."""
        memory = np.zeros(self.layout.flat_bytes, np.uint8)
        for i, (spec, at) in enumerate(zip(self.layout.specs, self.layout.tensor_flat.tolist(), strict=True)):
            value = values if isinstance(values, float | int) else values[i]
            memory[at : at + spec.num_bytes].view(spec.dtype)[:] = np.broadcast_to(value, spec.shape).ravel()
        return memory

    def init(self, flat: Bytes) -> None:
        for run in self.mine.frames(1 << 20):
            self.shard.init(run, self.payload(flat, run))

    def payload(self, flat: Bytes, run: Run) -> Bytes:
        return np.concatenate(frame.payload_parts(flat, self.mine, run, flat=True))

    def member(self, rank: int, incarnation: int = 1) -> pb.Member:
        return pb.Member(rank=rank, incarnation=incarnation, generation=self.config.generation, session=self.sessions.get(rank, 0))

    def join(self, rank: int, incarnation: int = 1) -> Line:
        line = Line()
        _, self.sessions[rank] = self.shard.join(self.member(rank, incarnation))
        self.shard.open_stream(self.member(rank, incarnation), line.stream)
        return line

    def push(self, rank: int, step: int, run: Run, flat: Bytes | None, weight: float = 1.0, incarnation: int = 1) -> None:
        """A contribution, absent if `flat` is None."""
        header = pb.FrameHeader(kind=pb.ABSENT if flat is None else pb.PUSH, step=step, first_chunk=run.first, num_chunks=len(run), weight=weight)
        payload: Bytes = np.empty(0, np.uint8)
        if flat is not None:
            payload = self.payload(flat, run)
            header.digests.extend(frame.payload_digests(payload, self.mine, run))
        self.shard.push(self.member(rank, incarnation), header, run, payload, lambda verdict: self.verdicts.append((rank, verdict.name)))

    def push_all(self, rank: int, step: int, flat: Bytes | None, weight: float = 1.0) -> None:
        for run in self.mine.frames(4096):
            if run.stop <= self.mine.num_versioned:
                self.push(rank, step, run, flat, weight)

    def values(self, version: int | None = None) -> list[np.ndarray]:
        """Every tensor (of a model on one shard) as the store holds it."""
        flat = np.zeros(self.layout.flat_bytes, np.uint8)
        wanted = self.store.version if version is None else version
        for run in self.mine.frames(1 << 20):
            _, payload = frame.decode(self.shard.answers.encode_params(wanted, run))
            frame.land(payload, flat, self.mine, run, flat=True)
        starts = self.layout.tensor_flat.tolist()
        return [flat[at : at + s.num_bytes].view(s.dtype).reshape(s.shape).copy() for s, at in zip(self.layout.specs, starts, strict=True)]
