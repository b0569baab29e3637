"""What stages say to each other: it arrives as it was, over real connections too, and nothing else is believed."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from queue import SimpleQueue
from threading import Event, Thread

import grpc
import pytest
import torch

from protos import pserver_pb2 as pb
from ps import frame
from ps.certificates import Authority
from ps.config import CommConfig
from ps.control_client import ControlClient
from ps.credentials import Credentials, token_of
from ps.errors import ConfigError, MalformedFrame, NeighbourLost
from ps.roles import Role
from ps.security import call_metadata
from ps.stages.links import StageLinks, put_while
from ps.stages.messages import FRAME_BYTES, MAX_MESSAGE_BYTES, Assembly, Message, frames_of
from ps.stages.neighbour import Neighbour
from ps.transport.rpc import open_channel
from tests.ps.cluster import TOKEN, in_threads
from tests.ps.driver import TIMEOUTS, Driver

LARGE = torch.arange(FRAME_BYTES // 2, dtype=torch.float32)
VALUES = {
    "a matrix": torch.randn(5, 7),
    "its columns first": torch.randn(7, 5).t(),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "with gaps": torch.randn(6, 8)[:, ::2],
    "expanded": torch.randn(1, 4).expand(3, 4),
    "a number": torch.tensor(3.5, dtype=torch.float64),
    "no element": torch.empty(0, 3),
    "truths": torch.tensor([True, False]),
    "half": torch.randn(9).to(torch.bfloat16),
    "large": LARGE,
}


def arrived(message: Message) -> Message:
    assembly = Assembly()
    found = [assembly.take(data) for data in frames_of(message)]
    assert not any(found[:-1]) and found[-1]
    return found[-1]


@pytest.mark.parametrize("name", VALUES)
def test_a_tensor_arrives_with_its_elements_type_and_order_in_memory(name: str) -> None:
    value = VALUES[name]
    (found,) = arrived(Message(pb.ACTIVATIONS, 3, 1, [value])).values
    assert found.dtype is value.dtype and torch.equal(found, value) and not found.requires_grad
    is_dense = name not in ("with gaps", "expanded")
    assert (found.stride() == value.stride()) is is_dense


def test_several_tensors_and_none_arrive_together_with_what_wants_a_gradient() -> None:
    values = [torch.randn(3, requires_grad=True), None, LARGE, torch.arange(4), torch.empty(0), LARGE * 2]
    found = arrived(Message(pb.GRADIENTS, 5, 2, values, 1.5))
    assert (found.kind, found.step, found.micro, found.weight) == (pb.GRADIENTS, 5, 2, 1.5)
    assert [None if value is None else value.requires_grad for value in found.values] == [True, None, False, False, False, False]
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(found.values, values, strict=True))


@pytest.mark.parametrize(("value", "what"), [(3, "an object of type int"), (torch.zeros(2, dtype=torch.complex64), "a tensor of torch.complex64")])
def test_what_is_no_tensor_of_numbers_is_refused_by_the_sender(value: object, what: str) -> None:
    with pytest.raises(ConfigError, match=f"{what} cannot travel between stages"):
        list(frames_of(Message(pb.ACTIVATIONS, 0, 0, [value])))


def tensor(shape: tuple[int, ...] = (2,), strides: tuple[int, ...] = (1,), dtype: str = "float32") -> pb.Passed:
    return pb.Passed(dtype=dtype, shape=shape, strides=strides)


WRONG = {
    "of another kind": pb.FrameHeader(kind=pb.PUSH),
    "of an unknown type": pb.FrameHeader(kind=pb.ACTIVATIONS, passed=[tensor(dtype="object")]),
    "with too few strides": pb.FrameHeader(kind=pb.ACTIVATIONS, passed=[tensor(strides=())]),
    "that overlaps itself": pb.FrameHeader(kind=pb.ACTIVATIONS, passed=[tensor((2, 2), (1, 1))]),
    "with gaps": pb.FrameHeader(kind=pb.ACTIVATIONS, passed=[tensor(strides=(1 << 40,))]),
    "with a stride of a dimension of 1 that no number holds": pb.FrameHeader(kind=pb.ACTIVATIONS, passed=[tensor((1,), (1 << 63,))]),
    "too large": pb.FrameHeader(kind=pb.ACTIVATIONS, passed=[tensor((MAX_MESSAGE_BYTES,))]),
    "too large together": pb.FrameHeader(kind=pb.ACTIVATIONS, passed=[tensor((MAX_MESSAGE_BYTES // 8,))] * 3),
    "too many": pb.FrameHeader(kind=pb.ACTIVATIONS, passed=[tensor()] * 257),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_message_that_is_wrong_is_refused_before_memory_is_taken(wrong: str) -> None:
    with pytest.raises(MalformedFrame, match="between stages"):
        Assembly().take(frame.encode(WRONG[wrong]))


def test_bytes_that_are_damaged_too_many_or_of_another_message_are_refused() -> None:
    (data,) = frames_of(Message(pb.ACTIVATIONS, 0, 0, [torch.ones(4)]))
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(MalformedFrame, match="the digest of a tensor between stages is wrong"):
        Assembly().take(damaged)
    first, *rest = frames_of(Message(pb.ACTIVATIONS, 0, 0, [LARGE]))
    for wrong, text in ((first, "begins within another one"), (rest[0] + b"", "brings")):
        assembly = Assembly()
        taken = [assembly.take(one) for one in (first, *rest[:-1])]
        assert not any(taken)
        with pytest.raises(MalformedFrame, match=text):
            assembly.take(wrong if wrong is first else frame.encode(pb.FrameHeader(kind=pb.ACTIVATIONS), [frame.decode(r)[1] for r in rest * 2]))


def test_what_comes_in_another_order_is_named_and_what_came_before_the_end_is_given_out() -> None:
    there = Neighbour(lambda data: None)
    here = Neighbour(there.received)
    here.put_activations(4, 1, [torch.ones(2)])
    here.put_gradients(4, 0, [None], 2.0)
    there.lost(NeighbourLost("stage 0 of the rank has gone"))
    with pytest.raises(MalformedFrame, match="sends ACTIVATIONS of step 4, micro-batch 1, not ACTIVATIONS of step 4, micro-batch 0"):
        there.take_activations(4, 0)
    assert there.take_gradients(4, 0) == ((None,), 2.0)
    with pytest.raises(NeighbourLost, match="stage 0 of the rank has gone"):
        there.take_activations(4, 1)


# -- over real connections -----------------------------------------------------------------------------------


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver(num_stages=3)
    yield made
    made.close()


def stage(driver: Driver, index: int, rank: int = 0, authority: Authority | None = None, comm: CommConfig | None = None) -> StageLinks:
    """As a worker makes it."""
    role = Role("member", rank, index)
    client = ControlClient(driver.peer(role), "worker", rank, index)
    driver.clients.append(client)
    tls = authority.issue(role) if authority else None
    made = StageLinks(
        client,
        3,
        host="127.0.0.1",
        credentials=Credentials(run_id=driver.run_id, token=None if tls else token_of(TOKEN, role), tls=tls),
        token_before=token_of(TOKEN, Role("member", rank, index - 1)) if index and not tls else None,
        comm=comm or CommConfig(),
        timeouts=TIMEOUTS,
        allow_plaintext=False,
    )
    client.register(pb.Environment(), made.address)
    return made


def test_stages_find_each_other_begin_at_the_smallest_version_and_hear_of_an_end(driver: Driver) -> None:
    last = stage(driver, 2)
    first = stage(driver, 0)
    versions: dict[int, int] = {}

    def begin(links: StageLinks, index: int, version: int) -> None:
        links.connect(lambda: None)
        versions[index] = links.agree(version)

    early = Thread(target=begin, args=(first, 0, 8))
    early.start()  # before the stage that it calls is there
    middle = stage(driver, 1)
    in_threads([lambda: begin(middle, 1, 7), lambda: begin(last, 2, 8)])
    early.join()
    assert versions == {0: 7, 1: 7, 2: 7}
    assert first.later and middle.earlier and middle.later and last.earlier
    first.later.put_activations(7, 0, [LARGE, torch.ones(3).requires_grad_()])
    large, ones = middle.earlier.take_activations(7, 0)
    assert torch.equal(large, LARGE) and ones.requires_grad
    last.earlier.put_gradients(7, 0, [LARGE], 4.0)
    (back,), weight = middle.later.take_gradients(7, 0)
    assert torch.equal(back, LARGE) and weight == 4.0
    middle.close()
    with pytest.raises(NeighbourLost, match="stage 1 of the rank has gone"):
        first.later.take_gradients(7, 0)
    with pytest.raises(NeighbourLost, match="stage 1 of the rank has gone"):
        last.earlier.take_activations(7, 0)
    for links in (first, last):
        links.close()


def test_what_stages_pass_keeps_to_the_links_rate_and_travels_as_long_as_it_should(driver: Driver) -> None:
    comm = CommConfig(bandwidth="80mbit", worker_bandwidth={1: "8mbit"}, latency="30ms")
    first, second, _ = links = [stage(driver, index, comm=comm) for index in range(3)]
    in_threads([partial(made.connect, lambda: None) for made in links])
    assert first.later and second.earlier
    for sender, taker in ((first.later, second.earlier), (second.earlier, first.later)):
        begun = time.monotonic()
        sender.put(Message(pb.ACTIVATIONS, 0, 0, [torch.ones(40_000)]))
        taker.take(pb.ACTIVATIONS)
        assert time.monotonic() - begun > 0.03 + (4 * 40_000 - (1 << 16)) / 1e6, "160 kB at 1 MB/s, but for a burst"
    for made in links:
        made.close()


def test_with_certificates_only_the_stage_before_is_served(driver: Driver) -> None:
    authority = Authority()
    first, middle, last = (stage(driver, index, authority=authority) for index in range(3))
    versions: list[int] = []

    def begin(links: StageLinks) -> None:
        links.connect(lambda: None)
        versions.append(links.agree(5))

    in_threads([lambda: begin(first), lambda: begin(middle), lambda: begin(last)])
    assert versions == [5, 5, 5]
    other = stage(driver, 1, 1, authority)
    member = Role("member", 0, 0)
    metadata = call_metadata(Credentials(run_id=driver.run_id, tls=authority.issue(member)), pb.Member(incarnation=1, generation=3))
    with closing(open_channel(other.address, Role("member", 1, 1), authority.issue(member))) as channel, pytest.raises(grpc.RpcError) as refused:
        next(channel.stream_stream("/pserver.Stages/Link")(iter([b""]), metadata=metadata, timeout=5))
    assert refused.value.details() == "Fenced: rank 0 stage 0 calls rank 1 stage 1, which is not the one after it"
    for links in (first, middle, last, other):
        links.close()


def test_what_is_raised_while_a_stage_waits_ends_the_wait(driver: Driver) -> None:
    alone = stage(driver, 0)

    def stopped() -> None:
        raise NeighbourLost("stopped")

    with pytest.raises(NeighbourLost, match="stopped"):
        alone.connect(stopped)
    assert alone.later
    with pytest.raises(NeighbourLost, match="stopped"):
        alone.later.take_gradients(0, 0)
    alone.close()


CALLERS = {
    "nobody": (None, None, grpc.StatusCode.UNAUTHENTICATED),
    "the driver": (Role("driver"), None, grpc.StatusCode.UNAUTHENTICATED),
    "the same stage of another rank": (Role("member", 1, 0), pb.Member(rank=1, incarnation=1, generation=3), grpc.StatusCode.UNAUTHENTICATED),
    "the stage after it": (Role("member", 0, 2), pb.Member(rank=0, stage=2, incarnation=1, generation=3), grpc.StatusCode.UNAUTHENTICATED),
    "the stage before it, of another generation": (Role("member", 0, 0), pb.Member(rank=0, incarnation=1, generation=2), grpc.StatusCode.ABORTED),
}


@pytest.mark.parametrize("name", CALLERS)
def test_only_the_stage_before_may_call(name: str, driver: Driver) -> None:
    role, member, code = CALLERS[name]
    links = stage(driver, 1)
    token = None if role is None else token_of(TOKEN, role)
    metadata = call_metadata(Credentials(run_id=driver.run_id, token=token), member)
    with grpc.insecure_channel(links.address) as channel, pytest.raises(grpc.RpcError) as refused:
        next(channel.stream_stream("/pserver.Stages/Link")(iter([b""]), metadata=metadata, timeout=5))
    assert refused.value.code() is code
    links.close()


def test_a_call_that_has_ended_before_it_is_served_holds_no_thread() -> None:
    begun, served = Event(), SimpleQueue[list[bytes]]()

    def late(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with suppress(grpc.RpcError):
            for _ in requests:  # until the caller has gone
                begun.set()
        served.put(list(put_while(context, SimpleQueue())))
        yield from ()

    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Late", {"Link": grpc.stream_stream_rpc_method_handler(late)}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream("/Late/Link")(chain([b"now"], iter(Event().wait, None)))
        assert begun.wait(5)
        call.cancel()
        assert served.get(timeout=5) == []
    server.stop(0).wait()


def test_a_stage_is_called_once(driver: Driver) -> None:
    links = stage(driver, 1)
    metadata = call_metadata(
        Credentials(run_id=driver.run_id, token=token_of(TOKEN, Role("member", 0, 0))), pb.Member(rank=0, generation=3, incarnation=1)
    )
    assert links.earlier
    with grpc.insecure_channel(links.address) as channel:
        call = channel.stream_stream("/pserver.Stages/Link")
        first = call(iter(list(frames_of(Message(pb.AGREE, 3)))), metadata=metadata, timeout=5)
        assert links.earlier.take(pb.AGREE).step == 3
        with pytest.raises(grpc.RpcError) as refused:
            next(call(iter([b""]), metadata=metadata, timeout=5))
        assert refused.value.details().startswith("Fenced: rank 0 stage 1 is called already")
        first.cancel()
    links.close()
