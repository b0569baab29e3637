"""Reads whole versions of the parameters without being a member: for the driver."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.agreement import specs_from
from ps.config import Timeouts
from ps.control import ServerAddress
from ps.errors import PserverError
from ps.frame import Bytes
from ps.layout import Layout
from ps.plan import Plan
from ps.security import call_metadata
from ps.transport.rpc import Peer


class Reader:
    """Pulls from all servers of a run, and stops them."""

    def __init__(self, run_id: str, token: str, servers: Sequence[ServerAddress], timeouts: Timeouts) -> None:
        metadata = call_metadata(run_id, token)
        self._data = [Peer(f"server {s.shard}", s.data, metadata, timeouts) for s in servers]
        self._control = [Peer(f"server {s.shard}", s.control, metadata, timeouts) for s in servers]

    @cached_property
    def model(self) -> tuple[Layout, Plan]:
        """The model as the servers hold it, and the length of the run. Raises NotInitialised before the first Join."""
        reply = self._control[0].call("Shard", "Describe", pb.DescribeRequest(), pb.DescribeReply)
        layout = Layout(specs_from(reply.tensors, str(self._control[0])), len(self._data))
        return layout, Plan(reply.steps_per_epoch, reply.total_steps, reply.validate_every, reply.own_loop)

    @property
    def layout(self) -> Layout:
        """The layout of `model`."""
        return self.model[0]

    def decide(self, version: int, rate_factor: float) -> None:
        """Tells every shard how the run goes on from `version` on; returns when all have made it durable."""
        request = pb.DecideRequest(version=version, rate_factor=rate_factor)
        for peer in self._control:
            peer.call("Shard", "Decide", request, pb.DecideReply)

    def stop_servers(self, reason: str) -> None:
        """Asks all servers to end; those that do not answer are left to the launcher."""
        for peer in self._control:
            with suppress(PserverError):
                peer.call("Shard", "Stop", pb.StopRequest(reason=reason), pb.StopReply, timeout_s=1.0)

    def pull(self, version: int) -> Bytes:
        """All tensors of `version` as a flat layout. Raises VersionGone."""
        flat: Bytes = np.zeros(self.layout.flat_bytes, np.uint8)
        for peer, mine in zip(self._data, self.layout.shards, strict=True):
            for data in peer.receive_frames("Pull", pb.PullRequest(version=version)):
                header, payload = frame.decode(data)
                frame.land(payload, flat, mine, frame.checked_run(header, payload, mine, with_payload=True), flat=True)
        return flat

    def close(self) -> None:
        for peer in (*self._data, *self._control):
            peer.close()
