"""Receipts go down with the next frame of their stream, or alone when none comes soon."""

import asyncio
import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from torch import nn

from protos import pserver_pb2 as pb
from ps import data_port, frame, receipts
from ps.config import CommConfig, OptimizerConfig
from ps.layout import CHUNK_ELEMENTS
from ps.line import Line
from ps.receipts import HOLD_S, HeldReceipts, Receipt
from tests.ps.cluster import Cluster, cluster, exchange, in_threads, start
from tests.ps.raw import Raw, closing


@contextmanager
def joined(servers: Cluster, value: np.ndarray) -> Iterator[Raw]:
    """Rank 0 on its training stream; a model of one tensor, which has that value."""
    address = servers.addresses[0]
    member = Raw(address.data, address.control, servers.settings.run_id)
    with closing(member):
        member.join([("w", len(value), "float32", pb.RULE_OPTIMIZER)], [value])
        member.init([value])
        member.open()
        member.receive(pb.READY)
        yield member


def header(sequence: int) -> pb.FrameHeader:
    return pb.FrameHeader(kind=pb.RECEIPT, sequence=sequence)


@pytest.mark.parametrize(("size", "messages"), [(1000, [(2, True)]), (1 << 20, [(2, False), (0, True)])], ids=["short", "long"])
def test_receipts_go_before_a_frame_and_a_long_one_is_not_copied_for_them(size: int, messages: list[tuple[int, bool]]) -> None:
    data = frame.encode(pb.FrameHeader(kind=pb.PARAMS), [np.zeros(size, np.uint8)])

    async def scenario() -> list[bytes]:
        held = HeldReceipts(lambda: None)
        for sequence in (1, 2):
            held.hold(Receipt(header(sequence).SerializeToString(), for_answer=False))
        return [*held.before(data), *held.before(b"")]

    made = asyncio.run(scenario())
    found = [frame.receipts_of(message) for message in made]
    assert [(len(receipts), at < len(message)) for (receipts, at), message in zip(found, made, strict=True)] == messages
    assert [receipt.sequence for receipts, _ in found for receipt in receipts] == [1, 2]
    assert frame.decode(made[-1], found[-1][1])[0].kind == pb.PARAMS


def test_the_oldest_receipt_says_when_all_must_go() -> None:
    async def scenario() -> list[int]:
        due: asyncio.Queue[None] = asyncio.Queue()
        held = HeldReceipts(lambda: due.put_nowait(None))
        counts = []
        for number in (3, 1):
            for sequence in range(number):
                held.hold(Receipt(header(sequence).SerializeToString(), for_answer=False))
            await asyncio.wait_for(due.get(), 10)
            counts += [len(frame.receipts_of(message)[0]) for message in held.before(b"")]
        assert due.empty()
        return counts

    assert asyncio.run(scenario()) == [3, 1]


def test_a_receipt_that_may_wait_for_the_answer_asks_for_no_message() -> None:
    async def scenario() -> None:
        due: asyncio.Queue[None] = asyncio.Queue()
        held = HeldReceipts(lambda: due.put_nowait(None))
        for for_answer in (True, False, True):
            held.hold(Receipt(header(1).SerializeToString(), for_answer=for_answer))
        await asyncio.wait_for(due.get(), 10)
        assert [len(frame.receipts_of(message)[0]) for message in held.before(b"")] == [3]
        held.hold(Receipt(header(1).SerializeToString(), for_answer=True))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(due.get(), 10 * HOLD_S)
        assert len(held.before(b"")) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("inline_bytes", [0, 1 << 20], ids=["in threads", "on the loop"])
def test_a_receipt_that_nobody_awaits_comes_with_what_comes_next(inline_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though others would go at once; a probe's is what comes next."""
    monkeypatch.setattr(data_port, "INLINE_BYTES", inline_bytes)
    monkeypatch.setattr(receipts, "HOLD_S", 0.0)
    value = np.ones(3, np.float32)
    with cluster(2, 1) as servers, joined(servers, value) as member:
        for step_is_new, verdict in ((True, "ACCEPTED"), (False, "DUPLICATE")):
            member.push(0, 0, value, receipt_may_wait=True)
            member.send(member.frame(pb.PROBE, 0, None, step=0))
            message = next(member._down)
            assert message.header.kind == pb.RECEIPT and message.header.sequence == member._sequence
            assert [pb.Verdict.Name(receipt.verdict) for receipt in message.receipts] == [verdict], step_is_new


def test_a_push_that_may_not_be_answered_has_its_receipt_at_once() -> None:
    """The bytes of version 1 are gone."""
    value = np.ones(3, np.float32)
    with cluster(1, 1, optimizer=OptimizerConfig(lr=1.0)) as servers, joined(servers, value) as member:
        for step in range(3):
            member.push(step, 0, value, receipt_may_wait=True)
            member.receive(pb.PARAMS)
        member._backlog.clear()
        member.push(0, 0, value, receipt_may_wait=True)
        assert member.verdict() == "ALREADY_APPLIED"


@pytest.mark.parametrize(("window", "waits"), [(4, [False] * 3 + [True] * 4), (7, [True] * 7)])
def test_a_member_awaits_receipts_as_long_as_it_has_more_frames_than_its_window(
    window: int, waits: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[bool] = []
    send = Line.send

    def noted(line: Line, data: bytes) -> None:
        found, _ = frame.decode(data)
        if found.kind == pb.PUSH:
            pushed.append(found.receipt_may_wait)
        send(line, data)

    monkeypatch.setattr(Line, "send", noted)
    # six frames of weights and one of the sum of losses
    comm = CommConfig(frame_bytes=CHUNK_ELEMENTS * 4, window_frames=window, shared_memory=False)
    with cluster(1, 1, comm=comm) as servers:
        member = servers.member(0, nn.Linear(CHUNK_ELEMENTS, 6, bias=False))
        start(member)
        exchange(member, 0, 1.0)
    assert pushed == waits


def test_a_short_push_that_ends_a_step_is_answered_by_one_message() -> None:
    value = np.ones(3, np.float32)
    with cluster(1, 1, optimizer=OptimizerConfig(lr=1.0)) as servers, joined(servers, value) as member:
        for step in range(3):
            member.push(step, 0, value)
            message = next(member._down)
            assert message.header.kind == pb.PARAMS and [receipt.verdict for receipt in message.receipts] == [pb.ACCEPTED]


def test_frames_without_payload_are_taken_on_the_loop_however_much_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen by their receipts, which wait for company then."""
    in_company: list[int] = []
    receipts_of = frame.receipts_of

    def noted(data: bytes) -> tuple[list[pb.FrameHeader], int]:
        found = receipts_of(data)
        in_company.extend(receipt.sequence for receipt in found[0])
        return found

    monkeypatch.setattr(frame, "receipts_of", noted)
    with cluster(1, 1, comm=CommConfig(frame_bytes=1 << 20)) as servers:
        member = servers.member(0, nn.Linear(512, 512))
        start(member)
        for step in range(2):
            exchange(member, step, 1.0)
        assert member.client._state.lines[0].pushes_shared
        assert len(in_company) == member.client._state.lines[0]._sequence > 0


def test_a_member_asks_for_receipts_that_had_time_when_it_must_push_again() -> None:
    """The last frame of three, on shard 0, has the only credit when the stream to shard 1 breaks, and rank 1 has pushed nothing."""
    comm = CommConfig(frame_bytes=CHUNK_ELEMENTS * 4, window_frames=1, shared_memory=False)
    with cluster(2, 2, comm=comm) as servers:
        model = nn.Linear(CHUNK_ELEMENTS, 2, bias=False)
        members = [servers.member(rank, copy.deepcopy(model)) for rank in range(2)]
        in_threads([lambda member=member: start(member) for member in members])
        client = members[0].client
        state, exchange_of = client._state, client._state.exchange
        client.begin(0, 1.0, members[0].bound.gradients)
        client.ready(range(len(client.layout.specs)), present=True)
        with state.changed:
            assert state.changed.wait_for(lambda: not exchange_of.has_ready, 20)
            assert exchange_of._sent == [[False, True], [False]] and not exchange_of.awaits(0, 1)
        state.lines[1]._stream.cancel()
        with state.changed:
            assert state.changed.wait_for(lambda: bool(state.broken), 20)
        client.tend()
        with state.changed:
            assert state.changed.wait_for(lambda: not exchange_of.has_ready, 20)
        in_threads([client.settle, lambda: exchange(members[1], 0, 1.0)])
