"""A server process' place for one shard: empty until the first member joins, then the shard of that member's model."""

import hashlib
import logging
import threading

import psutil
from google.protobuf.message import DecodeError

from protos import pserver_pb2 as pb
from ps.agreement import Model, model_from, spec_messages
from ps.checkpoints.of_shard import Restoring, saved_cuts
from ps.checkpoints.saver import Saver
from ps.config import ServerSettings
from ps.errors import MalformedFrame, ModelMismatch, NotInitialised, PserverError
from ps.failpoints import hit
from ps.frame import Bytes
from ps.groups import check_groups
from ps.layout import Layout, Rule, Run
from ps.ledger import RowBuffer
from ps.optimizers import num_slots
from ps.shard import Shard
from ps.shard_memory import ShardMemory
from ps.shared import map_contributions, offer_store
from ps.stats import ServerStats
from ps.store import Store

log = logging.getLogger(__name__)


class ShardHost:
    """Builds the shard at the first Join and compares every later one with it. Thread-safe."""

    def __init__(self, settings: ServerSettings, rows: RowBuffer) -> None:
        self._settings = settings
        self._lock = threading.Lock()  # guards _model, _layout, _shard, _memory, _offer
        self._model: Model | None = None
        self._layout: Layout | None = None
        self._shard: Shard | None = None
        self._memory: ShardMemory | None = None
        self._offer: pb.SharedStore | None = None
        self.saver: Saver | None = None
        """Where cuts go; set once the process has registered."""
        self.stopping = threading.Event()
        """Set when the process is asked to end."""
        self._keeps_memory = settings.control_address is not None
        """Whether the memory outlives the process, since the driver may start another one: until it says that the run ends."""
        self.stats = ServerStats(settings.shard, settings.num_members, rows, settings.comm.link_bytes_per_s(settings.shard))

    def recover(self) -> None:
        """Goes on with the shard that a former process has left on this host, if there is one. Raises ResourcesMissing."""
        found = ShardMemory.find(self._settings, self.stopping)
        if found is None:
            return
        with self._lock:
            memory, request = found
            model = model_from(request)
            layout = Layout(model.specs, self._settings.num_servers)
            if len(memory.store) != self._store_bytes(layout):
                memory.close(remove=True)
                return
            self._shard = self._build(layout, model, memory)
        hit("server.recovered")
        log.info("shard %d goes on at version %d", self._settings.shard, self.version)

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """Raises ModelMismatch, Fenced, MalformedFrame."""
        settings = self._settings
        if not 0 <= request.member.rank < settings.num_workers:
            raise ModelMismatch(f"rank {request.member.rank} joins a run of {settings.num_workers} workers: start the server with as many")
        model = model_from(request)
        if (stages := max((request.member.stage, *(spec.stage for spec in model.specs))) + 1) > settings.num_stages:
            raise ModelMismatch(f"rank {request.member.rank} is split over {stages} stages or more, the run over {settings.num_stages}")
        with self._lock:
            self._check_restored()
            shard = self._agreed(model, request)
        memory = self._contributions(request)
        version, session = shard.join(request.member, memory)
        return pb.JoinReply(
            version=version,
            shard=settings.shard,
            num_servers=settings.num_servers,
            num_chunks=len(shard.layout),
            session=session,
            reads_shared=memory is not None and shard.reads_segment(request.member),
            store=self._offer if memory is not None else None,
            skipped=shard.has_skipped(version - 1),
        )

    def _check_restored(self) -> None:
        if self._restored is not None and not (self._shard and self._shard.store.initialised):
            raise NotInitialised(f"shard {self._settings.shard} waits for the checkpoint of version {self._restored}")

    @property
    def _restored(self) -> int | None:
        return self._settings.saving.restored if self._settings.saving else None

    def begin_restore(self, payload: Bytes) -> Restoring | None:
        """Makes room for what a RestoreRequest announces; None if the shard has it already. Raises MalformedFrame, ModelMismatch."""
        try:
            request = pb.RestoreRequest.FromString(payload.tobytes())
        except DecodeError as error:
            raise MalformedFrame(f"the request to restore cannot be parsed: {error}") from error
        if request.version != self._restored:
            raise MalformedFrame(f"version {request.version} is brought to shard {self._settings.shard}, which waits for {self._restored}")
        model = model_from(request.model)
        with self._lock:
            shard = self._agreed(model, request.model)
            return None if shard.store.initialised else Restoring(shard.store, request.version, request.decided, request.rate_factor)

    def end_restore(self, restoring: Restoring) -> None:
        """All has come. Raises MalformedFrame if not."""
        restoring.check_whole()
        self.shard().restore(restoring.version, restoring.decided, restoring.rate_factor)
        log.info("shard %d goes on at version %d of a checkpoint", self._settings.shard, restoring.version)

    def _contributions(self, request: pb.JoinRequest) -> Bytes | None:
        """The flat layout in the member's segment; None unless it is on this host."""
        if not (self._settings.comm.may_share and request.HasField("shared") and self._layout):
            return None
        return map_contributions(self._settings.run_id, request.member, request.shared, self._layout.flat_bytes)

    def _agreed(self, model: Model, request: pb.JoinRequest) -> Shard:
        if self._model and self._layout and self._shard:
            self._model.check_same(model, self._layout)
            return self._shard
        check_groups(model.specs, len(self._settings.optimizer.groups))
        self._check_room(2 * sum(spec.num_bytes for spec in model.specs if spec.rule is not Rule.FROZEN) // self._settings.num_servers)
        try:
            layout = Layout(model.specs, self._settings.num_servers)
        except ValueError as error:
            raise ModelMismatch(f"rank {model.rank}: {error}") from error
        self._check_room(size := self._store_bytes(layout))
        self._shard = self._build(layout, model, ShardMemory.make(self._settings, size, request))
        return self._shard

    def _check_room(self, size: int) -> None:
        """Raises ModelMismatch: at first for a lower bound, since the layout of what is far too large takes memory too."""
        room = psutil.virtual_memory().available
        if size > room:
            raise ModelMismatch(f"shard {self._settings.shard} needs {size} bytes, its host has {room}: use more servers or a larger host")

    def _store_bytes(self, layout: Layout) -> int:
        settings = self._settings
        slots = num_slots(settings.optimizer)
        return Store.size_bytes(layout.shards[settings.shard], slots=slots, num_norms=self._num_norms(layout))

    def _num_norms(self, layout: Layout) -> int:
        return sum(s.num_optimizer for s in layout.shards) if self._settings.optimizer.two_phase else 0

    def _build(self, layout: Layout, model: Model, memory: ShardMemory) -> Shard:
        settings = self._settings
        mine = layout.shards[settings.shard]
        slots = num_slots(settings.optimizer)
        name = f"{settings.run_id}:{settings.generation}:{settings.shard}:{slots}"
        key = hashlib.blake2b(layout.digest + name.encode(), digest_size=32).digest()
        store = Store(memory.store, mine, slots=slots, num_norms=self._num_norms(layout), key=key)
        if not store.attach():
            hit("shard.made")
            memory.store[:] = 0
            store.format()
        self._model, self._layout, self._memory = model, layout, memory
        self._offer = offer_store(memory.segment, store) if settings.comm.may_share else None
        log.info("shard %d: %d chunks, %d bytes, %.3f of the mean", settings.shard, len(mine), mine.size_bytes, _share(layout, settings.shard))
        self.stats.steps_per_epoch, self.stats.num_optimizer = model.plan.steps_per_epoch, mine.num_optimizer
        saving = settings.saving
        cuts = saved_cuts(store, layout, model.plan, saving, lambda: self.saver) if saving else None
        return Shard(layout, store, settings, model.plan, self.stats, cuts)

    def shard(self) -> Shard:
        """Raises NotInitialised before the first Join."""
        with self._lock:
            if self._shard is None:
                raise NotInitialised(f"shard {self._settings.shard} has no model yet: join first")
            return self._shard

    def describe(self) -> pb.DescribeReply:
        """The model as messages. Raises NotInitialised before the first Join."""
        shard = self.shard()
        assert self._layout and self._model
        plan = self._model.plan
        return pb.DescribeReply(
            tensors=spec_messages(self._layout.specs),
            version=shard.store.version,
            steps_per_epoch=plan.steps_per_epoch,
            total_steps=plan.total_steps,
            validate_every=plan.validate_every,
            own_loop=plan.own_loop,
            chunk_digests=self._model.digests,
        )

    def check_initial(self, run: Run, digests: list[int]) -> None:
        """Raises MalformedFrame unless the digests are those that all members brought at Join."""
        assert self._layout and self._model
        chunks = self._layout.shards[self._settings.shard].chunks[run.span].tolist()
        for chunk, digest in zip(chunks, digests, strict=True):
            if self._model.digests[chunk] != digest:
                name = self._layout.specs[int(self._layout.chunk_tensor[chunk])].name
                raise MalformedFrame(f"initial bytes of {name} are not those announced at Join")

    def waits_for(self) -> dict[int, int]:
        """Members, by number, that the shard waits for, with the number of chunks; empty before the first Join."""
        return self._shard.waits_for() if self._shard else {}

    @property
    def version(self) -> int:
        return self._shard.store.version if self._shard else -1

    def request_stop(self, reason: str) -> None:
        """Asks the process to end: the run is over, and needs the shard's memory no more."""
        self._keeps_memory = False
        self.yield_place(reason)

    def yield_place(self, reason: str) -> None:
        """Asks the process to end; its memory stays for another one, if there is a driver that may start it."""
        log.info("asked to stop: %s", reason)
        self.stopping.set()

    def close(self, error: PserverError | None) -> None:
        """Ends all streams and gives the shard's memory back."""
        with self._lock:
            if self._shard:
                self._shard.end(error)
            if self._memory:
                self._memory.close(remove=not self._keeps_memory)


def _share(layout: Layout, shard: int) -> float:
    mean = sum(layout.shard_bytes) / layout.num_servers
    return layout.shard_bytes[shard] / mean if mean else 1.0
