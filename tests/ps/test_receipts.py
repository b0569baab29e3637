"""Receipts go down with the next frame of their stream, or alone when none comes soon."""

import asyncio

import numpy as np
import pytest
from torch import nn

from protos import pserver_pb2 as pb
from ps import frame
from ps.config import CommConfig, OptimizerConfig
from ps.receipts import HeldReceipts, Receipt
from tests.ps.cluster import cluster, exchange, start
from tests.ps.raw import Raw, closing


def header(sequence: int) -> pb.FrameHeader:
    return pb.FrameHeader(kind=pb.RECEIPT, sequence=sequence)


@pytest.mark.parametrize(("size", "messages"), [(1000, [(2, True)]), (1 << 20, [(2, False), (0, True)])], ids=["short", "long"])
def test_receipts_go_before_a_frame_and_a_long_one_is_not_copied_for_them(size: int, messages: list[tuple[int, bool]]) -> None:
    data = frame.encode(pb.FrameHeader(kind=pb.PARAMS), [np.zeros(size, np.uint8)])

    async def scenario() -> list[bytes]:
        held = HeldReceipts(lambda: None)
        for sequence in (1, 2):
            held.hold(Receipt(header(sequence).SerializeToString()))
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
                held.hold(Receipt(header(sequence).SerializeToString()))
            await asyncio.wait_for(due.get(), 10)
            counts += [len(frame.receipts_of(message)[0]) for message in held.before(b"")]
        assert due.empty()
        return counts

    assert asyncio.run(scenario()) == [3, 1]


def test_a_short_push_that_ends_a_step_is_answered_by_one_message() -> None:
    value = np.ones(3, np.float32)
    with cluster(1, 1, optimizer=OptimizerConfig(lr=1.0)) as servers:
        address = servers.addresses[0]
        member = Raw(address.data, address.control, servers.settings.run_id)
        with closing(member):
            member.join([("w", 3, "float32", pb.RULE_OPTIMIZER)], [value])
            member.init([value])
            member.open()
            member.receive(pb.READY)
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
