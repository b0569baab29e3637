"""Streams on one event loop: nobody on it waits for another rank, and items come from any thread in order."""

import asyncio
import threading
from functools import partial

import numpy as np
import pytest

from protos import pserver_pb2 as pb
from ps import data_port
from ps.config import CommConfig
from ps.errors import Fenced
from ps.layout import Run
from ps.transport import streams
from ps.transport.streams import Outbox
from tests.ps.bench import Bench, settings, specs_of
from tests.ps.cluster import cluster
from tests.ps.raw import Raw, closing

SIZE = 64


def contribution(bench: Bench, flat: np.ndarray) -> tuple[pb.FrameHeader, Run, np.ndarray]:
    """To the only chunk, for step 0."""
    return pb.FrameHeader(kind=pb.PUSH, num_chunks=1, weight=1.0, digests=[1]), Run(0, 1), bench.payload(flat, Run(0, 1))


def test_a_push_that_may_not_wait_gives_back_what_is_left() -> None:
    bench = Bench(specs_of(SIZE), settings(2, comm=CommConfig(out_of_order_bytes=0)))
    flat = bench.flat(1.0)
    bench.init(flat)
    verdicts: list[str] = []
    rest = bench.shard.push(bench.member(1), *contribution(bench, flat), lambda verdict: verdicts.append(verdict.name), may_wait=False)
    assert rest is not None and verdicts == []
    bench.push(0, 0, Run(0, 1), flat)
    assert rest() is None
    assert verdicts == ["ACCEPTED"] and bench.store.version == 1


def test_a_push_that_waits_for_its_turn_ends_when_its_rank_joins_again() -> None:
    bench = Bench(specs_of(SIZE), settings(2, comm=CommConfig(out_of_order_bytes=0)))
    flat = bench.flat(1.0)
    bench.init(flat)
    rest = bench.shard.push(bench.member(1), *contribution(bench, flat), lambda verdict: None, may_wait=False)
    assert rest is not None
    errors: list[BaseException] = []

    def wait() -> None:
        with pytest.raises(Fenced) as caught:
            rest()
        errors.append(caught.value)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    bench.join(1)
    waiter.join(10)
    assert len(errors) == 1


@pytest.mark.parametrize("inline_bytes", [0, 1 << 20], ids=["in threads", "on the loop"])
def test_a_rank_whose_turn_it_is_passes_all_that_wait_for_it(inline_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_port, "INLINE_BYTES", inline_bytes)
    value = [np.ones(SIZE, np.float32)]
    with cluster(4, 1, comm=CommConfig(out_of_order_bytes=0)) as servers:
        address = servers.addresses[0]
        members = [Raw(address.data, address.control, servers.settings.run_id, rank) for rank in range(4)]
        with closing(*members):
            for member in members:
                member.join([("w", SIZE, "float32", pb.RULE_OPTIMIZER)], value)
            members[0].init(value)
            for member in members:
                member.open()
                member.receive(pb.READY)
            for member in reversed(members):
                member.push(0, 0, value[0])
            assert [member.verdict() for member in members] == ["ACCEPTED"] * 4
            assert [member.receive(pb.PARAMS).header.step for member in members] == [1] * 4


def test_an_outbox_keeps_the_order_of_every_thread() -> None:
    async def collect() -> list[tuple[int, int]]:
        outbox: Outbox[tuple[int, int]] = Outbox()
        threads = [threading.Thread(target=partial(put, outbox, name)) for name in range(3)]
        for thread in threads:
            thread.start()
        put(outbox, 3)
        return [await outbox.get() for _ in range(400)]

    def put(outbox: Outbox[tuple[int, int]], name: int) -> None:
        for i in range(100):
            outbox.put((name, i))

    got = streams.run(asyncio.wait_for(collect(), 30)).result()
    for name in range(4):
        assert [i for n, i in got if n == name] == list(range(100))
