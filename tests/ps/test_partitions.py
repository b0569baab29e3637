"""A rank that cannot reach a server for a while, or whose connection swallows what is sent: it goes on by itself, to the same bits."""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from ps.transport import rpc
from tests.ps.cluster import Cluster, cluster, in_threads
from tests.ps.proxy import Proxy, proxy
from tests.ps.ranks import OPTIMIZER, OVER_GRPC, Rank, finish, reference

QUICK = {"grpc.keepalive_time_ms": 2000, "grpc.keepalive_timeout_ms": 2000, "grpc.http2.ping_timeout_ms": 2000}
"""In place of 10 s: the server has not seen enough of these pings by the end of the test to mind."""


@contextmanager
def far_rank() -> Iterator[tuple[Cluster, list[Rank], Proxy]]:
    """Two ranks of two servers at version 1; the streams of rank 1 to server 0 go through a link."""
    with ExitStack() as stack:
        servers = stack.enter_context(cluster(2, 2, optimizer=OPTIMIZER, comm=OVER_GRPC))
        ranks = [Rank(servers, rank) for rank in range(2)]
        link = stack.enter_context(proxy(servers.addresses[0].data))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rpc, "_CLIENT", [(name, QUICK.get(name, value)) for name, value in rpc._CLIENT])
            ranks[1].client._state.lines[0].move(dataclasses.replace(servers.addresses[0], data=link.address))
        in_threads([rank.start for rank in ranks])
        for rank in ranks:
            rank.begin()
        in_threads([rank.push for rank in ranks])
        in_threads([rank.settle for rank in ranks])
        yield servers, ranks, link


def test_a_partition_that_heals_costs_its_time_only() -> None:
    with far_rank() as (servers, ranks, link):
        near, far = ranks
        for rank in ranks:
            rank.begin()
        link.hold()
        near.push()
        far.client.ready([*far.tensors, far.sums], present=True)
        near.client.wait(near.on_shard(1))
        assert [server.host.version for server in servers.servers] == [1, 2]
        link.release()
        np.testing.assert_array_equal(finish(servers, ranks), reference(2), strict=True)
        assert far.client._state.lines[0].opened == 1


@pytest.mark.parametrize("up", [True, False], ids=["both ways", "answers only"])
def test_a_connection_that_swallows_what_is_sent_is_given_up_and_made_anew(up: bool) -> None:
    with far_rank() as (servers, ranks, link):
        near, far = ranks
        for rank in ranks:
            rank.begin()
        link.swallow(up=up)
        near.push()
        far.client.ready([*far.tensors, far.sums], present=True)
        np.testing.assert_array_equal(finish(servers, ranks), reference(2), strict=True)
        assert far.client._state.lines[0].opened >= 2
