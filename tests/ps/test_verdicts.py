"""What a client sees that was written against the protocol file alone."""

import math
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from protos import pserver_pb2 as pb
from ps.config import CommConfig, OptimizerConfig
from tests.ps.cluster import Cluster, cluster
from tests.ps.raw import Raw, Spec

SPECS: list[Spec] = [("w", 3, "float32", pb.RULE_OPTIMIZER), ("v", 2, "float32", pb.RULE_OPTIMIZER), ("f", 2, "float32", pb.RULE_FROZEN)]
VALUES = [np.ones(3, np.float32), np.ones(2, np.float32), np.full(2, 7, np.float32)]
GRAD = [np.full(3, 0.5, np.float32), np.full(2, 0.25, np.float32)]


class Pair:
    """Two members of one server, both joined, with open streams at version 0."""

    def __init__(self, servers: Cluster) -> None:
        self.servers = servers
        self.made: list[Raw] = []
        self.zero, self.one = self.member(0), self.member(1)
        for member in (self.zero, self.one):
            member.join(SPECS, VALUES)
        self.zero.init(VALUES)
        for member in (self.zero, self.one):
            member.open()
            assert member.receive(pb.READY).header.step == 0

    def member(self, rank: int, **changes: object) -> Raw:
        address = self.servers.addresses[0]
        run_id = changes.pop("run_id", self.servers.settings.run_id)
        self.made.append(Raw(address.data, address.control, run_id, rank, **changes))  # type: ignore[arg-type]
        return self.made[-1]

    def step(self, step: int) -> None:
        """Both push everything and take their answers."""
        for member in (self.zero, self.one):
            for chunk in range(2):
                member.push(step, chunk, GRAD[chunk])
                assert member.verdict() == "ACCEPTED"
        for member in (self.zero, self.one):
            assert sorted(member.receive(pb.PARAMS).header.first_chunk for _ in range(2)) == [0, 1]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with cluster(2, 1, optimizer=OptimizerConfig(lr=1.0), comm=CommConfig(frame_bytes=4096)) as servers:
        made = Pair(servers)
        try:
            yield made
        finally:
            for member in made.made:
                member.close()


def test_a_step_of_two_members(pair: Pair) -> None:
    pair.zero.push(0, 0, GRAD[0], weight=1.0)
    assert pair.zero.verdict() == "ACCEPTED"
    pair.one.push(0, 0, np.full(3, 1.5, np.float32), weight=3.0)
    assert pair.one.verdict() == "ACCEPTED"
    for member in (pair.zero, pair.one):
        frame = member.receive(pb.PARAMS)
        assert frame.header.step == 1 and frame.header.dtype == "float32"
        np.testing.assert_array_equal(np.frombuffer(frame.payload, np.float32), np.float32(1 - (0.5 + 4.5) / 4))


def test_the_same_push_again_is_a_duplicate_and_counts_once(pair: Pair) -> None:
    for verdict in ("ACCEPTED", "DUPLICATE", "DUPLICATE"):
        pair.zero.push(0, 0, GRAD[0])
        assert pair.zero.verdict() == verdict
    pair.one.push(0, 0, GRAD[0])
    np.testing.assert_array_equal(np.frombuffer(pair.one.receive(pb.PARAMS).payload, np.float32), np.float32(0.5))


def test_a_push_of_an_applied_step_is_answered_with_its_bytes(pair: Pair) -> None:
    pair.step(0)
    pair.zero.push(0, 0, GRAD[0])
    assert pair.zero.verdict() == "ALREADY_APPLIED"
    assert pair.zero.receive(pb.PARAMS).header.step == 1


def test_a_restarted_member_gets_what_was_sent_to_its_dead_stream(pair: Pair) -> None:
    pair.zero.push(0, 0, GRAD[0])
    pair.zero.close()
    again = pair.member(0, incarnation=2)
    assert again.join(SPECS, VALUES).version == 0
    again.open()
    again.push(0, 0, GRAD[0])
    assert again.verdict() in ("ACCEPTED", "DUPLICATE")
    pair.one.push(0, 0, GRAD[0])
    assert again.receive(pb.PARAMS).header.step == 1


def test_an_early_push_is_named_and_ends_the_stream(pair: Pair) -> None:
    pair.zero.push(1, 0, GRAD[0])
    assert pair.zero.verdict() == "EARLY"
    assert pair.zero.ending() == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "EarlyPush: rank 0 pushed step 1 of shard 0, which is at version 0",
    )


def test_an_older_incarnation_is_fenced(pair: Pair) -> None:
    newer = pair.member(0, incarnation=2)
    newer.join(SPECS, VALUES)
    code, details = pair.zero.ending()
    assert code is grpc.StatusCode.ABORTED and details.startswith("Fenced: rank 0 has joined again as incarnation 2")
    pair.zero.open()
    assert pair.zero.ending()[0] is grpc.StatusCode.ABORTED
    with pytest.raises(grpc.RpcError, match="a newer one runs"):
        pair.zero.join(SPECS, VALUES)


def test_a_frame_in_the_name_of_another_member_is_fenced(pair: Pair) -> None:
    pair.zero.push(0, 0, GRAD[0], member=pair.one.member)
    assert pair.zero.verdict() == "FENCED"
    assert pair.zero.ending()[0] is grpc.StatusCode.ABORTED


@pytest.mark.parametrize(("incarnation", "error"), [(0, "carries no incarnation"), (1, "is not the one that joined")])
def test_a_member_that_has_not_joined_is_refused(incarnation: int, error: str) -> None:
    with cluster(2, 1) as servers:
        address = servers.addresses[0]
        zero = Raw(address.data, address.control, servers.settings.run_id, 0)
        one = Raw(address.data, address.control, servers.settings.run_id, 1, incarnation=incarnation)
        zero.join(SPECS, VALUES)
        zero.init(VALUES)
        one.open()
        assert error in one.ending()[1]
        with pytest.raises(grpc.RpcError, match=error):
            one.init(VALUES)
        zero.close()
        one.close()


def test_other_bytes_for_the_same_step_are_diverged(pair: Pair) -> None:
    pair.zero.push(0, 0, GRAD[0])
    assert pair.zero.verdict() == "ACCEPTED"
    pair.zero.push(0, 0, -GRAD[0])
    assert pair.zero.verdict() == "DIVERGED"
    code, details = pair.zero.ending()
    assert code is grpc.StatusCode.DATA_LOSS and "rank 0 pushed other bytes for step 0" in details


@pytest.mark.parametrize(
    ("entry", "code", "error"), [("run_id", "FAILED_PRECONDITION", "ForeignRun"), ("secret", "UNAUTHENTICATED", "Unauthenticated")]
)
def test_another_run_is_refused_before_a_byte_is_read(pair: Pair, entry: str, code: str, error: str) -> None:
    stranger = pair.member(0, **{entry: "other"})
    stranger.open()
    found, details = stranger.ending()
    assert found is grpc.StatusCode[code] and details.startswith(f"{error}: ")
    for call in (lambda: stranger.join(SPECS, VALUES), lambda: stranger.init(VALUES), stranger.pull):
        with pytest.raises(grpc.RpcError, match=error):
            call()


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"first_chunk": 9}, r"names chunks 9..9, shard 0 has 3"),
        ({"num_chunks": 0}, "names chunks 0..-1"),
        ({"num_chunks": 2}, "brings 12 bytes, they have 20"),
        ({"num_chunks": 3}, "not a run of one block"),
        ({"dtype": "float64"}, "has dtype 'float64', they are float32"),
        ({"digests": [1]}, "digest 0000000000000001 was sent"),
        ({"digests": []}, "brings 0 digests"),
        ({"kind": pb.INIT}, "kind 1 on the Steps stream"),
        ({"kind": 99}, "kind 99 on the Steps stream"),
        ({"kind": pb.ABSENT}, "ABSENT brings a payload"),
        ({"weight": -1.0}, "weight -1.0 is not a number from 0"),
        ({"weight": float("nan")}, "weight nan"),
        ({"weight": float("inf")}, "weight inf"),
        ({"step": -1}, "step -1"),
    ],
)
def test_a_malformed_frame_is_named_and_ends_the_stream(pair: Pair, change: dict[str, object], detail: str) -> None:
    header = {"kind": pb.PUSH, "step": 0} | change
    pair.zero.send(pair.zero.frame(header.pop("kind"), 0, GRAD[0], **header))  # type: ignore[arg-type]
    assert pair.zero.verdict() == "MALFORMED"
    code, details = pair.zero.ending()
    assert code is grpc.StatusCode.INVALID_ARGUMENT and detail in details
    pair.one.push(0, 0, GRAD[0])
    assert pair.one.verdict() == "ACCEPTED", "only the sender's stream ends"


def test_a_push_to_a_frozen_chunk_is_malformed(pair: Pair) -> None:
    pair.zero.push(0, 2, VALUES[2])
    assert pair.zero.verdict() == "MALFORMED"
    assert "frozen" in pair.zero.ending()[1]


@pytest.mark.parametrize("change", [{"norms_shard": 5, "norms": [1.0]}, {"norms_shard": 1, "norms": [1.0, 2.0]}])
def test_norms_of_a_shard_that_does_not_exist_are_malformed(pair: Pair, change: dict[str, object]) -> None:
    pair.zero.send(pair.zero.frame(pb.NORMS, 0, None, step=0, **change))
    assert pair.zero.verdict() == "MALFORMED"


def test_the_stream_of_a_member_without_a_name_is_malformed(pair: Pair) -> None:
    stub = pair.zero._data.stream_stream("/pserver.Shard/Steps")
    with pytest.raises(grpc.RpcError, match="carries no pserver-member-bin"):
        list(stub(iter([]), metadata=pair.zero.metadata, timeout=10))


def test_wrong_initial_bytes_are_refused_and_right_ones_may_come_twice(pair: Pair) -> None:
    assert pair.zero.init(VALUES) == 0
    with pytest.raises(grpc.RpcError, match="initial bytes of w are not those announced at Join"):
        pair.zero.init([np.zeros(3, np.float32), *VALUES[1:]])


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (SPECS[:2], "2 tensors, expected 3"),
        ([("w", 4, "float32", pb.RULE_OPTIMIZER), *SPECS[1:]], r"rank 1 against rank 0: tensor w is float32\[4\]"),
        ([("w", 3, "float16", pb.RULE_OPTIMIZER), *SPECS[1:]], "tensor w has dtype 'float16'"),
    ],
)
def test_another_model_is_refused_and_named(pair: Pair, specs: list[Spec], message: str) -> None:
    with pytest.raises(grpc.RpcError, match=message):
        pair.one.join(specs, VALUES[: len(specs)])


def test_other_initial_values_are_refused_and_named(pair: Pair) -> None:
    with pytest.raises(grpc.RpcError, match="initial values of v differ"):
        pair.one.join(SPECS, [VALUES[0], np.zeros(2, np.float32), VALUES[2]])


def test_a_rank_that_the_run_does_not_have_is_refused(pair: Pair) -> None:
    with pytest.raises(grpc.RpcError, match="rank 2 joins a run of 2 workers"):
        pair.member(2).join(SPECS, VALUES)


def test_a_pull_is_pinned_and_says_when_the_version_is_gone(pair: Pair) -> None:
    pair.step(0)
    for version in (0, 1, -1):
        frames = pair.one.pull(version)
        assert {f.header.step for f in frames if f.header.first_chunk < 2} == {abs(version)}
        assert [c for f in frames for c in range(f.header.first_chunk, f.header.first_chunk + f.header.num_chunks)] == [0, 1, 2]
    pair.step(1)
    with pytest.raises(grpc.RpcError) as gone:
        pair.one.pull(0)
    assert gone.value.code() is grpc.StatusCode.OUT_OF_RANGE and gone.value.details().startswith("VersionGone: shard 0 holds version 2, not 0")


@pytest.mark.parametrize(("first", "count", "found"), [(1, 1, [1]), (0, 2, [0, 1]), (1, 0, [1, 2]), (2, 9, [2]), (0, 1, [0])])
def test_a_pull_of_some_chunks_brings_all_of_them(pair: Pair, first: int, count: int, found: list[int]) -> None:
    frames = pair.one.pull(first_chunk=first, num_chunks=count)
    assert [c for f in frames for c in range(f.header.first_chunk, f.header.first_chunk + f.header.num_chunks)] == found


def test_a_pull_before_version_0_is_refused() -> None:
    with cluster(1, 1) as servers:
        member = Raw(servers.addresses[0].data, servers.addresses[0].control, servers.settings.run_id)
        with pytest.raises(grpc.RpcError, match="NotInitialised: shard 0 has no model yet"):
            member.pull()
        member.join(SPECS, VALUES)
        with pytest.raises(grpc.RpcError, match="NotInitialised: shard 0 has no version 0 yet"):
            member.pull()
        member.close()


def test_rank_0s_order_goes_to_all_now_and_later(pair: Pair) -> None:
    pair.zero.send(pb.Frame(header=pb.FrameHeader(kind=pb.ORDER, places=[1, 0, 2], frame_bytes=65536)))
    first = pair.one.receive(pb.ORDER).header
    assert (list(first.places), first.frame_bytes) == ([1, 0, 2], 65536)
    pair.zero.send(pb.Frame(header=pb.FrameHeader(kind=pb.ORDER, places=[2, 1, 0])))  # the first one stands
    pair.step(0)
    pair.one.open()
    assert list(pair.one.receive(pb.ORDER).header.places) == [1, 0, 2]


def test_an_order_that_was_measured_takes_the_place_of_one_that_was_not(pair: Pair) -> None:
    pair.zero.send(pb.Frame(header=pb.FrameHeader(kind=pb.ORDER, places=[1, 0, 2])))
    assert list(pair.one.receive(pb.ORDER).header.ready_s) == []
    for ready_s in ([0.5, 0.25, 0.0], [0.1, 0.1, 0.1]):
        pair.zero.send(pb.Frame(header=pb.FrameHeader(kind=pb.ORDER, places=[1, 0, 2], ready_s=ready_s, link_bytes_per_s=1e6)))
    header = pair.one.receive(pb.ORDER).header
    assert (list(header.ready_s), header.link_bytes_per_s) == ([0.5, 0.25, 0.0], 1e6)
    pair.step(0)
    pair.one.open()
    assert list(pair.one.receive(pb.ORDER).header.ready_s) == [0.5, 0.25, 0.0], "the first that was measured stands"


@pytest.mark.parametrize(
    ("rank", "order", "words"),
    [
        (1, {"places": [1, 0, 2]}, "rank 1 brings an order of 3 tensors"),
        (0, {"places": [1, 0]}, "an order of 2 tensors and 0 times, the model has 3"),
        (0, {"places": [1, 0, 2], "ready_s": [0.1], "link_bytes_per_s": 1e6}, "an order of 3 tensors and 1 times"),
        (0, {"places": [1, 0, 2], "ready_s": [0.1, math.nan, 0.1], "link_bytes_per_s": 1e6}, "times or a rate that are none"),
        (0, {"places": [1, 0, 2], "ready_s": [0.1, -1.0, 0.1], "link_bytes_per_s": 1e6}, "times or a rate that are none"),
        (0, {"places": [1, 0, 2], "ready_s": [0.1, 0.2, 0.1]}, "times or a rate that are none"),
        (0, {"places": [1, 0, 2], "ready_s": [0.1, 0.2, 0.1], "link_bytes_per_s": math.inf}, "times or a rate that are none"),
    ],
)
def test_an_order_of_another_rank_or_of_another_model_is_refused(pair: Pair, rank: int, order: dict[str, Any], words: str) -> None:
    member = (pair.zero, pair.one)[rank]
    member.send(pb.Frame(header=pb.FrameHeader(kind=pb.ORDER, **order)))
    code, text = member.ending()
    assert code is grpc.StatusCode.INVALID_ARGUMENT and words in text


def test_a_probe_is_answered_before_anything_is_pushed(pair: Pair) -> None:
    pair.zero.send(pb.Frame(header=pb.FrameHeader(kind=pb.PROBE, sequence=5), payload=bytes(1000)))
    assert pair.zero.receive(pb.RECEIPT).header.sequence == 5
    pair.step(0)


def test_receipts_go_with_the_answer_in_one_message(pair: Pair) -> None:
    for chunk in range(2):
        pair.zero.push(0, chunk, GRAD[chunk])
        assert pair.zero.verdict() == "ACCEPTED"  # it does not wait for the other rank
    pair.one.push(0, 0, GRAD[0])
    pair.one.push(0, 1, GRAD[1])
    messages = [next(pair.one._down) for _ in range(2)]
    assert [(message.header.kind, len(message.receipts)) for message in messages] == [(pb.PARAMS, 1), (pb.PARAMS, 1)]
    assert [receipt.sequence for message in messages for receipt in message.receipts] == [1, 2]
