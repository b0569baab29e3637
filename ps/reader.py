"""Reads whole versions of the parameters without being a member: for the driver."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.agreement import specs_from
from ps.checkpoints.load import Checkpoint
from ps.checkpoints.parts import Digests
from ps.config import Timeouts
from ps.control import ServerAddress
from ps.credentials import Credentials
from ps.errors import PserverError, Stopped, Unreachable
from ps.frame import Bytes
from ps.layout import Layout, ShardLayout
from ps.plan import Plan
from ps.roles import Role
from ps.security import call_metadata
from ps.transport.rpc import Peer

T = TypeVar("T")

_RESTORE_S = 600.0
"""Until a server has its part of a checkpoint."""


@dataclass(frozen=True)
class _Place:
    address: ServerAddress
    data: Peer
    control: Peer

    def close(self) -> None:
        self.data.close()
        self.control.close()


class Reader:
    """Pulls from all servers of a run, and stops them. Thread-safe.

    `locate` says where a shard is served now (None: nowhere). Where a server does not answer, `pause` waits a moment before it
    is asked again, or raises; without it the first failure counts.
    """

    def __init__(
        self,
        credentials: Credentials,
        num_servers: int,
        locate: Callable[[int], ServerAddress | None],
        timeouts: Timeouts,
        pause: Callable[[], None] | None = None,
    ) -> None:
        self._credentials = credentials
        self._num_servers = num_servers
        self._locate = locate
        self._timeouts = timeouts
        self._pause = pause
        self._lock = threading.Lock()  # guards _places
        self._places: dict[int, _Place] = {}

    def _ask(self, shard: int, call: Callable[[_Place], T]) -> T:
        while True:
            try:
                return call(self._place(shard))
            except (Unreachable, Stopped):
                if not self._pause:
                    raise
                self._pause()

    def _place(self, shard: int) -> _Place:
        address = self._locate(shard)
        if address is None:
            raise Unreachable(f"server {shard} does not run")
        with self._lock:
            place = self._places.get(shard)
            if place is None or place.address != address:
                if place:
                    place.close()
                place = self._places[shard] = _Place(address, self._peer(shard, address.data), self._peer(shard, address.control))
        return place

    def _peer(self, shard: int, address: str) -> Peer:
        return Peer(Role("server", shard), address, self._credentials, self._timeouts)

    def _describe(self, shard: int) -> pb.DescribeReply:
        reply: pb.DescribeReply = self._ask(shard, lambda place: place.control.call("Shard", "Describe", pb.DescribeRequest(), pb.DescribeReply))
        return reply

    @cached_property
    def _described(self) -> tuple[Layout, Plan, Digests]:
        reply = self._describe(0)
        layout = Layout(specs_from(reply.tensors, "server 0"), self._num_servers)
        plan = Plan(reply.steps_per_epoch, reply.total_steps, reply.validate_every, reply.own_loop)
        return layout, plan, np.array(reply.chunk_digests, np.uint64)

    @property
    def model(self) -> tuple[Layout, Plan]:
        """The model as the servers hold it, and the length of the run. Raises NotInitialised before the first Join."""
        layout, plan, _ = self._described
        return layout, plan

    @property
    def initial_digests(self) -> Digests:
        """xxh3-64 of every chunk of version 0, in layout order."""
        return self._described[2]

    def version(self) -> int:
        """The smallest one that a server holds."""
        versions = [int(self._describe(shard.index).version) for shard in self.layout.shards if shard.num_versioned]
        return min(versions, default=0)

    @property
    def layout(self) -> Layout:
        """The layout of `model`."""
        return self.model[0]

    def decide(self, version: int, rate_factor: float) -> None:
        """Tells every shard how the run goes on from `version` on; returns when all have made it durable."""
        request = pb.DecideRequest(version=version, rate_factor=rate_factor)
        for shard in range(self._num_servers):
            self._ask(shard, lambda place: place.control.call("Shard", "Decide", request, pb.DecideReply))

    def snapshot(self, shard: int, version: int) -> None:
        """Has a server cut a version in which nothing moves. Raises VersionGone."""
        request = pb.SnapshotRequest(version=version)
        self._ask(shard, lambda place: place.control.call("Shard", "Snapshot", request, pb.SnapshotReply))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Gives every server its part of a checkpoint of any number of servers; returns when all have it."""
        layout = Layout(checkpoint.manifest.specs, self._num_servers)
        metadata = call_metadata(self._credentials)
        for shard in range(self._num_servers):
            self._ask(
                shard,
                lambda place, shard=shard: place.data.send_frames(  # type: ignore[misc]
                    "Restore", checkpoint.frames(layout, shard), pb.RestoreReply, metadata, timeout_s=_RESTORE_S
                ),
            )

    def stop_servers(self, reason: str) -> None:
        """Asks all servers to end; those that do not answer are left to the launcher."""
        request = pb.StopRequest(reason=reason)
        for shard in range(self._num_servers):
            with suppress(PserverError):
                self._place(shard).control.call("Shard", "Stop", request, pb.StopReply, timeout_s=1.0)

    def pull(self, version: int) -> Bytes:
        """All tensors of `version` as a flat layout. Raises VersionGone."""
        flat: Bytes = np.zeros(self.layout.flat_bytes, np.uint8)
        for mine in self.layout.shards:
            self._ask(mine.index, lambda place, mine=mine: _pull(place.data, version, mine, flat))  # type: ignore[misc]
        return flat

    def close(self) -> None:
        with self._lock:
            for place in self._places.values():
                place.close()


def _pull(peer: Peer, version: int, mine: ShardLayout, flat: Bytes) -> None:
    for data in peer.receive_frames("Pull", pb.PullRequest(version=version)):
        header, payload = frame.decode(data)
        frame.land(payload, flat, mine, frame.checked_run(header, payload, mine, with_payload=True), flat=True)
